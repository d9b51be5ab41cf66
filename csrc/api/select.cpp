#include "api/select.h"

#include <algorithm>
#include <cstdio>

#include "api/device.h"
#include "api/forward_cpu.h"
#include "api/names.h"
#include "api/status.h"

namespace sage {

static char const* name(QkFormat x) { return name_of(x, kQkFormats); }
static char const* name(PvFormat x) { return name_of(x, kPvFormats); }

static long long ll(int64_t x) { return x; }

static Status validate_architecture(Device const& device) {
  if (device.architecture == 0) return {};
  SAGE_REQUIRE(device.type == DeviceType::kCuda, "architecture must be 0 on the CPU, got %d", device.architecture);
  if (known_limits(device.architecture)) return {};
  char known[64] = "";
  int length = 0;
  for (CudaLimits const& limits : kKnownLimits) {
    length += std::snprintf(known + length, sizeof known - length, "%d, ", limits.architecture);
  }
  return make_status(StatusCode::kInvalidArgument, "architecture must be one of %sor 0 for that of the device, got %d",
                     known, device.architecture);
}

// So few values that no size in bytes, of a tensor or of what is made of it, comes near the limits of 64 bits.
static Status validate_size(char const* name, AttnDesc const& d, int32_t num_heads, int64_t seqlen, int64_t total) {
  double const most = 0x1p46, batch = std::max(d.batch, 1);
  double const rows = d.varlen ? batch + std::max(seqlen, total) : batch * std::max(seqlen, int64_t{1});
  double const values = rows * num_heads * d.head_dim;
  SAGE_REQUIRE(values <= most, "%s must have at most 2^46 values, got about %.3g", name, values);
  return {};
}

// Whether the numbers of `d` make sense at all, on any device.
static Status validate(AttnDesc const& d) {
  SAGE_TRY(validate_architecture(d.device));
  SAGE_REQUIRE(d.dtype == DType::kFloat32 || d.dtype == DType::kFloat16 || d.dtype == DType::kBFloat16,
               "dtype must be float32, float16 or bfloat16, got bool");
  SAGE_REQUIRE(d.batch >= 0, "batch must be >= 0, got %d", d.batch);
  SAGE_REQUIRE(d.num_heads_q >= 1, "num_heads_q must be >= 1, got %d", d.num_heads_q);
  SAGE_REQUIRE(d.num_heads_kv >= 1 && d.num_heads_q % d.num_heads_kv == 0,
               "num_heads_kv must divide num_heads_q = %d, got %d", d.num_heads_q, d.num_heads_kv);
  SAGE_REQUIRE(d.head_dim >= 1 && d.head_dim <= 256, "head_dim must be in 1..256, got %d", d.head_dim);
  SAGE_REQUIRE(d.seqlen_q >= 0, "seqlen_q must be >= 0, got %lld", ll(d.seqlen_q));
  SAGE_REQUIRE(d.seqlen_k >= 0, "seqlen_k must be >= 0, got %lld", ll(d.seqlen_k));
  SAGE_REQUIRE(!d.varlen || d.total_q >= 0, "total_q must be >= 0, got %lld", ll(d.total_q));
  SAGE_REQUIRE(!d.varlen || d.total_k >= 0, "total_k must be >= 0, got %lld", ll(d.total_k));
  SAGE_TRY(validate_size("q", d, d.num_heads_q, d.seqlen_q, d.total_q));
  SAGE_TRY(validate_size("k", d, d.num_heads_kv, d.seqlen_k, d.total_k));
  SAGE_REQUIRE(d.window_left >= -1, "window_left must be >= 0, or -1 for none, got %lld", ll(d.window_left));
  SAGE_REQUIRE(d.window_right >= -1, "window_right must be >= 0, or -1 for none, got %lld", ll(d.window_right));
  SAGE_REQUIRE(d.num_threads >= 1, "num_threads must be >= 1, got %d", d.num_threads);
  return {};
}

static Status select_cpu(AttnDesc const& d, Selection* selection) {
  CpuIsa const isa = d.cpu_isa == CpuIsa::kAuto ? best_cpu_isa() : d.cpu_isa;
  cpu::ForwardKernel const* const kernels = cpu::forward_kernels(isa);
  SAGE_SUPPORT(kernels, "this build has no CPU kernels for cpu_isa %s", cpu::isa_name(isa));
  SAGE_SUPPORT(cpu_isa_available(isa), "cpu_isa %s cannot run on this CPU; the best that can is %s", cpu::isa_name(isa),
               cpu::isa_name(best_cpu_isa()));
  Recipe const& r = d.recipe;
  for (int i = 0; i < cpu::kKernelsPerIsa; ++i) {
    cpu::ForwardKernel const& candidate = kernels[i];
    if (candidate.qk != r.qk || candidate.pv != r.pv) continue;
    SAGE_SUPPORT(r.qk_granularity == QkGranularity::kToken,
                 "the CPU kernels serve recipe field qk_granularity token only");
    SAGE_SUPPORT(r.pv_accum == PvAccum::kInt32, "the CPU kernels serve recipe field pv_accum int32 only");
    SAGE_SUPPORT(r.block_k == candidate.block_k && r.p_max == candidate.p_max && r.v_max == candidate.v_max,
                 "the CPU kernel for qk %s, pv %s serves block_k %d, p_max %g, v_max %g only, got %d, %g, %g",
                 name(r.qk), name(r.pv), candidate.block_k, candidate.p_max, candidate.v_max, r.block_k, r.p_max,
                 r.v_max);
    SAGE_SUPPORT(!r.v_per_block, "the CPU kernels serve recipe field v_granularity channel only");
    SAGE_SUPPORT(!r.smooth_q && !r.smooth_v, "the CPU kernels smooth K only, got smooth_q %d, smooth_v %d", r.smooth_q,
                 r.smooth_v);
    SAGE_SUPPORT(!r.approximate_exp, "the CPU kernels serve recipe field approximate_exp false only, got true");
    SAGE_SUPPORT(!r.hadamard, "the CPU kernels serve recipe field hadamard false only, got true");
    SAGE_SUPPORT(r.fold_every == 1, "the CPU kernels serve recipe field fold_every 1 only, got %d", r.fold_every);
    SAGE_SUPPORT(r.key_order == KeyOrder::kForward, "the CPU kernels serve recipe field key_order forward only, got %s",
                 name_of(r.key_order, kKeyOrders));
    selection->cpu = &candidate;
    selection->kernel_name = candidate.name;
    selection->workspace_bytes = cpu_workspace_bytes(d, candidate);
    return {};
  }
  return make_status(StatusCode::kUnsupported,
                     "no CPU kernel for qk %s with pv %s; there are int8 with int8, int8 with int16, int16 with int16",
                     name(r.qk), name(r.pv));
}

Status select(AttnDesc const& desc, Selection* selection) {
  *selection = {};
  SAGE_TRY(validate(desc));
  return desc.device.type == DeviceType::kCpu ? select_cpu(desc, selection) : select_cuda(desc, selection);
}

}  // namespace sage
