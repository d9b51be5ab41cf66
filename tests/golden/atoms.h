// The atoms whose registers are recorded on a GPU (dump_atoms.cu) and replayed in the emulator
// (emulator/self_test/golden.cpp): the same code, compiled by nvcc and by g++.
#pragma once
#include <cutlass/arch/barrier.h>
#include <cutlass/numeric_types.h>

#include <cstdint>
#include <cstring>
#include <cute/tensor.hpp>
#include <type_traits>

#include "arch/block_scaled.h"
#include "arch/bulk_copy.h"
#include "arch/convert.h"
#include "common/quant_format.h"

namespace golden {

// What a 32-bit word of a register holds.
enum class Content { kBits, kF16, kBF16, kE4M3, kF32, kUE4M3, kUE8M0 };

// How much of the recorded result an emulated one must reproduce. kF32: within 2^-20 of the largest magnitude among the
// accumulators (in, from word kFirstC on) and results of the instruction, as the order and the alignment of the sum are
// the hardware's business; kFp22: within 2^-11 of it, the accumulator of FP8 instructions having 13 fraction bits.
enum class Accuracy { kBitwise, kF32, kFp22 };

template <class T>
constexpr Content content_of() {
  if (std::is_same<T, cutlass::half_t>::value) return Content::kF16;
  if (std::is_same<T, cutlass::bfloat16_t>::value) return Content::kBF16;
  if (std::is_same<T, cutlass::float_e4m3_t>::value) return Content::kE4M3;
  if (std::is_same<T, float>::value) return Content::kF32;
  return Content::kBits;
}

// A case runs one atom in one block of kLanes threads. in and out: the words of this lane, in global memory, those of
// the next lane behind them; smem: kSharedBytes, 1024-byte aligned. kOnNewer: GPUs that are newer than the first
// architecture with the atom have it, too.
struct WarpCase {
  static constexpr int kLanes = 32, kSharedBytes = kLanes * 16;
  static constexpr bool kOnNewer = true;
};

// in: the words of A, B and C, out: those of D.
template <class Op>
struct MmaCase : WarpCase {
  using Traits = cute::MMA_Traits<Op>;
  static constexpr int kA = sizeof(typename Op::ARegisters) / 4, kB = sizeof(typename Op::BRegisters) / 4,
                       kC = sizeof(typename Op::CRegisters) / 4;
  static constexpr int kFirstC = kA + kB, kIn = kFirstC + kC, kOut = sizeof(typename Op::DRegisters) / 4;
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
struct ScaledMmaCase : WarpCase {
  using Traits = cute::MMA_Traits<Op>;
  static constexpr int kA = 4, kB = 2, kC = 4, kFirstC = kA + kB, kOperands = kFirstC + kC;
  static constexpr int kIn = kOperands + 2, kOut = 4;
  static constexpr Accuracy kAccuracy = Accuracy::kF32;
  static_assert(sizeof(typename Op::ARegisters) == 4 * kA && sizeof(typename Op::SFARegisters) == 1);

