// mma.sync of sm120: block-scaled (mxf4nvf4 with a scale per 16 or 32 elements, mxf8f6f4 with one per 32), and f8f6f4.
#pragma once
#include <cute/atom/mma_traits_sm120.hpp>

#include "hooks/warp_mma.h"
#include "simt/scaled_mma.h"

namespace simt {

// The element types are arguments of the operation, or of the one that it derives from; the traits name the containers
// that the registers consist of.
template <class TA, class TB>
struct ScaledElements {
  using A = TA;
  using B = TB;
};
template <class TA, class TB, class TC, class TSF, int kVector>
ScaledElements<TA, TB> scaled_elements(cute::SM120::BLOCKSCALED::SM120_16x8x64_TN_VS<TA, TB, TC, TSF, kVector> const&);
template <class TA, class TB, class TC, class TSF, int kVector>
ScaledElements<TA, TB> scaled_elements(cute::SM120::BLOCKSCALED::SM120_16x8x32_TN_VS<TA, TB, TC, TSF, kVector> const&);

// The lane of each quad that supplies the scales of B: 0 in CUTLASS's operations.
template <class Op>
constexpr int scale_thread_b() {
  if constexpr (requires { Op::kScaleThreadB; })
    return Op::kScaleThreadB;
  else
    return 0;
}

template <class Op>
struct ScaledMmaInstance {
  using Traits = cute::MMA_Traits<Op>;
  using Elements = decltype(scaled_elements(std::declval<Op>()));
  ScaledMma mma{make_warp_mma<Op, typename Elements::A, typename Elements::B>(),
                cute::sizeof_bits_v<typename Traits::ValTypeA>,
                element_of<typename Traits::ValTypeSF>(),
                Traits::SFVecSize,
                scale_thread_b<Op>(),
                table<0>(typename Traits::SFALayout{}),
                table<1>(typename Traits::SFBLayout{})};
  std::string name{op_name<Op>()};

  template <int kMode, class Layout>
  static std::vector<uint16_t> table(Layout layout) {
    using Shape = typename Traits::Shape_MNK;
    return scale_table(layout_table(layout), cute::size<kMode>(Shape{}), cute::size<2>(Shape{}), Traits::SFVecSize);
  }
  static ScaledMmaInstance const& get() {
    static ScaledMmaInstance const instance;
    return instance;
  }
};

// f8f6f4 without scales is an mma.sync like others, but for the element types.
template <class TA, class TB, class TC>
struct WarpMmaInstance<cute::SM120_16x8x32_TN<TA, TB, TC>> {
  using Op = cute::SM120_16x8x32_TN<TA, TB, TC>;
  static_assert(cute::sizeof_bits_v<TA> > 4 && cute::sizeof_bits_v<TB> > 4,
                "the emulator has no arithmetic for e2m1 in the byte containers of mma.sync f8f6f4");
  WarpMma mma = make_warp_mma<Op, TA, TB>();
  std::string name{op_name<Op>()};
  static WarpMmaInstance const& get() {
    static WarpMmaInstance const instance;
    return instance;
  }
};

}  // namespace simt

namespace cute {

// As CUTLASS's for these operations, than which it is more constrained.
template <class Op, class TD, class DLayout, class TA, class ALayout, class TB, class BLayout, class TC, class CLayout>
  requires(::simt::ScaledMmaOp<Op>)
constexpr void mma_unpack(MMA_Traits<Op> const&, Tensor<TD, DLayout>& D, Tensor<TA, ALayout> const& A_and_scales,
                          Tensor<TB, BLayout> const& B_and_scales, Tensor<TC, CLayout> const& C) {
  auto const [A, SFA] = unzip_tensor(A_and_scales);
  auto const [B, SFB] = unzip_tensor(B_and_scales);
  typename Op::ARegisters a;
  typename Op::BRegisters b;
  typename Op::CRegisters c;
  typename Op::DRegisters d;
  typename Op::SFARegisters sfa;
  typename Op::SFBRegisters sfb;
  ::simt::copy_registers(A, a);
  ::simt::copy_registers(B, b);
  ::simt::copy_registers(C, c);
  ::simt::copy_registers(filter_zeros(SFA), sfa);
  ::simt::copy_registers(filter_zeros(SFB), sfb);
  ::simt::ScaledMmaRegisters registers{{a, b, c, d}, sfa, sfb};
  auto const& instance = ::simt::ScaledMmaInstance<Op>::get();
  ::simt::warp_collective(&instance, instance.name.c_str(), ::simt::kFullWarp, &registers,
                          [&](void** slots) { ::simt::scaled_mma(instance.mma, slots); });
  ::simt::NoTrack no_track;  // d was written by another lane
  auto words = recast<std::remove_extent_t<typename Op::DRegisters>>(D);
  for (int i = 0; i < static_cast<int>(std::extent_v<typename Op::DRegisters>); ++i) words(i) = d[i];
}

}  // namespace cute
