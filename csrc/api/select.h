// The one function that knows which kernel serves a descriptor.
#pragma once
#include "cpu/forward.h"
#include "sage/attention.h"

namespace sage {

// Sets `kernel` to what serves `desc` on a CPU, or says why nothing does. `desc` has passed `validate`.
Status select_cpu(AttnDesc const& desc, cpu::ForwardKernel const** kernel);

// Whether the numbers of `desc` make sense at all, on any device.
Status validate(AttnDesc const& desc);

}  // namespace sage
