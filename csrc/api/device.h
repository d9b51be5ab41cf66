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
  int32_t sm_count;
};

// CUDA C++ Programming Guide, technical specifications per compute capability; the SMs of A100, A40, AGX Orin, L40S,
// H100 SXM, B200, B300, Thor, RTX PRO 6000 and GB10.
inline constexpr CudaLimits kKnownLimits[] = {
    {80, 163 * 1024, 108},  {86, 99 * 1024, 84},    {87, 163 * 1024, 16},  {89, 99 * 1024, 142},  {90, 227 * 1024, 132},
    {100, 227 * 1024, 148}, {103, 227 * 1024, 148}, {110, 227 * 1024, 20}, {120, 99 * 1024, 188}, {121, 99 * 1024, 48}};

// Null where `architecture` is not in the table.
inline CudaLimits const* known_limits(int32_t architecture) {
  for (CudaLimits const& limits : kKnownLimits) {
    if (limits.architecture == architecture) return &limits;
  }
  return nullptr;
}

// All fail with kUnsupported where the build has no CUDA, and with kRuntime and CUDA's own words where the machine has
// no driver or no device. The current device is left alone.
Status cuda_device_count(int32_t* count);
Status cuda_device(int32_t index, CudaDevice* device);

// Of the architecture that `device` names, which must be a known one; else the device is asked, which takes less than a
// microsecond.
Status cuda_limits(Device const& device, CudaLimits* limits);

// kInvalidArgument unless device `index` is the current one.
Status check_current_device(int32_t index);

}  // namespace sage
