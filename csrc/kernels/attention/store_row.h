// Stores one row of the output, and its log-sum-exp.
#pragma once
#include <cstdint>

#include "attention/params.h"
#include "tile/epilogue.h"

namespace sage {

// `row` of the sequence of `place`, nothing if it has fewer; all four lanes that share a row of an accumulator
// fragment, t = 0 .. 3. `value(n, e)` is this lane's sum for channel 8 n + 2 t + e. The output is the sums divided by
// `divisor`, which is 0 for a row that sees no key; `sum` is of the probabilities relative to `row_max`, a base-2
// score. `place` has sequence, batch, head and head_kv.
template <int kHeadDim, class Place, class Value>
SAGE_DEVICE void store_row(AttnParams const& p, Place const& place, int64_t row, float row_max, float sum,
                           float divisor, Value const& value) {
  int const t = arch::lane_index() % 4;
  int64_t const of_head = (int64_t{place.batch} * p.num_heads_kv + place.head_kv) * kHeadDim;
  float const* const v_scale = p.v_scale ? p.v_scale + of_head : nullptr;
  float const* const v_mean = p.v_mean ? p.v_mean + of_head : nullptr;
  bool const seen = divisor != 0.f;  // else no key was: out is 0 and lse -inf, even where V or K holds NaN
  float const factor = 1.f / divisor;
  Sequence const& sequence = place.sequence;
  if (row >= sequence.seqlen_q) return;
  uint16_t* const out = static_cast<uint16_t*>(p.out.data) + place.batch * p.out.stride_batch +
                        place.head * p.out.stride_head + (sequence.row_q + row) * p.out.stride_seq;
  SAGE_UNROLL for (int n = 0; n < kHeadDim / 8; ++n) {
    int const channel = n * 8 + t * 2;
    float x = value(n, 0) * factor, y = value(n, 1) * factor;
    if (v_scale) {
      x *= v_scale[channel];
      y *= v_scale[channel + 1];
    }
    if (v_mean) {
      x += v_mean[channel];
      y += v_mean[channel + 1];
    }
    tile::store_pair(out, channel, p.head_dim, p.out_in_pairs, p.out_dtype, seen ? x : 0.f, seen ? y : 0.f);
  }
  if (p.lse && t == 0) {
    int64_t const index = p.sequences.cu_seqlens_q
                              ? place.head * p.total_q + sequence.row_q + row
                              : (int64_t{place.batch} * p.num_heads_q + place.head) * sequence.seqlen_q + row;
    float const shift = p.lse_shift && seen ? p.lse_shift[index] : 0.f;
    p.lse[index] = tile::log_sum_exp(row_max, sum) + shift;
  }
}

}  // namespace sage
