#include "sage/attention.h"

#include "api/forward_cpu.h"
#include "api/forward_cuda.h"
#include "api/select.h"
#include "api/status.h"
#include "api/tags.h"

namespace sage {

Status is_supported(AttnDesc const& desc) {
  Selection selection;
  return select(desc, &selection);
}

Status AttnPlan::create(AttnDesc const& desc, AttnPlan* plan) {
  *plan = AttnPlan();
  Selection selection;
  SAGE_TRY(select(desc, &selection));
  plan->selection_ = selection;
  plan->desc_ = desc;
  // A window that is wider than the sequences hides nothing. Open, it takes part in no sum that could overflow.
  int64_t const widest = desc.seqlen_q + desc.seqlen_k;
  if (desc.window_left >= widest) plan->desc_.window_left = -1;
  if (desc.window_right >= widest) plan->desc_.window_right = -1;
  return {};
}

static bool on_cpu(AttnDesc const& d) { return d.device.type == DeviceType::kCpu; }
static bool has_queries(AttnDesc const& d) { return d.batch > 0 && (d.varlen ? d.total_q : d.seqlen_q) > 0; }
static bool has_keys(AttnDesc const& d) { return d.batch > 0 && (d.varlen ? d.total_k : d.seqlen_k) > 0; }

namespace {

// One of the arrays cu_seqlens_*, and what its contents must agree with.
struct Packed {
  char const *name, *seqlen_name, *total_name;
  int32_t const* cu_seqlens;
  int64_t seqlen, total;
};

}  // namespace

static Packed packed_q(AttnDesc const& d, AttnArgs const& a) {
  return {"cu_seqlens_q", "seqlen_q", "total_q", a.cu_seqlens_q, d.seqlen_q, d.total_q};
}
static Packed packed_k(AttnDesc const& d, AttnArgs const& a) {
  return {"cu_seqlens_k", "seqlen_k", "total_k", a.cu_seqlens_k, d.seqlen_k, d.total_k};
}

// The contents on the CPU only, where nothing wrong in them reaches a kernel.
static Status check_packed(AttnDesc const& d, Packed const& p) {
  if (!d.varlen) {
    SAGE_REQUIRE(!p.cu_seqlens, "%s must be null without varlen", p.name);
    return {};
  }
  SAGE_REQUIRE(p.cu_seqlens, "%s must be given with varlen", p.name);
  if (!on_cpu(d)) return {};
  SAGE_REQUIRE(p.cu_seqlens[0] == 0, "%s must start at 0, got %d", p.name, p.cu_seqlens[0]);
  for (int32_t b = 0; b < d.batch; ++b) {
    int64_t const length = int64_t{p.cu_seqlens[b + 1]} - p.cu_seqlens[b];
    SAGE_REQUIRE(length >= 0, "%s must not descend, got %d after %d", p.name, p.cu_seqlens[b + 1], p.cu_seqlens[b]);
    SAGE_REQUIRE(length <= p.seqlen, "%s: sequence %d has length %lld, more than %s = %lld", p.name, b,
                 (long long)length, p.seqlen_name, (long long)p.seqlen);
  }
  SAGE_REQUIRE(p.cu_seqlens[d.batch] == p.total, "%s must end at %s = %lld, got %d", p.name, p.total_name,
               (long long)p.total, p.cu_seqlens[d.batch]);
  return {};
}

// Likewise all lengths of a call.
static Status check_lengths(AttnDesc const& d, AttnArgs const& a) {
  SAGE_TRY(check_packed(d, packed_q(d, a)));
  SAGE_TRY(check_packed(d, packed_k(d, a)));
  for (int32_t b = 0; on_cpu(d) && a.seqused_k && b < d.batch; ++b) {
    int64_t const length = d.varlen ? a.cu_seqlens_k[b + 1] - a.cu_seqlens_k[b] : d.seqlen_k;
    SAGE_REQUIRE(a.seqused_k[b] >= 0 && a.seqused_k[b] <= length, "seqused_k[%d] must be in 0..%lld, got %d", b,
                 (long long)length, a.seqused_k[b]);
  }
  return {};
}

static Status check_scale(AttnArgs const& a) {
  SAGE_REQUIRE(a.softmax_scale == a.softmax_scale && a.softmax_scale - a.softmax_scale == 0,
               "softmax_scale must be finite, got %g", a.softmax_scale);
  return {};
}

static Status check_mask(AttnDesc const& d, AttnArgs const& a) {
  SAGE_REQUIRE(!(a.mask.data && d.varlen), "mask is not supported with varlen");
  return {};
}

static Status check_buffer(char const* name, void const* buffer, size_t bytes) {
  SAGE_REQUIRE(buffer || bytes == 0, "%s must not be null", name);
  SAGE_REQUIRE(reinterpret_cast<uintptr_t>(buffer) % 64 == 0, "%s must be aligned to 64 bytes", name);
  return {};
}

static Status check_kv(AttnDesc const& d, AttnArgs const& a) {
  SAGE_REQUIRE(!has_keys(d) || (a.k.data && a.v.data), "k and v must not be null");
  return {};
}

// Whether the plan has been created, and is one that can keep quantized operands.
static Status check_quantizes(Selection const& selection) {
  SAGE_REQUIRE(selection.cpu || selection.cuda, "plan was not created");
  SAGE_SUPPORT(selection.cuda, "the CPU kernels quantize in their loop and keep nothing: use run");
  return {};
}

Status AttnPlan::run(AttnArgs const& args, void* workspace, Stream stream) const {
  SAGE_REQUIRE(selection_.cpu || selection_.cuda, "plan was not created");
  SAGE_REQUIRE(!on_cpu(desc_) || !stream, "stream must be null on the CPU");
  SAGE_TRY(check_scale(args));
  SAGE_TRY(check_mask(desc_, args));
  SAGE_TRY(check_lengths(desc_, args));
  if (!has_queries(desc_)) return {};
  SAGE_TRY(check_buffer("workspace", workspace, workspace_bytes()));
  SAGE_REQUIRE(args.q.data, "q must not be null");
  SAGE_REQUIRE(args.out.data, "out must not be null");
  SAGE_TRY(check_kv(desc_, args));
  if (selection_.cuda) return run_cuda(desc_, *selection_.cuda, selection_.sm_count, args, workspace, stream);
  run_cpu(desc_, *selection_.cpu, args, workspace);
  return {};
}

Status AttnPlan::quantize_kv(AttnArgs const& args, void* buffer, Stream stream, QuantizedKv* kv) const {
  *kv = {};
  SAGE_TRY(check_quantizes(selection_));
  SAGE_TRY(check_packed(desc_, packed_k(desc_, args)));
  SAGE_TRY(check_buffer("buffer", buffer, quantized_kv_bytes()));
  SAGE_TRY(check_kv(desc_, args));
  QuantizedKv made{buffer, {}, desc_, args.seqused_k != nullptr, selection_.cuda->order};
  if (desc_.batch > 0) SAGE_TRY(quantize_kv_cuda(desc_, *selection_.cuda, args, stream, &made));
  *kv = made;
  return {};
}

Status AttnPlan::quantize_q(AttnArgs const& args, QuantizedKv const& kv, void* buffer, Stream stream,
                            QuantizedQ* q) const {
  *q = {};
  SAGE_TRY(check_quantizes(selection_));
  SAGE_TRY(check_scale(args));
  SAGE_TRY(check_packed(desc_, packed_q(desc_, args)));
  SAGE_TRY(check_tag(kv, desc_, *selection_.cuda, quantized_kv_bytes()));
  SAGE_TRY(check_buffer("buffer", buffer, quantized_q_bytes()));
  SAGE_REQUIRE(args.q.data || !has_queries(desc_), "q must not be null");
  QuantizedQ const made{buffer, kv.data, desc_, quantized_q_bytes(), selection_.cuda->order};
  if (has_queries(desc_)) SAGE_TRY(quantize_q_cuda(desc_, *selection_.cuda, args, kv, made, stream));
  *q = made;
  return {};
}

Status AttnPlan::run_quantized(AttnArgs const& args, QuantizedQ const& q, QuantizedKv const& kv, Stream stream) const {
  SAGE_TRY(check_quantizes(selection_));
  SAGE_TRY(check_mask(desc_, args));
  SAGE_TRY(check_lengths(desc_, args));
  SAGE_TRY(check_tag(kv, desc_, *selection_.cuda, quantized_kv_bytes()));
  SAGE_TRY(check_tag(q, desc_, *selection_.cuda, quantized_q_bytes()));
  SAGE_REQUIRE(args.seqused_k || !kv.has_seqused_k,
               "seqused_k must be given: kv was quantized with it, and holds no keys beyond those");
  SAGE_REQUIRE(q.kv == kv.data || !args.lse || !desc_.recipe.smooth_k,
               "lse needs q and kv of one quantize_q: the mean of K that corrects it was that of another kv");
  if (!has_queries(desc_)) return {};
  SAGE_REQUIRE(args.out.data, "out must not be null");
  return run_quantized_cuda(desc_, *selection_.cuda, selection_.sm_count, args, q, kv, stream);
}

}  // namespace sage
