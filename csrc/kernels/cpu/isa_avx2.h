// AVX2 with FMA and F16C; with AVX-VNNI (Alder Lake, Zen 5 and later) also the byte dot product.
// Without it 8-bit operands are multiplied in 16 bits: vpmaddubsw would saturate its sums of two products.
#pragma once
#include <immintrin.h>

#include "cpu/avx_reduce.h"

namespace sage::cpu {
namespace {

template <bool kVnni>
struct Avx2 {
  static constexpr CpuIsa kIsa = kVnni ? CpuIsa::kAvxVnni : CpuIsa::kAvx2;
  // 16 registers; vpmaddwd needs one for its product.
  static constexpr int kLanes = 8, kRows = kVnni ? 6 : 4, kVecs = 2;
  static constexpr bool kHasDot8 = kVnni;
  using F = __m256;
  using I = __m256i;

  SAGE_INLINE F set(float x) { return _mm256_set1_ps(x); }
  SAGE_INLINE F load(float const* p) { return _mm256_loadu_ps(p); }
  SAGE_INLINE F load(Half const* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<__m128i const*>(p))); }
  SAGE_INLINE F load(BFloat16 const* p) {
    __m128i const bits = _mm_loadu_si128(reinterpret_cast<__m128i const*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  SAGE_INLINE void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  SAGE_INLINE void store(Half* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  SAGE_INLINE void store(BFloat16* p, F x) {  // round to nearest even; a NaN keeps its sign and becomes quiet
    I const bits = _mm256_castps_si256(x);
    I const odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    I const rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    I const quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    I const nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    I const high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    I const packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  SAGE_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
  SAGE_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  SAGE_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  SAGE_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
  SAGE_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  SAGE_INLINE F fraction(F x) {  // x - floor(x)
    F const bounded = lower_bounded(x);
    return _mm256_sub_ps(bounded, _mm256_floor_ps(bounded));
  }
  SAGE_INLINE F scale_by_power(F y, F x) {  // y * 2^floor(x), 0 below the normal range
    I const power = _mm256_slli_epi32(_mm256_cvtps_epi32(_mm256_floor_ps(lower_bounded(x))), 23);
    F const scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), power));
    return _mm256_and_ps(scaled, _mm256_cmp_ps(x, set(-126.f), _CMP_GE_OQ));
  }
  SAGE_INLINE F lower_bounded(F x) { return _mm256_max_ps(x, set(-127.f)); }
  SAGE_INLINE F to_float(I x) { return _mm256_cvtepi32_ps(x); }

  SAGE_INLINE I zero() { return _mm256_setzero_si256(); }
  SAGE_INLINE I set_int(int32_t x) { return _mm256_set1_epi32(x); }
  SAGE_INLINE I load_int(void const* p) { return _mm256_load_si256(static_cast<I const*>(p)); }
  SAGE_INLINE void store_int(void* p, I x) { _mm256_store_si256(static_cast<I*>(p), x); }
  SAGE_INLINE I broadcast4(void const* p) {
    int32_t x;
    memcpy(&x, p, 4);
    return _mm256_set1_epi32(x);
  }
  SAGE_INLINE I round(F x) { return _mm256_cvtps_epi32(x); }  // to nearest even
  SAGE_INLINE float sum(F x) {
    __m128 v = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps(v, v, 1)));
  }

  // Largest |x| as float bits: integers keep the order, and a NaN or infinity stays on top.
  SAGE_INLINE I max_abs_bits(I acc, F x) {
    return _mm256_max_epi32(acc, _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff)));
  }
  SAGE_INLINE int32_t max(I x) {
    __m128i v = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    v = _mm_max_epi32(v, _mm_shuffle_epi32(v, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(v, _mm_shuffle_epi32(v, 0xb1)));
  }

  // acc += the 4 (2) products of each lane's bytes (halfwords). asm keeps the accumulators of a tile in registers.
  SAGE_INLINE void dot8(I& acc, I u8, I s8) {
    static_assert(kVnni, "without VNNI 8-bit operands are kept in 16 bits");
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(u8), "x"(s8));
  }
  SAGE_INLINE void dot16(I& acc, I a, I b) {
    if constexpr (kVnni)
      asm("%{vex%} vpdpwssd %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b));
    else
      acc = _mm256_add_epi32(acc, _mm256_madd_epi16(a, b));
  }

  SAGE_INLINE void store_s8(int8_t* p, I x) {
    __m128i const halves = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(halves, halves));
  }
  SAGE_INLINE void store_s16(int16_t* p, I x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
  }
  SAGE_INLINE I interleave4(I const* x) {
    I const byte = _mm256_set1_epi32(255);
    I const low = _mm256_or_si256(_mm256_and_si256(x[0], byte), _mm256_slli_epi32(_mm256_and_si256(x[1], byte), 8));
    return _mm256_or_si256(
        low, _mm256_or_si256(_mm256_slli_epi32(_mm256_and_si256(x[2], byte), 16), _mm256_slli_epi32(x[3], 24)));
  }
  SAGE_INLINE I interleave2(I const* x) {
    return _mm256_or_si256(_mm256_and_si256(x[0], _mm256_set1_epi32(0xffff)), _mm256_slli_epi32(x[1], 16));
  }

  // Stores 4 vectors of probabilities (score order) as bytes or halfwords in key order and adds them up in `row_sum`.
  SAGE_INLINE void store_probabilities(uint8_t* p, F const* y, I& row_sum) {
    I const a = _mm256_packs_epi32(round(y[0]), round(y[1])), b = _mm256_packs_epi32(round(y[2]), round(y[3]));
    I const bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(a, b), 0xd8);
    store_int(p, bytes);
    dot8(row_sum, bytes, _mm256_set1_epi8(1));
  }
  SAGE_INLINE void store_probabilities(int16_t* p, F const* y, I& row_sum) {
    I const a = _mm256_packs_epi32(round(y[0]), round(y[1])), b = _mm256_packs_epi32(round(y[2]), round(y[3]));
    store_int(p, a);
    store_int(p + 16, b);
    dot16(row_sum, a, _mm256_set1_epi16(1));
    dot16(row_sum, b, _mm256_set1_epi16(1));
  }

  // Lane r of the result: the maximum (sum) over the lanes of x[r], r < kRows. Other lanes repeat row 0.
  SAGE_INLINE F max_rows(F const* x) { return reduce_rows(x, MaxOp{}); }
  SAGE_INLINE F sum_rows(F const* x) { return reduce_rows(x, AddOp{}); }
  template <class Op>
  SAGE_INLINE F reduce_rows(F const* x, Op op) {
    __m256 rows[8];
    SAGE_CPU_UNROLL for (int r = 0; r < 8; ++r)
      rows[r] = x[r < kRows ? r : 0];
    return reduce_transposed(rows, op);
  }

  // Rows of 64 keys, `row_units` 4-byte units each (padded to 16 in memory), to [tile][unit][vector][lane] in score
  // order.
  SAGE_INLINE void pack_keys(uint32_t const* rows, int row_units, uint32_t* dst) {
    pack_keys_scalar<Avx2>(rows, row_units, dst);
  }
};

}  // namespace
}  // namespace sage::cpu
