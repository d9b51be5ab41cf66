// A tile of Q: its mean subtracted, rotated, rounded; and the mean itself.
#pragma once
#include <cmath>
#include <cstdint>

#include "arch/convert.h"
#include "arch/math.h"
#include "arch/simt.h"
#include "common/numerics.h"
#include "common/quant_format.h"
#include "quantize/params.h"
#include "quantize/tiles.h"

namespace sage::quantize {

template <int kHeadDim>
struct QTile {
  using Lanes = quantize::Lanes<kHeadDim>;
  static constexpr int kGroups = kQScalesPerTile / kSlots;  // of a slot; 4 rows each
  static_assert(kQTileRows == 4 * kQScalesPerTile, "a group has 4 rows");
  using Rows = Channels[kGroups * 4];

  struct SharedStorage {
    alignas(16) float k_mean[kHeadDim], q_mean[kHeadDim], signs[kHeadDim];
    float amax[kQScalesPerTile];  // of the groups of a tile; those that share a scale are neighbours
    alignas(16) float partial[kSlots][kHeadDim];
  };

  SAGE_DEVICE static void write(QuantizeParams const& p, SharedStorage& shared, Place const& place) {
    Sequence const sequence = p.sequences[place.batch];
    if (place.first_row >= sequence.seqlen_q) return;
    HeadRows const rows(p.q, place.batch, place.head, sequence.row_q + place.first_row,
                        sequence.seqlen_q - place.first_row, p.head_dim);
    Rows x;
    rows.load(x, Lanes::channel(), [](int j) { return row(j / 4, j % 4); });
    if (p.lse_shift) store_lse_shift(p, shared, place, sequence, rows, x);
    if (p.smooth_q || p.hadamard) {
      if (p.hadamard) Lanes::load_signs(shared.signs);
      load_q_mean(p, shared, sequence.seqlen_q - place.first_row, x);
      store<true>(p, shared, place, rows, x);
      if (p.smooth_q && arch::warp_index() == 0) store_q_mean(p, shared, place);
    } else {
      store<false>(p, shared, place, rows, x);
    }
  }

 private:
  // Group g of a tile has the rows g / 8 * 32 + 8 j + g % 8; slot s has the groups s and s + kSlots.
  SAGE_DEVICE static int group(int i) { return Lanes::slot() + i * kSlots; }
  SAGE_DEVICE static int row(int i, int j) { return group(i) / 8 * kQScaleRows + j * 8 + group(i) % 8; }

  SAGE_DEVICE static void store_lse_shift(QuantizeParams const& p, SharedStorage& shared, Place const& place,
                                          Sequence const& sequence, HeadRows const& rows, Rows const& x) {
    load_k_mean(p, shared.k_mean, place.batch, place.head / (p.num_heads_q / p.num_heads_kv));
    float* const lse_shift =
        p.lse_shift + place.first_row +
        (p.q_tiles.packed ? place.head * p.total_q + sequence.row_q
                          : (int64_t{place.batch} * p.num_heads_q + place.head) * sequence.seqlen_q);
    int const channel = Lanes::channel();
    SAGE_UNROLL for (int j = 0; j < kGroups * 4; ++j) {
      float y[8], dot = 0.f;
      to_float(y, x[j], p.dtype);
      SAGE_UNROLL for (int c = 0; c < 8; ++c)
        dot = fmaf(y[c], shared.k_mean[channel + c], dot);
      dot = Lanes::sum(dot);
      if (channel == 0 && rows.has(row(j / 4, j % 4))) lse_shift[row(j / 4, j % 4)] = p.softmax_scale * dot;
    }
  }

  // The mean over the tile's rows, of which the sequence has `num_rows` from the tile's first on; zeros without
  // smooth_q. Ends with a barrier.
  SAGE_DEVICE static void load_q_mean(QuantizeParams const& p, SharedStorage& shared, int64_t num_rows, Rows const& x) {
    if (p.smooth_q) {
      float sum[8] = {};
      SAGE_UNROLL for (int j = 0; j < kGroups * 4; ++j) {
        float y[8];
        to_float(y, x[j], p.dtype);
        SAGE_UNROLL for (int c = 0; c < 8; ++c)
          sum[c] += y[c];
      }
      SAGE_UNROLL for (int c = 0; c < 8; ++c)
        shared.partial[Lanes::slot()][Lanes::channel() + c] = sum[c];
      arch::sync_block();  // the sums of all slots are visible
    }
    int const channel = arch::thread_index();
    if (channel < kHeadDim) {
      float mean = 0.f;
      if (p.smooth_q) {
        SAGE_UNROLL for (int slot = 0; slot < kSlots; ++slot)
          mean += shared.partial[slot][channel];
        mean /= static_cast<float>(num_rows < kQTileRows ? num_rows : kQTileRows);
      }
      shared.q_mean[channel] = mean;
    }
    arch::sync_block();  // the mean of all channels is visible
  }

