// Reductions across the lanes of several 256-bit vectors at once, for both AVX widths.
#pragma once
#include <immintrin.h>

#include "cpu/simd.h"

namespace sage::cpu {
namespace {

// Lane r of the result is `op` over all lanes of rows[r].
template <class Op>
SAGE_INLINE __m256 reduce_transposed(__m256 const (&rows)[8], Op op) {
  __m256 pairs[4], quads[2];
  SAGE_CPU_UNROLL for (int i = 0; i < 4; ++i)
    pairs[i] = op(_mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]), _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]));
  SAGE_CPU_UNROLL for (int i = 0; i < 2; ++i) {
    __m256d const a = _mm256_castps_pd(pairs[2 * i]), b = _mm256_castps_pd(pairs[2 * i + 1]);
    quads[i] = op(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
  }
  return op(_mm256_permute2f128_ps(quads[0], quads[1], 0x20), _mm256_permute2f128_ps(quads[0], quads[1], 0x31));
}

struct MaxOp {
  __attribute__((always_inline)) __m256 operator()(__m256 a, __m256 b) const { return _mm256_max_ps(a, b); }
};
struct AddOp {
  __attribute__((always_inline)) __m256 operator()(__m256 a, __m256 b) const { return _mm256_add_ps(a, b); }
};

}  // namespace
}  // namespace sage::cpu
