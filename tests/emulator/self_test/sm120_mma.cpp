// Block-scaled mma.sync of sm120: every kind against a plain triple loop with operands and scales that are handed out
// by the layouts of the traits; which lanes' scales count; and a tile of NVFP4 from shared memory.
#include <cutlass/numeric_types.h>
#include <cute/tensor.hpp>

#include <vector>

#include "self_test/check.h"

using namespace cute;

namespace {

// Bits of a small value, exact in products and sums; the same for each of the formats.
template <class T>
uint8_t random_bits(self_test::Generator& random) {
  uint32_t const bits = random();
  if constexpr (std::is_same_v<T, float_ue8m0_t>)
    return static_cast<uint8_t>(125 + bits % 5);
  else if constexpr (std::is_same_v<T, float_ue4m3_t>)
    return static_cast<uint8_t>(0x30 + bits % 16);
  else if constexpr (sizeof_bits_v<T> == 8)
    return T((static_cast<int>(bits % 15) - 7) / 4.0f).raw();
  else
    return static_cast<uint8_t>(bits % (1u << sizeof_bits_v<T>));
}

enum class Garbage { kNone, kInIgnoredLanes, kInUsedLaneOfA, kInUsedLaneOfB };

// Number of elements of D that are wrong.
template <class TA, class TB, class TSF, int kVector, template <class, class, class, class, int> class Operation>
int run(Garbage garbage) {
  using Op = Operation<TA, TB, float, TSF, kVector>;
  using Traits = MMA_Traits<Op>;
  constexpr int M = 16, N = 8, K = size<2>(typename Traits::Shape_MNK{}), kBlocks = K / kVector;
  constexpr bool kBytes = sizeof_bits_v<typename Traits::ValTypeA> == 8;
  self_test::Generator random;
  std::vector<uint8_t> a(M * K), b(N * K), sfa(M * kBlocks), sfb(N * kBlocks);
  for (auto& x : a) x = random_bits<TA>(random);
  for (auto& x : b) x = random_bits<TB>(random);
  for (auto& x : sfa) x = random_bits<TSF>(random);
  for (auto& x : sfb) x = random_bits<TSF>(random);
  // In a byte, e2m1 has two bits below it.
  auto const container = []<class T>(uint8_t bits, T*) -> int {
    return kBytes && sizeof_bits_v<T> == 4 ? bits << 2 : bits;
  };

  std::vector<float> d(M * N);
  simt::launch(1, 32, 0, [&](char*) {
    int const lane = threadIdx.x;
    auto const pack = [](auto& registers, int v, int bits) {
      constexpr int kBits = kBytes ? 8 : 4;
      registers[v * kBits / 32] |= static_cast<uint32_t>(bits) << v * kBits % 32;
    };
    uint32_t a_registers[4] = {}, b_registers[2] = {};
    for (int v = 0; v < static_cast<int>(size<1>(typename Traits::ALayout{})); ++v) {
      int const i = typename Traits::ALayout{}(lane, v);  // k * M + m
      pack(a_registers, v, container(a[i % M * K + i / M], static_cast<TA*>(nullptr)));
    }
    for (int v = 0; v < static_cast<int>(size<1>(typename Traits::BLayout{})); ++v) {
      int const i = typename Traits::BLayout{}(lane, v);
      pack(b_registers, v, container(b[i % N * K + i / N], static_cast<TB*>(nullptr)));
    }
    uint8_t a_scales[kBlocks], b_scales[kBlocks];
    for (int block = 0; block < kBlocks; ++block) {
      a_scales[block] = sfa[typename Traits::SFALayout{}(lane, block * kVector) % M * kBlocks + block];
      b_scales[block] = sfb[typename Traits::SFBLayout{}(lane, block * kVector) % N * kBlocks + block];
      // The hardware takes the scales of A from lanes 0 and 1 of each quad, those of B from lane 0.
      bool const a_counts = lane % 4 < 2, b_counts = lane % 4 == 0;
      if (garbage == Garbage::kInIgnoredLanes && !a_counts) a_scales[block] = 0xFF;
      if (garbage == Garbage::kInIgnoredLanes && !b_counts) b_scales[block] = 0xFF;
      if (garbage == Garbage::kInUsedLaneOfA && lane == 5) a_scales[block] ^= 2;
      if (garbage == Garbage::kInUsedLaneOfB && lane == 4) b_scales[block] ^= 2;
    }
    // One register of scales is seen as K of them, with a stride of 0 within a block.
    using ScaleLayout = Layout<Shape<Shape<Int<kVector>, Int<kBlocks>>>, Stride<Stride<_0, _1>>>;
    auto const scales = [](uint8_t* p) { return make_tensor(recast_ptr<TSF>(p), ScaleLayout{}); };
    auto const elements = [](auto* registers, auto count) {
      return make_tensor(recast_ptr<typename Traits::ValTypeA>(registers), Layout<decltype(count)>{});
    };
    float c[4] = {1, 2, 3, 4};
    auto accumulators = make_tensor(static_cast<float*>(c), Layout<_4>{});
    auto const operand_a =
        make_zip_tensor(elements(a_registers, size<1>(typename Traits::ALayout{})), scales(a_scales));
    auto const operand_b =
        make_zip_tensor(elements(b_registers, size<1>(typename Traits::BLayout{})), scales(b_scales));
    mma_unpack(Traits{}, accumulators, operand_a, operand_b, accumulators);
    for (int v = 0; v < 4; ++v) d[typename Traits::CLayout{}(lane, v)] = c[v] - static_cast<float>(v + 1);
  });

  auto const value = []<class T>(uint8_t bits, T*) { return static_cast<double>(float(T::bitcast(bits))); };
  int mismatches = 0;
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) {
      double sum = 0;
      for (int k = 0; k < K; ++k) {
        sum += value(a[m * K + k], static_cast<TA*>(nullptr)) * value(b[n * K + k], static_cast<TB*>(nullptr)) *
               value(sfa[m * kBlocks + k / kVector], static_cast<TSF*>(nullptr)) *
               value(sfb[n * kBlocks + k / kVector], static_cast<TSF*>(nullptr));
      }
      mismatches += !(std::abs(d[n * M + m] - sum) <= 1e-6 * (std::abs(sum) + 1));
    }
  }
  return mismatches;
}

