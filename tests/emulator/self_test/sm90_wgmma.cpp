// wgmma against a plain triple loop, for every kind of operand, and its protocol: a use that the hardware would punish
// at random must be an error here.
#include <cutlass/arch/barrier.h>
#include <cute/tensor.hpp>

#include <vector>

#include "self_test/check.h"

using namespace cute;

namespace {

constexpr int kThreads = 128;

template <class T>
T small_integer(self_test::Generator& random) {
  int const x = static_cast<int>(random() % 15);
  return T(std::is_same_v<T, uint8_t> ? x : x - 7);  // exact in every format, sums too
}

template <class T, simt::Major kMajor, int kRows, int kColumns>
auto smem_layout() {
  if constexpr (kMajor == simt::Major::kK) {
    return tile_to_shape(GMMA::Layout_K_SW64_Atom<T>{}, Shape<Int<kRows>, Int<kColumns>>{});
  } else {
    return tile_to_shape(GMMA::Layout_MN_SW64_Atom<T>{}, Shape<Int<kRows>, Int<kColumns>>{}, Step<_2, _1>{});
  }
}

enum class Fault {
  kNone,
  kNoFence,       // of the stores to shared memory
  kForeignFence,  // by one thread, after the barrier, for all
  kNoArrive,
  kNoWait,
  kEarlyRead,          // of the accumulators, before the wait
  kTouchAccumulators,  // before the wait
  kTouchA,             // registers of A, before the wait
};

// D = A B^T of one instruction's M and N, in two instructions along K; C comes in through the accumulators.
template <class Op>
struct Problem {
  using Traits = MMA_Traits<Op>;
  using A = typename Traits::ValTypeA;
  using B = typename Traits::ValTypeB;
  using C = typename Traits::ValTypeC;
  static constexpr int M = 64, N = size<1>(typename Traits::Shape_MNK{}), K = 2 * size<2>(typename Traits::Shape_MNK{});
  static constexpr bool kAInRegisters = !requires { typename Traits::FrgTypeA; };

  static constexpr simt::Major a_major() {
    if constexpr (kAInRegisters)
      return simt::Major::kK;
    else
      return simt::MajorOf<typename Traits::FrgTypeA>::value;
  }
  using LayoutA = decltype(smem_layout<A, a_major(), M, K>());
  using LayoutB = decltype(smem_layout<B, simt::MajorOf<typename Traits::FrgTypeB>::value, N, K>());

  struct SharedStorage {
    alignas(1024) A a[cosize_v<LayoutA>];
    alignas(1024) B b[cosize_v<LayoutB>];
  };

  std::vector<A> a{std::vector<A>(M * K)};
  std::vector<B> b{std::vector<B>(N * K)};
  std::vector<C> c{std::vector<C>(M * N)}, d{std::vector<C>(M * N)};

  Problem() {
    self_test::Generator random;
    for (auto& x : a) x = small_integer<A>(random);
    for (auto& x : b) x = small_integer<B>(random);
    for (auto& x : c) x = C(static_cast<int>(random() % 31) - 15);
  }

  void run(Fault fault) {
    simt::launch(1, kThreads, sizeof(SharedStorage), [&](char* smem) { kernel(fault, smem); });
  }

  void kernel(Fault fault, char* smem) {
    auto& shared = *reinterpret_cast<SharedStorage*>(smem);
    int const thread = threadIdx.x;
    auto const global_a = make_tensor(make_gmem_ptr(a.data()), Shape<Int<M>, Int<K>>{}, Stride<Int<K>, _1>{});
    auto const global_b = make_tensor(make_gmem_ptr(b.data()), Shape<Int<N>, Int<K>>{}, Stride<Int<K>, _1>{});
    auto const global_c = make_tensor(make_gmem_ptr(c.data()), Shape<Int<M>, Int<N>>{}, Stride<Int<N>, _1>{});
    auto const global_d = make_tensor(make_gmem_ptr(d.data()), Shape<Int<M>, Int<N>>{}, Stride<Int<N>, _1>{});
    auto shared_a = make_tensor(make_smem_ptr(shared.a), LayoutA{});
    auto shared_b = make_tensor(make_smem_ptr(shared.b), LayoutB{});
    for (int i = thread; i < M * K; i += kThreads) shared_a(i / K, i % K) = global_a(i / K, i % K);
    for (int i = thread; i < N * K; i += kThreads) shared_b(i / K, i % K) = global_b(i / K, i % K);
    if (fault != Fault::kNoFence && fault != Fault::kForeignFence) cutlass::arch::fence_view_async_shared();
    __syncthreads();
    if (fault == Fault::kForeignFence && thread == 0) cutlass::arch::fence_view_async_shared();

    auto mma = make_tiled_mma(Op{});
    auto const slice = mma.get_slice(thread);
    auto fragment_a = [&] {
      if constexpr (kAInRegisters) {
        auto fragment = slice.partition_fragment_A(global_a);
        copy(slice.partition_A(global_a), fragment);
        return fragment;
      } else {
        return slice.partition_fragment_A(shared_a);
      }
    }();
    auto const fragment_b = slice.partition_fragment_B(shared_b);
    auto accumulators = partition_fragment_C(mma, Shape<Int<M>, Int<N>>{});
    copy(slice.partition_C(global_c), accumulators);
    if (fault != Fault::kNoArrive) warpgroup_arrive();
    gemm(mma, fragment_a, fragment_b, accumulators);
    warpgroup_commit_batch();
    if (fault == Fault::kEarlyRead) copy(accumulators, slice.partition_C(global_d));
    if (fault == Fault::kTouchAccumulators) accumulators(0) = C(1000);
    if constexpr (kAInRegisters) {
      if (fault == Fault::kTouchA) fragment_a(0) = A(100);
    }
    if (fault != Fault::kNoWait) warpgroup_wait<0>();
    if (fault != Fault::kEarlyRead) copy(accumulators, slice.partition_C(global_d));
  }

