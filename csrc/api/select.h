// The one place that knows what serves a descriptor.
#pragma once
#include "sage/attention.h"

namespace sage {

using internal::Selection;

// Sets `selection` to what serves `desc`, or says why nothing does.
Status select(AttnDesc const& desc, Selection* selection);

// The part of it for CUDA devices.
Status select_cuda(AttnDesc const& desc, Selection* selection);

}  // namespace sage
