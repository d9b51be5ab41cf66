// The problems on which the kernels are tested.
#pragma once
#include <vector>

#include "kernel_test/problem.h"

namespace kernel_test {

std::vector<Case> cases();
std::vector<Case> persistent_cases();  // some of them
std::vector<Case> nvfp4_cases();

}  // namespace kernel_test
