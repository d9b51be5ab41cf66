// Force-included (g++ -std=c++20 -include hooks/cutlass.h) before a kernel source: makes the unmodified CUTLASS headers
// run on simt. Three ways, from the least specific to the most:
//  * a free function or class whose body is PTX is renamed while its header is read, and defined anew;
//  * MMA atoms: constrained overloads of cute::mma_unpack, which every cute::gemm ends in;
//  * copy atoms: specialisations of cute::detail::CallCOPY, which every cute::copy ends in.
#pragma once
#include "simt/cuda_shim.h"

// Makes TmaDescriptor a CUtensorMap, and make_tma_copy call cuTensorMapEncodeTiled, which hooks/tensor_map.h defines.
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0
#define CUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL 1

// What is not hooked and has no host branch ends the launch instead of the process.
#include <cute/config.hpp>
#undef CUTE_INVALID_CONTROL_PATH
#define CUTE_INVALID_CONTROL_PATH(message) ::simt::fail("not emulated: %s", message)

#define canonical_lane_idx canonical_lane_idx_ptx_
#define canonical_warp_idx_sync canonical_warp_idx_sync_ptx_
#define canonical_warp_idx canonical_warp_idx_ptx_
#define canonical_warp_group_idx canonical_warp_group_idx_ptx_
#include <cutlass/cutlass.h>
#undef canonical_lane_idx
#undef canonical_warp_idx_sync
#undef canonical_warp_idx
#undef canonical_warp_group_idx

namespace cutlass {
inline int canonical_lane_idx() { return static_cast<int>(threadIdx.x % 32); }
inline int canonical_warp_idx() { return static_cast<int>(threadIdx.x / 32); }
inline int canonical_warp_idx_sync() { return __shfl_sync(::simt::kFullWarp, static_cast<int>(threadIdx.x / 32), 0); }
inline int canonical_warp_group_idx() { return __shfl_sync(::simt::kFullWarp, static_cast<int>(threadIdx.x / 128), 0); }
}  // namespace cutlass

#define cast_smem_ptr_to_uint cast_smem_ptr_to_uint_ptx_
#include <cute/arch/util.hpp>
#undef cast_smem_ptr_to_uint

namespace cute {
inline uint32_t cast_smem_ptr_to_uint(void const* p) { return ::simt::smem_offset(p); }
}  // namespace cute

// Each of these includes the CUTLASS headers that it renames parts of, which must come before any other.
#include "hooks/begin_ptx.h"
//
#include "hooks/cp_async.h"
#include "hooks/sm90_barriers.h"
//
#include "hooks/end_ptx.h"

#include <cutlass/numeric_types.h>
#include <cute/tensor.hpp>

#include "hooks/warp_copy.h"
#include "hooks/warp_mma.h"
// These use the ones above.
#include "hooks/sm120_mma.h"
#include "hooks/wgmma.h"
