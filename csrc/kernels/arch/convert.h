// Registers of 16-bit floats to float32, float32 to registers of INT8, and the maximum that scales are made of.
#pragma once
#include <cstdint>

#include "arch/math.h"
#include "common/macros.h"

namespace sage::arch {

// The two 16-bit floats of a register, the low half first.
SAGE_DEVICE void f16x2_to_float(float (&y)[2], uint32_t x) {
  y[0] = f16_to_float(x);
  y[1] = f16_to_float(x >> 16);
}
SAGE_DEVICE void bf16x2_to_float(float (&y)[2], uint32_t x) {
  y[0] = bf16_to_float(x);
  y[1] = as_float(x & 0xffff0000u);
}

// Four values times `factor`, rounded to nearest even, in one register, a lowest; each product is below 2^22 and what
// does not fit a byte wraps. Adding 1.5 * 2^23 rounds, and leaves the integer in the lowest bits.
SAGE_DEVICE uint32_t round_to_int8x4(float a, float b, float c, float d, float factor) {
  constexpr float kRounder = 12582912.f;
  return pack_bytes(as_uint(fmaf(a, factor, kRounder)), as_uint(fmaf(b, factor, kRounder)),
                    as_uint(fmaf(c, factor, kRounder)), as_uint(fmaf(d, factor, kRounder)));
}

// The larger one; NaN if one of them is (PTX ISA, max.NaN.f32).
SAGE_DEVICE float max_nan(float a, float b) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
#else
  return a > b || a != a ? a : b;
#endif
}

}  // namespace sage::arch
