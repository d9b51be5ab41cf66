// A tile of Q: its mean subtracted, rotated, rounded to NVFP4; and the mean itself.
#pragma once
#include <cstdint>

#include "arch/convert.h"
#include "arch/math.h"
#include "arch/simt.h"
#include "common/nvfp4_format.h"
#include "quantize/nvfp4_block.h"
#include "quantize/params.h"
#include "quantize/q_rows.h"
#include "quantize/shared_tile.h"
#include "quantize/tiles.h"

namespace sage::quantize {

template <int kHeadDim>
struct Nvfp4QTile {
  using QRows = quantize::QRows<kHeadDim>;
  using Lanes = typename QRows::Lanes;
  using Rows = typename QRows::Rows;
  static constexpr int kRows = QRows::kGroups * 4;  // of a slot
  static constexpr int kBytes = nvfp4_bytes(kQTileRows, kHeadDim);

  struct SharedStorage : QRows::SharedStorage {
    float amax[Lanes::kThreads / 32];  // of the warps
    SharedTile<kBytes> tile;
  };

  SAGE_DEVICE static void write(QuantizeParams const& p, SharedStorage& shared, Place const& place) {
    QRows::load(p, shared, place, [&](HeadRows const& rows, Rows const& x, auto transform) {
      Scale const scale = store<transform.value>(p, shared, place, rows, x);
      if (arch::thread_index() == 0) place.in(p.q_scale, kQScalesPerTile)[0] = scale.scale * QRows::log2_scale(p);
      if (transform.value && p.smooth_q && arch::warp_index() == 0) {
        store_mean(p, shared, place, QRows::signed_inverse(p, scale));
      }
    });
  }

 private:
  template <bool kTransform>
  SAGE_DEVICE static Scale store(QuantizeParams const& p, SharedStorage& shared, Place const& place,
                                 HeadRows const& rows, Rows const& x) {
    float amax[kRows], largest = 0.f;
    SAGE_UNROLL for (int j = 0; j < kRows; ++j) {
      float y[8];
      QRows::template read<kTransform>(y, p, shared, rows, x, j);
      amax[j] = block_amax(y);
      largest = arch::max_nan(largest, amax[j]);
    }
    if (kTransform && p.smooth_q && arch::warp_index() == 0) {
      float y[8];
      QRows::read_mean(y, p, shared);
      largest = larger_amax(largest, y);
    }
    Scale const scale = nvfp4_scale(max_of_block<Lanes::kThreads>(shared.amax, largest));
    float const inverse = QRows::signed_inverse(p, scale);

    int const channel = Lanes::channel();
    SAGE_UNROLL for (int i = 0; i < kRows; i += 4) {
      uint32_t const scales = block_scales(amax[i], amax[i + 1], amax[i + 2], amax[i + 3], scale.inverse);
      SAGE_UNROLL for (int j = 0; j < 4; ++j) {
        float y[8];
        QRows::template read<kTransform>(y, p, shared, rows, x, i + j);
        int const row = QRows::row(i / 4, j);
        *reinterpret_cast<uint32_t*>(shared.tile.at(q_nvfp4_offset<kHeadDim>(row, channel))) =
            quantize_e2m1x8(y, block_inverse(block_scale(scales, j), inverse));
        if (channel % kNvfp4Block == 0) {
          *shared.tile.at(q_nvfp4_scale_offset<kHeadDim>(row, channel)) = static_cast<char>(scales >> 8 * j);
        }
      }
    }
    arch::sync_block();  // the tile is complete
    shared.tile.template store<Lanes::kThreads, kBytes>(place.in(p.q_out, kBytes));
    return scale;
  }

  // The mean's digits; by the warp of the first slot. `inverse` is that of the tile's power of two, or negative.
  SAGE_DEVICE static void store_mean(QuantizeParams const& p, SharedStorage const& shared, Place const& place,
                                     float inverse) {
    float y[8];
    QRows::read_mean(y, p, shared);
    int const channel = Lanes::channel();
    char* const out = place.in(p.q_mean, q_mean_nvfp4_bytes(kHeadDim));
    SAGE_UNROLL for (int digit = 0; digit < kQMeanDigits; ++digit) {
      float const left = digit == 0 ? inverse : unit_inverse(inverse);
      uint32_t const code = block_scales(block_amax(y), 0.f, 0.f, 0.f, fabsf(left));
      float const scale = block_scale(code, 0);
      uint32_t const codes = quantize_e2m1x8(y, block_inverse(scale, left));
      subtract_block(y, left, codes, scale);
      if (Lanes::slot() != 0) continue;
      *reinterpret_cast<uint32_t*>(out + q_mean_nvfp4_offset<kHeadDim>(digit, channel)) = codes;
      if (channel % kNvfp4Block == 0) {
        out[q_mean_nvfp4_scale_offset<kHeadDim>(digit, channel)] = static_cast<char>(code);
      }
    }
  }
};

}  // namespace sage::quantize
