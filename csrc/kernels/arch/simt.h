// The thread hierarchy: indices, barriers, warp votes and shuffles (PTX ISA, sections 9.7.13 and 10).
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "common/macros.h"

namespace sage::arch {

SAGE_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
SAGE_DEVICE int warp_index() { return static_cast<int>(threadIdx.x / 32); }
SAGE_DEVICE int lane_index() { return static_cast<int>(threadIdx.x % 32); }
SAGE_DEVICE uint32_t block_index() { return blockIdx.x; }
SAGE_DEVICE uint32_t num_blocks() { return gridDim.x; }

SAGE_DEVICE void sync_block() { __syncthreads(); }
SAGE_DEVICE void sync_warp() { __syncwarp(); }

template <class T>
SAGE_DEVICE T shuffle_xor(T x, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, x, lane_mask);
}
SAGE_DEVICE bool any(bool p) { return __any_sync(0xffffffffu, p) != 0; }

// Stores x and returns what was there, of all threads of the GPU one at a time.
SAGE_DEVICE uint32_t exchange(uint32_t* p, uint32_t x) { return atomicExch(p, x); }
// What this thread wrote before it is visible to other blocks before what it writes after.
SAGE_DEVICE void fence() { __threadfence(); }
// Between two looks at what another block will change.
SAGE_DEVICE void pause() { __nanosleep(100); }

}  // namespace sage::arch
