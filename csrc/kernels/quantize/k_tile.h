// A tile of K: smoothed, rotated, rounded to INT8 or INT4.
#pragma once
#include <cmath>
#include <cstdint>

#include "arch/simt.h"
#include "common/quant_format.h"
#include "quantize/k_rows.h"
#include "quantize/params.h"
#include "quantize/tiles.h"

namespace sage::quantize {

template <int kHeadDim>
struct KTile {
  using Lanes = quantize::Lanes<kHeadDim>;
  using KRows = quantize::KRows<kHeadDim>;
  static_assert(kKTileRows == 4 * kSlots, "a slot has 4 keys");

  struct SharedStorage : KRows::SharedStorage {
    float amax[kSlots];  // of the slots; those that share a scale are neighbours
  };

  SAGE_DEVICE static void write(QuantizeParams const& p, SharedStorage& shared, Place const& place) {
    Sequence const sequence = p.sequences[place.batch];
    if (place.first_row >= sequence.seqlen_k) return;
    HeadRows const rows(p.k, place.batch, place.head, sequence.row_k + place.first_row,
                        sequence.seqlen_k - place.first_row, p.head_dim);
    int const channel = Lanes::channel(), group = Lanes::slot() % 4;
    float y[4][8], amax = 0.f;
    KRows::load(y, p, shared, place, rows, key);
    SAGE_UNROLL for (int j = 0; j < 4; ++j)
      amax = larger_amax(amax, y[j]);

    int const sharing = p.granularity == QkGranularity::kThread ? kSlots / kKScalesPerTile : kSlots;
    amax = Lanes::max_nan(amax);
    if (channel == 0) shared.amax[group * 4 + Lanes::slot() / 4] = amax;
    arch::sync_block();  // the maxima of all slots are visible
    Scale const scale = Scale::linear(max_of(shared.amax + group * 4 / sharing * sharing, sharing), qk_limit(p.qk));
    if (channel == 0 && Lanes::slot() < kKScalesPerTile) {
      place.in(p.k_scale, kKScalesPerTile)[group] = scale.scale;
    }

    char* const out = place.in(p.k_out, k_tile_bytes(kHeadDim));
    if (p.qk == QkFormat::kInt8) {
      store_int8(p.order, out, y, scale.inverse);
    } else {
      uint32_t codes[4], rest[4] = {};
      SAGE_UNROLL for (int j = 0; j < 4; ++j) {
        codes[j] = quantize_int4x8(y[j], scale.inverse);
        if (p.smooth_q) rest[j] = quantize_rest_int4x8(y[j], scale.inverse);
      }
      store_int4(out, codes);
      if (p.smooth_q) store_int4(out + k_int4_plane<kHeadDim>, rest);
    }
  }

 private:
  // Slot s has the keys 8 i + 2 t and 8 i + 2 t + 1 with t = s % 4 and i = s / 4 and s / 4 + 4.
  SAGE_DEVICE static int key(int j) { return (Lanes::slot() / 4 + j / 2 * 4) * 8 + Lanes::slot() % 4 * 2 + j % 2; }

  SAGE_DEVICE static void store_int8(OperandOrder order, char* out, float const (&y)[4][8], float inverse) {
    int const chunk = Lanes::channel() / 16 * 16;  // of 16 channels, which this lane shares with its neighbour
    SAGE_UNROLL for (int j = 0; j < 4; j += 2) {
      // Two keys: the even lane stores the first, the odd lane the second.
      uint32_t first[2], second[2];
      quantize_int8x8(first, y[j], inverse);
      quantize_int8x8(second, y[j + 1], inverse);
      int const row = key(j + Lanes::channel() / 8 % 2);
      int const offset = order == OperandOrder::kWgmma ? wgmma_offset<kHeadDim>(row, chunk) : k_int8_offset(row, chunk);
      *reinterpret_cast<Channels*>(out + offset) = exchange_halves({first[0], first[1], second[0], second[1]}, 1);
    }
  }

  // One plane: codes[j] are this lane's channels of key j. Four lanes have 16 bytes of four keys, and store one each.
  SAGE_DEVICE static void store_int4(char* out, uint32_t (&codes)[4]) {
    int const lane = Lanes::channel() / 8 % 4;
    SAGE_UNROLL for (int step = 1; step < 4; step *= 2) {  // transposes: codes[j] become those of lane j
      SAGE_UNROLL for (int j = 0; j < 4; ++j) {
        if (j & step) continue;
        bool const upper = lane & step;
        uint32_t const other = arch::shuffle_xor(upper ? codes[j] : codes[j + step], step);
        (upper ? codes[j] : codes[j + step]) = other;
      }
    }
    *reinterpret_cast<Channels*>(out + k_int4_offset(key(lane), Lanes::channel() / 32 * 32)) =
        Channels{{codes[0], codes[1], codes[2], codes[3]}};
  }
};

}  // namespace sage::quantize
