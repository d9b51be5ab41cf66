// What the forward kernels read: plain data, filled by the host.
#pragma once
#include <cstdint>

#include "common/quant_format.h"
#include "common/seqlen.h"
#include "sage/attention.h"

namespace sage {

constexpr int64_t kMaxSeqlen = int64_t{1} << 28;  // of K: what 32-bit tile arithmetic holds at head_dim 256

struct AttnParams {
  // Quantized operands (common/quant_format.h).
  int8_t const *q, *k;
  float const *q_scale, *k_scale;
  TileSpace q_tiles, k_tiles;

  // 16-bit V: rows of the caller's tensor, or of the packed copy. Its data and strides are multiples of 16 bytes.
  // INT8 V: `v.data` holds tiles like k. Packed sequences: row_k (or the sequence's first tile) is added by the kernel.
  TensorView v;
  bool v_in_tiles;       // v.data is [head][tile]..., not the caller's tensor
  float const* v_scale;  // [batch][num_heads_kv][padded head_dim], or null: V was not scaled

  TensorView out;
  DType out_dtype;         // kFloat16 or kBFloat16
  bool out_in_pairs;       // out.data and its strides are multiples of 4 bytes and head_dim is even
  float* lse;              // null: not wanted
  float const* lse_shift;  // like lse: added to it; null: nothing

  Sequences sequences;
  int64_t total_q;  // packed: the stride of a head in lse; else 0
  int32_t batch, num_heads_q, num_heads_kv;
  int32_t head_dim;  // the true one
  bool causal;
  int64_t window_left, window_right;
  MaskView mask;
};

}  // namespace sage
