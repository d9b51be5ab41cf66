// The functions that know which kernel serves a descriptor.
#pragma once
#include "api/forward_cuda.h"
#include "cpu/forward.h"
#include "sage/attention.h"

namespace sage {

// Sets `kernel` to what serves `desc` on a CPU, or says why nothing does. `desc` has passed `validate`.
Status select_cpu(AttnDesc const& desc, cpu::ForwardKernel const** kernel);

// Likewise on a CUDA device, which is asked what it is.
Status select_cuda(AttnDesc const& desc, CudaForward const** kernels);

// Whether the numbers of `desc` make sense at all, on any device.
Status validate(AttnDesc const& desc);

}  // namespace sage