template <class TA, class TB, class TSF, int kVector, template <class, class, class, class, int> class Operation>
void check() {
  auto const mismatches = run<TA, TB, TSF, kVector, Operation>;
  CHECK_EQUAL(mismatches(Garbage::kNone), 0);
  CHECK_EQUAL(mismatches(Garbage::kInIgnoredLanes), 0);
  CHECK(mismatches(Garbage::kInUsedLaneOfA) > 0);
  CHECK(mismatches(Garbage::kInUsedLaneOfB) > 0);
}

}  // namespace

int main() {
  using SM120::BLOCKSCALED::SM120_16x8x32_TN_VS;
  using SM120::BLOCKSCALED::SM120_16x8x64_TN_VS;
  check<float_e2m1_t, float_e2m1_t, float_ue4m3_t, 16, SM120_16x8x64_TN_VS>();  // NVFP4
  check<float_e2m1_t, float_e2m1_t, float_ue8m0_t, 32, SM120_16x8x64_TN_VS>();  // MXFP4
  check<float_e4m3_t, float_e4m3_t, float_ue8m0_t, 32, SM120_16x8x32_TN_VS>();
  check<float_e5m2_t, float_e4m3_t, float_ue8m0_t, 32, SM120_16x8x32_TN_VS>();
  check<float_e2m1_t, float_e4m3_t, float_ue8m0_t, 32, SM120_16x8x32_TN_VS>();
  check<float_e3m2_t, float_e2m3_t, float_ue8m0_t, 32, SM120_16x8x32_TN_VS>();
  return self_test::finish("sm120 mma");
}
