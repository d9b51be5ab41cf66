// sage::arch::emulate: what csrc/kernels/arch/launch.h calls where no nvcc compiles the kernels.
#include "arch/launch.h"

#include <cstdio>
#include <exception>
#include <limits>

#include "simt/machine.h"

namespace sage::arch {

Status emulate(char const* kernel, void (*body)(void const* params, char* smem), void const* params, int64_t num_blocks,
               int num_threads, size_t smem_bytes) {
  Status status;
  try {
    if (num_blocks < 1 || num_blocks > std::numeric_limits<int32_t>::max()) {
      simt::fail("kernel %s: a grid must have 1 to 2^31 - 1 blocks, got %lld", kernel,
                 static_cast<long long>(num_blocks));
    }
    simt::LaunchParams launch;
    launch.name = kernel;
    launch.grid.x = static_cast<unsigned>(num_blocks);
    launch.block.x = static_cast<unsigned>(num_threads);
    launch.smem_bytes = smem_bytes;
    launch.body = body;
    launch.context = params;
    simt::launch(launch);
  } catch (std::exception const& error) {
    status.code = StatusCode::kRuntime;
    std::snprintf(status.message, sizeof(status.message), "%s", error.what());
  }
  return status;
}

}  // namespace sage::arch
