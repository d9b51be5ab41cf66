#include "sage/attention.h"

#include "api/select.h"
#include "api/status.h"

namespace sage {

static cpu::ForwardParams cpu_params(AttnDesc const& d) {
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

Status is_supported(AttnDesc const& desc) {
  AttnPlan plan;
  return AttnPlan::create(desc, &plan);
}

Status AttnPlan::create(AttnDesc const& desc, AttnPlan* plan) {
  *plan = AttnPlan();
  if (Status status = validate(desc); !status.ok()) return status;
  if (desc.device.type == DeviceType::kCpu) {
    cpu::ForwardKernel const* kernel = nullptr;
    if (Status status = select_cpu(desc, &kernel); !status.ok()) return status;
    plan->entry_ = kernel;
    plan->kernel_name_ = kernel->name;
    plan->workspace_bytes_ = kernel->workspace_bytes(cpu_params(desc));
  } else {
    CudaForward const* kernels = nullptr;
    if (Status status = select_cuda(desc, &kernels); !status.ok()) return status;
    plan->entry_ = kernels;
    plan->kernel_name_ = kernels->attention.name;
    plan->workspace_bytes_ = cuda_workspace_bytes(desc, *kernels);
  }
  plan->desc_ = desc;
  // A window that is wider than the sequences hides nothing. Open, it takes part in no sum that could overflow.
  int64_t const widest = desc.seqlen_q + desc.seqlen_k;
  if (desc.window_left >= widest) plan->desc_.window_left = -1;
  if (desc.window_right >= widest) plan->desc_.window_right = -1;
  return {};
}

// The length arrays; their contents on the CPU only, where nothing wrong in them reaches a kernel.
static Status check_lengths(AttnDesc const& d, AttnArgs const& a) {
  struct Packed {
    char const *name, *seqlen_name, *total_name;
    int32_t const* cu_seqlens;
    int64_t seqlen, total;
  };
  Packed const packed[] = {{"cu_seqlens_q", "seqlen_q", "total_q", a.cu_seqlens_q, d.seqlen_q, d.total_q},
                           {"cu_seqlens_k", "seqlen_k", "total_k", a.cu_seqlens_k, d.seqlen_k, d.total_k}};
  for (Packed const& p : packed) {
    if (!d.varlen) {
      SAGE_REQUIRE(!p.cu_seqlens, "%s must be null without varlen", p.name);
      continue;
    }
    SAGE_REQUIRE(p.cu_seqlens, "%s must be given with varlen", p.name);
    if (d.device.type != DeviceType::kCpu) continue;
    SAGE_REQUIRE(p.cu_seqlens[0] == 0, "%s must start at 0, got %d", p.name, p.cu_seqlens[0]);
    for (int32_t b = 0; b < d.batch; ++b) {
      int64_t const length = int64_t{p.cu_seqlens[b + 1]} - p.cu_seqlens[b];
      SAGE_REQUIRE(length >= 0, "%s must not descend, got %d after %d", p.name, p.cu_seqlens[b + 1], p.cu_seqlens[b]);
      SAGE_REQUIRE(length <= p.seqlen, "%s: sequence %d has length %lld, more than %s = %lld", p.name, b,
                   (long long)length, p.seqlen_name, (long long)p.seqlen);
    }
    SAGE_REQUIRE(p.cu_seqlens[d.batch] == p.total, "%s must end at %s = %lld, got %d", p.name, p.total_name,
                 (long long)p.total, p.cu_seqlens[d.batch]);
  }
  if (d.device.type != DeviceType::kCpu) return {};
  for (int32_t b = 0; a.seqused_k && b < d.batch; ++b) {
    int64_t const length = d.varlen ? a.cu_seqlens_k[b + 1] - a.cu_seqlens_k[b] : d.seqlen_k;
    SAGE_REQUIRE(a.seqused_k[b] >= 0 && a.seqused_k[b] <= length, "seqused_k[%d] must be in 0..%lld, got %d", b,
                 (long long)length, a.seqused_k[b]);
  }
  return {};
}

Status AttnPlan::run(AttnArgs const& args, void* workspace, Stream stream) const {
  SAGE_REQUIRE(entry_, "plan was not created");
  bool const on_cpu = desc_.device.type == DeviceType::kCpu;
  SAGE_REQUIRE(!on_cpu || !stream, "stream must be null on the CPU");
  SAGE_REQUIRE(args.softmax_scale == args.softmax_scale && args.softmax_scale - args.softmax_scale == 0,
               "softmax_scale must be finite, got %g", args.softmax_scale);
  SAGE_REQUIRE(!(args.mask.data && desc_.varlen), "mask is not supported with varlen");
  if (Status status = check_lengths(desc_, args); !status.ok()) return status;
  bool const any_rows = desc_.batch > 0 && (desc_.varlen ? desc_.total_q : desc_.seqlen_q) > 0;
  if (!any_rows) return {};
  bool const any_keys = (desc_.varlen ? desc_.total_k : desc_.seqlen_k) > 0;
  SAGE_REQUIRE(workspace, "workspace must not be null");
  SAGE_REQUIRE(reinterpret_cast<uintptr_t>(workspace) % 64 == 0, "workspace must be aligned to 64 bytes");
  SAGE_REQUIRE(args.q.data, "q must not be null");
  SAGE_REQUIRE(args.out.data, "out must not be null");
  SAGE_REQUIRE(!any_keys || (args.k.data && args.v.data), "k and v must not be null");
  if (!on_cpu) return run_cuda(desc_, *static_cast<CudaForward const*>(entry_), args, workspace, stream);

  cpu::ForwardParams params = cpu_params(desc_);
  params.sequences.cu_seqlens_q = args.cu_seqlens_q;
  params.sequences.cu_seqlens_k = args.cu_seqlens_k;
  params.sequences.seqused_k = args.seqused_k;
  params.q = args.q;
  params.k = args.k;
  params.v = args.v;
  params.out = args.out;
  params.lse = args.lse;
  params.softmax_scale = args.softmax_scale;
  params.mask = args.mask;
  params.workspace = workspace;
  static_cast<cpu::ForwardKernel const*>(entry_)->run(params);
  return {};
}

}  // namespace sage
