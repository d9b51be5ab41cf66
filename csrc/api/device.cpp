#include "api/device.h"

#include "api/status.h"

#if SAGE_HAS_CUDA
#include <cuda_runtime_api.h>

#include <cstring>
#endif

namespace sage {

#if SAGE_HAS_CUDA

static Status from_cuda(cudaError_t error, char const* call) {
  if (error == cudaSuccess) return {};
  (void)cudaGetLastError();  // the error is reported here; a later launch check must not find it again
  return make_status(StatusCode::kRuntime, "%s: %s", call, cudaGetErrorString(error));
}

Status cuda_device_count(int32_t* count) { return from_cuda(cudaGetDeviceCount(count), "cudaGetDeviceCount"); }

Status cuda_device(int32_t index, CudaDevice* device) {
  cudaDeviceProp properties;
  cudaError_t const error = cudaGetDeviceProperties(&properties, index);
  if (error != cudaSuccess) return from_cuda(error, "cudaGetDeviceProperties");
  static_assert(sizeof device->name >= sizeof properties.name, "CudaDevice::name must hold what CUDA reports");
  std::memcpy(device->name, properties.name, sizeof properties.name);
  device->compute_capability_major = properties.major;
  device->compute_capability_minor = properties.minor;
  device->sm_count = properties.multiProcessorCount;
  device->memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  return {};
}

Status cuda_limits(Device const& device, CudaLimits* limits) {
  if (device.architecture) {
    *limits = *known_limits(device.architecture);
    return {};
  }
  int major = 0, minor = 0, shared_bytes = 0, sm_count = 0;
  struct {
    int* value;
    cudaDeviceAttr attribute;
  } const queries[] = {{&major, cudaDevAttrComputeCapabilityMajor},
                       {&minor, cudaDevAttrComputeCapabilityMinor},
                       {&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin},
                       {&sm_count, cudaDevAttrMultiProcessorCount}};
  for (auto const& [value, attribute] : queries) {
    cudaError_t const error = cudaDeviceGetAttribute(value, attribute, device.index);
    if (error != cudaSuccess) return from_cuda(error, "cudaDeviceGetAttribute");
  }
  *limits = {10 * major + minor, static_cast<size_t>(shared_bytes), sm_count};
  return {};
}

Status check_current_device(int32_t index) {
  int current = -1;
  cudaError_t const error = cudaGetDevice(&current);
  if (error != cudaSuccess) return from_cuda(error, "cudaGetDevice");
  SAGE_REQUIRE(current == index, "the current CUDA device must be that of the plan, %d, got %d", index, current);
  return {};
}

#else

static Status no_cuda() {
  return make_status(StatusCode::kUnsupported,
                     "this build has no CUDA (no nvcc was found, or it was configured with SAGE_CUDA=OFF)");
}

Status cuda_device_count(int32_t*) { return no_cuda(); }
Status cuda_device(int32_t, CudaDevice*) { return no_cuda(); }
Status cuda_limits(Device const&, CudaLimits*) { return no_cuda(); }
Status check_current_device(int32_t) { return no_cuda(); }

#endif

}  // namespace sage
