// Per channel partial sums of K, and of V the largest magnitude or, to smooth it, sum, largest and smallest value: of these QuantizeQkv and QuantizeNvfp4 make the means of K and V and the scales of V.
//
// A block reads one chunk of one head of K or of V; slot s takes every kSlots-th row from the s-th on, and the slots
// are combined through shared memory. Every order is fixed: results repeat bit for bit. Chunks beyond a sequence give
// what changes nothing: zeros, and infinities of the largest and smallest value.
#pragma once
#include <cmath>
#include <cstdint>

#include "arch/convert.h"
#include "arch/simt.h"
#include "common/quant_format.h"
#include "quantize/params.h"
#include "quantize/tiles.h"

namespace sage {

template <int kHeadDim>
struct KvStats {
  using Lanes = quantize::Lanes<kHeadDim>;
  static constexpr int kThreads = Lanes::kThreads, kMinBlocksPerSm = 1024 / kThreads;
  static constexpr int kRowsAtOnce = 4;  // of a slot: 64 bytes a thread are on their way
  using Params = QuantizeParams;
  struct SharedStorage {
    alignas(16) float partial[quantize::kSlots][kHeadDim];
  };

  static int64_t num_blocks(Params const& p) {
    return int64_t{p.batch} * p.num_heads_kv * p.stats_chunks * ((p.smooth_k ? 1 : 0) + (p.v_amax ? 1 : 0));
  }

  SAGE_DEVICE void operator()(Params const& p, char* smem) const {
    auto& shared = *reinterpret_cast<SharedStorage*>(smem);
    uint32_t const chunks = p.stats_chunks, heads = p.num_heads_kv, per_operand = p.batch * heads * chunks;
    bool const of_k = p.smooth_k && arch::block_index() < per_operand;
    uint32_t const index = arch::block_index() % per_operand;  // of [batch][head][chunk]
    int const batch = static_cast<int>(index / chunks / heads), head = static_cast<int>(index / chunks % heads);

    Sequence const sequence = p.sequences[batch];
    int64_t const rows_per_chunk = ceil_div(sequence.seqlen_k, chunks), first = index % chunks * rows_per_chunk;
    int64_t const rest = sequence.seqlen_k - first;
    int const num_rows = static_cast<int>(rest < rows_per_chunk ? rest : rows_per_chunk);
    quantize::HeadRows const rows(of_k ? p.k : p.v, batch, head, sequence.row_k + first, num_rows, p.head_dim);

    auto const add = [](float x, float y) { return x + y; };
    auto const larger = [](float x, float y) { return arch::max_nan(x, y); };
    auto const smaller = [](float x, float y) { return -arch::max_nan(-x, -y); };
    if (of_k) {
      float sum[8] = {};
      for_each_row(rows, num_rows, p.dtype, [&](float const(&row)[8], bool) {
        SAGE_UNROLL for (int i = 0; i < 8; ++i)
          sum[i] += row[i];
      });
      combine(shared, sum, add, p.k_sum, index);
      if (head == 0 && index % chunks == 0 && arch::thread_index() == 0) {  // the sequence's first block
        p.seqlens_k[batch] = static_cast<float>(sequence.seqlen_k);
      }
    } else if (!p.v_sum) {
      float amax[8] = {};
      for_each_row(rows, num_rows, p.dtype, [&](float const(&row)[8], bool) {
        SAGE_UNROLL for (int i = 0; i < 8; ++i)
          amax[i] = larger(amax[i], fabsf(row[i]));
      });
      combine(shared, amax, larger, p.v_amax, index);
    } else {
      float sum[8] = {}, high[8], low[8];
      SAGE_UNROLL for (int i = 0; i < 8; ++i) {
        high[i] = -INFINITY;
        low[i] = INFINITY;
      }
      for_each_row(rows, num_rows, p.dtype, [&](float const(&row)[8], bool exists) {
        SAGE_UNROLL for (int i = 0; i < 8; ++i) {
          sum[i] += row[i];
          high[i] = exists ? larger(high[i], row[i]) : high[i];
          low[i] = exists ? smaller(low[i], row[i]) : low[i];
        }
      });
      combine(shared, sum, add, p.v_sum, index);
      arch::sync_block();  // the sums of all slots have been read
      combine(shared, high, larger, p.v_amax, index);
      arch::sync_block();  // the largest values of all slots have been read
      combine(shared, low, smaller, p.v_low, index);
    }
  }

 private:
  // Calls `add` for this slot's rows and for rows of zeros that do not exist.
  template <class Add>
  SAGE_DEVICE static void for_each_row(quantize::HeadRows const& rows, int num_rows, DType dtype, Add const& add) {
    for (int row = Lanes::slot(); row < num_rows; row += kRowsAtOnce * quantize::kSlots) {
      quantize::Channels x[kRowsAtOnce];
      auto const index = [&](int j) { return row + j * quantize::kSlots; };
      rows.load(x, Lanes::channel(), index);
      SAGE_UNROLL for (int j = 0; j < kRowsAtOnce; ++j) {
        float y[8];
        quantize::to_float(y, x[j], dtype);
        add(y, rows.has(index(j)));
      }
    }
  }

  // Combines the slots' values by `op` and stores them for the chunk `index`.
  template <class Op>
  SAGE_DEVICE static void combine(SharedStorage& shared, float const (&x)[8], Op const& op, float* out,
                                  uint32_t index) {
    SAGE_UNROLL for (int i = 0; i < 8; ++i)
      shared.partial[Lanes::slot()][Lanes::channel() + i] = x[i];
    arch::sync_block();  // the partial results of all slots are visible
    int const channel = arch::thread_index();
    if (channel >= kHeadDim) return;
    float y = shared.partial[0][channel];
    SAGE_UNROLL for (int slot = 1; slot < quantize::kSlots; ++slot)
      y = op(y, shared.partial[slot][channel]);
    out[int64_t{index} * kHeadDim + channel] = y;
  }
};

}  // namespace sage
