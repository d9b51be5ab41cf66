#include "arch/launch.h"

#include <cstdio>
#include <limits>

#if SAGE_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

namespace sage::arch {

Status check_grid(char const* kernel, int64_t num_blocks) {
  Status status;
  if (num_blocks > std::numeric_limits<int32_t>::max()) {
    status.code = StatusCode::kInvalidArgument;
    std::snprintf(status.message, sizeof status.message,
                  "the problem is too large: kernel %s would need %lld thread blocks, and CUDA takes at most %d",
                  kernel, static_cast<long long>(num_blocks), std::numeric_limits<int32_t>::max());
  }
  return status;
}

#if SAGE_HAS_CUDA

Status launch_status(char const* kernel, int error) {
  Status status;
  if (error != cudaSuccess) {
    (void)cudaGetLastError();  // it is reported here; a later launch must not find it again
    status.code = StatusCode::kRuntime;
    std::snprintf(status.message, sizeof status.message, "launch of kernel %s: %s", kernel,
                  cudaGetErrorString(static_cast<cudaError_t>(error)));
  }
  return status;
}

#endif

}  // namespace sage::arch
