// Registers of 16-bit floats to float32, float32 to registers of INT8, INT4, e4m3 and e2m1, and the maximum that scales
// are made of.
#pragma once
#include <cmath>
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

// Adding 1.5 * 2^23 rounds a value below 2^22 to the nearest integer, ties to even, and leaves it in the lowest bits.
constexpr float kRounder = 12582912.f;
constexpr uint32_t kRounderBits = 0x4B400000u;

// Four values times `factor`, rounded to nearest even, in one register, a lowest; each product is below 2^22 and what
// does not fit a byte wraps.
SAGE_DEVICE uint32_t round_to_int8x4(float a, float b, float c, float d, float factor) {
  return pack_bytes(as_uint(fmaf(a, factor, kRounder)), as_uint(fmaf(b, factor, kRounder)),
                    as_uint(fmaf(c, factor, kRounder)), as_uint(fmaf(d, factor, kRounder)));
}

// The lowest four bits of eight registers, x[0] lowest.
SAGE_DEVICE uint32_t pack_int4x8(uint32_t const (&x)[8]) {
  uint32_t const even = pack_bytes(x[0], x[2], x[4], x[6]), odd = pack_bytes(x[1], x[3], x[5], x[7]);
  return (even & 0x0f0f0f0fu) | (odd << 4 & 0xf0f0f0f0u);
}

// Likewise to INT4, eight values in a register.
SAGE_DEVICE uint32_t round_to_int4x8(float const (&x)[8], float factor) {
  uint32_t codes[8];
  SAGE_UNROLL for (int i = 0; i < 8; ++i)
    codes[i] = as_uint(fmaf(x[i], factor, kRounder));
  return pack_int4x8(codes);
}

// What round_to_int4x8 leaves, in 16ths, as INT4: 8 of them become 7.
SAGE_DEVICE uint32_t round_rest_to_int4x8(float const (&x)[8], float factor) {
  uint32_t codes[8];
  SAGE_UNROLL for (int i = 0; i < 8; ++i) {
    float const code = fmaf(x[i], factor, kRounder) - kRounder;
    codes[i] = as_uint(fminf(fmaf(x[i], factor, -code) * 16.f, 7.f) + kRounder);
  }
  return pack_int4x8(codes);
}

// The e4m3 code of x, rounded to nearest even; what is larger than 448 becomes 448 (PTX ISA, cvt.rn.satfinite.e4m3x2).
SAGE_DEVICE uint32_t round_to_e4m3(float x) {
  constexpr uint32_t kLeastNormal = 121u << 23, kSubnormalRounder = 141u << 23;  // 2^-6; 2^14, whose last bit is 2^-9
  uint32_t const magnitude = as_uint(x) & 0x7fffffffu, sign = as_uint(x) >> 24 & 0x80u;
  if (magnitude < kLeastNormal) {
    return (as_uint(as_float(magnitude) + as_float(kSubnormalRounder)) - kSubnormalRounder) | sign;
  }
  if (magnitude > 0x7f800000u) return 0x7f;
  uint32_t const rounded = (magnitude + 0x7ffffu + (magnitude >> 20 & 1)) >> 20;  // ties go to an even last bit
  uint32_t const code = rounded - ((127 - 7) << 3);                               // e4m3's bias is 7
  return (code < 0x7e ? code : 0x7e) | sign;
}

// Four values times `factor` as round_to_e4m3, in one register, a lowest.
SAGE_DEVICE uint32_t round_to_e4m3x4(float a, float b, float c, float d, float factor) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint32_t y;
  asm("{\n.reg .b16 low, high;\n"
      "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
      "mov.b32 %0, {low, high};\n}"
      : "=r"(y)
      : "f"(a * factor), "f"(b * factor), "f"(c * factor), "f"(d * factor));
  return y;
#else
  return pack_bytes(round_to_e4m3(a * factor), round_to_e4m3(b * factor), round_to_e4m3(c * factor),
                    round_to_e4m3(d * factor));
#endif
}

