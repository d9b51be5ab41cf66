#include "kernel_test/watch.h"

#include <algorithm>

namespace kernel_test {

using Kernel = sage::arch::CompiledKernel<sage::AttnParams>;

namespace {

Kernel const* g_kernel = nullptr;
int32_t g_fold_slots = 0;
Watch g_last = {};

sage::Status launch(sage::AttnParams const& params, sage::Stream stream) {
  sage::AttnParams p = params;
  if (g_fold_slots > 0) p.fold_slots = std::min(p.fold_slots, g_fold_slots);
  sage::Status const status = g_kernel->launch(p, stream);
  auto const busy = [](uint32_t slot) { return slot != 0; };
  g_last = {params.fold_slots, !p.fold_busy || std::none_of(p.fold_busy, p.fold_busy + params.fold_slots, busy)};
  return status;
}

}  // namespace

Kernel const& watched(Kernel const& kernel) {
  static Kernel const wrapper{kernel.name, kernel.smem_bytes, launch};
  g_kernel = &kernel;
  return wrapper;
}

void set_fold_slots(int32_t slots) { g_fold_slots = slots; }

Watch last_launch() { return g_last; }

}  // namespace kernel_test
