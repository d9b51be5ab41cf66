// The forward pass on CUDA: workspace, kernel parameters, launches.
#pragma once
#include <cstddef>

#include "arch/launch.h"
#include "attention/params.h"
#include "quantize/params.h"
#include "sage/attention.h"

namespace sage {

// The kernels that serve one padded head_dim and one P V.
struct CudaForward {
  int32_t head_dim;
  PvFormat pv;
  PvAccum pv_accum;
  DType operand;  // of P and V where they have 16 bits
  arch::CompiledKernel<QuantizeParams> const &kv_stats, &quantize_qkv;
  arch::CompiledKernel<AttnParams> const& attention;
};

size_t cuda_workspace_bytes(AttnDesc const& desc, CudaForward const& kernels);

// Enqueues at most three kernels on `stream`. The arguments have been checked, but for their alignment.
Status run_cuda(AttnDesc const& desc, CudaForward const& kernels, AttnArgs const& args, void* workspace, Stream stream);

}  // namespace sage
