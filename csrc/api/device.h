// The CUDA devices of this machine.
#pragma once
#include <cstddef>
#include <cstdint>

#include "sage/types.h"

namespace sage {

struct CudaDevice {
  char name[256];
  int32_t compute_capability_major, compute_capability_minor;
  int32_t sm_count;
  int64_t memory_bytes;
};

// What decides which kernels a device runs.
struct CudaLimits {
  int32_t architecture;  // 10 x compute capability
  size_t shared_bytes;   // the most shared memory of a thread block
};

// All fail with kUnsupported where the build has no CUDA, and with kRuntime and CUDA's own words where the machine has
// no driver or no device. The current device is left alone.
Status cuda_device_count(int32_t* count);
Status cuda_device(int32_t index, CudaDevice* device);
Status cuda_limits(int32_t index, CudaLimits* limits);  // takes less than a microsecond

// kInvalidArgument unless device `index` is the current one.
Status check_current_device(int32_t index);

}  // namespace sage
