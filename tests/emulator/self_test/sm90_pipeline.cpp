// A warp-specialised kernel as sm90 wants it: a producer warp with make_tma_copy, full and empty barriers, setmaxnreg,
// a consumer warpgroup with wgmma, a TMA store of the result; and each of its synchronisations left out.
#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>
#include <cute/tensor.hpp>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "self_test/check.h"

using namespace cute;

namespace {

enum class Fault { kNone, kNoFullWait, kNoEmptyWait, kEarlyRelease, kNoStoreFence, kWrongBarrier };

// D = A B^T in tiles of 64 x 64; rows and columns that A, B or D do not have are zeros and are not stored.
template <class Op, Fault kFault = Fault::kNone>
struct Gemm {
  using T = typename MMA_Traits<Op>::ValTypeA;
  using Accumulator = typename MMA_Traits<Op>::ValTypeC;
  static constexpr int kTile = 64, kTileK = 128, kStages = 2, kThreads = 256;
  using SmemLayout =
      decltype(tile_to_shape(GMMA::Layout_K_SW128_Atom<T>{}, Shape<Int<kTile>, Int<kTileK>, Int<kStages>>{}));
  using SmemLayoutD = Layout<Shape<Int<kTile>, Int<kTile>>, Stride<Int<kTile>, _1>>;
  using GlobalLayout = Layout<Shape<int, int>, Stride<int, _1>>;
  using Load = decltype(make_tma_copy(SM90_TMA_LOAD{}, make_tensor(make_gmem_ptr<T>(nullptr), GlobalLayout{}),
                                      SmemLayout{}(_, _, 0)));
  using Store = decltype(make_tma_copy(
      SM90_TMA_STORE{}, make_tensor(make_gmem_ptr<Accumulator>(nullptr), GlobalLayout{}), SmemLayoutD{}));
  using Full = cutlass::arch::ClusterTransactionBarrier;
  using Empty = cutlass::arch::ClusterBarrier;

  struct SharedStorage {
    alignas(1024) T a[cosize_v<SmemLayout>];
    alignas(1024) T b[cosize_v<SmemLayout>];
    alignas(1024) Accumulator d[kTile * kTile];
    uint64_t full[kStages], empty[kStages];
  };
  struct Params {
    Load load_a, load_b;
    Store store_d;
    int m, n, k;
  };

  static Params make_params(T* a, T* b, Accumulator* d, int m, int n, int k) {
    auto const matrix = [](auto* p, int rows, int columns) {
      return make_tensor(make_gmem_ptr(p), GlobalLayout{make_shape(rows, columns), make_stride(columns, _1{})});
    };
    return {make_tma_copy(SM90_TMA_LOAD{}, matrix(a, m, k), SmemLayout{}(_, _, 0)),
            make_tma_copy(SM90_TMA_LOAD{}, matrix(b, n, k), SmemLayout{}(_, _, 0)),
            make_tma_copy(SM90_TMA_STORE{}, matrix(d, m, n), SmemLayoutD{}),
            m,
            n,
            k};
  }

  void operator()(Params const& params, char* smem) const {
    auto& shared = *reinterpret_cast<SharedStorage*>(smem);
    int const warp = cutlass::canonical_warp_idx_sync();
    if (warp == 0 && elect_one_sync()) {
      for (int stage = 0; stage < kStages; ++stage) {
        Full::init(&shared.full[stage], 1);
        Empty::init(&shared.empty[stage], 128);
      }
      cutlass::arch::fence_barrier_init();
    }
    __syncthreads();
    if (warp < 4) {
      cutlass::arch::warpgroup_reg_dealloc<40>();
      if (warp == 0 && elect_one_sync()) produce(params, shared);
    } else {
      cutlass::arch::warpgroup_reg_alloc<232>();
      consume(params, shared);
    }
  }

  void produce(Params const& params, SharedStorage& shared) const {
    auto const shared_a = make_tensor(make_smem_ptr(shared.a), SmemLayout{});
    auto const shared_b = make_tensor(make_smem_ptr(shared.b), SmemLayout{});
    auto const tile = Shape<Int<kTile>, Int<kTileK>>{};
    auto const global_a = local_tile(params.load_a.get_tma_tensor(make_shape(params.m, params.k)), tile,
                                     make_coord(static_cast<int>(blockIdx.x), _));
    auto const global_b = local_tile(params.load_b.get_tma_tensor(make_shape(params.n, params.k)), tile,
                                     make_coord(static_cast<int>(blockIdx.y), _));
    auto const [from_a, to_a] =
        tma_partition(params.load_a, _0{}, Layout<_1>{}, group_modes<0, 2>(shared_a), group_modes<0, 2>(global_a));
    auto const [from_b, to_b] =
        tma_partition(params.load_b, _0{}, Layout<_1>{}, group_modes<0, 2>(shared_b), group_modes<0, 2>(global_b));
    for (int i = 0; i < params.k / kTileK; ++i) {
      int const stage = i % kStages, phase = i / kStages & 1;
      if (kFault != Fault::kNoEmptyWait) Empty::wait(&shared.empty[stage], phase ^ 1);
      Full::arrive_and_expect_tx(&shared.full[stage], 2 * kTile * kTileK * sizeof(T));
      uint64_t& barrier = shared.full[kFault == Fault::kWrongBarrier ? 0 : stage];
      copy(params.load_a.with(barrier), from_a(_, i), to_a(_, stage));
      copy(params.load_b.with(barrier), from_b(_, i), to_b(_, stage));
    }
  }

