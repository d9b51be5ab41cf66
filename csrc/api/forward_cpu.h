// The forward pass on CPUs: workspace and kernel parameters.
#pragma once
#include <cstddef>

#include "cpu/forward.h"
#include "sage/attention.h"

namespace sage {

size_t cpu_workspace_bytes(AttnDesc const& desc, cpu::ForwardKernel const& kernel);

// Does the work before it returns. The arguments have been checked.
void run_cpu(AttnDesc const& desc, cpu::ForwardKernel const& kernel, AttnArgs const& args, void* workspace);

}  // namespace sage
