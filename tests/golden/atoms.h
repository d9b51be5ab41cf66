// The atoms whose registers are recorded on a GPU (dump_atoms.cu) and replayed in the emulator
// (emulator/self_test/golden.cpp): the same code, compiled by nvcc and by g++.
#pragma once
#include <cutlass/numeric_types.h>
#include <cute/tensor.hpp>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace golden {

constexpr int kLanes = 32;
constexpr int kSharedBytes = kLanes * 16;

// What a 32-bit word of a register holds.
enum class Content { kBits, kF16, kBF16, kE4M3, kF32, kUE8M0 };

// How much of the recorded result an emulated one must reproduce. kF32: within 2^-20 of the largest magnitude among the
// accumulators and results of the instruction, as the order and the alignment of the sum are the hardware's business;
// kFp22: within 2^-11 of it, the accumulator of FP8 instructions having 13 fraction bits.
enum class Accuracy { kBitwise, kF32, kFp22 };

template <class T>
constexpr Content content_of() {
  if (std::is_same<T, cutlass::half_t>::value) return Content::kF16;
  if (std::is_same<T, cutlass::bfloat16_t>::value) return Content::kBF16;
  if (std::is_same<T, cutlass::float_e4m3_t>::value) return Content::kE4M3;
  if (std::is_same<T, float>::value) return Content::kF32;
  return Content::kBits;
}

// A case runs one atom in one warp. in and out: the words of this lane, in global memory.

// in: the words of A, B and C, out: those of D.
template <class Op>
struct MmaCase {
  using Traits = cute::MMA_Traits<Op>;
  static constexpr int kA = sizeof(typename Op::ARegisters) / 4, kB = sizeof(typename Op::BRegisters) / 4,
                       kC = sizeof(typename Op::CRegisters) / 4;
  static constexpr int kIn = kA + kB + kC, kOut = sizeof(typename Op::DRegisters) / 4;
  static constexpr Accuracy kAccuracy = !std::is_same<typename Traits::ValTypeD, float>::value ? Accuracy::kBitwise
                                        : std::is_same<typename Traits::ValTypeA, cutlass::float_e4m3_t>::value
                                            ? Accuracy::kFp22
                                            : Accuracy::kF32;

  static constexpr Content content(int word) {
    return word < kA        ? content_of<typename Traits::ValTypeA>()
           : word < kA + kB ? content_of<typename Traits::ValTypeB>()
                            : content_of<typename Traits::ValTypeC>();
  }

  CUTE_DEVICE static void run(uint32_t const* in, uint32_t* out, char*) {
    typename Op::ARegisters a;
    typename Op::BRegisters b;
    typename Op::CRegisters c;
    typename Op::DRegisters d;
    memcpy(a, in, sizeof(a));
    memcpy(b, in + kA, sizeof(b));
    memcpy(c, in + kA + kB, sizeof(c));
    auto registers_d = tensor(d);
    mma_unpack(Traits{}, registers_d, tensor(a), tensor(b), tensor(c));
    memcpy(out, d, sizeof(d));
  }

  template <class T, size_t kCount>
  CUTE_DEVICE static auto tensor(T (&registers)[kCount]) {
    return cute::make_tensor(static_cast<T*>(registers), cute::Layout<cute::Int<kCount>>{});
  }
};

// in: the words of A, B and C and the scales of A and B, each in the lowest byte of a word; out: those of D.
template <class Op>
struct ScaledMmaCase {
  using Traits = cute::MMA_Traits<Op>;
  static constexpr int kA = 4, kB = 2, kC = 4, kOperands = kA + kB + kC;
  static constexpr int kIn = kOperands + 2, kOut = 4;
  static constexpr Accuracy kAccuracy = Accuracy::kF32;
  static_assert(sizeof(typename Op::ARegisters) == 4 * kA && sizeof(typename Op::SFARegisters) == 1);

  static constexpr Content content(int word) {
    return word < kA + kB ? Content::kE4M3 : word < kOperands ? Content::kF32 : Content::kUE8M0;
  }

  CUTE_DEVICE static void run(uint32_t const* in, uint32_t* out, char*) {
    typename Op::ARegisters a;
    typename Op::BRegisters b;
    typename Op::CRegisters c;
    typename Op::DRegisters d;
    memcpy(a, in, sizeof(a));
    memcpy(b, in + kA, sizeof(b));
    memcpy(c, in + kA + kB, sizeof(c));
    uint8_t scale_a = static_cast<uint8_t>(in[kOperands]), scale_b = static_cast<uint8_t>(in[kOperands + 1]);
    auto registers_d = MmaCase<Op>::tensor(d);
    mma_unpack(Traits{}, registers_d, cute::make_zip_tensor(MmaCase<Op>::tensor(a), scales(&scale_a)),
               cute::make_zip_tensor(MmaCase<Op>::tensor(b), scales(&scale_b)), MmaCase<Op>::tensor(c));
    memcpy(out, d, sizeof(d));
  }

 private:
  CUTE_DEVICE static auto scales(uint8_t* scale) {  // the same for all 32 elements along K
    return cute::make_tensor(cute::recast_ptr<typename Traits::ValTypeSF>(scale),
                             cute::Layout<cute::Shape<cute::_32>, cute::Stride<cute::_0>>{});
  }
};

// in: a row of 16 bytes, which the lane stores to shared memory; out: what it gets from rows that other lanes stored.
template <class Op>
struct LdmatrixCase {
  static constexpr int kIn = 4, kOut = sizeof(typename Op::DRegisters) / 4;
  static constexpr Accuracy kAccuracy = Accuracy::kBitwise;

  static constexpr Content content(int) { return Content::kBits; }

