// A tile of V^T for block-scaled instructions: smoothed, rounded to NVFP4 or e4m3.
#pragma once
#include <cstdint>

#include "arch/math.h"
#include "arch/simt.h"
#include "common/nvfp4_format.h"
#include "quantize/nvfp4_block.h"
#include "quantize/params.h"
#include "quantize/shared_tile.h"
#include "quantize/tiles.h"
#include "quantize/v_scale.h"

namespace sage::quantize {

template <int kHeadDim>
struct Nvfp4VTile {
  using Lanes = quantize::Lanes<kHeadDim>;
  using VScale = quantize::VScale<kHeadDim>;
  static constexpr int kFp8Bytes = kKTileRows * kHeadDim, kFp4Bytes = nvfp4_bytes(kKTileRows, kHeadDim);

  struct SharedStorage : VScale::SharedStorage {
    SharedTile<kFp8Bytes> tile;
    alignas(16) float amax[kSlots][kHeadDim];
  };

  SAGE_DEVICE static void write(QuantizeParams const& p, SharedStorage& shared, Place const& place) {
    Sequence const sequence = p.sequences[place.batch];
    bool const fp8 = p.v_format == VFormat::kFp8E4m3;
    // Before the tile is known to have keys: the scales exist for sequences without any, too.
    VScale::load_scale(p, shared, place, sequence.seqlen_k,
                       [&](float amax) { return fp8 ? Scale::linear(amax, p.v_max) : nvfp4_scale(amax); });
    if (place.first_row >= sequence.seqlen_k) return;
    HeadRows const rows(p.v, place.batch, place.head, sequence.row_k + place.first_row,
                        sequence.seqlen_k - place.first_row, p.head_dim);
    Channels x[4];
    rows.load(x, Lanes::channel(), key);
    float y[4][8];
    SAGE_UNROLL for (int j = 0; j < 4; ++j)
      to_float(y[j], x[j], p.dtype);
    if (p.v_mean) {
      SAGE_UNROLL for (int j = 0; j < 4; ++j) {
        SAGE_UNROLL for (int c = 0; c < 8; ++c)
          y[j][c] = rows.has(key(j)) ? y[j][c] - shared.mean[Lanes::channel() + c] : 0.f;
      }
    }
    if (fp8) {
      put_e4m3(shared, y);
    } else {
      put_nvfp4(shared, y);
    }
    arch::sync_block();  // the tile is complete
    if (fp8) {
      shared.tile.template store<Lanes::kThreads, kFp8Bytes>(place.in(static_cast<char*>(p.v_out), kFp8Bytes));
    } else {
      shared.tile.template store<Lanes::kThreads, kFp4Bytes>(place.in(static_cast<char*>(p.v_out), kFp4Bytes));
    }
  }

 private:
  // Slot s has the keys 4 s .. 4 s + 3: a quarter of a block of each of its channels.
  SAGE_DEVICE static int key(int j) { return Lanes::slot() * 4 + j; }

  SAGE_DEVICE static void put_e4m3(SharedStorage& shared, float const (&y)[4][8]) {
    int const channel = Lanes::channel();
    SAGE_UNROLL for (int c = 0; c < 8; ++c) {
      *reinterpret_cast<uint32_t*>(shared.tile.at(v8_block_scaled_offset<kHeadDim>(key(0), channel + c))) =
          quantize_e4m3x4(y[0][c], y[1][c], y[2][c], y[3][c], shared.inverse[channel + c]);
    }
  }

  SAGE_DEVICE static void put_nvfp4(SharedStorage& shared, float const (&y)[4][8]) {
    int const channel = Lanes::channel(), quarter = Lanes::slot() % 4;
    SAGE_UNROLL for (int c = 0; c < 8; ++c) {
      float amax = 0.f;
      SAGE_UNROLL for (int j = 0; j < 4; ++j)
        amax = arch::max_nan(amax, fabsf(y[j][c]));
      shared.amax[Lanes::slot()][channel + c] = amax;
    }
    arch::sync_block();  // the maxima of all quarters are visible
    SAGE_UNROLL for (int c = 0; c < 8; c += 2) {
      float inverse[2], values[8];
      SAGE_UNROLL for (int i = 0; i < 2; ++i) {
        float amax = 0.f;
        SAGE_UNROLL for (int slot = 0; slot < 4; ++slot)
          amax = arch::max_nan(amax, shared.amax[Lanes::slot() - quarter + slot][channel + c + i]);
        float const of_channel = shared.inverse[channel + c + i];
        uint32_t const code = block_scales(amax, 0.f, 0.f, 0.f, of_channel);
        inverse[i] = block_inverse(block_scale(code, 0), of_channel);
        if (quarter == c / 2) {
          *shared.tile.at(v_nvfp4_scale_offset<kHeadDim>(key(0), channel + c + i)) = static_cast<char>(code);
        }
        SAGE_UNROLL for (int j = 0; j < 4; ++j)
          values[4 * i + j] = inverse[i] == 0.f ? 0.f : y[j][c + i] * inverse[i];
      }
      uint32_t const codes = arch::round_to_e2m1x8(values);
      SAGE_UNROLL for (int i = 0; i < 2; ++i)
        *reinterpret_cast<uint16_t*>(shared.tile.at(v_nvfp4_offset(key(0), channel + c + i))) =
            static_cast<uint16_t>(codes >> 16 * i);
    }
  }
};

}  // namespace sage::quantize
