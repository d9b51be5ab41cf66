#include "api/forward_cpu.h"

namespace sage {

static cpu::ForwardParams params_of(AttnDesc const& d) {
  cpu::ForwardParams p{};
  p.dtype = d.dtype;
  p.batch = d.batch;
  p.num_heads_q = d.num_heads_q;
  p.num_heads_kv = d.num_heads_kv;
  p.head_dim = d.head_dim;
  p.sequences = {d.seqlen_q, d.seqlen_k, nullptr, nullptr, nullptr};
  p.varlen = d.varlen;
  p.total_q = d.total_q;
  p.total_k = d.total_k;
  p.causal = d.causal;
  p.window_left = d.window_left;
  p.window_right = d.window_right;
  p.smooth_k = d.recipe.smooth_k;
  p.num_threads = d.num_threads;
  return p;
}

size_t cpu_workspace_bytes(AttnDesc const& desc, cpu::ForwardKernel const& kernel) {
  return kernel.workspace_bytes(params_of(desc));
}

void run_cpu(AttnDesc const& desc, cpu::ForwardKernel const& kernel, AttnArgs const& args, void* workspace) {
  cpu::ForwardParams p = params_of(desc);
  p.sequences.cu_seqlens_q = args.cu_seqlens_q;
  p.sequences.cu_seqlens_k = args.cu_seqlens_k;
  p.sequences.seqused_k = args.seqused_k;
  p.q = args.q;
  p.k = args.k;
  p.v = args.v;
  p.out = args.out;
  p.lse = args.lse;
  p.softmax_scale = args.softmax_scale;
  p.mask = args.mask;
  p.workspace = workspace;
  kernel.run(p);
}

}  // namespace sage
