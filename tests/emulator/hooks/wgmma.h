// wgmma: every atom of GMMA's traits, with operands in shared memory (descriptors) or A in registers.
#pragma once
#include <cute/atom/mma_traits_sm90_gmma.hpp>

#include "hooks/warp_mma.h"
#include "simt/warpgroup.h"

namespace simt {

template <class Op>
concept WgmmaOp = requires {
  typename Op::ARegisters;
  typename Op::BRegisters;
  typename Op::CRegisters;
  typename Op::DRegisters;
  requires std::is_void_v<typename Op::DRegisters>;
  requires !requires { typename Op::ERegisters; };
};

// How an operand's fragment type says that it is in shared memory, and in which order.
template <class Fragment>
struct MajorOf {
  static constexpr bool kInSharedMemory = false;
};
template <cute::SM90::GMMA::Major kMajor>
struct MajorOf<cute::SM90::GMMA::smem_desc<kMajor>> {
  static constexpr bool kInSharedMemory = true;
  static constexpr Major value = kMajor == cute::SM90::GMMA::Major::K ? Major::kK : Major::kMN;
};

// Where register i of a fragment lies, in registers from register 0.
template <class Layout>
std::vector<int> register_offsets(Layout layout) {
  std::vector<int> offsets;
  for (int i = 0; i < static_cast<int>(cute::size(Layout{})); ++i) offsets.push_back(static_cast<int>(layout(i)));
  return offsets;
}

// Of the first warp of a warpgroup: [lane][value] -> second coordinate * kRows + row. The other warps' are the same,
// but for the rows, which follow.
template <class Layout>
std::vector<uint16_t> flatten_first_warp(Layout layout) {
  constexpr int kM = 64, kValues = cute::size<1>(Layout{});
  std::vector<uint16_t> table;
  for (int t = 0; t < 32; ++t) {
    for (int v = 0; v < kValues; ++v) {
      int const coordinate = static_cast<int>(layout(t, v));
      table.push_back(static_cast<uint16_t>(coordinate / kM * Wgmma::kRows + coordinate % kM));
    }
  }
  return table;
}

// ALayout, DLayout: of a lane's fragments, in registers.
template <class Op, class ALayout, class DLayout>
Wgmma make_wgmma() {
  using Traits = cute::MMA_Traits<Op>;
  // The template arguments of CUTLASS's operations, which their traits do not repeat.
  static_assert(std::string_view(__PRETTY_FUNCTION__).find("ScaleIn::Neg") == std::string_view::npos &&
                    std::string_view(__PRETTY_FUNCTION__).find("ScaleIn)-1") == std::string_view::npos,
                "wgmma with a negated operand is not emulated");
  Wgmma wgmma;
  wgmma.N = cute::size<1>(typename Traits::Shape_MNK{});
  wgmma.K = cute::size<2>(typename Traits::Shape_MNK{});
  wgmma.a = element_of<typename Traits::ValTypeA>();
  wgmma.b = element_of<typename Traits::ValTypeB>();
  wgmma.accumulator = accumulator_of<typename Traits::ValTypeC>();
  wgmma.b_major = MajorOf<typename Traits::FrgTypeB>::value;
  if constexpr (requires { typename Traits::FrgTypeA; }) {
    wgmma.a_major = MajorOf<typename Traits::FrgTypeA>::value;
  } else {
    wgmma.a_major = Major::kK;
    wgmma.a_index = flatten_first_warp(typename Traits::ALayout{});
    wgmma.a_words = register_offsets(ALayout{});
  }
  wgmma.c_index = flatten_first_warp(typename Traits::CLayout{});
  wgmma.c_words = register_offsets(DLayout{});
  return wgmma;
}

template <class Op, class ALayout, class DLayout>
Wgmma const& wgmma_instance() {
  static Wgmma const wgmma = make_wgmma<Op, ALayout, DLayout>();
  return wgmma;
}

}  // namespace simt

namespace cute {

template <class Op, class TD, class DLayout, class TA, class ALayout, class TB, class BLayout, class TC, class CLayout>
  requires(::simt::WgmmaOp<Op>)
constexpr void mma_unpack(MMA_Traits<Op> const& traits, Tensor<TD, DLayout>& D, Tensor<TA, ALayout> const& A,
                          Tensor<TB, BLayout> const& B, Tensor<TC, CLayout> const&) {
  static_assert(is_rmem<TD>::value && is_same_v<DLayout, CLayout>, "wgmma: C and D are the same registers");
  auto const a = recast<std::remove_extent_t<typename Op::ARegisters>>(A);
  auto const b = recast<std::remove_extent_t<typename Op::BRegisters>>(B);
  auto d = recast<uint32_t>(D);
  static_assert(decltype(size(a))::value == std::extent_v<typename Op::ARegisters>);
  static_assert(decltype(size(b))::value == std::extent_v<typename Op::BRegisters>);
  static_assert(decltype(size(d))::value == std::extent_v<typename Op::CRegisters>);
  auto const& wgmma = ::simt::wgmma_instance<Op, decltype(a.layout()), decltype(d.layout())>();
  bool const accumulate = traits.accumulate_ == SM90::GMMA::ScaleOut::One;
  if constexpr (requires { typename MMA_Traits<Op>::FrgTypeA; }) {
    ::simt::wgmma_issue(wgmma, uint64_t(a(0)), nullptr, uint64_t(b(0)), &d(0), accumulate);
  } else {
    ::simt::wgmma_issue(wgmma, 0, &a(0), uint64_t(b(0)), &d(0), accumulate);
  }
}

}  // namespace cute
