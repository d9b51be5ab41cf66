// A tile of Q: its mean subtracted, rotated, rounded to INT8 or INT4; and the mean itself.
#pragma once
#include <cmath>
#include <cstdint>

#include "arch/convert.h"
#include "arch/math.h"
#include "arch/simt.h"
#include "common/quant_format.h"
#include "quantize/params.h"
#include "quantize/q_rows.h"
#include "quantize/tiles.h"

namespace sage::quantize {

template <int kHeadDim>
struct QTile {
  using QRows = quantize::QRows<kHeadDim>;
  using Lanes = typename QRows::Lanes;
  using Rows = typename QRows::Rows;

  struct SharedStorage : QRows::SharedStorage {
    float amax[kQScalesPerTile];  // of the groups of a tile; those that share a scale are neighbours
  };

  SAGE_DEVICE static void write(QuantizeParams const& p, SharedStorage& shared, Place const& place) {
    QRows::load(p, shared, place, [&](HeadRows const& rows, Rows const& x, auto transform) {
      store<transform.value>(p, shared, place, rows, x);
      if (transform.value && p.smooth_q && arch::warp_index() == 0) store_q_mean(p, shared, place);
    });
  }

 private:
  // The mean's codes and scale; by the warp of the first slot.
  SAGE_DEVICE static void store_q_mean(QuantizeParams const& p, SharedStorage const& shared, Place const& place) {
    int const channel = Lanes::channel();
    float y[8];
    QRows::read_mean(y, p, shared);
    Scale const scale = Scale::linear(Lanes::max_nan(larger_amax(0.f, y)), kQMeanLimit);
    if (Lanes::slot() != 0) return;
    if (channel == 0) p.q_mean_scale[place.tile] = scale.scale * QRows::log2_scale(p);

    // A carry from each digit that is to be negative, then the digits in two's complement.
    constexpr uint32_t kCarry = 0x8888;
    uint32_t codes[8];
    SAGE_UNROLL for (int c = 0; c < 8; ++c) {
      uint32_t const code = arch::as_uint(fmaf(y[c], QRows::signed_inverse(p, scale), arch::kRounder));
      codes[c] = scale.inverse == 0.f ? 0 : (code + kCarry) ^ kCarry;
    }
    char* const out = place.in(p.q_mean, q_mean_bytes(kHeadDim));
    SAGE_UNROLL for (int digit = 0; digit < 4; ++digit) {
      *reinterpret_cast<uint32_t*>(out + q_mean_offset(digit, channel)) = arch::pack_int4x8(codes);
      SAGE_UNROLL for (int c = 0; c < 8; ++c)
        codes[c] >>= 4;
    }
  }

  template <bool kTransform>
  SAGE_DEVICE static void store(QuantizeParams const& p, SharedStorage& shared, Place const& place,
                                HeadRows const& rows, Rows const& x) {
    float amax[QRows::kGroups] = {};
    SAGE_UNROLL for (int j = 0; j < QRows::kGroups * 4; ++j) {
      float y[8];
      QRows::template read<kTransform>(y, p, shared, rows, x, j);
      amax[j / 4] = larger_amax(amax[j / 4], y);
    }
    SAGE_UNROLL for (int i = 0; i < QRows::kGroups; ++i)
      amax[i] = Lanes::max_nan(amax[i]);
    if (p.granularity != QkGranularity::kThread) {
      int const sharing = p.granularity == QkGranularity::kWarp ? kQScaleRows / 4 : kQScalesPerTile;
      SAGE_UNROLL for (int i = 0; i < QRows::kGroups; ++i) {
        if (Lanes::channel() == 0) shared.amax[QRows::group(i)] = amax[i];
      }
      arch::sync_block();  // the maxima of all groups are visible
      SAGE_UNROLL for (int i = 0; i < QRows::kGroups; ++i)
        amax[i] = max_of(shared.amax + QRows::group(i) / sharing * sharing, sharing);
    }

    bool const int8 = p.qk == QkFormat::kInt8;
    char* const out = place.in(p.q_out, q_tile_bytes(int8 ? 8 : 4, kHeadDim));
    SAGE_UNROLL for (int i = 0; i < QRows::kGroups; ++i) {
      Scale const scale = Scale::linear(amax[i], qk_limit(p.qk));
      float const inverse = QRows::signed_inverse(p, scale);
      if (Lanes::channel() == 0)
        place.in(p.q_scale, kQScalesPerTile)[QRows::group(i)] = scale.scale * QRows::log2_scale(p);
      uint32_t codes[4][2];
      SAGE_UNROLL for (int j = 0; j < 4; ++j) {
        float y[8];
        QRows::template read<kTransform>(y, p, shared, rows, x, i * 4 + j);
        if (int8) {
          quantize_int8x8(codes[j], y, inverse);
        } else {
          codes[j][0] = quantize_int4x8(y, inverse);
        }
      }
      if (int8) {
        store_int8(p.order, out, QRows::row(i, 0), codes[0], codes[1]);
        store_int8(p.order, out, QRows::row(i, 2), codes[2], codes[3]);
      } else {
        store_int4(out, QRows::row(i, 0), codes);
      }
    }
  }

  // Rows r and r + 8, 8 channels of each. For mma.sync a lane stores 4 channels and the 4 that are 16 further on of
  // both; for wgmma 16 channels of one.
  SAGE_DEVICE static void store_int8(OperandOrder order, char* out, int r, uint32_t const (&first)[2],
                                     uint32_t const (&second)[2]) {
    int const channel = Lanes::channel(), odd = channel / 8 % 2, upper = channel / 16 % 2;
    bool const wgmma = order == OperandOrder::kWgmma;
    int const offset = wgmma ? wgmma_offset<kHeadDim>(r + odd * 8, channel - odd * 8)
                             : q_int8_offset<kHeadDim>(r, channel - upper * 16 + upper * 4);
    *reinterpret_cast<Channels*>(out + offset) = exchange_halves(
        {first[0], wgmma ? first[1] : second[0], wgmma ? second[0] : first[1], second[1]}, wgmma ? 1 : 2);
  }

  // Rows r, r + 8, r + 16 and r + 24: a lane stores 8 channels and the 8 that are 32 further on, of two of them.
  SAGE_DEVICE static void store_int4(char* out, int r, uint32_t const (&codes)[4][2]) {
    int const channel = Lanes::channel(), upper = channel / 32 % 2;
    *reinterpret_cast<Channels*>(out + q_int4_offset<kHeadDim>(r + upper * 16, channel - upper * 32)) =
        exchange_halves({codes[0][0], codes[1][0], codes[2][0], codes[3][0]}, 4);
  }
};

}  // namespace sage::quantize
