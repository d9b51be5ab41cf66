// What of sm_120's block-scaled instructions only silicon can settle, as questions with a number for an answer
// (README.md). ask_gpu.cu asks a GPU, emulator/self_test/questions.cpp the emulator, whose answers are what the kernels
// assume.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "golden/atoms.h"
#include "golden/vectors.h"

namespace golden {

constexpr float kE2m1Values[8] = {0, .5f, 1, 1.5f, 2, 3, 4, 6};

// Of an e2m1 code.
inline double e2m1(uint32_t code) { return (code & 8 ? -1. : 1.) * kE2m1Values[code & 7]; }

// Of a ue4m3 code: 4 bits of exponent with a bias of 7, 3 of fraction, NaN at the top.
inline double ue4m3(uint32_t code) {
  if (code == 0x7f) return std::numeric_limits<double>::quiet_NaN();
  int const fraction = static_cast<int>(code % 8), exponent = static_cast<int>(code / 8);
  return exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
}

// The e4m3 code of 2^exponent, and the ue4m3 one; exponent from -6 to 8.
inline uint32_t power_of_two(int exponent) { return static_cast<uint32_t>(exponent + 7) << 3; }

// The registers of an m16n8kK instruction of Nvfp4MmaCase or ScaledMmaCase as matrices. All is zero at first; the lanes
// whose scales do not count, if B's are those of lane `thread_b` of each quad, have `others` instead.
template <class Case>
class Fragments {
 public:
  static constexpr bool kIsNvfp4 = Case::content(Case::kIn - 1) == Content::kUE4M3;
  static constexpr int kBits = kIsNvfp4 ? 4 : 8, kPerWord = 32 / kBits, M = 16, N = 8, K = 8 * kPerWord;
  static constexpr int kBlocks = kIsNvfp4 ? 4 : 1;  // of K elements with a scale

  Fragments(int thread_b, uint32_t others) : thread_b_(thread_b) {
    vector.in.resize(Case::kLanes * Case::kIn);
    vector.out.resize(Case::kLanes * Case::kOut);
    for (int lane = 0; lane < Case::kLanes; ++lane) {
      if (lane % 4 >= 2) word(lane, Case::kOperands) = others;
      if (lane % 4 != thread_b) word(lane, Case::kOperands + 1) = others;
    }
  }

  void set_a(int m, int k, uint32_t code) { set(m % 8, k, m / 8 + 2 * (k / (K / 2)), code); }
  void set_b(int k, int n, uint32_t code) { set(n, k, Case::kA + k / (K / 2), code); }
  void set_c(int m, int n, float x) { std::memcpy(&word(lane_of(m, n), Case::kFirstC + word_of(m, n)), &x, sizeof(x)); }
  void set_a_scale(int m, int block, uint32_t code) {
    put(word(m % 8 * 4 + m / 8, Case::kOperands), 8 * block, 8, code);
  }
  void set_b_scale(int n, int block, uint32_t code) {
    put(word(n * 4 + thread_b_, Case::kOperands + 1), 8 * block, 8, code);
  }
  float d(int m, int n) const {
    float x;
    std::memcpy(&x, &vector.out[lane_of(m, n) * Case::kOut + word_of(m, n)], sizeof(x));
    return x;
  }

  // A[m][k] B[k][n] for the first k of a block becomes 2^exponent, -12 to 16.
  void set_product(int m, int n, int block, int exponent) {
    int const of_a = exponent / 2, of_b = exponent - of_a, k = block * (K / 4);
    set_a(m, k, kIsNvfp4 ? 2 : power_of_two(of_a));  // 2 is e2m1's 1
    set_b(k, n, kIsNvfp4 ? 2 : power_of_two(of_b));
    if (kIsNvfp4) {
      set_a_scale(m, block, power_of_two(of_a));
      set_b_scale(n, block, power_of_two(of_b));
    } else {
      set_a_scale(m, 0, 127);  // ue8m0's 1
      set_b_scale(n, 0, 127);
    }
  }

  Vector vector;

 private:
  static int lane_of(int m, int n) { return m % 8 * 4 + n / 2; }
  static int word_of(int m, int n) { return m / 8 * 2 + n % 2; }
  static void put(uint32_t& to, int shift, int bits, uint32_t code) {
    uint32_t const mask = ((1u << bits) - 1) << shift;
    to = (to & ~mask) | code << shift;
  }
  uint32_t& word(int lane, int i) { return vector.in[lane * Case::kIn + i]; }
  void set(int row, int k, int i, uint32_t code) {
    int const in_half = k % (K / 2);
    put(word(row * 4 + in_half / kPerWord, i), in_half % kPerWord * kBits, kBits, code);
  }