  // Its codes and scale; by the warp of the first slot.
  SAGE_DEVICE static void store_q_mean(QuantizeParams const& p, SharedStorage const& shared, Place const& place) {
    int const channel = Lanes::channel();
    float y[8];
    SAGE_UNROLL for (int c = 0; c < 8; ++c)
      y[c] = shared.q_mean[channel + c];
    if (p.hadamard) Lanes::rotate(y, shared.signs);
    Scale const scale = Scale::linear(Lanes::max_nan(larger_amax(0.f, y)), kQMeanLimit);
    if (Lanes::slot() != 0) return;
    if (channel == 0) p.q_mean_scale[place.tile] = scale.scale * log2_scale(p);

    // A carry from each digit that is to be negative, then the digits in two's complement.
    constexpr uint32_t kCarry = 0x8888;
    uint32_t codes[8];
    SAGE_UNROLL for (int c = 0; c < 8; ++c) {
      uint32_t const code = arch::as_uint(fmaf(y[c], signed_inverse(p, scale), arch::kRounder));
      codes[c] = scale.inverse == 0.f ? 0 : (code + kCarry) ^ kCarry;
    }
    char* const out = place.in(p.q_mean, q_mean_bytes(kHeadDim));
    SAGE_UNROLL for (int digit = 0; digit < 4; ++digit) {
      *reinterpret_cast<uint32_t*>(out + q_mean_offset(digit, channel)) = arch::pack_int4x8(codes);
      SAGE_UNROLL for (int c = 0; c < 8; ++c)
        codes[c] >>= 4;
    }
  }

  // Row j of x as it is to be rounded.
  template <bool kTransform>
  SAGE_DEVICE static void read(float (&y)[8], QuantizeParams const& p, SharedStorage const& shared,
                               HeadRows const& rows, Rows const& x, int j) {
    to_float(y, x[j], p.dtype);
    if constexpr (kTransform) {
      SAGE_UNROLL for (int c = 0; c < 8; ++c)
        y[c] = rows.has(row(j / 4, j % 4)) ? y[c] - shared.q_mean[Lanes::channel() + c] : 0.f;
      if (p.hadamard) Lanes::rotate(y, shared.signs);
    }
  }

  template <bool kTransform>
  SAGE_DEVICE static void store(QuantizeParams const& p, SharedStorage& shared, Place const& place,
                                HeadRows const& rows, Rows const& x) {
    float amax[kGroups] = {};
    SAGE_UNROLL for (int j = 0; j < kGroups * 4; ++j) {
      float y[8];
      read<kTransform>(y, p, shared, rows, x, j);
      amax[j / 4] = larger_amax(amax[j / 4], y);
    }
    SAGE_UNROLL for (int i = 0; i < kGroups; ++i)
      amax[i] = Lanes::max_nan(amax[i]);
    if (p.granularity != QkGranularity::kThread) {
      int const sharing = p.granularity == QkGranularity::kWarp ? kQScaleRows / 4 : kQScalesPerTile;
      SAGE_UNROLL for (int i = 0; i < kGroups; ++i) {
        if (Lanes::channel() == 0) shared.amax[group(i)] = amax[i];
      }
      arch::sync_block();  // the maxima of all groups are visible
      SAGE_UNROLL for (int i = 0; i < kGroups; ++i)
        amax[i] = max_of(shared.amax + group(i) / sharing * sharing, sharing);
    }

    bool const int8 = p.qk == QkFormat::kInt8;
    char* const out = place.in(p.q_out, q_tile_bytes(int8 ? 8 : 4, kHeadDim));
    SAGE_UNROLL for (int i = 0; i < kGroups; ++i) {
      Scale const scale = Scale::linear(amax[i], qk_limit(p.qk));
      float const inverse = signed_inverse(p, scale);
      if (Lanes::channel() == 0) place.in(p.q_scale, kQScalesPerTile)[group(i)] = scale.scale * log2_scale(p);
      uint32_t codes[4][2];
      SAGE_UNROLL for (int j = 0; j < 4; ++j) {
        float y[8];
        read<kTransform>(y, p, shared, rows, x, i * 4 + j);
        if (int8) {
          quantize_int8x8(codes[j], y, inverse);
        } else {
          codes[j][0] = quantize_int4x8(y, inverse);
        }
      }
      if (int8) {
        store_int8(p.order, out, row(i, 0), codes[0], codes[1]);
        store_int8(p.order, out, row(i, 2), codes[2], codes[3]);
      } else {
        store_int4(out, row(i, 0), codes);
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

  // Of softmax_scale, the sign goes to the rounded values, so that scales are never negative.
  SAGE_DEVICE static float log2_scale(QuantizeParams const& p) { return fabsf(p.softmax_scale) * kLog2e; }
  SAGE_DEVICE static float signed_inverse(QuantizeParams const& p, Scale const& scale) {
    return p.softmax_scale < 0.f ? -scale.inverse : scale.inverse;
  }
};

}  // namespace sage::quantize