  // Elements of d that differ from c + factor * a b^T.
  int mismatches(int factor = 1) const {
    int count = 0;
    for (int m = 0; m < M; ++m) {
      for (int n = 0; n < N; ++n) {
        float sum = float(c[m * N + n]);
        for (int k = 0; k < K; ++k) sum += factor * float(a[m * K + k]) * float(b[n * K + k]);
        count += float(d[m * N + n]) != sum;
      }
    }
    return count;
  }
};

template <class Op>
void check_product(char const* name) {
  self_test::for_each_configuration([&] {
    Problem<Op> problem;
    problem.run(Fault::kNone);
    self_test::report(problem.mismatches() == 0, __FILE__, __LINE__, std::string(name) + " is wrong");
  });
}

void check_protocol() {
  using Op = SM90_64x32x16_F32F16F16_RS<GMMA::Major::K, GMMA::Major::MN>;
  Problem<Op> problem;
#if !SIMT_ASAN && !SIMT_TSAN  // plain stores are seen in a build without sanitizers
  CHECK_ERROR("stored through the generic proxy without a fence.proxy.async", problem.run(Fault::kNoFence));
  CHECK_ERROR("stored through the generic proxy without a fence.proxy.async", problem.run(Fault::kForeignFence));
#endif
  CHECK_ERROR("wgmma without warpgroup_arrive", problem.run(Fault::kNoArrive));
  CHECK_ERROR("thread exits with wgmma in flight", problem.run(Fault::kNoWait));
  CHECK_ERROR("wrote to the accumulators", problem.run(Fault::kTouchAccumulators));
  CHECK_ERROR("wrote to the registers of A", problem.run(Fault::kTouchA));
  problem.run(Fault::kEarlyRead);
  CHECK_EQUAL(problem.mismatches(0), 0);  // d is c: what the accumulators held before
}

// One FP8 instruction keeps 13 fraction bits if it is told to: 2^13 + 1 needs them all, 2^14 + 1 loses the 1.
void check_reduced() {
  using Op = SM90_64x8x32_F32E4M3E4M3_SS_TN<>;
  simt::Config const before = simt::configuration();
  for (auto const mode : {simt::Accumulate::kExact, simt::Accumulate::kReduced}) {
    simt::Config config = before;
    config.accumulate = mode;
    simt::configure(config);
    for (int bits : {13, 14}) {
      Problem<Op> problem;
      for (auto& x : problem.a) x = float_e4m3_t(0.0f);
      for (auto& x : problem.c) x = static_cast<float>(1 << bits);
      for (int m = 0; m < problem.M; ++m) problem.a[m * problem.K] = float_e4m3_t(1.0f);
      for (auto& x : problem.b) x = float_e4m3_t(1.0f);
      problem.run(Fault::kNone);
      bool const lost = mode == simt::Accumulate::kReduced && bits == 14;
      CHECK_EQUAL(problem.d[0], static_cast<float>((1 << bits) + (lost ? 0 : 1)));
    }
  }
  simt::configure(before);
}

}  // namespace

int main() {
  constexpr auto K = GMMA::Major::K, MN = GMMA::Major::MN;
  check_product<SM90_64x32x32_S32S8S8_SS_TN>("s8, A in shared memory");
  check_product<SM90_64x32x32_S32S8S8_RS_TN>("s8, A in registers");
  check_product<SM90_64x32x32_S32U8S8_RS_TN>("u8 x s8, A in registers");
  check_product<SM90_64x32x16_F32F16F16_SS<K, K>>("f16, both K-major");
  check_product<SM90_64x32x16_F32F16F16_SS<MN, MN>>("f16, both MN-major");
  check_product<SM90_64x32x16_F32F16F16_RS<K, MN>>("f16, A in registers, B MN-major");
  check_product<SM90_64x32x16_F16F16F16_SS<K, K>>("f16 with f16 accumulators");
  check_product<SM90_64x32x16_F32BF16BF16_SS<K, MN>>("bf16");
  check_product<SM90_64x32x32_F32E4M3E4M3_SS_TN<>>("e4m3, A in shared memory");
  check_product<SM90_64x32x32_F32E4M3E4M3_RS_TN<>>("e4m3, A in registers");
  check_product<SM90_64x32x32_F32E5M2E4M3_SS_TN<>>("e5m2 x e4m3");
  check_protocol();
  check_reduced();
  return self_test::finish("wgmma");
}
