// Every mma.sync atom against a plain triple loop over matrices that are handed out by the layouts of its traits.
#include <cmath>
#include <cute/atom/mma_atom.hpp>
#include <cute/tensor.hpp>
#include <limits>
#include <vector>

#include "self_test/check.h"

using namespace cute;

namespace {

template <class T>
T random_value(self_test::Generator& random) {
  uint32_t const bits = random();
  if constexpr (std::is_same_v<T, int8_t> || std::is_same_v<T, uint8_t>) {
    return static_cast<T>(bits);
  } else if constexpr (std::is_same_v<T, int4_t> || std::is_same_v<T, uint4_t>) {
    return T(static_cast<int>(bits % 16) - (std::is_same_v<T, int4_t> ? 8 : 0));
  } else {
    return T((static_cast<int>(bits % 15) - 7) / 4.0f);  // exact in every format, products and sums in float
  }
}

// Each lane's registers of an operand, filled from `value(coordinate)`.
template <class T, class Registers, class Layout, class Value>
std::vector<std::vector<uint8_t>> fragments(Layout layout, Value value) {
  constexpr int kValues = size<1>(Layout{});
  std::vector<std::vector<uint8_t>> lanes(32, std::vector<uint8_t>(sizeof(Registers)));
  for (int t = 0; t < 32; ++t) {
    auto fragment = make_tensor(recast_ptr<T>(lanes[t].data()), Int<kValues>{});
    for (int v = 0; v < kValues; ++v) fragment(v) = value(static_cast<int>(layout(t, v)));
  }
  return lanes;
}

template <class Op>
void check_atom() {
  using Traits = MMA_Traits<Op>;
  using A = typename Traits::ValTypeA;
  using B = typename Traits::ValTypeB;
  using C = typename Traits::ValTypeC;
  constexpr int M = size<0>(typename Traits::Shape_MNK{}), N = size<1>(typename Traits::Shape_MNK{}),
                K = size<2>(typename Traits::Shape_MNK{});
  self_test::Generator random;
  std::vector<A> a(M * K);
  std::vector<B> b(N * K);
  std::vector<C> c(M * N), d(M * N);
  for (auto& x : a) x = random_value<A>(random);
  for (auto& x : b) x = random_value<B>(random);
  for (auto& x : c) x = C(static_cast<int>(random() % 64) - 32);
  auto const a_lanes = fragments<A, typename Op::ARegisters>(typename Traits::ALayout{}, [&](int i) { return a[i]; });
  auto const b_lanes = fragments<B, typename Op::BRegisters>(typename Traits::BLayout{}, [&](int i) { return b[i]; });
  auto const c_lanes = fragments<C, typename Op::CRegisters>(typename Traits::CLayout{}, [&](int i) { return c[i]; });

  auto const before = simt::stats().mma;
  simt::launch(1, 32, 0, [&](char*) {
    int const lane = threadIdx.x;
    constexpr int kValues = size<1>(typename Traits::CLayout{});
    auto fragment_a = make_tensor<A>(Int<size<1>(typename Traits::ALayout{})>{});
    auto fragment_b = make_tensor<B>(Int<size<1>(typename Traits::BLayout{})>{});
    auto fragment_c = make_tensor<C>(Int<kValues>{});
    auto fragment_d = make_tensor<C>(Int<kValues>{});
    std::memcpy(raw_pointer_cast(fragment_a.data()), a_lanes[lane].data(), a_lanes[lane].size());
    std::memcpy(raw_pointer_cast(fragment_b.data()), b_lanes[lane].data(), b_lanes[lane].size());
    std::memcpy(raw_pointer_cast(fragment_c.data()), c_lanes[lane].data(), c_lanes[lane].size());
    MMA_Atom<Op>{}.call(fragment_d, fragment_a, fragment_b, fragment_c);
    for (int v = 0; v < kValues; ++v) d[typename Traits::CLayout{}(lane, v)] = fragment_d(v);
  });
  CHECK_EQUAL(simt::stats().mma - before, uint64_t{1});

  int wrong = 0;
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) {
      double sum = static_cast<double>(float(c[n * M + m]));
      for (int k = 0; k < K; ++k) sum += static_cast<double>(float(a[k * M + m])) * float(b[k * N + n]);
      wrong += float(d[n * M + m]) != float(C(static_cast<float>(sum)));
    }
  }
  self_test::report(wrong == 0, __FILE__, __LINE__,
                    std::string(simt::op_name<Op>()) + ": " + std::to_string(wrong) + " wrong elements");
}

