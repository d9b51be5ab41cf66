// Partial sums of K and largest |V| per channel, of which QuantizeQkv makes the mean of K and the scales of V.
//
// A block reads one chunk of one head of K or of V; slot s takes every kSlots-th row from the s-th on, and the slots
// are combined through shared memory. Every order is fixed: results repeat bit for bit. Chunks beyond a sequence give
// zeros.
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
    auto& partial = reinterpret_cast<SharedStorage*>(smem)->partial;
    uint32_t const chunks = p.stats_chunks, heads = p.num_heads_kv, per_operand = p.batch * heads * chunks;
    bool const of_k = p.smooth_k && arch::block_index() < per_operand;
    uint32_t const index = arch::block_index() % per_operand;  // of [batch][head][chunk]
    int const batch = static_cast<int>(index / chunks / heads), head = static_cast<int>(index / chunks % heads);

    Sequence const sequence = p.sequences[batch];
    int64_t const rows_per_chunk = ceil_div(sequence.seqlen_k, chunks), first = index % chunks * rows_per_chunk;
    int64_t const rest = sequence.seqlen_k - first, num_rows = rest < rows_per_chunk ? rest : rows_per_chunk;
    quantize::HeadRows const rows(of_k ? p.k : p.v, batch, head, sequence.row_k + first, num_rows, p.head_dim);

    float x[8] = {};
    if (of_k) {
      for_each_row(rows, num_rows, p.dtype, [&](float const(&row)[8]) {
        SAGE_UNROLL for (int i = 0; i < 8; ++i)
          x[i] += row[i];
      });
    } else {
      for_each_row(rows, num_rows, p.dtype, [&](float const(&row)[8]) {
        SAGE_UNROLL for (int i = 0; i < 8; ++i)
          x[i] = arch::max_nan(x[i], fabsf(row[i]));
      });
    }
    SAGE_UNROLL for (int i = 0; i < 8; ++i)
      partial[Lanes::slot()][Lanes::channel() + i] = x[i];
    arch::sync_block();  // the partial results of all slots are visible

    int const channel = arch::thread_index();
    if (channel >= kHeadDim) return;
    float y = 0.f;
    SAGE_UNROLL for (int slot = 0; slot < quantize::kSlots; ++slot) {
      float const z = partial[slot][channel];
      y = of_k ? y + z : arch::max_nan(y, z);
    }
    (of_k ? p.k_sum : p.v_amax)[int64_t{index} * kHeadDim + channel] = y;
    if (of_k && head == 0 && index % chunks == 0 && channel == 0) {  // the sequence's first block
      p.k_seqlens[batch] = static_cast<float>(sequence.seqlen_k);
    }
  }

 private:
  // Calls `add` for this slot's rows and, because zeros change nothing, for rows of zeros.
  template <class Add>
  SAGE_DEVICE static void for_each_row(quantize::HeadRows const& rows, int64_t num_rows, DType dtype, Add const& add) {
    for (int64_t row = Lanes::slot(); row < num_rows; row += kRowsAtOnce * quantize::kSlots) {
      quantize::Channels x[kRowsAtOnce];
      rows.load(x, Lanes::channel(), [&](int j) { return row + j * quantize::kSlots; });
      SAGE_UNROLL for (int j = 0; j < kRowsAtOnce; ++j) {
        float y[8];
        quantize::to_float(y, x[j], dtype);
        add(y);
      }
    }
  }
};

}  // namespace sage
