// A tile of NVFP4 as a kernel would compute it: packed e2m1 from shared memory through ldmatrix, a ue4m3 scale per 16
// elements, cute::gemm over zipped tensors. The result is exact in float.
#include <cutlass/numeric_types.h>
#include <cute/tensor.hpp>

#include <vector>

#include "self_test/check.h"

using namespace cute;

namespace {

constexpr int kM = 64, kN = 64, kK = 128, kVector = 16, kThreads = 128;
using Op = SM120::BLOCKSCALED::SM120_16x8x64_TN_VS<float_e2m1_t, float_e2m1_t, float, float_ue4m3_t, kVector>;
using Mma = TiledMMA<MMA_Atom<Op>, Layout<Shape<_4, _1, _1>>, Tile<_64, _16, _64>>;

// The same bytes, as bytes for cp.async and as elements of 4 bits for ldmatrix.
using ByteLayout = decltype(tile_to_shape(composition(Swizzle<2, 4, 3>{}, Layout<Shape<_8, _64>, Stride<_64, _1>>{}),
                                          Shape<Int<kM>, Int<kK / 2>>{}));
using NibbleLayout = decltype(tile_to_shape(
    composition(Swizzle<2, 5, 3>{}, Layout<Shape<_8, _128>, Stride<_128, _1>>{}), Shape<Int<kM>, Int<kK>>{}));
using ScaleLayout =
    Layout<Shape<Int<kM>, Shape<Int<kVector>, Int<kK / kVector>>>, Stride<Int<kK / kVector>, Stride<_0, _1>>>;

struct SharedStorage {
  alignas(1024) uint8_t a[kM * kK / 2];
  alignas(1024) uint8_t b[kN * kK / 2];
  alignas(16) float_ue4m3_t sfa[kM * kK / kVector];
  alignas(16) float_ue4m3_t sfb[kN * kK / kVector];
};

struct Params {
  uint8_t const *a, *b;  // K-major, two elements in a byte, the first in the low half
  float_ue4m3_t const *sfa, *sfb;
  float* d;
};

// A thread's scales of operand kMode (0: A, 1: B) in shared memory, as fragments of the operand are laid out.
template <int kMode, class SFLayout, class Tensor>
auto partition_scales(Tensor const& scales, Mma const& mma, int thread) {
  auto const permutation = tile_shape(mma);
  auto const threads = mma.get_thr_layout_vmnk();
  using Atom = typename Mma::AtomShape_MNK;
  auto const tiles = logical_divide(scales.layout(), make_tile(get<kMode>(permutation), get<2>(permutation)));
  auto const atoms = zipped_divide(tiles, make_tile(make_layout(size<kMode>(Atom{})), make_layout(size<2>(Atom{}))));
  auto const by_thread =
      zipped_divide(atoms.compose(SFLayout{}, _),
                    make_tile(_, make_tile(make_layout(size<kMode + 1>(threads)), make_layout(size<3>(threads)))));
  auto const all = make_tensor(scales.data(), by_thread);
  auto const vmnk = mma.get_slice(thread).thr_vmnk_;
  return all(make_coord(get<0>(vmnk), make_coord(get<kMode + 1>(vmnk), get<3>(vmnk))),
             make_coord(_, repeat<rank<1, 1>(all)>(_)));
}

void kernel(Params const& params, char* smem) {
  auto& shared = *reinterpret_cast<SharedStorage*>(smem);
  int const thread = threadIdx.x;
  auto const load = make_tiled_copy(Copy_Atom<SM80_CP_ASYNC_CACHEGLOBAL<uint128_t>, uint8_t>{},
                                    Layout<Shape<_32, _4>, Stride<_4, _1>>{}, Layout<Shape<_1, _16>>{});
  auto const load_slice = load.get_slice(thread);
  auto const load_operand = [&](uint8_t const* global, uint8_t* to) {
    auto const from = make_tensor(make_gmem_ptr(global), Shape<Int<kM>, Int<kK / 2>>{}, Stride<Int<kK / 2>, _1>{});
    auto tile = make_tensor(make_smem_ptr(to), ByteLayout{});
    copy(load, load_slice.partition_S(from), load_slice.partition_D(tile));
  };
  load_operand(params.a, shared.a);
  load_operand(params.b, shared.b);
  cp_async_fence();
  for (int i = thread; i < kM * kK / kVector; i += kThreads) {
    shared.sfa[i] = params.sfa[i];
    shared.sfb[i] = params.sfb[i];
  }
  cp_async_wait<0>();
  __syncthreads();

  Mma mma;
  auto const slice = mma.get_slice(thread);
  auto const a = make_tensor(make_smem_ptr(recast_ptr<uint4_t>(shared.a)), NibbleLayout{});
  auto const b = make_tensor(make_smem_ptr(recast_ptr<uint4_t>(shared.b)), NibbleLayout{});
  auto fragment_a = slice.partition_fragment_A(a);
  auto fragment_b = slice.partition_fragment_B(b);
  auto const read_a = make_tiled_copy_A(Copy_Atom<SM75_U32x4_LDSM_N, uint4_t>{}, mma);
  auto const read_b = make_tiled_copy_B(Copy_Atom<SM75_U32x4_LDSM_N, uint4_t>{}, mma);
  copy(read_a, read_a.get_slice(thread).partition_S(a), read_a.get_slice(thread).retile_D(fragment_a));
  copy(read_b, read_b.get_slice(thread).partition_S(b), read_b.get_slice(thread).retile_D(fragment_b));

  using Traits = MMA_Traits<Op>;
  auto const scales_a = partition_scales<0, typename Traits::SFALayout>(
      make_tensor(make_smem_ptr(shared.sfa), ScaleLayout{}), mma, thread);
  auto const scales_b = partition_scales<1, typename Traits::SFBLayout>(
      make_tensor(make_smem_ptr(shared.sfb), ScaleLayout{}), mma, thread);
  auto fragment_sfa = make_fragment_like<float_ue4m3_t>(scales_a);
  auto fragment_sfb = make_fragment_like<float_ue4m3_t>(scales_b);
  copy(filter_zeros(scales_a), filter_zeros(fragment_sfa));
  copy(filter_zeros(scales_b), filter_zeros(fragment_sfb));

  auto d = partition_fragment_C(mma, Shape<Int<kM>, Int<kN>>{});
  clear(d);
  for_each(make_int_sequence<size<2>(decltype(fragment_a){})>{}, [&](auto k) {
    gemm(mma, make_zip_tensor(fragment_a(_, _, k), fragment_sfa(_, _, k)),
         make_zip_tensor(fragment_b(_, _, k), fragment_sfb(_, _, k)), d);
  });
  copy(d, slice.partition_C(make_tensor(make_gmem_ptr(params.d), Shape<Int<kM>, Int<kN>>{}, Stride<Int<kN>, _1>{})));
}

}  // namespace

