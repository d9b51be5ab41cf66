// Block-scaled mma.sync of sm_120a: of NVFP4 operands, which are e2m1 with a ue4m3 scale for each 16 elements along K;
// and of e4m3 ones.
#pragma once
#include <cstdint>
#include <cute/atom/mma_traits_sm120.hpp>
#include <cute/tensor.hpp>

#include "common/macros.h"

namespace sage::arch {

// CuTe's operation with B's scales from lane kThreadB of each quad instead of lane 0. mma_nvfp4 is what issues it.
template <int kThreadB>
struct Nvfp4Mma : cute::SM120::BLOCKSCALED::SM120_16x8x64_TN_VS<cute::float_e2m1_t, cute::float_e2m1_t, float,
                                                                cute::float_ue4m3_t, 16> {
  static constexpr int kScaleThreadB = kThreadB;
  static void fma() = delete;  // CuTe's takes B's scales from lane 0
};

}  // namespace sage::arch

template <int kThreadB>
struct cute::MMA_Traits<sage::arch::Nvfp4Mma<kThreadB>>
    : cute::MMA_Traits<cute::SM120::BLOCKSCALED::SM120_16x8x64_TN_VS<cute::float_e2m1_t, cute::float_e2m1_t, float,
                                                                     cute::float_ue4m3_t, 16>> {};

namespace sage::arch {

// For arch::mma, which sets its scales to 1. It adds in float32 at the rate at which plain FP8 instructions add in
// fp16.
using E4m3Mma = cute::SM120::BLOCKSCALED::SM120_16x8x32_TN_VS<cute::float_e4m3_t, cute::float_e4m3_t, float,
                                                              cute::float_ue8m0_t, 32>;

// d = a b + c for one warp, of m16n8k64 fragments (PTX ISA, mma.sync with .kind::mxf4nvf4 and .scale_vec::4X); d and c
// may be the same array. A word of scales has those of the blocks along K, the first in the low byte. Of lane 4 g + q,
// a_scales are those of row g if q = 0 and of row g + 8 if q = 1; b_scales are those of column g if q = kThreadB. Other
// lanes' do not count.
template <int kThreadB>
SAGE_DEVICE void mma_nvfp4(float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1, float const (&c)[4],
                           uint32_t a_scales, uint32_t b_scales) {
  static_assert(0 <= kThreadB && kThreadB < 4);
#if defined(__CUDACC__)
  asm volatile("mma.sync.aligned.kind::mxf4nvf4.block_scale.scale_vec::4X.m16n8k64.row.col.f32.e2m1.e2m1.f32.ue4m3 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13}, {%14}, {0, 0}, {%15}, {0, %16};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]),
        "r"(a_scales), "r"(b_scales), "n"(kThreadB));
#else
  using Op = Nvfp4Mma<kThreadB>;
  uint32_t const b[2] = {b0, b1};
  auto const tensor = [](auto* registers, auto count) {
    return cute::make_tensor(registers, cute::Layout<decltype(count)>{});
  };
  auto td = tensor(&d[0], cute::_4{});
  mma_unpack(
      cute::MMA_Traits<Op>{}, td, cute::make_zip_tensor(tensor(&a[0], cute::_4{}), tensor(&a_scales, cute::_1{})),
      cute::make_zip_tensor(tensor(&b[0], cute::_2{}), tensor(&b_scales, cute::_1{})), tensor(&c[0], cute::_4{}));
#endif
}

}  // namespace sage::arch
