// Stores what one warp has computed: normalised output rows and their log-sum-exp.
#pragma once
#include <cstdint>

#include "arch/math.h"
#include "arch/simt.h"
#include "common/numerics.h"
#include "sage/types.h"

namespace sage::tile {

// Sum over the four lanes that share a row of an accumulator fragment.
SAGE_DEVICE float sum_of_quad(float x) {
  x += arch::shuffle_xor(x, 1);
  return x + arch::shuffle_xor(x, 2);
}

SAGE_DEVICE float max_of_quad(float x) {
  x = fmaxf(x, arch::shuffle_xor(x, 1));
  return fmaxf(x, arch::shuffle_xor(x, 2));
}

// Natural logarithm of sum * 2^max; -inf for a row that saw no key, whose sum is 0.
SAGE_DEVICE float log_sum_exp(float max, float sum) { return sum == 0.f ? -INFINITY : (max + log2f(sum)) * kLn2; }

// Two neighbouring channels of one row; `pairs`: both exist and `row` + `channel` is a multiple of 4 bytes.
SAGE_DEVICE void store_pair(uint16_t* row, int channel, int head_dim, bool pairs, DType dtype, float x, float y) {
  uint32_t const bits = dtype == DType::kBFloat16 ? arch::pack_bf16(x, y) : arch::pack_f16(x, y);
  if (pairs) {
    if (channel < head_dim) *reinterpret_cast<uint32_t*>(row + channel) = bits;
  } else {
    if (channel < head_dim) row[channel] = static_cast<uint16_t>(bits);
    if (channel + 1 < head_dim) row[channel + 1] = static_cast<uint16_t>(bits >> 16);
  }
}

}  // namespace sage::tile
