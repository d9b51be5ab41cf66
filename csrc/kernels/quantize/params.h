// What the quantizers read and write: plain data, filled by the host. Outputs are as common/quant_format.h says.
#pragma once
#include <cstdint>

#include "common/quant_format.h"
#include "common/seqlen.h"
#include "sage/attention.h"

namespace sage {

// The keys of a sequence are cut into at most this many chunks, each summed by one thread block.
constexpr int kMaxStatsChunks = 16;
constexpr int kMinStatsRows = 256;  // of a chunk

enum class VFormat : int32_t {
  kInPlace,  // nothing is written: the attention kernel reads the caller's V
  kCopy,     // same dtype, to padded tiles
  kFloat16,  // bf16 to fp16, divided by the channel's power of two in v_scale, to padded tiles
  kInt8,     // divided by v_scale, to V^T tiles
};

// Launch 1 (KvStats), only if smooth_k or a VFormat that scales V: partial sums of K and largest |V| per channel.
// Launch 2 (QuantizeQkv): tiles of Q, K and V in one grid; without those of Q where q_out is null, and without those of
// K and V where k_out is.
struct QuantizeParams {
  TensorView q, k, v;  // the caller's tensors: float16 or bfloat16, any strides and alignment
  DType dtype;
  Sequences sequences;
  TileSpace q_tiles, k_tiles;
  int32_t batch, num_heads_q, num_heads_kv, head_dim;
  int64_t total_q;            // packed: the stride of a head in lse_shift; else 0
  float softmax_scale;        // its sign goes to the rounded Q, its magnitude and log2(e) to the scales of Q
  QkGranularity granularity;  // kThread, kWarp (Q per 32 rows, K per tile) or kBlock (per tile)
  bool smooth_k;
  VFormat v_format;
  float v_max;  // kInt8: the code of the largest |v|

  int32_t stats_chunks;  // 1..kMaxStatsChunks
  float* k_sum;          // [batch][num_heads_kv][stats_chunks][padded head_dim]
  float* k_seqlens;      // [batch]: by which a sum is divided for the mean
  float* v_amax;         // like k_sum; null: V is not scaled

  int8_t *q_out, *k_out;
  float *q_scale, *k_scale;
  void* v_out;
  float* v_scale;    // [batch][num_heads_kv][padded head_dim]; written by the block of the sequence's first V tile
  float* lse_shift;  // natural-log units, like lse: softmax_scale * q . k_mean; null: not wanted
};

}  // namespace sage
