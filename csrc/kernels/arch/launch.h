// The only `__global__` of the library, and its launch. A kernel is a functor:
//   struct K {
//     static constexpr int kThreads, kMinBlocksPerSm;
//     struct Params;          // plain data, passed by value
//     struct SharedStorage;   // its size is the block's dynamic shared memory
//     static int64_t num_blocks(Params const&);                       // on the host
//     SAGE_DEVICE void operator()(Params const&, char* smem) const;   // smem is 1024-byte aligned
//   };
// Grids are one-dimensional. Without nvcc the same call runs the functor in the emulator (tests/emulator).
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/macros.h"
#include "sage/types.h"

#if defined(__CUDACC__)
#include <cuda_runtime_api.h>

#include "arch/once_per_device.h"
#endif

namespace sage::arch {

// A kernel of this build, for code that does not see its source: csrc/kernels/attention/instance.cu.in defines them.
template <class Params>
struct CompiledKernel {
  char const* name;
  size_t smem_bytes;
  // Enqueues the kernel's blocks on a stream of the current device; nothing if it has none.
  Status (*launch)(Params const&, Stream);
};

// kInvalidArgument where a grid would have more blocks than CUDA takes.
Status check_grid(char const* kernel, int64_t num_blocks);

#if defined(__CUDACC__)

// What the CUDA error of the launch of `kernel` means; kOk for cudaSuccess.
Status launch_status(char const* kernel, int error);

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kMinBlocksPerSm)
    device_kernel(__grid_constant__ typename Kernel::Params const params) {
  extern __shared__ __align__(1024) char smem[];
  Kernel{}(params, smem);
}

template <class Kernel>
Status enqueue(char const* name, typename Kernel::Params const& params, int64_t num_blocks, Stream stream) {
  constexpr int kSmem = sizeof(typename Kernel::SharedStorage);
  if constexpr (kSmem > 48 * 1024) {  // more than that a kernel must be allowed, on each device
    static OncePerDevice allow;
    int device = 0;
    if (cudaError_t const error = cudaGetDevice(&device); error != cudaSuccess) return launch_status(name, error);
    int const error = allow(device, [] {
      return cudaFuncSetAttribute(device_kernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSmem);
    });
    if (error != cudaSuccess) return launch_status(name, error);
  }
  // By the function, not <<< >>>: it returns the error of this launch, and none that a caller has left behind.
  void* arguments[] = {const_cast<typename Kernel::Params*>(&params)};
  return launch_status(
      name, cudaLaunchKernel(device_kernel<Kernel>, dim3(static_cast<unsigned>(num_blocks)), dim3(Kernel::kThreads),
                             arguments, kSmem, static_cast<cudaStream_t>(stream)));
}

#else

// Runs `body(params, smem)` once per thread of each block; defined by the emulator.
Status emulate(char const* kernel, void (*body)(void const* params, char* smem), void const* params, int64_t num_blocks,
               int num_threads, size_t smem_bytes);

template <class Kernel>
Status enqueue(char const* name, typename Kernel::Params const& params, int64_t num_blocks, Stream) {
  auto const body = [](void const* p, char* smem) { Kernel{}(*static_cast<typename Kernel::Params const*>(p), smem); };
  return emulate(name, body, &params, num_blocks, Kernel::kThreads, sizeof(typename Kernel::SharedStorage));
}

#endif

template <class Kernel>
Status launch(char const* name, typename Kernel::Params const& params, Stream stream) {
  int64_t const num_blocks = Kernel::num_blocks(params);
  if (num_blocks == 0) return {};
  if (Status status = check_grid(name, num_blocks); !status.ok()) return status;
  return enqueue<Kernel>(name, params, num_blocks, stream);
}

}  // namespace sage::arch
