#include <cstdio>

#include "api/device.h"
#include "api/instances.h"
#include "api/names.h"
#include "api/select.h"
#include "api/status.h"

namespace sage {

static bool runs_on(int architecture) {
  for (int compiled : kCudaArchitectures) {
    if (compiled / 10 == architecture / 10 && compiled <= architecture) return true;
  }
  return false;
}

static Status check_architecture(int architecture) {
  if (runs_on(architecture)) return {};
  char served[64] = "";
  int length = 0;
  for (int known : {80, 86, 87, 89}) {
    if (runs_on(known)) {
      length += std::snprintf(served + length, sizeof served - length, "%ssm_%d", length ? ", " : "", known);
    }
  }
  return make_status(StatusCode::kUnsupported, "no kernel of this build runs on sm_%d; there are kernels for %s",
                     architecture, served);
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

Status select_cuda(AttnDesc const& d, CudaForward const** kernels) {
  CudaLimits limits;
  if (Status status = cuda_limits(d.device.index, &limits); !status.ok()) return status;
  if (Status status = check_architecture(limits.architecture); !status.ok()) return status;
  SAGE_SUPPORT(d.dtype != DType::kFloat32, "the CUDA kernels serve dtype float16 and bfloat16 only, got float32");
  SAGE_SUPPORT(d.seqlen_k <= kMaxSeqlen, "the CUDA kernels serve seqlen_k up to %lld, got %lld",
               static_cast<long long>(kMaxSeqlen), static_cast<long long>(d.seqlen_k));
  Recipe const& r = d.recipe;
  DType const operand = r.pv_accum == PvAccum::kFp32 ? d.dtype : DType::kFloat16;
  for (CudaForward const& candidate : kCudaForward) {  // by ascending head_dim
    if (candidate.pv != r.pv || candidate.pv_accum != r.pv_accum || candidate.operand != operand) continue;
    if (Status status = check_recipe(d); !status.ok()) return status;
    if (candidate.head_dim < d.head_dim) continue;
    SAGE_SUPPORT(candidate.attention.smem_bytes <= limits.shared_bytes,
                 "head_dim %d with pv %s needs %zu bytes of shared memory for a block; sm_%d has %zu", d.head_dim,
                 name_of(r.pv, kPvFormats), candidate.attention.smem_bytes, limits.architecture, limits.shared_bytes);
    *kernels = &candidate;
    return {};
  }
  return make_status(StatusCode::kUnsupported,
                     "no CUDA kernel for pv %s with pv_accum %s; there are fp16 with fp32, fp16 or fp16+fp32, and int8 "
                     "with int32",
                     name_of(r.pv, kPvFormats), name_of(r.pv_accum, kPvAccums));
}

}  // namespace sage
