// Blocks of 16 values to NVFP4 (common/nvfp4_format.h).
#pragma once
#include <cfloat>
#include <cmath>
#include <cstdint>

#include "arch/convert.h"
#include "arch/math.h"
#include "arch/simt.h"
#include "common/nvfp4_format.h"
#include "quantize/tiles.h"

namespace sage::quantize {

// Of what shares a power of two, from its largest magnitude: the least one that `amax` is at most kNvfp4Max times. Not
// less than 2^-115: what blocks are multiplied by stays a normal number. NaN and 0 where amax is not finite.
SAGE_DEVICE Scale nvfp4_scale(float amax) {
  if (!(amax <= FLT_MAX)) return {NAN, 0.f};
  static_assert(kNvfp4Max == 0x1.5p11f, "its fraction and exponent are below");
  constexpr uint32_t kRoundUp = 0x7fffff - 0x280000, kExponent = 11;  // to the next exponent from a larger fraction on
  uint32_t const exponent = ((arch::as_uint(fmaxf(amax, 0x1p-104f)) + kRoundUp) >> 23) - kExponent;
  return {arch::as_float(exponent << 23), arch::as_float((254 - exponent) << 23)};
}

// The largest magnitude of a block of 16 channels, of which this lane and its neighbour have 8 each.
SAGE_DEVICE float block_amax(float const (&x)[8]) {
  float const amax = larger_amax(0.f, x);
  return arch::max_nan(amax, arch::shuffle_xor(amax, 1));
}

// The codes of four blocks' scales, the first lowest. `inverse` is that of the power of two; the scale of a block that
// is not finite is NaN.
SAGE_DEVICE uint32_t block_scales(float a, float b, float c, float d, float inverse) {
  return arch::round_to_e4m3x4(a, b, c, d, inverse * (1.f / kE2m1Max));
}

// The value of a scale's code other than NaN, which is byte i.
SAGE_DEVICE float block_scale(uint32_t codes, int i) {
  return arch::as_float((codes >> 8 * i & 0x7f) << 20) * 0x1p120f;  // float32's exponent has a bias larger by 120
}

// What a block's values are multiplied by; `inverse` is that of the power of two, or negative.
SAGE_DEVICE float block_inverse(float scale, float inverse) {
  return scale > 0.f ? arch::reciprocal(scale) * inverse : 0.f;
}

// As the function of arch, but zeros for the inverse 0, whatever the values are.
SAGE_DEVICE uint32_t quantize_e2m1x8(float const (&x)[8], float inverse) {
  float y[8];
  SAGE_UNROLL for (int i = 0; i < 8; ++i)
    y[i] = x[i] * inverse;
  uint32_t const codes = arch::round_to_e2m1x8(y);
  return inverse == 0.f ? 0 : codes;
}

// x * inverse less what a block of these codes and this scale is; `inverse` is that of the power of two.
SAGE_DEVICE void subtract_block(float (&x)[8], float inverse, uint32_t codes, float scale) {
  float y[8];
  arch::e2m1x8_to_float(y, codes);
  SAGE_UNROLL for (int i = 0; i < 8; ++i)
    x[i] = fmaf(-scale, y[i], x[i] * inverse);
}

// For what subtract_block leaves, whose inverse is one unless that of the power of two is zero.
SAGE_DEVICE float unit_inverse(float inverse) { return inverse == 0.f ? 0.f : 1.f; }

// The largest x of a block's threads. Has a barrier.
template <int kThreads>
SAGE_DEVICE float max_of_block(float (&of_warps)[kThreads / 32], float x) {
  SAGE_UNROLL for (int i = 1; i < 32; i *= 2)
    x = arch::max_nan(x, arch::shuffle_xor(x, i));
  if (arch::lane_index() == 0) of_warps[arch::warp_index()] = x;
  arch::sync_block();  // the maxima of all warps are visible
  return max_of(of_warps, kThreads / 32);
}

}  // namespace sage::quantize
