// The questions of golden/questions.h, asked the emulator: its answers are what tests/test_silicon.py expects of a GPU.
#include "golden/questions.h"

#include <cute/tensor.hpp>

#include <map>

#include "golden/in_emulator.h"
#include "self_test/check.h"

namespace {

struct Emulator {
  std::map<std::string, double> answers;

  template <class Case>
  void run(golden::Vector& vector) {
    golden::run_in_emulator<Case>(vector);
  }
  void answer(std::string const& name, double number) { answers[name] = number; }
};

// An instruction of each kind with a fault.
struct Faulty : Emulator {
  template <class Case>
  void run(golden::Vector& vector) {
    if constexpr (std::is_same_v<Case, golden::Nvfp4MmaCase<0>>) {
      golden::run_in_emulator<golden::Nvfp4MmaCase<3>>(vector);  // B's scales come from another lane
      return;
    }
    golden::run_in_emulator<Case>(vector);
    if constexpr (std::is_same_v<Case, golden::Nvfp4MmaCase<1>>) {
      for (auto& word : vector.out) word &= 0x7fffffff >> 8 * (word >> 23 == 0xff);  // NaN becomes a number
    } else if constexpr (std::is_same_v<Case, golden::ScaledMmaCase<golden::Mxfp8>>) {
      for (auto& word : vector.out) word &= ~0u << 10;  // sums keep 13 bits
    } else if constexpr (std::is_same_v<Case, golden::RoundToE2m1Case>) {
      for (auto& word : vector.out) word ^= word << 1 & 0x22222222;
    }
  }
};

}  // namespace

int main() {
  Emulator emulator;
  golden::Questions<Emulator>(emulator).ask();
  for (auto const& [name, number] : emulator.answers) std::printf("%s %g\n", name.c_str(), number);
  Faulty faulty;
  golden::Questions<Faulty>(faulty).ask();
  CHECK_EQUAL(faulty.answers["nvfp4_scales_of_thread_0_and_no_others"], 0);
  CHECK_EQUAL(faulty.answers["nvfp4_normal_scales"], 0);
  CHECK_EQUAL(faulty.answers["nvfp4_subnormal_scales"], 0);
  CHECK_EQUAL(faulty.answers["nvfp4_nan_scale_reaches_its_row_and_column"], 0);
  CHECK_EQUAL(faulty.answers["mxfp8_bits_of_sum_of_products"], 13);
  CHECK_EQUAL(faulty.answers["mxfp8_bits_of_sum_with_c"], 13);
  CHECK_EQUAL(faulty.answers["mxfp8_rounds_to_nearest"], 0);
  CHECK(faulty.answers["e2m1_wrong_codes_of_float16"] > 10000);
  return self_test::finish("questions");
}
