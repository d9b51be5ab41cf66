// The forward pass on CUDA: quantized operands in buffers, kernel parameters, launches.
#pragma once
#include <cstddef>

#include "arch/launch.h"
#include "attention/params.h"
#include "quantize/params.h"
#include "sage/attention.h"

namespace sage {

// What machine code was compiled for.
struct CodeTarget {
  int32_t architecture;  // 0: none
  bool nowhere_else;     // with the features of one architecture (120a)
};

// The kernels that serve one padded head_dim, Q K^T and P V.
struct CudaForward {
  int32_t head_dim;
  QkFormat qk;
  PvFormat pv;
  PvAccum pv_accum;
  DType operand;         // of P and V where they have 16 bits
  OperandOrder order;    // what the quantizers are told
  bool approximate_exp;  // the recipe field
  arch::CompiledKernel<QuantizeParams> const &kv_stats, &quantizer;
  arch::CompiledKernel<AttnParams> const& attention;
  CodeTarget targets[6];  // of `attention`; the others run wherever it does
};

size_t quantized_q_bytes(AttnDesc const& desc, CudaForward const& kernels);
size_t quantized_kv_bytes(AttnDesc const& desc, CudaForward const& kernels);

// Whether what P V accumulates is added up elsewhere every fold_every tiles of keys. FP8 accumulators that are true
// float32 have no need of that.
inline bool folds(PvFormat pv, PvAccum pv_accum) { return pv == PvFormat::kFp8E4m3 && pv_accum != PvAccum::kFp32; }

// How the kernels read V; besides the descriptor, what decides the contents of quantized K and V.
VFormat v_format(AttnDesc const& desc, CudaForward const& kernels);

// What AttnPlan says of these, for problems that are not empty. The arguments have been checked, but for their
// alignment and the current device. The first enqueues three kernels at most, quantize_kv_cuda two, the others one. `q`
// and `kv` are views with buffers and descriptors, which these fill; `sm_count` is that of the device.
Status run_cuda(AttnDesc const& desc, CudaForward const& kernels, int32_t sm_count, AttnArgs const& args,
                void* workspace, Stream stream);
Status quantize_kv_cuda(AttnDesc const& desc, CudaForward const& kernels, AttnArgs const& args, Stream stream,
                        QuantizedKv* kv);
Status quantize_q_cuda(AttnDesc const& desc, CudaForward const& kernels, AttnArgs const& args, QuantizedKv const& kv,
                       QuantizedQ const& q, Stream stream);
Status run_quantized_cuda(AttnDesc const& desc, CudaForward const& kernels, int32_t sm_count, AttnArgs const& args,
                          QuantizedQ const& q, QuantizedKv const& kv, Stream stream);

}  // namespace sage
