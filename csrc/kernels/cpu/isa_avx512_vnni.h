// AVX-512 (F, BW, VL, DQ) with VNNI: Cascade Lake, Ice Lake, Zen 4 and later.
#pragma once
#include <immintrin.h>

#include "cpu/avx_reduce.h"

namespace sage::cpu {
namespace {

struct Avx512Vnni {
  static constexpr CpuIsa kIsa = CpuIsa::kAvx512Vnni;
  static constexpr int kLanes = 16, kRows = 6, kVecs = 4;
  static constexpr bool kHasDot8 = true;
  using F = __m512;
  using I = __m512i;

  SAGE_INLINE F set(float x) { return _mm512_set1_ps(x); }
  SAGE_INLINE F load(float const* p) { return _mm512_loadu_ps(p); }
  SAGE_INLINE F load(Half const* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<__m256i const*>(p))); }
  SAGE_INLINE F load(BFloat16 const* p) {
    __m256i const bits = _mm256_loadu_si256(reinterpret_cast<__m256i const*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  SAGE_INLINE void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  SAGE_INLINE void store(Half* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  SAGE_INLINE void store(BFloat16* p, F x) {  // round to nearest even; a NaN keeps its sign and becomes quiet
    I const bits = _mm512_castps_si512(x);
    I const odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    I rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    __mmask16 const nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }
  SAGE_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  SAGE_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  SAGE_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  SAGE_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
  SAGE_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  SAGE_INLINE F fraction(F x) {  // x - floor(x)
    return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  }
  SAGE_INLINE F scale_by_power(F y, F x) { return _mm512_scalef_ps(y, x); }  // y * 2^floor(x)
  SAGE_INLINE F to_float(I x) { return _mm512_cvtepi32_ps(x); }

  SAGE_INLINE I zero() { return _mm512_setzero_si512(); }
  SAGE_INLINE I set_int(int32_t x) { return _mm512_set1_epi32(x); }
  SAGE_INLINE I load_int(void const* p) { return _mm512_load_si512(p); }
  SAGE_INLINE void store_int(void* p, I x) { _mm512_store_si512(p, x); }
  SAGE_INLINE I broadcast4(void const* p) {
    int32_t x;
    memcpy(&x, p, 4);
    return _mm512_set1_epi32(x);
  }
  SAGE_INLINE I round(F x) { return _mm512_cvtps_epi32(x); }  // to nearest even
  SAGE_INLINE float sum(F x) { return _mm512_reduce_add_ps(x); }

  // Largest |x| as float bits: integers keep the order, and a NaN or infinity stays on top.
  SAGE_INLINE I max_abs_bits(I acc, F x) {
    return _mm512_max_epi32(acc, _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff)));
  }
  SAGE_INLINE int32_t max(I x) { return _mm512_reduce_max_epi32(x); }

  // acc += the 4 (2) products of each lane's bytes (halfwords). asm keeps the accumulators of a tile in registers.
  SAGE_INLINE void dot8(I& acc, I u8, I s8) { asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u8), "v"(s8)); }
  SAGE_INLINE void dot16(I& acc, I a, I b) { asm("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b)); }

  SAGE_INLINE void store_s8(int8_t* p, I x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(x));
  }
  SAGE_INLINE void store_s16(int16_t* p, I x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(x));
  }
  SAGE_INLINE I interleave4(I const* x) {
    I const byte = _mm512_set1_epi32(255);
    I const low = _mm512_or_si512(_mm512_and_si512(x[0], byte), _mm512_slli_epi32(_mm512_and_si512(x[1], byte), 8));
    return _mm512_or_si512(
        low, _mm512_or_si512(_mm512_slli_epi32(_mm512_and_si512(x[2], byte), 16), _mm512_slli_epi32(x[3], 24)));
  }
  SAGE_INLINE I interleave2(I const* x) {
    return _mm512_or_si512(_mm512_and_si512(x[0], _mm512_set1_epi32(0xffff)), _mm512_slli_epi32(x[1], 16));
  }

  // Stores 4 vectors of probabilities (score order) as bytes or halfwords in key order and adds them up in `row_sum`.
  SAGE_INLINE void store_probabilities(uint8_t* p, F const* y, I& row_sum) {
    I const bytes =
        _mm512_packus_epi16(_mm512_packs_epi32(round(y[0]), round(y[1])), _mm512_packs_epi32(round(y[2]), round(y[3])));
    _mm512_store_si512(p, bytes);
    dot8(row_sum, bytes, _mm512_set1_epi8(1));
  }
  SAGE_INLINE void store_probabilities(int16_t* p, F const* y, I& row_sum) {
    I const a = _mm512_packs_epi32(round(y[0]), round(y[1])), b = _mm512_packs_epi32(round(y[2]), round(y[3]));
    I const first = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), b);
    I const second = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), b);
    _mm512_store_si512(p, first);
    _mm512_store_si512(p + 32, second);
    dot16(row_sum, first, _mm512_set1_epi16(1));
    dot16(row_sum, second, _mm512_set1_epi16(1));
  }

  // Lane r of the result: the maximum (sum) over the lanes of x[r], r < kRows. Other lanes repeat row 0.
  SAGE_INLINE F max_rows(F const* x) { return reduce_rows(x, MaxOp{}); }
  SAGE_INLINE F sum_rows(F const* x) { return reduce_rows(x, AddOp{}); }
  template <class Op>
  SAGE_INLINE F reduce_rows(F const* x, Op op) {
    __m256 rows[8];
    SAGE_CPU_UNROLL for (int r = 0; r < 8; ++r) {
      F const v = x[r < kRows ? r : 0];
      rows[r] = op(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    }
    return _mm512_broadcast_f32x8(reduce_transposed(rows, op));
  }

  // Rows of 64 keys, `row_units` 4-byte units each (padded to 16 in memory), to [unit][vector][lane] in score order.
  SAGE_INLINE void pack_keys(uint32_t const* rows, int row_units, uint32_t* dst) {
    int const row_stride = (row_units + 15) / 16 * 16;
    for (int v = 0; v < kVecs; ++v)
      for (int unit0 = 0; unit0 < row_units; unit0 += 16) {
        I r[16];
        for (int lane = 0; lane < 16; ++lane)
          r[lane] = load_int(rows + (lane / 4 * 16 + 4 * v + lane % 4) * row_stride + unit0);
        transpose16(r);
        int const units = row_units - unit0 < 16 ? row_units - unit0 : 16;
        for (int i = 0; i < units; ++i) store_int(dst + ((unit0 + i) * kVecs + v) * kLanes, r[i]);
      }
  }
  // 16 x 16 transpose of 32-bit elements.
  SAGE_INLINE void transpose16(I* r) {
    I t[16];
    for (int i = 0; i < 8; ++i) {
      t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; ++i) {
      r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
      r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
      r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
      r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
      t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
      t[4 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
      t[8 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
      t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
      r[i] = _mm512_shuffle_i32x4(t[i], t[4 + i], 0x88);
      r[8 + i] = _mm512_shuffle_i32x4(t[i], t[4 + i], 0xdd);
      r[4 + i] = _mm512_shuffle_i32x4(t[8 + i], t[12 + i], 0x88);
      r[12 + i] = _mm512_shuffle_i32x4(t[8 + i], t[12 + i], 0xdd);
    }
  }
};

}  // namespace
}  // namespace sage::cpu
