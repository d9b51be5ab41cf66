// Exact attention in double precision, and how far from it a correct kernel may be.
#pragma once
#include <string>

#include "kernel_test/problem.h"

namespace kernel_test {

// What is not within its bounds; empty if everything is.
struct Comparison {
  std::string failure;
  double worst;  // the largest error, in units of what is allowed
};

// Gathers elements that are not within their bounds. Where NaN is expected only that will do; a bound of infinity
// allows anything.
class Elements {
 public:
  void check(double got, double expected, double bound, std::string const& where);
  Comparison result() const;

 private:
  std::string failure_;
  double worst_ = 0.;
  int wrong_ = 0;
};

// As printf.
__attribute__((format(printf, 1, 2))) std::string format(char const* text, ...);
double unit_roundoff(sage::DType dtype);  // half a unit in the last place of 1

// Of a problem with Data::kExact or kZero: each element has a bound of its own, from the rounding of P, of the
// accumulators and of the result.
Comparison compare_elements(Problem const& problem);

// Of a problem with Data::kNormal: bounds of the recipe's error over all elements.
Comparison compare_recipe(Problem const& problem);

// Of a problem that was packed (nvfp4_packer.h): attention over the decoded operands, with P rounded as the recipe
// says.
Comparison compare_packed(Problem const& problem);

}  // namespace kernel_test
