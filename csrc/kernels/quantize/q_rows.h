// How the threads of a block share a tile of Q, and its mean.
#pragma once
#include <cstdint>
#include <type_traits>

#include "arch/simt.h"
#include "common/numerics.h"
#include "common/quant_format.h"
#include "quantize/params.h"
#include "quantize/tiles.h"

namespace sage::quantize {

template <int kHeadDim>
struct QRows {
  using Lanes = quantize::Lanes<kHeadDim>;
  static constexpr int kGroups = kQScalesPerTile / kSlots;  // of a slot; 4 rows each
  static_assert(kQTileRows == 4 * kQScalesPerTile, "a group has 4 rows");
  using Rows = Channels[kGroups * 4];

  struct SharedStorage {
    alignas(16) float k_mean[kHeadDim], q_mean[kHeadDim], signs[kHeadDim];
    alignas(16) float partial[kSlots][kHeadDim];
  };

  // Group g of a tile has the rows g / 8 * 32 + 8 j + g % 8; slot s has the groups s and s + kSlots.
  SAGE_DEVICE static int group(int i) { return Lanes::slot() + i * kSlots; }
  SAGE_DEVICE static int row(int i, int j) { return group(i) / 8 * kQScaleRows + j * 8 + group(i) % 8; }

  // Reads a tile, if its sequence has one there; stores its lse_shift and loads its mean; then calls store(rows, x,
  // transform), where transform.value is the template argument for `read`.
  template <class Store>
  SAGE_DEVICE static void load(QuantizeParams const& p, SharedStorage& shared, Place const& place, Store const& store) {
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
      store(rows, x, std::true_type());
    } else {
      store(rows, x, std::false_type());
    }
  }

  // Row j of x as it is to be rounded: smoothed and rotated if kTransform.
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

  // This lane's channels of the mean, rotated; by all lanes of a warp.
  SAGE_DEVICE static void read_mean(float (&y)[8], QuantizeParams const& p, SharedStorage const& shared) {
    SAGE_UNROLL for (int c = 0; c < 8; ++c)
      y[c] = shared.q_mean[Lanes::channel() + c];
    if (p.hadamard) Lanes::rotate(y, shared.signs);
  }

  // Of softmax_scale, the sign goes to the rounded values, so that scales are never negative.
  SAGE_DEVICE static float log2_scale(QuantizeParams const& p) { return fabsf(p.softmax_scale) * kLog2e; }
  SAGE_DEVICE static float signed_inverse(QuantizeParams const& p, Scale const& scale) {
    return p.softmax_scale < 0.f ? -scale.inverse : scale.inverse;
  }

 private:
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
};

}  // namespace sage::quantize
