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

// Of a problem with Data::kExact or kZero: each element has a bound of its own, from the rounding of P, of the
// accumulators and of the result.
Comparison compare_elements(Problem const& problem);

// Of a problem with Data::kNormal: bounds of the recipe's error over all elements.
Comparison compare_recipe(Problem const& problem);

}  // namespace kernel_test
