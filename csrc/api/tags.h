// Whether a plan can use quantized operands that another plan may have written.
#pragma once
#include "sage/attention.h"

namespace sage {

// kInvalidArgument where the view is empty, or where it and the plan differ in what decides the meaning of its bytes;
// the message names the field. `desc` and `kernels` are the plan's.
Status check_tag(QuantizedKv const& kv, AttnDesc const& desc, CudaForward const& kernels, size_t quantized_kv_bytes);
Status check_tag(QuantizedQ const& q, AttnDesc const& desc, CudaForward const& kernels, size_t quantized_q_bytes);

}  // namespace sage
