// What the buffers of QuantizeNvfp4 must hold, from plain arithmetic in double precision and the fragments' definition
// in the PTX ISA.
#pragma once
#include <string>

#include "quantizer_test/problem.h"

namespace quantizer_test {

// What is wrong; empty if nothing. Scales and values are the nearest ones there are, or as near but for float32.
std::string check_nvfp4(Problem const& problem);

// Conversions to and from e2m1, by their tables.
std::string check_e2m1();

}  // namespace quantizer_test
