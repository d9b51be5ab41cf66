#include <cstdio>
#include <iterator>

#include "api/device.h"
#include "api/instances.h"
#include "api/names.h"
#include "api/select.h"
#include "api/status.h"

namespace sage {

// CUDA C++ Programming Guide, "Binary Compatibility": machine code runs on its own architecture and, with the same
// major compute capability, later ones; those of Tegra share with no other.
static bool runs_on(int architecture) {
  auto const is_tegra = [](int x) { return x == 87 || x == 110; };
  for (int compiled : kCudaArchitectures) {
    if (compiled == architecture) return true;
    if (is_tegra(compiled) || is_tegra(architecture)) continue;
    if (compiled / 10 == architecture / 10 && compiled < architecture) return true;
  }
  return false;
}

namespace {

// "sm_80, sm_86 and sm_89", for a message.
struct Enumeration {
  char text[96] = "";

  Enumeration(int const* architectures, int count) {
    int length = 0;
    for (int i = 0; i < count; ++i) {
      char const* const separator = i == 0 ? "" : i + 1 < count ? ", " : " and ";
      int const rest = static_cast<int>(sizeof text) - length;
      length += std::snprintf(text + length, rest, "%ssm_%d", separator, architectures[i]);
    }
  }
};

}  // namespace

static Status check_architecture(int architecture) {
  if (runs_on(architecture)) return {};
  int served[std::size(kKnownLimits)], num_served = 0;
  for (CudaLimits const& known : kKnownLimits) {
    if (runs_on(known.architecture)) served[num_served++] = known.architecture;
  }
  Enumeration const code(kCudaArchitectures.data(), static_cast<int>(kCudaArchitectures.size()));
  return make_status(StatusCode::kUnsupported,
                     "no kernel of this build runs on sm_%d: its code is for %s, which runs on %s only", architecture,
                     code.text, Enumeration(served, num_served).text);
}

static Status check_recipe(AttnDesc const& d) {
  Recipe const& r = d.recipe;
  SAGE_SUPPORT(r.qk == QkFormat::kInt8, "the CUDA kernels serve recipe field qk int8 only, got %s",
               name_of(r.qk, kQkFormats));
  SAGE_SUPPORT(r.qk_granularity == QkGranularity::kThread || r.qk_granularity == QkGranularity::kWarp ||
                   r.qk_granularity == QkGranularity::kBlock,
               "the CUDA kernels serve recipe field qk_granularity thread, warp or block only, got %s",
               name_of(r.qk_granularity, kQkGranularities));
  SAGE_SUPPORT(r.block_q == kQTileRows, "the CUDA kernels serve recipe field block_q %d only, got %d", kQTileRows,
               r.block_q);
  SAGE_SUPPORT(r.block_k == kKTileRows, "the CUDA kernels serve recipe field block_k %d only, got %d", kKTileRows,
               r.block_k);
  SAGE_SUPPORT(!r.smooth_q && !r.smooth_v, "the CUDA kernels smooth K only, got smooth_q %d, smooth_v %d", r.smooth_q,
               r.smooth_v);
  bool const integer = r.pv == PvFormat::kInt8;
  float const p_max = integer ? 255.f : 1.f, v_max = integer ? 127.f : 0.f;
  SAGE_SUPPORT(r.p_max == p_max && r.v_max == v_max,
               "the CUDA kernels for pv %s serve recipe fields p_max %g, v_max %g only, got %g, %g",
               name_of(r.pv, kPvFormats), p_max, v_max, r.p_max, r.v_max);
  SAGE_SUPPORT(!r.v_per_block, "the CUDA kernels serve recipe field v_granularity channel only, got block");
  return {};
}

Status select_cuda(AttnDesc const& d, Selection* selection) {
  CudaLimits limits;
  SAGE_TRY(cuda_limits(d.device, &limits));
  SAGE_TRY(check_architecture(limits.architecture));
  SAGE_SUPPORT(d.dtype != DType::kFloat32, "the CUDA kernels serve dtype float16 and bfloat16 only, got float32");
  SAGE_SUPPORT(d.seqlen_k <= kMaxSeqlen, "the CUDA kernels serve seqlen_k up to %lld, got %lld",
               static_cast<long long>(kMaxSeqlen), static_cast<long long>(d.seqlen_k));
  Recipe const& r = d.recipe;
  DType const operand = r.pv_accum == PvAccum::kFp32 ? d.dtype : DType::kFloat16;
  for (CudaForward const& candidate : kCudaForward) {  // by ascending head_dim
    if (candidate.pv != r.pv || candidate.pv_accum != r.pv_accum || candidate.operand != operand) continue;
    SAGE_TRY(check_recipe(d));
    if (candidate.head_dim < d.head_dim) continue;
    SAGE_SUPPORT(candidate.attention.smem_bytes <= limits.shared_bytes,
                 "head_dim %d with pv %s needs %zu bytes of shared memory for a block; sm_%d has %zu", d.head_dim,
                 name_of(r.pv, kPvFormats), candidate.attention.smem_bytes, limits.architecture, limits.shared_bytes);
    selection->cuda = &candidate;
    selection->kernel_name = candidate.attention.name;
    selection->quantized_q_bytes = quantized_q_bytes(d, candidate);
    selection->quantized_kv_bytes = quantized_kv_bytes(d, candidate);
    selection->workspace_bytes = selection->quantized_q_bytes + selection->quantized_kv_bytes;
    return {};
  }
  return make_status(StatusCode::kUnsupported,
                     "no CUDA kernel for pv %s with pv_accum %s; there are fp16 with fp32, fp16 or fp16+fp32, and int8 "
                     "with int32",
                     name_of(r.pv, kPvFormats), name_of(r.pv_accum, kPvAccums));
}

}  // namespace sage