  int thread_b_;
};

// Asks. Runner: run<Case>(vector) executes it; answer(name, number) takes what came out. Yes is 1, no is 0.
template <class Runner>
class Questions {
 public:
  explicit Questions(Runner& runner) : runner_(runner) {}

  void ask() {
    ask_about_thread<0>();
    ask_about_thread<1>();
    ask_about_thread<2>();
    ask_about_thread<3>();
    runner_.answer("nvfp4_nan_scale_reaches_its_row_and_column", nan_scale());
    runner_.answer("nvfp4_subnormal_scales", scale_codes(0, 7));
    runner_.answer("nvfp4_normal_scales", scale_codes(8, 0x7e));
    ask_about_sums<Nvfp4MmaCase<0>>("nvfp4");
    ask_about_sums<ScaledMmaCase<Mxfp8>>("mxfp8");
    ask_about_rounding();
  }

 private:
  // Whether B's scales are those of lane kThreadB of each quad, A's those of lanes 0 and 1, and no others count.
  template <int kThreadB>
  void ask_about_thread() {
    bool all = true;
    for (uint32_t others : {0u, 0xFFFFFFFFu, 0x7F7F7F7Fu, 0x30405060u}) {
      using F = Fragments<Nvfp4MmaCase<kThreadB>>;
      F f(kThreadB, others);
      Random random{kThreadB + 1};
      double a[F::M][F::K], b[F::K][F::N], expected[F::M][F::N];
      auto const scales = [&](int rows, auto set) {
        std::vector<double> values;
        for (int i = 0; i < rows * F::kBlocks; ++i) {
          uint32_t const code = 0x30 + random() % 16;
          set(i / F::kBlocks, i % F::kBlocks, code);
          values.push_back(ue4m3(code));
        }
        return values;
      };
      auto const of_a = scales(F::M, [&](int m, int block, uint32_t code) { f.set_a_scale(m, block, code); });
      auto const of_b = scales(F::N, [&](int n, int block, uint32_t code) { f.set_b_scale(n, block, code); });
      for (int k = 0; k < F::K; ++k) {
        for (int m = 0; m < F::M; ++m) {
          uint32_t const code = random() >> 8 & 15;
          f.set_a(m, k, code);
          a[m][k] = e2m1(code) * of_a[m * F::kBlocks + k / 16];
        }
        for (int n = 0; n < F::N; ++n) {
          uint32_t const code = random() >> 8 & 15;
          f.set_b(k, n, code);
          b[k][n] = e2m1(code) * of_b[n * F::kBlocks + k / 16];
        }
      }
      for (int m = 0; m < F::M; ++m) {
        for (int n = 0; n < F::N; ++n) {
          float const c = static_cast<float>(static_cast<int>(random() % 17) - 8);
          f.set_c(m, n, c);
          expected[m][n] = c;
          for (int k = 0; k < F::K; ++k) expected[m][n] += a[m][k] * b[k][n];
        }
      }
      runner_.template run<Nvfp4MmaCase<kThreadB>>(f.vector);
      for (int m = 0; m < F::M; ++m) {
        for (int n = 0; n < F::N; ++n) all &= std::abs(f.d(m, n) - expected[m][n]) <= 1e-3;  // they are about 100
      }
    }
    runner_.answer("nvfp4_scales_of_thread_" + std::to_string(kThreadB) + "_and_no_others", all);
  }

  // Row 11 has a NaN, over values that are zeros, column 5 another one.
  double nan_scale() {
    using F = Fragments<Nvfp4MmaCase<1>>;
    F f(1, 0);
    for (int m = 0; m < F::M; ++m) {
      for (int n = 0; n < F::N; ++n) f.set_product(m, n, 2, 0);
    }
    f.set_a_scale(11, 3, 0x7f);
    f.set_b_scale(5, 0, 0x7f);
    runner_.template run<Nvfp4MmaCase<1>>(f.vector);
    bool all = true;
    for (int m = 0; m < F::M; ++m) {
      for (int n = 0; n < F::N; ++n) all &= m == 11 || n == 5 ? std::isnan(f.d(m, n)) : f.d(m, n) == 1;
    }
    return all;
  }

