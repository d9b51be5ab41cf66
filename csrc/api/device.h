// The CUDA devices of this machine.
#pragma once
#include <cstdint>

#include "sage/types.h"

namespace sage {

struct CudaDevice {
  char name[256];
  int32_t compute_capability_major, compute_capability_minor;
  int32_t sm_count;
  int64_t memory_bytes;
};

// Both fail with kUnsupported where the build has no CUDA, and with kRuntime and CUDA's own words where the machine has
// no driver or no device. The current device is left alone.
Status cuda_device_count(int32_t* count);
Status cuda_device(int32_t index, CudaDevice* device);

}  // namespace sage
