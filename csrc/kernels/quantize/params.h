// What the quantizers read and write: plain data, filled by the host. Outputs are as common/quant_format.h says.
#pragma once
#include <cstdint>

#include "common/problem.h"
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
  kFp8E4m3,  // likewise
  kNvfp4,    // divided by v_scale, a power of two, to NVFP4 V^T tiles (common/nvfp4_format.h)
};

// Launch 1 (KvStats), only if smooth_k or a VFormat that scales V: per channel partial sums of K, and of V what its
// scale and mean are made of.
// Launch 2 (QuantizeQkv, or QuantizeNvfp4 for kNvfp4 Q and K): tiles of Q, K and V in one grid; without those of Q
// where q_out is null, and without those of K and V where k_out is.
struct QuantizeParams : ProblemParams {
  TensorView q, k, v;  // the caller's tensors: float16 or bfloat16, any strides and alignment
  DType dtype;
  float softmax_scale;        // its sign goes to the rounded Q, its magnitude and log2(e) to the scales of Q
  OperandOrder order;         // of INT8 Q and K and of 8-bit V; kWgmma has no INT4, kBlockScaled only kNvfp4
  QkFormat qk;                // kInt8, kInt4 or kNvfp4
  QkGranularity granularity;  // kThread, kWarp (Q per 32 rows, K per tile) or kBlock (per tile); not of kNvfp4
  bool smooth_k;
  bool smooth_q;  // kInt4 and kNvfp4 only
  bool hadamard;  // rotate Q and K, after smoothing, by hadamard_sign and the Hadamard matrix of the padded head_dim
  VFormat v_format;
  float v_max;  // kInt8, kFp8E4m3: what the largest |v| of a channel becomes

  int32_t stats_chunks;  // 1..kMaxStatsChunks
  float* k_sum;          // [batch][num_heads_kv][stats_chunks][padded head_dim]
  float* seqlens_k;      // [batch]: by which a sum is divided for the mean
  float* v_amax;         // like k_sum; null: V is not scaled
  float *v_sum, *v_low;  // like k_sum, with smooth_v: v_amax holds the largest v, v_low the smallest; else null

  char *q_out, *k_out;
  float *q_scale, *k_scale;
  char* q_mean;         // smooth_q: codes of each tile's mean, and
  float* q_mean_scale;  // [head][tile], kInt4: their scale
  void* v_out;
  float* v_scale;    // [batch][num_heads_kv][padded head_dim]; written by the block of the sequence's first V tile
  float* v_mean;     // like v_scale: what was subtracted from V; null: nothing
  float* lse_shift;  // natural-log units, like lse: softmax_scale * q . k_mean; null: not wanted
  int32_t fold_slots;
  uint32_t* fold_busy;  // AttnParams's: fold_slots zeros are written; null: nothing
};

}  // namespace sage