  // Whether a product has the value of each of these codes, as the scale of A and as that of B.
  double scale_codes(uint32_t first, uint32_t last) {
    bool all = true;
    for (uint32_t code = first; code <= last; ++code) {
      Fragments<Nvfp4MmaCase<0>> f(0, 0);
      f.set_product(9, 3, 1, 0);
      f.set_product(2, 6, 1, 0);
      f.set_a_scale(9, 1, code);
      f.set_b_scale(6, 1, code);
      runner_.template run<Nvfp4MmaCase<0>>(f.vector);
      all &= f.d(9, 3) == ue4m3(code) && f.d(2, 6) == ue4m3(code);
    }
    return all;
  }

  // How many bits below the largest term a sum keeps, up to the 23 of float32: of two products, of C and a product. And
  // what of a term that is 3/4 of the last bit: 1 if it is rounded to nearest, 0 if it is dropped.
  template <class Case>
  void ask_about_sums(std::string const& name) {
    constexpr int kLargest = 16;
    auto const sum = [&](bool from_c, int exponent) {
      Fragments<Case> f(0, 0);
      if (from_c) {
        f.set_c(4, 7, std::ldexp(1.f, kLargest));
      } else {
        f.set_product(4, 7, 0, kLargest);
      }
      f.set_product(4, 7, 3, exponent);
      runner_.template run<Case>(f.vector);
      return static_cast<double>(f.d(4, 7));
    };
    for (bool from_c : {false, true}) {
      int bits = 0;
      while (bits < 23 &&
             sum(from_c, kLargest - bits - 1) == std::ldexp(1., kLargest) + std::ldexp(1., kLargest - bits - 1))
        ++bits;
      runner_.answer(name + (from_c ? "_bits_of_sum_with_c" : "_bits_of_sum_of_products"), bits);
    }
    Fragments<Case> f(0, 0);
    f.set_c(4, 7, std::ldexp(1.f, 14));
    f.set_product(4, 7, 0, 14 - 24);
    f.set_product(4, 7, 2, 14 - 25);
    runner_.template run<Case>(f.vector);
    runner_.answer(name + "_rounds_to_nearest", f.d(4, 7) > std::ldexp(1., 14));
  }

  // The code of a number: the nearest, of two the even code.
  static uint32_t nearest_e2m1(float x) {
    float const magnitude = std::min(std::fabs(x), kE2m1Values[7]);
    uint32_t nearest = 0;
    for (uint32_t code = 1; code < 8; ++code) {
      float const distance = std::fabs(magnitude - kE2m1Values[code]),
                  best = std::fabs(magnitude - kE2m1Values[nearest]);
      if (distance < best || (distance == best && code % 2 == 0)) nearest = code;
    }
    return nearest | (std::signbit(x) ? 8 : 0);
  }

  // How many of the float16 numbers, infinities included, have another code; and the code of NaN.
  void ask_about_rounding() {
    int wrong = 0;
    uint32_t of_nan = 0, of_negative_nan = 0;
    constexpr int kValues = RoundToE2m1Case::kLanes * RoundToE2m1Case::kIn;
    for (int first = 0; first < 1 << 16; first += kValues) {
      Vector vector;
      float x[kValues];
      for (int i = 0; i < kValues; ++i) x[i] = float(cutlass::half_t::bitcast(static_cast<uint16_t>(first + i)));
      vector.in.resize(kValues);
      vector.out.resize(RoundToE2m1Case::kLanes);
      std::memcpy(vector.in.data(), x, sizeof(x));
      runner_.template run<RoundToE2m1Case>(vector);
      for (int i = 0; i < kValues; ++i) {
        uint32_t const code = vector.out[i / 8] >> 4 * (i % 8) & 15;
        if (!std::isnan(x[i])) {
          wrong += code != nearest_e2m1(x[i]);
        } else {
          (first + i < 0x8000 ? of_nan : of_negative_nan) = code;
        }
      }
    }
    runner_.answer("e2m1_wrong_codes_of_float16", wrong);
    runner_.answer("e2m1_code_of_nan", of_nan);
    runner_.answer("e2m1_code_of_negative_nan", of_negative_nan);
  }

  Runner& runner_;
};

}  // namespace golden
