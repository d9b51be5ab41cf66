// What the quantizers and the attention kernels know of a problem.
#pragma once
#include <cstdint>

#include "common/macros.h"
#include "common/quant_format.h"
#include "common/seqlen.h"

namespace sage {

struct ProblemParams {
  Sequences sequences;
  TileSpace q_tiles, k_tiles;
  int32_t batch, num_heads_q, num_heads_kv;
  int32_t head_dim;  // the true one
  int64_t total_q;   // packed: the stride of a head in lse and lse_shift; else 0

  // The first tile of a sequence in the buffers of Q and of K.
  SAGE_HD int64_t first_q_tile(int32_t b, int32_t head, Sequence const& s) const {
    return head * q_tiles.per_head + first_tile<kQTileRows>(q_tiles, b, s.row_q);
  }
  SAGE_HD int64_t first_k_tile(int32_t b, int32_t head_kv, Sequence const& s) const {
    return head_kv * k_tiles.per_head + first_tile<kKTileRows>(k_tiles, b, s.row_k);
  }
};

}  // namespace sage
