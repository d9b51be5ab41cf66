// What the forward kernels read: plain data, filled by the host.
#pragma once
#include <cstdint>

#include "common/problem.h"
#include "sage/attention.h"

namespace sage {

constexpr int64_t kMaxSeqlen = int64_t{1} << 28;  // of K: what 32-bit tile arithmetic holds at head_dim 256

// At least as many as thread blocks of a kernel are ever resident on a GPU together: two on each of 192 SMs.
constexpr int kFoldSlots = 512;

struct AttnParams : ProblemParams {
  // Quantized operands (common/quant_format.h, common/nvfp4_format.h).
  char const *q, *k;
  float const *q_scale, *k_scale;
  char const* q_mean;         // smooth_q: codes of each tile's mean; else null
  float const* q_mean_scale;  // their scale; null for NVFP4, which has it among them

  // 16-bit V: rows of the caller's tensor, or of the packed copy. Its data and strides are multiples of 16 bytes.
  // 8-bit and NVFP4 V: `v.data` holds tiles like k. Packed sequences: row_k (or the sequence's first tile) is added by
  // the kernel.
  TensorView v;
  bool v_in_tiles;       // v.data is [head][tile]..., not the caller's tensor
  float const* v_scale;  // [batch][num_heads_kv][padded head_dim], or null: V was not scaled
  float const* v_mean;   // likewise: added to the output; or null

  TensorView out;
  DType out_dtype;         // kFloat16 or kBFloat16
  bool out_in_pairs;       // out.data and its strides are multiples of 4 bytes and head_dim is even
  float* lse;              // null: not wanted
  float const* lse_shift;  // like lse: added to it; null: nothing

  bool causal;
  int64_t window_left, window_right;
  MaskView mask;

  int32_t sm_count;  // of the device: a persistent kernel has at most so many blocks

  float log2_p_max;   // FP8 and NVFP4 P: of what the largest probability of a row so far becomes, at most; else 0
  bool reverse_keys;  // the last key tile first
  // FP8 P V: after so many key tiles its accumulators are added to float32 ones. mma.sync kernels have these in global
  // memory, of which a block takes a slot. Launches that use the same slots do not run at the same time. Null where no
  // block sees more tiles than fold_every.
  int32_t fold_every;
  uint32_t* fold_busy;  // [fold_slots]: 1 while a block has the slot
  float* fold;          // [fold_slots][fold_floats(padded head_dim)], in an order of the kernel's own
  int32_t fold_slots;   // as many as blocks, but not more than kFoldSlots
};

// Channels of the rows of a tile, and room for the sums of the rows' probabilities.
SAGE_HD int fold_floats(int head_dim) { return kQTileRows * (head_dim + 8); }

}  // namespace sage
