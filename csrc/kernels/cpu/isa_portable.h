// Plain C++ for any processor: correct everywhere, fast nowhere. Vectors are arrays of 8 that the compiler may
// vectorise.
#pragma once
#include "cpu/simd.h"

namespace sage::cpu {
namespace {

struct Portable {
  static constexpr CpuIsa kIsa = CpuIsa::kPortable;
  static constexpr int kLanes = 8, kRows = 4, kVecs = 2;
  static constexpr bool kHasDot8 = false;
  struct alignas(32) F {
    float v[kLanes];
  };
  struct alignas(32) I {
    int32_t v[kLanes];
  };

  template <class V, class Op>
  SAGE_INLINE V each(Op op) {
    V result;
    for (int i = 0; i < kLanes; ++i) result.v[i] = op(i);
    return result;
  }
  template <class To, class From>
  SAGE_INLINE To bits(From const& from) {
    static_assert(sizeof(To) == sizeof(From), "same bits");
    To to;
    memcpy(&to, &from, sizeof(To));
    return to;
  }

  SAGE_INLINE F set(float x) {
    return each<F>([&](int) { return x; });
  }
  SAGE_INLINE F load(float const* p) {
    return each<F>([&](int i) { return p[i]; });
  }
  SAGE_INLINE F load(Half const* p) {
    return each<F>([&](int i) { return from_half(p[i].bits); });
  }
  SAGE_INLINE F load(BFloat16 const* p) {
    return each<F>([&](int i) { return bits<float>(uint32_t{p[i].bits} << 16); });
  }
  SAGE_INLINE void store(float* p, F x) { memcpy(p, x.v, sizeof(x.v)); }
  SAGE_INLINE void store(Half* p, F x) {
    for (int i = 0; i < kLanes; ++i) p[i].bits = to_half(x.v[i]);
  }
  SAGE_INLINE void store(BFloat16* p, F x) {
    for (int i = 0; i < kLanes; ++i) p[i].bits = to_bfloat16(x.v[i]);
  }
  SAGE_INLINE F add(F a, F b) {
    return each<F>([&](int i) { return a.v[i] + b.v[i]; });
  }
  SAGE_INLINE F sub(F a, F b) {
    return each<F>([&](int i) { return a.v[i] - b.v[i]; });
  }
  SAGE_INLINE F mul(F a, F b) {
    return each<F>([&](int i) { return a.v[i] * b.v[i]; });
  }
  SAGE_INLINE F max(F a, F b) {
    return each<F>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  SAGE_INLINE F fma(F a, F b, F c) {
    return each<F>([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  SAGE_INLINE F fraction(F x) {  // x - floor(x)
    return each<F>([&](int i) { return bounded(x.v[i]) - static_cast<float>(floor(x.v[i])); });
  }
  SAGE_INLINE F scale_by_power(F y, F x) {  // y * 2^floor(x), 0 below the normal range
    return each<F>([&](int i) {
      float const scaled =
          bits<float>(bits<int32_t>(y.v[i]) + static_cast<int32_t>(static_cast<uint32_t>(floor(x.v[i])) << 23));
      return x.v[i] >= -126.f ? scaled : 0.f;
    });
  }
  SAGE_INLINE float bounded(float x) { return x > -127.f ? x : -127.f; }
  SAGE_INLINE int32_t floor(float x) {
    int32_t const toward_zero = static_cast<int32_t>(bounded(x));
    return toward_zero - (static_cast<float>(toward_zero) > bounded(x));
  }
  SAGE_INLINE F to_float(I x) {
    return each<F>([&](int i) { return static_cast<float>(x.v[i]); });
  }

  SAGE_INLINE I zero() { return set_int(0); }
  SAGE_INLINE I set_int(int32_t x) {
    return each<I>([&](int) { return x; });
  }
  SAGE_INLINE I load_int(void const* p) {
    I x;
    memcpy(x.v, p, sizeof(x.v));
    return x;
  }
  SAGE_INLINE void store_int(void* p, I x) { memcpy(p, x.v, sizeof(x.v)); }
  SAGE_INLINE I broadcast4(void const* p) {
    int32_t x;
    memcpy(&x, p, 4);
    return set_int(x);
  }
  SAGE_INLINE I add_int(I a, I b) {
    return each<I>([&](int i) { return a.v[i] + b.v[i]; });
  }
  // To nearest even for |x| < 2^22: adding 1.5 * 2^23 leaves the integer in the low bits.
  SAGE_INLINE I round(F x) {
    return each<I>([&](int i) { return bits<int32_t>(x.v[i] + 12582912.f) - 0x4b400000; });
  }
  SAGE_INLINE float sum(F x) {
    float total = 0;
    for (int i = 0; i < kLanes; ++i) total += x.v[i];
    return total;
  }

  // Largest |x| as float bits: integers keep the order, and a NaN or infinity stays on top.
  SAGE_INLINE I max_abs_bits(I acc, F x) {
    return each<I>([&](int i) {
      int32_t const magnitude = bits<int32_t>(x.v[i]) & 0x7fffffff;
      return acc.v[i] > magnitude ? acc.v[i] : magnitude;
    });
  }
  SAGE_INLINE int32_t max(I x) {
    int32_t result = x.v[0];
    for (int i = 1; i < kLanes; ++i) result = result > x.v[i] ? result : x.v[i];
    return result;
  }

  SAGE_INLINE void dot16(I& acc, I a, I b) {  // acc += the 2 products of each lane's halfwords
    struct Pairs {
      int16_t v[2 * kLanes];
    };
    Pairs const pa = bits<Pairs>(a), pb = bits<Pairs>(b);
    for (int i = 0; i < kLanes; ++i)
      acc.v[i] += int32_t{pa.v[2 * i]} * pb.v[2 * i] + int32_t{pa.v[2 * i + 1]} * pb.v[2 * i + 1];
  }

  SAGE_INLINE void store_s16(int16_t* p, I x) {
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int16_t>(x.v[i]);
  }
  SAGE_INLINE I interleave2(I const* x) {
    return each<I>(
        [&](int i) { return static_cast<int32_t>((static_cast<uint32_t>(x[1].v[i]) << 16) | (x[0].v[i] & 0xffff)); });
  }

  // Stores 4 vectors of probabilities (score order) as halfwords in key order and adds them up in `row_sum`.
  SAGE_INLINE void store_probabilities(int16_t* p, F const* y, I& row_sum) {
    for (int n = 0; n < 4; ++n) {
      I const rounded = round(y[n]);
      row_sum = add_int(row_sum, rounded);
      for (int i = 0; i < kLanes; ++i)
        p[n / kVecs * kVecs * kLanes + i / 4 * 4 * kVecs + n % kVecs * 4 + i % 4] = static_cast<int16_t>(rounded.v[i]);
    }
  }

  // Lane r of the result: the maximum (sum) over the lanes of x[r], r < kRows. Other lanes repeat row 0.
  SAGE_INLINE F max_rows(F const* x) {
    return each<F>([&](int r) {
      F const& row = x[r < kRows ? r : 0];
      float result = row.v[0];
      for (int i = 1; i < kLanes; ++i) result = result > row.v[i] ? result : row.v[i];
      return result;
    });
  }
  SAGE_INLINE F sum_rows(F const* x) {
    return each<F>([&](int r) { return sum(x[r < kRows ? r : 0]); });
  }

  // Rows of 64 keys, `row_units` 4-byte units each (padded to 16 in memory), to [tile][unit][vector][lane] in score
  // order.
  SAGE_INLINE void pack_keys(uint32_t const* rows, int row_units, uint32_t* dst) {
    pack_keys_scalar<Portable>(rows, row_units, dst);
  }

 private:
  SAGE_INLINE float from_half(uint16_t h) {
    uint32_t const sign = uint32_t{h} >> 15 << 31, rest = h & 0x7fff;
    if (rest >= 0x7c00) return bits<float>(sign | 0x7f800000u | (rest & 0x3ff) << 13);  // infinity, NaN
    // Scaling by 2^112 rebiases the exponent and makes subnormals normal.
    return bits<float>(sign | bits<uint32_t>(bits<float>(rest << 13) * bits<float>(0x77800000u)));
  }
  SAGE_INLINE uint16_t to_half(float x) {
    uint32_t const u = bits<uint32_t>(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
    if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00);   // NaN
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to 65536 or more
    if (magnitude < 0x38800000u)  // subnormal: adding 0.5 leaves units of 2^-24 in the low bits
      return static_cast<uint16_t>(sign | (bits<uint32_t>(bits<float>(magnitude) + 0.5f) - 0x3f000000u));
    uint32_t const odd = magnitude >> 13 & 1;
    return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfff + odd) >> 13));
  }
  SAGE_INLINE uint16_t to_bfloat16(float x) {
    uint32_t const u = bits<uint32_t>(x);
    if ((u & 0x7fffffff) > 0x7f800000u) return static_cast<uint16_t>(u >> 16 | 0x40);
    return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
  }
};

}  // namespace
}  // namespace sage::cpu
