// arch::mma_nvfp4 against a plain sum over operands that are handed out as the PTX ISA has the fragments: every thread
// selector, which lanes' scales count, scales that are NaN or subnormal, and arch::round_to_e2m1.
#include <cutlass/numeric_types.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "arch/block_scaled.h"
#include "arch/convert.h"
#include "self_test/check.h"

namespace {

constexpr int M = 16, N = 8, K = 64, kBlocks = K / 16;
constexpr float kE2m1[8] = {0, .5f, 1, 1.5f, 2, 3, 4, 6};

double value(uint8_t code) { return code < 8 ? kE2m1[code] : -kE2m1[code - 8]; }

// Of ue4m3: 4 bits of exponent with a bias of 7, 3 of fraction, NaN at the top.
double scale(uint8_t code) {
  if (code == 0x7f) return std::numeric_limits<double>::quiet_NaN();
  return code < 8 ? std::ldexp(code, -9) : std::ldexp(8 + code % 8, code / 8 - 10);
}

struct Problem {
  std::array<uint8_t, M * K> a;
  std::array<uint8_t, K * N> b;
  std::array<uint8_t, M * kBlocks> a_scales;
  std::array<uint8_t, N * kBlocks> b_scales;
  std::array<float, M * N> c;
};

Problem random_problem(int smallest_scale, int largest_scale) {
  self_test::Generator random;
  Problem problem;
  auto const scale_code = [&] {
    return static_cast<uint8_t>(smallest_scale + random() % (largest_scale - smallest_scale + 1));
  };
  for (auto& x : problem.a) x = random() % 16;
  for (auto& x : problem.b) x = random() % 16;
  for (auto& x : problem.a_scales) x = scale_code();
  for (auto& x : problem.b_scales) x = scale_code();
  for (auto& x : problem.c) x = static_cast<float>(static_cast<int>(random() % 17) - 8);
  return problem;
}

using Result = std::array<float, M * N>;

// Word of the scales of one row or column.
uint32_t word(uint8_t const* scales) {
  uint32_t x;
  std::memcpy(&x, scales, 4);
  return x;
}

// With `garbage` as the scales of the lanes that do not count if lane `supplier` of each quad has those of B.
template <int kThreadB>
Result run(Problem const& problem, int supplier, uint32_t garbage) {
  Result d;
  simt::launch(1, 32, 0, [&](char*) {
    int const g = threadIdx.x / 4, q = threadIdx.x % 4;
    uint32_t a[4] = {}, b[2] = {};
    float c[4];
    for (int i = 0; i < 8; ++i) {
      for (int r = 0; r < 4; ++r) {
        a[r] |= static_cast<uint32_t>(problem.a[(g + 8 * (r % 2)) * K + 32 * (r / 2) + 8 * q + i]) << 4 * i;
      }
      for (int r = 0; r < 2; ++r) b[r] |= static_cast<uint32_t>(problem.b[(32 * r + 8 * q + i) * N + g]) << 4 * i;
    }
    for (int v = 0; v < 4; ++v) c[v] = problem.c[(g + 8 * (v / 2)) * N + 2 * q + v % 2];
    uint32_t const a_scales = q < 2 ? word(&problem.a_scales[(g + 8 * q) * kBlocks]) : garbage;
    uint32_t const b_scales = q == supplier ? word(&problem.b_scales[g * kBlocks]) : garbage;
    sage::arch::mma_nvfp4<kThreadB>(c, a, b[0], b[1], c, a_scales, b_scales);
    for (int v = 0; v < 4; ++v) d[(g + 8 * (v / 2)) * N + 2 * q + v % 2] = c[v];
  });
  return d;
}

// The number of elements that are not c + a b, rounded once; NaN is to be NaN.
int mismatches(Problem const& problem, Result const& d) {
  int count = 0;
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) {
      double sum = problem.c[m * N + n];
      for (int k = 0; k < K; ++k) {
        sum += value(problem.a[m * K + k]) * value(problem.b[k * N + n]) *
               scale(problem.a_scales[m * kBlocks + k / 16]) * scale(problem.b_scales[n * kBlocks + k / 16]);
      }
      float const expected = static_cast<float>(sum), got = d[m * N + n];
      count += std::isnan(expected) ? !std::isnan(got) : got != expected;
    }
  }
  return count;
}

template <int kThreadB>
void check_selector() {
  Problem const problem = random_problem(0x20, 0x4f);
  Result const exact = run<kThreadB>(problem, kThreadB, 0);
  CHECK_EQUAL(mismatches(problem, exact), 0);
  for (uint32_t garbage : {0xFFFFFFFFu, 0x7F7F7F7Fu, 0x3838FF00u}) {
    CHECK(run<kThreadB>(problem, kThreadB, garbage) == exact);
    CHECK(mismatches(problem, run<kThreadB>(problem, (kThreadB + 1) % 4, garbage)) > 0);
  }
  // All of the range, down to zero and subnormal scales: a sum of 2^-20s up to 2^24 is more than a float32 holds, but
  // each of its parts is a multiple of 2^-20 that double holds.
  Problem const wide = random_problem(0, 0x7e);
  CHECK_EQUAL(mismatches(wide, run<kThreadB>(wide, kThreadB, 0xFFFFFFFFu)), 0);
  Problem const subnormal = random_problem(0, 7);
  CHECK_EQUAL(mismatches(subnormal, run<kThreadB>(subnormal, kThreadB, 0xFFFFFFFFu)), 0);
}

// A NaN among the scales reaches its row or column and nothing else, even where the values are zeros.
void check_nan() {
  Problem problem = random_problem(0x20, 0x4f);
  Result const exact = run<2>(problem, 2, 0);
  problem.a_scales[11 * kBlocks + 3] = 0x7f;
  for (int k = 48; k < 64; ++k) problem.a[11 * K + k] = 0;
  problem.b_scales[5 * kBlocks + 1] = 0x7f;
  Result const d = run<2>(problem, 2, 0);
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) {
      bool const reached = m == 11 || n == 5;
      CHECK(reached ? std::isnan(d[m * N + n]) : d[m * N + n] == exact[m * N + n]);
    }
  }
}

// All float16 values, against the nearest of the 15, ties to the even code.
void check_rounding() {
  int wrong = 0;
  for (uint32_t bits = 0; bits < 1u << 16; ++bits) {
    float const x = float(cutlass::half_t::bitcast(static_cast<uint16_t>(bits)));
    uint32_t expected = 7;
    if (!std::isnan(x)) {
      float const magnitude = std::min(std::fabs(x), 6.f);
      expected = 0;
      for (uint32_t code = 1; code < 8; ++code) {
        float const distance = std::fabs(magnitude - kE2m1[code]), best = std::fabs(magnitude - kE2m1[expected]);
        if (distance < best || (distance == best && code % 2 == 0)) expected = code;
      }
    }
    uint32_t const sign = std::isnan(x) ? 0 : bits >> 15 << 3;
    wrong += sage::arch::round_to_e2m1(x) != (expected | sign);
  }
  CHECK_EQUAL(wrong, 0);
}

}  // namespace

int main() {
  check_selector<0>();
  check_selector<1>();
  check_selector<2>();
  check_selector<3>();
  check_nan();
  check_rounding();
  return self_test::finish("sm120 nvfp4");
}