  CUTE_DEVICE static void run(uint32_t const* in, uint32_t* out, char* smem) {
    auto* const rows = reinterpret_cast<cute::uint128_t*>(smem);
    memcpy(static_cast<void*>(&rows[threadIdx.x]), in, sizeof(*rows));
    __syncthreads();
    load(rows[(threadIdx.x * 11 + 7) % kLanes], out, cute::make_int_sequence<kOut>{});
  }

 private:
  template <int... kIndex>
  CUTE_DEVICE static void load(cute::uint128_t const& row, uint32_t* out, cute::int_sequence<kIndex...>) {
    cute::detail::CallCOPY<Op>{}(row, out[kIndex]...);
  }
};

// in: a row of 16 bytes, so aligned, which the lane copies to shared memory in pieces of the size of Op; out: the row
// of another lane. Where Op takes a predicate it is false, and the piece filled with zeros, for every third piece.
template <class Op>
struct CpAsyncCase {
  using Piece = std::remove_extent_t<typename Op::SRegisters>;
  static constexpr int kIn = 4, kOut = 4;
  static constexpr Accuracy kAccuracy = Accuracy::kBitwise;

  static constexpr Content content(int) { return Content::kBits; }

  CUTE_DEVICE static void run(uint32_t const* in, uint32_t* out, char* smem) {
    constexpr int kPieces = 16 / sizeof(Piece);
    auto const* const source = reinterpret_cast<Piece const*>(in);
    auto* const target = reinterpret_cast<Piece*>(smem + threadIdx.x * 16);
    memset(static_cast<void*>(target), 0xA5, 16);
    __syncthreads();  // the copies come after it, although the compiler does not know what they write
    for (int i = 0; i < kPieces; ++i) {
      if constexpr (std::is_invocable<decltype(&Op::copy), Piece const&, Piece&, bool>::value) {
        Op::copy(source[i], target[i], (threadIdx.x + i) % 3 != 0);
      } else {
        Op::copy(source[i], target[i]);
      }
    }
    cute::cp_async_fence();
    cute::cp_async_wait<0>();
    __syncthreads();  // the row that this lane reads was copied by another one
    memcpy(out, smem + (threadIdx.x * 11 + 7) % kLanes * 16, 16);
  }
};

// visitor.visit<Case>(name) for every case. A name begins with SMxy: the first architecture that has the instruction.
template <class Visitor>
void visit_cases(Visitor& visitor) {
#define SAGE_GOLDEN_CASE(Case, Op) visitor.template visit<Case<cute::Op>>(#Op)
  SAGE_GOLDEN_CASE(MmaCase, SM80_16x8x32_S32S8S8S32_TN);
  SAGE_GOLDEN_CASE(MmaCase, SM80_16x8x32_S32U8S8S32_TN);
  SAGE_GOLDEN_CASE(MmaCase, SM80_16x8x64_S32S4S4S32_TN);
  SAGE_GOLDEN_CASE(MmaCase, SM80_16x8x16_F32F16F16F32_TN);
  SAGE_GOLDEN_CASE(MmaCase, SM80_16x8x16_F16F16F16F16_TN);
  SAGE_GOLDEN_CASE(MmaCase, SM80_16x8x16_F32BF16BF16F32_TN);
  SAGE_GOLDEN_CASE(MmaCase, SM89_16x8x32_F32E4M3E4M3F32_TN);
  SAGE_GOLDEN_CASE(MmaCase, SM89_16x8x32_F16E4M3E4M3F16_TN);
  SAGE_GOLDEN_CASE(LdmatrixCase, SM75_U32x1_LDSM_N);
  SAGE_GOLDEN_CASE(LdmatrixCase, SM75_U32x2_LDSM_N);
  SAGE_GOLDEN_CASE(LdmatrixCase, SM75_U32x4_LDSM_N);
  SAGE_GOLDEN_CASE(LdmatrixCase, SM75_U16x2_LDSM_T);
  SAGE_GOLDEN_CASE(LdmatrixCase, SM75_U16x4_LDSM_T);
  SAGE_GOLDEN_CASE(LdmatrixCase, SM75_U16x8_LDSM_T);
  SAGE_GOLDEN_CASE(CpAsyncCase, SM80_CP_ASYNC_CACHEALWAYS<uint32_t>);
  SAGE_GOLDEN_CASE(CpAsyncCase, SM80_CP_ASYNC_CACHEALWAYS<uint64_t>);
  SAGE_GOLDEN_CASE(CpAsyncCase, SM80_CP_ASYNC_CACHEGLOBAL<cute::uint128_t>);
  SAGE_GOLDEN_CASE(CpAsyncCase, SM80_CP_ASYNC_CACHEALWAYS_ZFILL<uint32_t>);
  SAGE_GOLDEN_CASE(CpAsyncCase, SM80_CP_ASYNC_CACHEALWAYS_ZFILL<uint64_t>);
  SAGE_GOLDEN_CASE(CpAsyncCase, SM80_CP_ASYNC_CACHEALWAYS_ZFILL<cute::uint128_t>);
  SAGE_GOLDEN_CASE(CpAsyncCase, SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<cute::uint128_t>);
#undef SAGE_GOLDEN_CASE
  using Mxfp8 = cute::SM120::BLOCKSCALED::SM120_16x8x32_TN_VS<cute::float_e4m3_t, cute::float_e4m3_t, float,
                                                              cute::float_ue8m0_t, 32>;
  visitor.template visit<ScaledMmaCase<Mxfp8>>("SM120_16x8x32_F32E4M3E4M3F32_TN_VS32_UE8M0");
}

}  // namespace golden
