// Smoothing of Q (SageAttention2, section 3.1): a tile of Q holds what is left of its rows without their mean, and the
// scores lack q_mean . k, a row of 64 numbers per tile of keys that all rows of the tile of Q share. It is computed
// from the tile of K in shared memory: the warps of a block do 8 or 16 keys each, and meet in a row of shared memory.
//
// The mean is an integer of four 4-bit digits (common/quant_format.h): digit i is row i of an A fragment whose other
// rows are zero. K is 16ths of a step, of which its codes and its rests are the high and the low part. Digits and parts
// are combined as integers, without an error: |q_mean . (16 code + rest)| <= 30583 * 120 * 256 < 2^30.
#pragma once
#include <cstdint>
#include <cute/arch/copy_sm75.hpp>

#include "arch/math.h"
#include "arch/simt.h"
#include "arch/tensor_ops.h"
#include "common/quant_format.h"

namespace sage::tile {

// Of this warp's keys, to their places in `row`: the base-2 scores of q_mean. `digits` and `scale` are the tile of Q's;
// `k` and `k_scale`, of the tile of keys, are in shared memory. Qk is an INT4 format of tile/qk.h.
template <class Qk, int kWarps>
SAGE_DEVICE void multiply_q_mean(float* row, char const* digits, float scale, char const* k, float const* k_scale) {
  constexpr int kDigits = 4, kGroups = kKTileRows / 8 / kWarps;  // groups of 8 keys
  // Pinned, so that nothing of this is computed ahead of the loop over tiles and kept in registers.
  uint32_t const lane = arch::pinned(arch::lane_index()), first_key = arch::warp_index() * (kGroups * 8);
  // The four matrices of an ldmatrix: two panels of the codes, two of the rests.
  k += lane / 16 * Qk::kCodeBytes + lane / 8 % 2 * 1024 + (first_key + lane % 8) * 16;
  uint32_t with_codes[kGroups][4] = {}, with_rests[kGroups][4] = {};
  SAGE_UNROLL for (int step = 0; step < Qk::kSteps; ++step) {
    uint32_t a[4] = {};
    if (lane < kDigits * 4) {
      uint2 const fragment = *reinterpret_cast<uint2 const*>(digits + step * (kDigits * 32) + lane * 8);
      a[0] = fragment.x;
      a[2] = fragment.y;
    }
    SAGE_UNROLL for (int group = 0; group < kGroups; ++group) {
      uint32_t b[4];
      arch::ldmatrix<cute::SM75_U32x4_LDSM_N>(b, k + step * 2048 + group * 128);
      uint32_t const codes[2] = {b[0], b[1]}, rests[2] = {b[2], b[3]};
      arch::mma<typename Qk::Op>(with_codes[group], a, codes, with_codes[group]);
      arch::mma<typename Qk::Op>(with_rests[group], a, rests, with_rests[group]);
    }
  }
  float const unit = scale * k_scale[lane % 4] * (1.f / 16);
  SAGE_UNROLL for (int group = 0; group < kGroups; ++group) {
    SAGE_UNROLL for (int e = 0; e < 2; ++e) {
      uint32_t sum = (with_codes[group][e] * 16 + with_rests[group][e]) << lane / 4 % kDigits * 4;
      sum += arch::shuffle_xor(sum, 4);
      sum += arch::shuffle_xor(sum, 8);  // of rows 0 to 3, in each of them
      if (lane < 4) row[first_key + group * 8 + lane * 2 + e] = static_cast<float>(static_cast<int32_t>(sum)) * unit;
    }
  }
}

// Scores (s - bias) * unit, as bits, to base-2 scores with the row added to them. Up to kMaxRoundedUnit the bias is
// part of what is added, whose rounding is worth up to 0.75 steps of q . k: little beside the error of INT4, which is
// several steps. With larger units the bias goes first.
template <int kMTiles>
SAGE_DEVICE void add_q_mean(uint32_t (&s)[kMTiles][kKTileRows / 8][4], float unit, float bias, float const* row) {
  constexpr float kMaxRoundedUnit = .125f;
  row += arch::pinned(arch::lane_index()) % 4 * 2;
  auto const each = [&](auto const& score) {
    SAGE_UNROLL for (int n = 0; n < kKTileRows / 8; ++n) {
      SAGE_UNROLL for (int i = 0; i < 4 * kMTiles; ++i) {
        uint32_t& bits = s[i / 4][n][i % 4];
        bits = arch::as_uint(score(arch::as_float(bits), row[n * 8 + i % 2]));
      }
    }
  };
  if (unit > kMaxRoundedUnit) {
    each([&](float x, float addend) { return fmaf(x - bias, unit, addend); });
  } else {
    each([&](float x, float addend) { return fmaf(x, unit, fmaf(-bias, unit, addend)); });
  }
}

}  // namespace sage::tile