int main() {
  self_test::Generator random;
  std::vector<uint8_t> a(kM * kK / 2), b(kN * kK / 2);
  std::vector<float_ue4m3_t> sfa(kM * kK / kVector), sfb(kN * kK / kVector);
  for (auto* operand : {&a, &b}) {
    for (auto& x : *operand) x = static_cast<uint8_t>(random());
  }
  for (auto* scales : {&sfa, &sfb}) {
    for (auto& x : *scales) x = float_ue4m3_t(0.25f + static_cast<float>(random() % 1000) / 250);
  }
  auto const element = [](std::vector<uint8_t> const& packed, int row, int k) {
    float const values[] = {0, .5, 1, 1.5, 2, 3, 4, 6};
    int const code = packed[(row * kK + k) / 2] >> k % 2 * 4 & 15;
    return code & 8 ? -values[code & 7] : values[code & 7];
  };
  self_test::for_each_configuration([&] {
    std::vector<float> d(kM * kN, NAN);
    Params const params{a.data(), b.data(), sfa.data(), sfb.data(), d.data()};
    simt::launch(1, kThreads, sizeof(SharedStorage), [&](char* smem) { kernel(params, smem); });
    int mismatches = 0;
    for (int m = 0; m < kM; ++m) {
      for (int n = 0; n < kN; ++n) {
        double sum = 0;
        for (int k = 0; k < kK; ++k) {
          sum += double(element(a, m, k)) * float(sfa[(m * kK + k) / kVector]) * element(b, n, k) *
                 float(sfb[(n * kK + k) / kVector]);
        }
        mismatches += double(d[m * kN + n]) != sum;
      }
    }
    CHECK_EQUAL(mismatches, 0);
  });
  return self_test::finish("NVFP4 tile");
}
