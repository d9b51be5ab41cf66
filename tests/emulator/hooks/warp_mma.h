// mma.sync: every atom whose traits name 32 threads, computed from the traits' layouts. Other atoms of a warp that have
// no arithmetic here do not compile.
#pragma once
#include <cutlass/numeric_types.h>
#include <cute/atom/mma_traits.hpp>

#include <string>
#include <string_view>

#include "simt/mma.h"
#include "simt/sync.h"

namespace simt {

template <class T>
constexpr Element element_of() {
  using namespace cutlass;
  if constexpr (std::is_same_v<T, int8_t>)
    return Element::kS8;
  else if constexpr (std::is_same_v<T, uint8_t>)
    return Element::kU8;
  else if constexpr (std::is_same_v<T, int4b_t>)
    return Element::kS4;
  else if constexpr (std::is_same_v<T, uint4b_t>)
    return Element::kU4;
  else if constexpr (std::is_same_v<T, half_t>)
    return Element::kF16;
  else if constexpr (std::is_same_v<T, bfloat16_t>)
    return Element::kBF16;
  else if constexpr (std::is_same_v<T, float_e4m3_t>)
    return Element::kE4M3;
  else if constexpr (std::is_same_v<T, float_e5m2_t>)
    return Element::kE5M2;
  else if constexpr (std::is_same_v<T, float_e2m1_t>)
    return Element::kE2M1;
  else if constexpr (std::is_same_v<T, float_e2m3_t>)
    return Element::kE2M3;
  else if constexpr (std::is_same_v<T, float_e3m2_t>)
    return Element::kE3M2;
  else if constexpr (std::is_same_v<T, float_ue4m3_t>)
    return Element::kUE4M3;
  else if constexpr (std::is_same_v<T, float_ue8m0_t>)
    return Element::kUE8M0;
  else
    static_assert(sizeof(T) == 0, "the emulator has no arithmetic for tensor cores with this element type");
}

template <class T>
constexpr Accumulator accumulator_of() {
  if constexpr (std::is_same_v<T, int32_t>)
    return Accumulator::kS32;
  else if constexpr (std::is_same_v<T, float>)
    return Accumulator::kF32;
  else if constexpr (std::is_same_v<T, cutlass::half_t>)
    return Accumulator::kF16;
  else
    static_assert(sizeof(T) == 0, "the emulator has no arithmetic for tensor cores with this accumulator type");
}

// The name of the atom, for messages.
template <class Op>
constexpr std::string_view op_name() {
  std::string_view name = __PRETTY_FUNCTION__;
  name.remove_prefix(name.find("Op = ") + 5);
  return name.substr(0, name.find_first_of(";]"));
}

template <class Op>
concept WarpMmaOp = requires {
  typename Op::ARegisters;
  typename Op::BRegisters;
  typename Op::CRegisters;
  typename Op::DRegisters;
  requires !std::is_void_v<typename Op::DRegisters>;
  requires decltype(cute::size(typename cute::MMA_Traits<Op>::ThrID{}))::value == 32;
};
template <class Op>
concept ScaledMmaOp = WarpMmaOp<Op> && requires { typename Op::SFARegisters; };

// Flattens a layout (thread, value) -> coordinate.
template <class Layout>
std::vector<uint16_t> layout_table(Layout layout) {
  constexpr int kThreads = cute::size<0>(Layout{}), kValues = cute::size<1>(Layout{});
  std::vector<uint16_t> table(kThreads * kValues);
  for (int t = 0; t < kThreads; ++t) {
    for (int v = 0; v < kValues; ++v) table[t * kValues + v] = static_cast<uint16_t>(layout(t, v));
  }
  return table;
}

// With the element types A and B, where these are not the traits' (which name containers of narrow ones).
template <class Op, class A, class B>
WarpMma make_warp_mma() {
  using Traits = cute::MMA_Traits<Op>;
  using Shape = typename Traits::Shape_MNK;
  WarpMma mma;
  mma.M = cute::size<0>(Shape{});
  mma.N = cute::size<1>(Shape{});
  mma.K = cute::size<2>(Shape{});
  mma.a = element_of<A>();
  mma.b = element_of<B>();
  mma.accumulator = accumulator_of<typename Traits::ValTypeD>();
  mma.saturate = op_name<Op>().find("_SATURATE") != std::string_view::npos;
  mma.a_index = layout_table(typename Traits::ALayout{});
  mma.b_index = layout_table(typename Traits::BLayout{});
  mma.c_index = layout_table(typename Traits::CLayout{});
  check_layouts(mma, std::string(op_name<Op>()).c_str());
  return mma;
}

template <class Op>
struct WarpMmaInstance {
  using Traits = cute::MMA_Traits<Op>;
  WarpMma mma = make_warp_mma<Op, typename Traits::ValTypeA, typename Traits::ValTypeB>();
  std::string name{op_name<Op>()};
  static WarpMmaInstance const& get() {
    static WarpMmaInstance const instance;
    return instance;
  }
};

template <class Registers, class Tensor>
void copy_registers(Tensor const& from, Registers& to) {
  constexpr int kCount = std::extent_v<Registers>;
  auto const words = cute::recast<std::remove_extent_t<Registers>>(from);
  CUTE_STATIC_ASSERT_V(cute::size(words) == cute::Int<kCount>{});
  for (int i = 0; i < kCount; ++i) to[i] = words(i);
}

}  // namespace simt

namespace cute {

// More specialised than CUTLASS's mma_unpack(AnyMMATraits const&, ...), which cute::gemm calls unqualified.
template <class Op, class TD, class DLayout, class TA, class ALayout, class TB, class BLayout, class TC, class CLayout>
  requires(::simt::WarpMmaOp<Op> && !::simt::ScaledMmaOp<Op>)
constexpr void mma_unpack(MMA_Traits<Op> const&, Tensor<TD, DLayout>& D, Tensor<TA, ALayout> const& A,
                          Tensor<TB, BLayout> const& B, Tensor<TC, CLayout> const& C) {
  typename Op::ARegisters a;
  typename Op::BRegisters b;
  typename Op::CRegisters c;
  typename Op::DRegisters d;
  ::simt::copy_registers(A, a);
  ::simt::copy_registers(B, b);
  ::simt::copy_registers(C, c);
  ::simt::MmaRegisters registers{a, b, c, d};
  auto const& instance = ::simt::WarpMmaInstance<Op>::get();
  ::simt::warp_collective(&instance, instance.name.c_str(), ::simt::kFullWarp, &registers,
                          [&](void** slots) { ::simt::warp_mma(instance.mma, slots); });
  ::simt::NoTrack no_track;  // d was written by another lane
  auto words = recast<std::remove_extent_t<typename Op::DRegisters>>(D);
  for (int i = 0; i < static_cast<int>(std::extent_v<typename Op::DRegisters>); ++i) words(i) = d[i];
}

}  // namespace cute
