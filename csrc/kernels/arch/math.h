// Arithmetic that CUDA C++ has no portable spelling for. Every function has a host twin for the emulator.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/macros.h"

namespace sage::arch {

SAGE_DEVICE float as_float(uint32_t x) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(x);
#else
  float y;
  std::memcpy(&y, &x, sizeof y);
  return y;
#endif
}

SAGE_DEVICE uint32_t as_uint(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  uint32_t y;
  std::memcpy(&y, &x, sizeof y);
  return y;
#endif
}

// 2^x to about 2 ulp; subnormal results are 0 (PTX ISA, ex2.approx.ftz).
SAGE_DEVICE float exp2_approx(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  float const y = std::exp2(x);
  return y < 0x1p-126f ? 0.f : y;
#endif
}

// log2(x) to about 1 ulp, of a normal x > 0 (PTX ISA, lg2.approx.ftz).
SAGE_DEVICE float log2_approx(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::log2(x);
#endif
}

// 1 / x of x in [2^-60, 2^60], rounded to nearest if x has at most 12 bits; without the branch that other numbers need.
SAGE_DEVICE float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));  // to 1 ulp
  return fmaf(y, fmaf(-x, y, 1.f), y);
#else
  return 1.f / x;
#endif
}

// a b + c, rounded down.
SAGE_DEVICE float fma_down(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rd(a, b, c);
#else
  double const exact = static_cast<double>(a) * b + c;
  float const y = static_cast<float>(exact);
  return y > exact ? std::nextafter(y, -INFINITY) : y;
#endif
}

// Two floats in one register, `lo` in the low half, rounded to nearest even (PTX ISA, cvt.rn.f16x2, cvt.rn.bf16x2).
SAGE_DEVICE uint32_t pack_f16(float lo, float hi) {
#if defined(__CUDA_ARCH__)
  uint32_t y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(hi), "f"(lo));
  return y;
#else
  return __half_as_ushort(__float2half_rn(lo)) | uint32_t{__half_as_ushort(__float2half_rn(hi))} << 16;
#endif
}

SAGE_DEVICE uint32_t pack_bf16(float lo, float hi) {
#if defined(__CUDA_ARCH__)
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(hi), "f"(lo));
  return y;
#else
  return __bfloat16_as_ushort(__float2bfloat16_rn(lo)) | uint32_t{__bfloat16_as_ushort(__float2bfloat16_rn(hi))} << 16;
#endif
}

SAGE_DEVICE float f16_to_float(uint32_t bits) { return __half2float(__ushort_as_half(static_cast<uint16_t>(bits))); }
SAGE_DEVICE float bf16_to_float(uint32_t bits) { return as_float(bits << 16); }

// Both halves times a factor each, rounded to nearest even.
SAGE_DEVICE uint32_t multiply_f16x2(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  uint32_t y;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
#else
  return pack_f16(f16_to_float(a) * f16_to_float(b), f16_to_float(a >> 16) * f16_to_float(b >> 16));
#endif
}

// a b + c in both halves, rounded to nearest even once.
SAGE_DEVICE uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
#if defined(__CUDA_ARCH__)
  uint32_t y;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
  return y;
#else
  auto const half = [](uint32_t x, uint32_t y, uint32_t z) {  // in double only the last rounding is one
    return uint32_t{
        __half_as_ushort(__double2half(static_cast<double>(f16_to_float(x)) * f16_to_float(y) + f16_to_float(z)))};
  };
  return half(a, b, c) | half(a >> 16, b >> 16, c >> 16) << 16;
#endif
}

SAGE_DEVICE int max_of_three(int a, int b, int c) {
#if defined(__CUDA_ARCH__)
  return __vimax3_s32(a, b, c);
#else
  int const x = a > b ? a : b;
  return x > c ? x : c;
#endif
}

// Byte i is the one that digit i of `selector` names, 0 .. 3 of a, 4 .. 7 of b.
SAGE_DEVICE uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
#if defined(__CUDA_ARCH__)
  uint32_t y;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(selector));
  return y;
#else
  uint64_t const bytes = a | uint64_t{b} << 32;
  uint32_t y = 0;
  for (int i = 0; i < 4; ++i) y |= static_cast<uint32_t>(bytes >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
  return y;
#endif
}

// The larger one of both unsigned halves.
SAGE_DEVICE uint32_t max_u16x2(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  return __vmaxu2(a, b);
#else
  uint32_t const low = (a & 0xffffu) > (b & 0xffffu) ? a & 0xffffu : b & 0xffffu;
  uint32_t const high = a >> 16 > b >> 16 ? a >> 16 : b >> 16;
  return low | high << 16;
#endif
}

// x . (1, 1, 1, 1) + c over the four unsigned bytes of x.
SAGE_DEVICE uint32_t add_bytes(uint32_t x, uint32_t c) {
#if defined(__CUDA_ARCH__)
  return __dp4a(x, 0x01010101u, c);
#else
  return c + (x & 255) + (x >> 8 & 255) + (x >> 16 & 255) + (x >> 24);
#endif
}

// The lowest bytes of four registers, a lowest.
SAGE_DEVICE uint32_t pack_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
#else
  return (a & 255) | (b & 255) << 8 | (c & 255) << 16 | (d & 255) << 24;
#endif
}

// A constant that the compiler cannot see through, so that it keeps it in a register instead of materialising it at
// every use. `scratch` is shared memory of this thread's own, at least 4 bytes.
SAGE_DEVICE uint32_t opaque(uint32_t x, char* scratch) {
  auto* const p = reinterpret_cast<uint32_t volatile*>(scratch);
  *p = x;
  return *p;
}

// x, but what is computed from it is computed here: the compiler does not move it out of a loop and into a register.
SAGE_DEVICE uint32_t pinned(uint32_t x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(x));
#endif
  return x;
}
template <class T>
SAGE_DEVICE T const* pinned(T const* x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(x));
#endif
  return x;
}

}  // namespace sage::arch