  static constexpr Content content(int word) {
    return word < kFirstC ? Content::kE4M3 : word < kOperands ? Content::kF32 : Content::kUE8M0;
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

// in: the words of A, B and C and a word with the scales of 4 blocks of A and of B; out: those of D. All lanes bring
// scales; which of these count is the instruction's business.
template <int kThreadB>
struct Nvfp4MmaCase : WarpCase {
  static constexpr int kA = 4, kB = 2, kC = 4, kFirstC = kA + kB, kOperands = kFirstC + kC;
  static constexpr int kIn = kOperands + 2, kOut = 4;
  static constexpr Accuracy kAccuracy = Accuracy::kF32;

  static constexpr Content content(int word) {
    return word < kFirstC ? Content::kBits : word < kOperands ? Content::kF32 : Content::kUE4M3;
  }

  CUTE_DEVICE static void run(uint32_t const* in, uint32_t* out, char*) {
#if !defined(__CUDA_ARCH__) || defined(CUTE_ARCH_MXF4NVF4_4X_UE4M3_MMA_ENABLED)
    uint32_t a[kA];
    float c[kC], d[kOut];
    memcpy(a, in, sizeof(a));
    memcpy(c, in + kFirstC, sizeof(c));
    sage::arch::mma_nvfp4<kThreadB>(d, a, in[kA], in[kA + 1], c, in[kOperands], in[kOperands + 1]);
    memcpy(out, d, sizeof(d));
#endif
  }
};

// in: 8 floats; out: their e2m1 codes in a word.
struct RoundToE2m1Case : WarpCase {
  static constexpr int kIn = 8, kOut = 1;
  static constexpr Accuracy kAccuracy = Accuracy::kBitwise;

  static constexpr Content content(int) { return Content::kF32; }

  CUTE_DEVICE static void run(uint32_t const* in, uint32_t* out, char*) {
    float x[kIn];
    memcpy(x, in, sizeof(x));
    *out = sage::arch::round_to_e2m1x8(x);
  }
};

// in: a row of 16 bytes, which the lane stores to shared memory; out: what it gets from rows that other lanes stored.
template <class Op>
struct LdmatrixCase : WarpCase {
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
struct CpAsyncCase : WarpCase {
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

// Instructions of a warpgroup along K, as many as a row of kRowBytes of the operands in shared memory has, which are
// images of swizzled_offset(). Word i of lane l of an operand in shared memory is word l * kA + i (l * kB + i) of the
// matrix without its swizzle.
// in: the words of A (in registers: of each instruction) and B; with A in registers those of C; out: those of D.
// Without C the first instruction is told to take zeros.
template <class Op, int kRowBytes>
struct WgmmaCase {
  using Traits = cute::MMA_Traits<Op>;
  using A = typename Traits::ValTypeA;
  using B = typename Traits::ValTypeB;
  static constexpr bool kAInRegisters = std::is_same<std::remove_extent_t<typename Op::ARegisters>, uint32_t>::value;
  static constexpr int kLanes = 128, kRowsA = 64, kRowsB = cute::size<1>(typename Traits::Shape_MNK{});
  static constexpr bool kOnNewer = false;
  static constexpr int kImageRowBytes = kRowBytes, kSteps = kRowBytes / 32,
                       kBytesA = kAInRegisters ? 0 : kRowsA * kRowBytes;
  static constexpr int kSharedBytes = kBytesA + kRowsB * kRowBytes;
  static constexpr int kA = kRowsA * kRowBytes / 4 / kLanes, kB = kRowsB * kRowBytes / 4 / kLanes;
  static constexpr int kOut = kRowsA * kRowsB / kLanes;
  static constexpr int kFirstC = kA + kB, kIn = kFirstC + (kAInRegisters ? kOut : 0);
  static constexpr Accuracy kAccuracy =
      std::is_same<typename Traits::ValTypeC, float>::value ? Accuracy::kFp22 : Accuracy::kBitwise;
  static_assert(sizeof(A) == 1 && sizeof(B) == 1 && sizeof(typename Op::CRegisters) == 4 * kOut);

  static constexpr Content content(int word) {
    return word < kA + kB ? content_of<A>() : content_of<typename Traits::ValTypeC>();
  }

  CUTE_DEVICE static void run(uint32_t const* in, uint32_t* out, char* smem) {
    using namespace cute;
    if constexpr (!kAInRegisters) store_image(in, kA, smem);
    store_image(in + kA, kB, smem + kBytesA);
    cutlass::arch::fence_view_async_shared();
    __syncthreads();  // the images are visible to the tensor cores

    auto mma = make_tiled_mma(Op{});
    auto const slice = mma.get_slice(threadIdx.x);
    auto const b = slice.partition_fragment_B(image<B, kRowsB>(smem + kBytesA));
    auto d = partition_fragment_C(mma, Shape<Int<kRowsA>, Int<kRowsB>>{});
    if constexpr (kAInRegisters) {
      uint32_t a[kSteps][4];
      memcpy(a, in, sizeof(a));
      memcpy(d.data(), in + kA + kB, 4 * kOut);
      multiply(mma, d, b, [&a](int i) {
        return make_tensor(reinterpret_cast<A*>(a[i]), make_layout(Shape<Shape<_4, _2, _2>, _1>{}));
      });
    } else {
      mma.accumulate_ = GMMA::ScaleOut::Zero;
      auto const a = slice.partition_fragment_A(image<A, kRowsA>(smem));
      multiply(mma, d, b, [&a](int i) { return a(_, _, i); });
    }
    memcpy(out, d.data(), 4 * kOut);
  }

 private:
  CUTE_DEVICE static void store_image(uint32_t const* words, int count, char* target) {
    for (int i = 0; i < count; ++i) {
      int const byte = (threadIdx.x * count + i) * 4;
      memcpy(target + sage::swizzled_offset<kRowBytes>(byte / kRowBytes, byte % kRowBytes), words + i, 4);
    }
  }

  template <class T, int kRows>
  CUTE_DEVICE static auto image(char* smem) {
    using namespace cute;
    using Atom = std::conditional_t<kRowBytes == 64, GMMA::Layout_K_SW64_Atom<T>, GMMA::Layout_K_SW128_Atom<T>>;
    return make_tensor(make_smem_ptr(reinterpret_cast<T*>(smem)),
                       tile_to_shape(Atom{}, Shape<Int<kRows>, Int<kRowBytes>>{}));
  }

  // d += a(i) b(i) for all steps.
  template <class Mma, class D, class B, class A>
  CUTE_DEVICE static void multiply(Mma& mma, D& d, B const& b, A const& a) {
    cute::warpgroup_fence_operand(d);
    cute::warpgroup_arrive();
    CUTE_UNROLL
    for (int i = 0; i < kSteps; ++i) {
      cute::gemm(mma, a(i), b(cute::_, cute::_, i), d);
      mma.accumulate_ = cute::GMMA::ScaleOut::One;
    }
    cute::warpgroup_commit_batch();
    cute::warpgroup_wait<0>();
    cute::warpgroup_fence_operand(d);
  }
};

// in: a row of 16 bytes, so aligned. One lane copies all of them to shared memory, row (l + 1) mod 32 to row l, and
// once more, row l to row l, with a copy of its own for the last one. Full and empty barriers keep the copies and their
// readers apart. out: row (11 l + 7) mod 32 of shared memory, after the first time and after the second.
struct BulkCopyCase : WarpCase {
  static constexpr int kIn = 4, kOut = 8, kRowBytes = 16;
  static constexpr Accuracy kAccuracy = Accuracy::kBitwise;
  static constexpr int kSharedBytes = WarpCase::kSharedBytes + 2 * sizeof(uint64_t);

  static constexpr Content content(int) { return Content::kBits; }

  CUTE_DEVICE static void run(uint32_t const* in, uint32_t* out, char* smem) {
    using Barrier = cutlass::arch::ClusterTransactionBarrier;
    constexpr int kRows = kLanes, kLast = (kRows - 1) * kRowBytes;
    auto* const full = reinterpret_cast<uint64_t*>(smem + kRows * kRowBytes);
    auto* const empty = full + 1;
    if (threadIdx.x == 0) {
      Barrier::init(full, 1);
      Barrier::init(empty, kLanes);
      cutlass::arch::fence_barrier_init();
    }
    __syncthreads();  // the barriers are visible to all
    for (int round = 0; round < 2; ++round) {
      if (threadIdx.x == 0) {
        auto const* const rows = reinterpret_cast<char const*>(in);
        int const shift = round == 0 ? kRowBytes : 0;
        Barrier::wait(empty, round ^ 1);  // the first time nobody reads
        Barrier::arrive_and_expect_tx(full, kRows * kRowBytes);
        sage::arch::bulk_copy(smem, rows + shift, kLast, *full);
        sage::arch::bulk_copy(smem + kLast, rows + (kLast + shift) % (kRows * kRowBytes), kRowBytes, *full);
      }
      Barrier::wait(full, round);
      memcpy(out + 4 * round, smem + (threadIdx.x * 11 + 7) % kRows * kRowBytes, kRowBytes);
      Barrier::arrive(empty);
    }
  }
};

using Mxfp8 = cute::SM120::BLOCKSCALED::SM120_16x8x32_TN_VS<cute::float_e4m3_t, cute::float_e4m3_t, float,
                                                            cute::float_ue8m0_t, 32>;

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
  visitor.template visit<ScaledMmaCase<Mxfp8>>("SM120_16x8x32_F32E4M3E4M3F32_TN_VS32_UE8M0");
  visitor.template visit<Nvfp4MmaCase<0>>("SM120_16x8x64_F32E2M1E2M1F32_TN_VS16_UE4M3_THREAD0");
  visitor.template visit<Nvfp4MmaCase<1>>("SM120_16x8x64_F32E2M1E2M1F32_TN_VS16_UE4M3_THREAD1");
  visitor.template visit<Nvfp4MmaCase<2>>("SM120_16x8x64_F32E2M1E2M1F32_TN_VS16_UE4M3_THREAD2");
  visitor.template visit<Nvfp4MmaCase<3>>("SM120_16x8x64_F32E2M1E2M1F32_TN_VS16_UE4M3_THREAD3");
  visitor.template visit<RoundToE2m1Case>("SM120_CVT_RN_SATFINITE_E2M1X2_F32");
  visitor.template visit<WgmmaCase<cute::SM90_64x128x32_S32S8S8_SS_TN, 128>>("SM90_64x128x32_S32S8S8_SS_TN_SW128");
  visitor.template visit<WgmmaCase<cute::SM90_64x64x32_S32S8S8_SS_TN, 64>>("SM90_64x64x32_S32S8S8_SS_TN_SW64");
  visitor.template visit<WgmmaCase<cute::SM90_64x64x32_F32E4M3E4M3_RS_TN<>, 64>>(
      "SM90_64x64x32_F32E4M3E4M3_RS_TN_SW64");
  visitor.template visit<BulkCopyCase>("SM90_BULK_COPY_G2S");
}

}  // namespace golden
