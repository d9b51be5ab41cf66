// What the quantizers and the attention kernels know of a problem.
#pragma once
#include <cstdint>

#include "common/quant_format.h"
#include "common/seqlen.h"

namespace sage {

struct ProblemParams {
  Sequences sequences;
  TileSpace q_tiles, k_tiles;
  int32_t batch, num_heads_q, num_heads_kv;
  int32_t head_dim;  // the true one
  int64_t total_q;   // packed: the stride of a head in lse and lse_shift; else 0
};

}  // namespace sage
