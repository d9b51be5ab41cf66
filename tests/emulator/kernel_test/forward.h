#pragma once
#include "api/forward_cuda.h"

namespace kernel_test {

// The main function of a program that tests these kernels; with the argument --quick on fewer problems. Prints a line
// per problem; 0 if all are solved.
int run_cases(char const* name, sage::CudaForward const& kernels, int count, char** arguments);

}  // namespace kernel_test
