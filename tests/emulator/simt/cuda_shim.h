// The names that nvcc knows and g++ does not, as far as CUTLASS's headers and csrc/kernels/arch use them.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "simt/sync.h"

#define threadIdx (::simt::self().tid)
#define blockIdx (::simt::self().cta->bid)
#define blockDim (::simt::self().cta->bdim)
#define gridDim (::simt::self().cta->gdim)
#undef __grid_constant__
#define __grid_constant__
#undef __launch_bounds__
#define __launch_bounds__(...)
// All of a block's shared memory is the `smem` argument of the kernel: a variable of its own could not be checked.
#undef __shared__
#define __shared__ static_assert(false, "take shared memory from the kernel's smem argument");

using std::max;
using std::min;
// On the device these are fmaxf and fminf, which return the other argument for a NaN.
inline float max(float a, float b) { return std::fmax(a, b); }
inline float min(float a, float b) { return std::fmin(a, b); }

// CUTLASS's debug assertions are asm("brkpt;").
asm(".macro brkpt\n int3\n .endm\n");

// ---- Threads ------------------------------------------------------------------------------------------------------

inline void __syncthreads() { ::simt::syncthreads(); }
inline void __syncwarp(unsigned mask = ::simt::kFullWarp) { ::simt::syncwarp(mask); }
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return ::simt::ballot(mask, predicate != 0, "__ballot_sync");
}
inline int __any_sync(unsigned mask, int predicate) { return ::simt::ballot(mask, predicate != 0, "__any_sync") != 0; }
inline int __all_sync(unsigned mask, int predicate) {
  return ::simt::ballot(mask, predicate != 0, "__all_sync") == mask;
}

// Lanes shuffle within segments of `width`; a source beyond the segment is the lane itself.
template <class T>
T __shfl_sync(unsigned mask, T x, int source, int width = 32) {
  int const base = static_cast<int>(::simt::self().lane) & ~(width - 1);
  return ::simt::shuffle(mask, x, base | (source & (width - 1)), "__shfl_sync");
}
template <class T>
T __shfl_xor_sync(unsigned mask, T x, int lane_mask, int width = 32) {
  int const lane = static_cast<int>(::simt::self().lane), source = lane ^ lane_mask;
  return ::simt::shuffle(mask, x, source < (lane & ~(width - 1)) + width ? source : lane, "__shfl_xor_sync");
}
template <class T>
T __shfl_down_sync(unsigned mask, T x, unsigned delta, int width = 32) {
  int const lane = static_cast<int>(::simt::self().lane), source = lane + static_cast<int>(delta);
  return ::simt::shuffle(mask, x, source < (lane & ~(width - 1)) + width ? source : lane, "__shfl_down_sync");
}
template <class T>
T __shfl_up_sync(unsigned mask, T x, unsigned delta, int width = 32) {
  int const lane = static_cast<int>(::simt::self().lane), source = lane - static_cast<int>(delta);
  return ::simt::shuffle(mask, x, source >= (lane & ~(width - 1)) ? source : lane, "__shfl_up_sync");
}

inline void __threadfence_block() {}
inline void __threadfence() {}
inline void __nanosleep(unsigned) { ::simt::yield_after_poll("at __nanosleep"); }
[[noreturn]] inline void __trap() { ::simt::fail("__trap"); }

// Blocks may run on several OS threads at once, so these are real atomics.
template <class T>
T atomicAdd(T* p, T x) {
  if constexpr (std::is_integral_v<T>) {
    return __atomic_fetch_add(p, x, __ATOMIC_RELAXED);
  } else {
    T old;
    __atomic_load(p, &old, __ATOMIC_RELAXED);
    for (T sum = old + x; !__atomic_compare_exchange(p, &old, &sum, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);) {
      sum = old + x;
    }
    return old;
  }
}
template <class T>
T atomicMax(T* p, T x) {
  T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (old < x && !__atomic_compare_exchange_n(p, &old, x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
  return old;
}
// Blocks lock with it, so it orders what is written before and after it, which on the device __threadfence does.
template <class T>
T atomicExch(T* p, T x) {
  return __atomic_exchange_n(p, x, __ATOMIC_ACQ_REL);
}

// ---- Arithmetic ---------------------------------------------------------------------------------------------------

namespace simt {
template <class To, class From>
To bit_cast(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &x, sizeof(To));
  return result;
}
}  // namespace simt

inline int __float_as_int(float x) { return ::simt::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return ::simt::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return ::simt::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return ::simt::bit_cast<float>(x); }
// Saturates, and makes 0 of a NaN (PTX ISA, cvt).
inline int __float2int_rn(float x) {
  if (std::isnan(x)) return 0;
  if (x >= 0x1p31f) return INT32_MAX;
  return x <= -0x1p31f ? INT32_MIN : static_cast<int>(std::nearbyint(x));
}
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
template <class T>
T __ldg(T const* p) {
  return *p;
}
inline int __dp4a(int a, int b, int c) {
  auto sum = static_cast<unsigned>(c);  // wraps around
  for (int i = 0; i < 4; ++i) {
    sum += static_cast<unsigned>(static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i)));
  }
  return static_cast<int>(sum);
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 4; ++i) c += (a >> (8 * i) & 255) * (b >> (8 * i) & 255);
  return c;
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  uint64_t const bytes = uint64_t{y} << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    unsigned const choice = selector >> (4 * i) & 15;
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (choice & 7))) & 255;
    if (choice & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << (8 * i);
  }
  return result;
}
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  float2 const x = __half22float2(a), y = __half22float2(b), z = __half22float2(c);
  return __floats2half2_rn(std::fma(x.x, y.x, z.x), std::fma(x.y, y.y, z.y));
}
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
  float2 const x = __bfloat1622float2(a), y = __bfloat1622float2(b), z = __bfloat1622float2(c);
  return __floats2bfloat162_rn(std::fma(x.x, y.x, z.x), std::fma(x.y, y.y, z.y));
}
