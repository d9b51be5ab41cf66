// Tensor-core and copy instructions through the CuTe atoms, on plain register arrays and shared-memory pointers.
#pragma once
#include <cstdint>
#include <cute/tensor.hpp>
#include <type_traits>

#include "common/macros.h"

namespace sage::arch {

// Whether an instruction multiplies its operands by scales, one per 32 elements of a row of A and of a column of B.
template <class Op, class = void>
constexpr bool kBlockScaled = false;
template <class Op>
constexpr bool kBlockScaled<Op, std::void_t<typename Op::SFARegisters>> = true;

// d = a b + c for one warp; each array holds the registers of this lane. Scales are 1.
template <class Op, class D, class A, class B, class C>
SAGE_DEVICE void mma(D& d, A const& a, B const& b, C const& c) {
  constexpr auto registers = [](auto const& x) {
    return cute::Int<std::extent_v<std::remove_reference_t<decltype(x)>>>{};
  };
  auto tensor = [&](auto& x) { return cute::make_tensor(&x[0], cute::make_layout(decltype(registers(x)){})); };
  auto td = tensor(d);
  if constexpr (kBlockScaled<Op>) {
    using Traits = cute::MMA_Traits<Op>;
    using Scale = typename Traits::ValTypeSF;
    static_assert(std::is_same_v<Scale, cute::float_ue8m0_t> && Traits::SFVecSize == 32);
    uint8_t one = 127;  // 2^(127 - 127)
    auto const scales = cute::make_tensor(cute::recast_ptr<Scale>(&one),
                                          cute::Layout<cute::Shape<cute::_32>, cute::Stride<cute::_0>>{});
    mma_unpack(Traits{}, td, cute::make_zip_tensor(tensor(a), scales), cute::make_zip_tensor(tensor(b), scales),
               tensor(c));
  } else {
    cute::MMA_Atom<Op>{}.call(td, tensor(a), tensor(b), tensor(c));
  }
}

// Four 8x8 matrices of 16-bit elements; `row` is this lane's 16-byte row. Op: SM75_U32x4_LDSM_N or SM75_U16x8_LDSM_T.
template <class Op>
SAGE_DEVICE void ldmatrix(uint32_t (&d)[4], char const* row) {
  cute::detail::CallCOPY<Op>{}(*reinterpret_cast<cute::uint128_t const*>(row), d[0], d[1], d[2], d[3]);
}

// 16 bytes from global to shared memory, both 16-byte aligned; they are there after cp_async_wait of their group.
SAGE_DEVICE void cp_async(char* smem, void const* gmem) {
  using T = cute::uint128_t;
  cute::detail::CallCOPY<cute::SM80_CP_ASYNC_CACHEGLOBAL<T, T>>{}(*static_cast<T const*>(gmem),
                                                                  *reinterpret_cast<T*>(smem));
}

// Likewise, but zeros without reading if not `valid`.
SAGE_DEVICE void cp_async_zfill(char* smem, void const* gmem, bool valid) {
  using T = cute::uint128_t;
  cute::detail::CallCOPY<cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<T, T>>{}(*static_cast<T const*>(gmem),
                                                                        *reinterpret_cast<T*>(smem), valid);
}

using cute::cp_async_fence;
using cute::cp_async_wait;

}  // namespace sage::arch
