// ldmatrix and stmatrix (PTX ISA 9.7.14.5): 8x8 matrices of 16-bit elements, whose rows are 16 bytes of shared memory.
#pragma once
#include <cstdint>

namespace simt {

// `row` is the calling lane's row address: lane 8 i + r holds row r of matrix i, and addresses of lanes from 8
// `matrices` on are ignored. Register i of lane t receives elements (t / 4, 2 (t % 4) + {0, 1}) of matrix i, or of its
// transpose.
void ldmatrix(int matrices, bool transpose, void const* row, uint32_t* registers);
void stmatrix(int matrices, bool transpose, void* row, uint32_t const* registers);

}  // namespace simt