// D of the first lane's first register for A = B = 0 but for one row and column: sum of a[k] * b[k], and c.
template <class Op, class T, class C>
C dot(std::vector<float> const& a, std::vector<float> const& b, C c) {
  using Traits = MMA_Traits<Op>;
  constexpr int M = size<0>(typename Traits::Shape_MNK{}), N = size<1>(typename Traits::Shape_MNK{});
  C result{};
  simt::launch(1, 32, 0, [&](char*) {
    int const lane = threadIdx.x;
    constexpr int kA = size<1>(typename Traits::ALayout{}), kB = size<1>(typename Traits::BLayout{}),
                  kC = size<1>(typename Traits::CLayout{});
    auto fragment_a = make_tensor<T>(Int<kA>{});
    auto fragment_b = make_tensor<T>(Int<kB>{});
    auto fragment_c = make_tensor<C>(Int<kC>{});
    clear(fragment_a);
    clear(fragment_b);
    clear(fragment_c);
    for (int v = 0; v < kA; ++v) {
      auto const i = static_cast<size_t>(typename Traits::ALayout{}(lane, v));
      if (i % M == 0 && i / M < a.size()) fragment_a(v) = T(a[i / M]);
    }
    for (int v = 0; v < kB; ++v) {
      auto const i = static_cast<size_t>(typename Traits::BLayout{}(lane, v));
      if (i % N == 0 && i / N < b.size()) fragment_b(v) = T(b[i / N]);
    }
    if (lane == 0) fragment_c(0) = c;
    MMA_Atom<Op>{}.call(fragment_c, fragment_a, fragment_b, fragment_c);
    if (lane == 0) result = fragment_c(0);
  });
  return result;
}

void check_rounding() {
  using F16 = SM80_16x8x16_F16F16F16F16_TN;
  auto const f16 = [](std::vector<float> const& a, std::vector<float> const& b, float c) {
    return float(dot<F16, half_t>(a, b, half_t(c)));
  };
  // Two halves of an ulp are an ulp: one rounding at the end.
  CHECK_EQUAL(f16({1, 1}, {0.5f, 0.5f}, 1024), 1025.f);
  CHECK_EQUAL(f16({1, 1}, {0.5f, 0}, 1024), 1024.f);                // a tie goes to even
  CHECK_EQUAL(f16({1, 1}, {0.5f, 0x1p-20f}, 1024), 1025.f);         // no tie: what a float sum would still see
  CHECK_EQUAL(f16({1, 0x1p-10f}, {0.5f, 0x1p-24f}, 1024), 1025.f);  // what it would not
  CHECK_EQUAL(f16({60000}, {1}, 5516), 65504.f);
  CHECK_EQUAL(f16({60000}, {1}, 5520), std::numeric_limits<float>::infinity());
  CHECK_EQUAL(f16({0x1p-12f}, {-0x1p-12f}, 0), -0x1p-24f);  // the smallest subnormal
  CHECK_EQUAL(f16({0x1p-12f}, {0x1p-13f}, 0), 0.f);
  CHECK(std::isnan(f16({65504, 0}, {std::numeric_limits<float>::infinity(), 0}, -INFINITY)));
  CHECK(std::isnan(dot<SM80_16x8x16_F32F16F16F32_TN, half_t>({0}, {INFINITY}, 1.f)));
  CHECK(std::isnan(dot<SM80_16x8x16_F32BF16BF16F32_TN, bfloat16_t>({1}, {NAN}, 1.f)));
  CHECK(std::isnan(dot<SM89_16x8x32_F32E4M3E4M3F32_TN, float_e4m3_t>({1}, {NAN}, 1.f)));

  constexpr int32_t kMax = std::numeric_limits<int32_t>::max();
  CHECK_EQUAL((dot<SM80_16x8x32_S32S8S8S32_TN, int8_t>({100}, {100}, kMax)), static_cast<int32_t>(kMax + 10000u));
  CHECK_EQUAL((dot<SM80_16x8x32_S32S8S8S32_TN_SATURATE, int8_t>({100}, {100}, kMax)), kMax);
  CHECK_EQUAL((dot<SM80_16x8x32_S32S8S8S32_TN, int8_t>({-128}, {-128}, kMax - 16384)), kMax);
}