  void consume(Params const& params, SharedStorage& shared) const {
    int const thread = static_cast<int>(threadIdx.x) - 128;
    auto mma = make_tiled_mma(Op{});
    auto const slice = mma.get_slice(thread);
    auto const a = slice.partition_fragment_A(make_tensor(make_smem_ptr(shared.a), SmemLayout{}));
    auto const b = slice.partition_fragment_B(make_tensor(make_smem_ptr(shared.b), SmemLayout{}));
    auto d = partition_fragment_C(mma, Shape<Int<kTile>, Int<kTile>>{});
    clear(d);
    for (int i = 0; i < params.k / kTileK; ++i) {
      int const stage = i % kStages, phase = i / kStages & 1;
      if (kFault != Fault::kNoFullWait) Full::wait(&shared.full[stage], phase);
      warpgroup_arrive();
      gemm(mma, a(_, _, _, stage), b(_, _, _, stage), d);
      warpgroup_commit_batch();
      if (kFault != Fault::kEarlyRelease) warpgroup_wait<0>();
      Empty::arrive(&shared.empty[stage]);
      if (kFault == Fault::kEarlyRelease) warpgroup_wait<0>();
    }
    auto const shared_d = make_tensor(make_smem_ptr(shared.d), SmemLayoutD{});
    copy(d, slice.partition_C(shared_d));
    if (kFault != Fault::kNoStoreFence) tma_store_fence();
    cutlass::arch::NamedBarrier::sync(128, 0);
    if (thread / 32 == 0 && elect_one_sync()) {
      auto const tiles =
          local_tile(params.store_d.get_tma_tensor(make_shape(params.m, params.n)), Shape<Int<kTile>, Int<kTile>>{},
                     make_coord(static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y)));
      auto const store = params.store_d.get_slice(0);
      copy(params.store_d, store.partition_S(shared_d), store.partition_D(tiles));
      tma_store_arrive();
      tma_store_wait<0>();
    }
  }
};

// Elements that are wrong.
template <class Kernel>
int run() {
  using T = typename Kernel::T;
  using Accumulator = typename Kernel::Accumulator;
  constexpr int kM = 120, kN = 104, kK = 512;
  self_test::Generator random;
  auto const allocate = [](auto*& p, size_t count) {
    p = static_cast<std::remove_reference_t<decltype(p)>>(
        std::aligned_alloc(128, (count * sizeof(*p) + 127) / 128 * 128));
  };
  T *a, *b;
  Accumulator* d;
  allocate(a, kM * kK);
  allocate(b, kN * kK);
  allocate(d, kM * kN);
  for (int i = 0; i < kM * kK; ++i) a[i] = T(static_cast<int>(random() % 17) - 8);
  for (int i = 0; i < kN * kK; ++i) b[i] = T(static_cast<int>(random() % 17) - 8);
  for (int i = 0; i < kM * kN; ++i) d[i] = Accumulator(-12345);
  auto const params = Kernel::make_params(a, b, d, kM, kN, kK);
  std::string const error = self_test::error_of([&] {
    simt::launch(dim3(2, 2), Kernel::kThreads, sizeof(typename Kernel::SharedStorage),
                 [&](char* smem) { Kernel{}(params, smem); });
  });
  int mismatches = 0;
  for (int m = 0; m < kM; ++m) {
    for (int n = 0; n < kN; ++n) {
      float sum = 0;
      for (int k = 0; k < kK; ++k) sum += float(a[m * kK + k]) * float(b[n * kK + k]);
      mismatches += float(d[m * kN + n]) != sum;
    }
  }
  std::free(a);
  std::free(b);
  std::free(d);
  if (!error.empty()) throw simt::Error(error);
  return mismatches;
}

using S8 = SM90_64x64x32_S32S8S8_SS_TN;
using E4M3 = SM90_64x64x32_F32E4M3E4M3_SS_TN<>;

#if !SIMT_TSAN
// The fault is an error or a wrong result, in each of the configurations that are late.
template <Fault kFault>
void check_caught(char const* name) {
  self_test::for_each_configuration([&] {
    if (simt::configuration().async != simt::AsyncTiming::kLate) return;
    bool caught = true;
    if (self_test::error_of([&] { caught = run<Gemm<S8, kFault>>() != 0; }).empty()) {
      self_test::report(caught, __FILE__, __LINE__, std::string(name) + " goes unnoticed");
    }
  });
}
#endif

}  // namespace

int main(int count, char** arguments) {
  if (count > 1 && !std::strcmp(arguments[1], "early_release")) {  // for ThreadSanitizer; see tests/test_emulator.py
    self_test::for_each_configuration([] { self_test::error_of([] { run<Gemm<S8, Fault::kEarlyRelease>>(); }); });
    return 0;
  }
  self_test::for_each_configuration([] {
    CHECK_EQUAL(run<Gemm<S8>>(), 0);
    CHECK_EQUAL(run<Gemm<E4M3>>(), 0);
  });
#if !SIMT_TSAN  // which reports them
  check_caught<Fault::kNoFullWait>("no wait for the full barrier");
  check_caught<Fault::kNoEmptyWait>("no wait for the empty barrier");
  check_caught<Fault::kEarlyRelease>("a stage released before the wgmma is over");
  check_caught<Fault::kWrongBarrier>("a load that reports to another stage's barrier");
#endif
#if !SIMT_ASAN && !SIMT_TSAN  // plain stores are seen in a build without sanitizers
  CHECK_ERROR("the copy engine reads shared address", (run<Gemm<S8, Fault::kNoStoreFence>>()));
#endif
  return self_test::finish("sm90 pipeline");
}