// The e2m1 code of x, rounded to nearest, ties to the even code; what is larger than 6 becomes 6, NaN becomes 6 (PTX
// ISA, cvt.rn.satfinite.e2m1x2.f32).
SAGE_DEVICE uint32_t round_to_e2m1(float x) {
  float const magnitude = fminf(fabsf(x), 6.f);                          // of NaN: 6
  uint32_t const sign = x < 0.f || as_uint(x) == 0x80000000u ? 8u : 0u;  // of NaN: none
  // Added to 2^22, 2^23 and 2^24 a number is rounded to a multiple of .5, 1 and 2: the distances in [0, 2), [2, 4) and
  // [4, 6]. Codes count these.
  if (magnitude < 2.f) return (as_uint(magnitude + 0x1p22f) & 7u) | sign;
  if (magnitude < 4.f) return ((as_uint(magnitude + 0x1p23f) & 7u) + 2u) | sign;
  return ((as_uint(magnitude + 0x1p24f) & 7u) + 4u) | sign;
}

// Eight values as round_to_e2m1, in one register, x[0] lowest.
SAGE_DEVICE uint32_t round_to_e2m1x8(float const (&x)[8]) {
#if defined(__CUDA_ARCH_FEAT_SM120_ALL) || defined(__CUDA_ARCH_FEAT_SM121_ALL)
  // One statement: ptxas then writes each pair behind the ones before it, without a further instruction.
  uint32_t y;
  asm("{\n.reg .b8 a, b, c, d;\n"
      "cvt.rn.satfinite.e2m1x2.f32 a, %2, %1;\n"
      "cvt.rn.satfinite.e2m1x2.f32 b, %4, %3;\n"
      "cvt.rn.satfinite.e2m1x2.f32 c, %6, %5;\n"
      "cvt.rn.satfinite.e2m1x2.f32 d, %8, %7;\n"
      "mov.b32 %0, {a, b, c, d};\n}"
      : "=r"(y)
      : "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3]), "f"(x[4]), "f"(x[5]), "f"(x[6]), "f"(x[7]));
  return y;
#else
  uint32_t y = 0;
  SAGE_UNROLL for (int i = 0; i < 8; ++i)
    y |= round_to_e2m1(x[i]) << 4 * i;
  return y;
#endif
}

// The values of eight e2m1 codes, the lowest of x first.
SAGE_DEVICE void e2m1x8_to_float(float (&y)[8], uint32_t x) {
#if defined(__CUDA_ARCH_FEAT_SM120_ALL) || defined(__CUDA_ARCH_FEAT_SM121_ALL)
  uint32_t pair[4];
  asm("{\n.reg .b8 a, b, c, d;\n"
      "mov.b32 {a, b, c, d}, %4;\n"
      "cvt.rn.f16x2.e2m1x2 %0, a;\n"
      "cvt.rn.f16x2.e2m1x2 %1, b;\n"
      "cvt.rn.f16x2.e2m1x2 %2, c;\n"
      "cvt.rn.f16x2.e2m1x2 %3, d;\n}"
      : "=r"(pair[0]), "=r"(pair[1]), "=r"(pair[2]), "=r"(pair[3])
      : "r"(x));
  SAGE_UNROLL for (int i = 0; i < 8; ++i)
    y[i] = f16_to_float(pair[i / 2] >> i % 2 * 16);
#else
  SAGE_UNROLL for (int i = 0; i < 8; ++i) {
    // Bits 22 to 24 of a float32, whose exponent has a bias larger by 126.
    float const magnitude = as_float((x >> 4 * i & 7u) << 22) * 0x1p126f;
    y[i] = x >> 4 * i & 8u ? -magnitude : magnitude;
  }
#endif
}

// Four values rounded to the nearest integer and saturated to a byte each, in one register, a lowest; NaN becomes 0
// (PTX ISA, cvt.pack.sat.u8).
SAGE_DEVICE uint32_t round_to_u8x4(float a, float b, float c, float d) {
#if defined(__CUDA_ARCH__)
  uint32_t high, y;
  asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, %3;" : "=r"(high) : "r"(__float2int_rn(d)), "r"(__float2int_rn(c)), "r"(0));
  asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, %3;" : "=r"(y) : "r"(__float2int_rn(b)), "r"(__float2int_rn(a)), "r"(high));
  return y;
#else
  auto const round = [](float x) { return x > 0.f ? static_cast<uint32_t>(std::nearbyint(x < 255.f ? x : 255.f)) : 0; };
  return pack_bytes(round(a), round(b), round(c), round(d));
#endif
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
