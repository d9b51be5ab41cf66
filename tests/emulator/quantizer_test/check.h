// What a problem's buffers must hold, from plain arithmetic in double precision.
#pragma once
#include <string>

#include "quantizer_test/problem.h"

namespace quantizer_test {

// What is wrong; empty if nothing. Codes may be half a step from the exact value, and a little more for float32.
std::string check(Problem const& problem);

// e4m3 codes as cuda_fp8.h makes them, for all 16-bit inputs and a sample of float32.
std::string check_e4m3();

}  // namespace quantizer_test