// The FP8 accumulator of sm89 and sm90 keeps 13 fraction bits.
void check_reduced() {
  auto const add = [](float product, float c) {
    return dot<SM89_16x8x32_F32E4M3E4M3F32_TN, float_e4m3_t>({product}, {1}, c);
  };
  CHECK_EQUAL(add(0x1p-6f, 256), 256 + 0x1p-6f);
  simt::Config const before = simt::configuration();
  simt::configure_accumulate("reduced");
  CHECK_EQUAL(add(0x1p-6f, 256), 256.f);
  CHECK_EQUAL(add(0x1p-5f, 256), 256 + 0x1p-5f);
  CHECK_EQUAL(add(-0x1p-6f, 256), 256.f);  // cut towards zero before the sum
  CHECK_EQUAL(add(1, 1 + 0x1p-20f), 2.f);
  CHECK(std::isinf(add(1, INFINITY)));
  // FP16 operands are summed as before.
  CHECK_EQUAL((dot<SM80_16x8x16_F32F16F16F32_TN, half_t>({0x1p-6f}, {1}, 256.f)), 256 + 0x1p-6f);
  simt::configure(before);
}

}  // namespace

int main() {
  check_atom<SM80_16x8x8_F16F16F16F16_TN>();
  check_atom<SM80_16x8x16_F16F16F16F16_TN>();
  check_atom<SM80_16x8x8_F32F16F16F32_TN>();
  check_atom<SM80_16x8x16_F32F16F16F32_TN>();
  check_atom<SM80_16x8x8_F32BF16BF16F32_TN>();
  check_atom<SM80_16x8x16_F32BF16BF16F32_TN>();
  check_atom<SM80_8x8x16_S32S8S8S32_TN>();
  check_atom<SM80_16x8x16_S32S8S8S32_TN>();
  check_atom<SM80_16x8x32_S32S8S8S32_TN>();
  check_atom<SM80_8x8x16_S32U8S8S32_TN>();
  check_atom<SM80_16x8x16_S32U8S8S32_TN>();
  check_atom<SM80_16x8x32_S32U8S8S32_TN>();
  check_atom<SM80_16x8x32_S32S8U8S32_TN>();
  check_atom<SM80_16x8x32_S32U8U8S32_TN>();
  check_atom<SM80_8x8x32_S32S4S4S32_TN>();
  check_atom<SM80_16x8x64_S32S4S4S32_TN>();
  check_atom<SM80_16x8x64_S32U4S4S32_TN>();
  check_atom<SM80_16x8x64_S32S4U4S32_TN>();
  check_atom<SM80_16x8x64_S32U4U4S32_TN>();
  check_atom<SM89_16x8x32_F32E4M3E4M3F32_TN>();
  check_atom<SM89_16x8x32_F32E4M3E5M2F32_TN>();
  check_atom<SM89_16x8x32_F32E5M2E4M3F32_TN>();
  check_atom<SM89_16x8x32_F32E5M2E5M2F32_TN>();
  check_atom<SM89_16x8x32_F16E4M3E4M3F16_TN>();
  check_atom<SM89_16x8x32_F16E4M3E5M2F16_TN>();
  check_atom<SM89_16x8x32_F16E5M2E4M3F16_TN>();
  check_atom<SM89_16x8x32_F16E5M2E5M2F16_TN>();
  check_rounding();
  check_reduced();
  // The traits of CUTLASS 4.2.0 give some of B to two lanes.
  CHECK_ERROR("its traits give element 32 of B to 2 registers", check_atom<SM80_16x8x32_S32S4S4S32_TN>());
  return self_test::finish("warp_mma");
}
