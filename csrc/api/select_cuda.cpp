#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>

#include "api/device.h"
#include "api/instances.h"
#include "api/names.h"
#include "api/select.h"
#include "api/status.h"

namespace sage {

// CUDA C++ Programming Guide, "Binary Compatibility": machine code runs on its own architecture and, with the same
// major compute capability, later ones; that of Tegra, and that with the features of one architecture, nowhere else.
static bool runs_on(CodeTarget const& code, int architecture) {
  auto const is_tegra = [](int x) { return x == 87 || x == 110; };
  if (code.architecture == architecture) return true;
  if (code.nowhere_else || is_tegra(code.architecture) || is_tegra(architecture)) return false;
  return code.architecture / 10 == architecture / 10 && code.architecture < architecture;
}

static bool runs_on(CudaForward const& row, int architecture) {
  for (CodeTarget const& code : row.targets) {
    if (code.architecture != 0 && runs_on(code, architecture)) return true;
  }
  return false;
}

namespace {

// "sm_80, sm_86 and sm_89", for a message.
class Enumeration {
 public:
  void add(char const* item) { std::snprintf(items_[count_++], sizeof items_[0], "%s", item); }
  void add_architecture(int architecture) { std::snprintf(items_[count_++], sizeof items_[0], "sm_%d", architecture); }

  char const* text(char const* last_word) {
    int length = 0;
    text_[0] = '\0';
    for (int i = 0; i < count_; ++i) {
      char const* const separator = i == 0 ? "" : i + 1 < count_ ? ", " : last_word;
      length += std::snprintf(text_ + length, sizeof text_ - length, "%s%s", separator, items_[i]);
    }
    return text_;
  }

 private:
  char items_[12][12], text_[144];
  int count_ = 0;
};

// Where rows of the table run that `take` takes.
template <class Take>
Enumeration architectures(Take const& take) {
  Enumeration result;
  for (CudaLimits const& known : kKnownLimits) {
    for (CudaForward const& row : kCudaForward) {
      if (take(row) && runs_on(row, known.architecture)) {
        result.add_architecture(known.architecture);
        break;
      }
    }
  }
  return result;
}

// The values of a field for which there is a row that `take` takes.
template <class T, int N, class Take>
Enumeration values(Named<T> const (&names)[N], Take const& take) {
  Enumeration result;
  for (Named<T> const& named : names) {
    for (CudaForward const& row : kCudaForward) {
      if (take(row, named.value)) {
        result.add(named.name);
        break;
      }
    }
  }
  return result;
}

}  // namespace

static Status check_architecture(int architecture) {
  for (CudaForward const& row : kCudaForward) {
    if (runs_on(row, architecture)) return {};
  }
  Enumeration code;
  for (int compiled : kCudaArchitectures) code.add_architecture(compiled);
  return make_status(StatusCode::kUnsupported,
                     "no kernel of this build runs on sm_%d: its code is for %s, which runs on %s only", architecture,
                     code.text(" and "), architectures([](CudaForward const&) { return true; }).text(" and "));
}

// ---- Which rows serve a recipe ------------------------------------------------------------------------------------

static bool serves(CudaForward const& row, PvFormat pv) { return row.pv == pv; }

// FP8 accumulators that are true float32 need no second one, and serve a recipe that has it.
static bool serves(CudaForward const& row, PvFormat pv, PvAccum pv_accum) {
  bool const both = pv == PvFormat::kFp8E4m3 && pv_accum == PvAccum::kFp32Fp32 && row.pv_accum == PvAccum::kFp32;
  return serves(row, pv) && (row.pv_accum == pv_accum || both);
}

static bool serves(CudaForward const& row, PvFormat pv, PvAccum pv_accum, QkFormat qk) {
  return serves(row, pv, pv_accum) && row.qk == qk;
}

static bool serves(CudaForward const& row, PvFormat pv, PvAccum pv_accum, QkFormat qk, bool approximate_exp) {
  return serves(row, pv, pv_accum, qk) && row.approximate_exp == approximate_exp;
}

static bool serves(CudaForward const& row, AttnDesc const& d) {
  Recipe const& r = d.recipe;
  DType const operand = r.pv_accum == PvAccum::kFp32 ? d.dtype : DType::kFloat16;
  return serves(row, r.pv, r.pv_accum, r.qk, r.approximate_exp) &&
         (row.pv != PvFormat::kFp16 || row.operand == operand);
}

// Names the first field whose value no row has together with those before it.
static Status no_such_kernel(Recipe const& r) {
  char const *const pv = name_of(r.pv, kPvFormats), *const pv_accum = name_of(r.pv_accum, kPvAccums);
  Enumeration compiled;
  for (int architecture : kCudaArchitectures) compiled.add_architecture(architecture);
  char const* const build = compiled.text(", ");

  Enumeration allowed = values(kPvFormats, [](CudaForward const& row, PvFormat x) { return serves(row, x); });
  bool found = false;
  for (CudaForward const& row : kCudaForward) found |= serves(row, r.pv);
  SAGE_SUPPORT(found, "the CUDA kernels of this build (%s) serve recipe field pv %s only, got %s", build,
               allowed.text(" or "), pv);

  allowed = values(kPvAccums, [&](CudaForward const& row, PvAccum x) { return serves(row, r.pv, x); });
  found = false;
  for (CudaForward const& row : kCudaForward) found |= serves(row, r.pv, r.pv_accum);
  SAGE_SUPPORT(found, "the CUDA kernels of this build (%s) for pv %s serve recipe field pv_accum %s only, got %s",
               build, pv, allowed.text(" or "), pv_accum);

  allowed = values(kQkFormats, [&](CudaForward const& row, QkFormat x) { return serves(row, r.pv, r.pv_accum, x); });
  found = false;
  for (CudaForward const& row : kCudaForward) found |= serves(row, r.pv, r.pv_accum, r.qk);
  SAGE_SUPPORT(found,
               "the CUDA kernels of this build (%s) for pv %s with pv_accum %s serve recipe field qk %s only, got %s",
               build, pv, pv_accum, allowed.text(" or "), name_of(r.qk, kQkFormats));

  return make_status(StatusCode::kUnsupported,
                     "the CUDA kernels of this build (%s) for qk %s, pv %s, pv_accum %s serve recipe field "
                     "approximate_exp false only, got true",
                     build, name_of(r.qk, kQkFormats), pv, pv_accum);
}

// What a recipe needs of the tensor cores, or of the build where they have it.
static char const* needed_by(Recipe const& r, int architecture) {
  bool const int4 = r.qk == QkFormat::kInt4, fp4 = r.qk == QkFormat::kNvfp4, fp8 = r.pv == PvFormat::kFp8E4m3;
  bool const fp16_sums = fp8 && r.pv_accum == PvAccum::kFp16Fp32, fp32_sums = fp8 && r.pv_accum == PvAccum::kFp32;
  bool const here = (!int4 || architecture < 90) && (!fp8 || architecture >= 89) &&
                    (!fp16_sums || architecture != 90) && (!(fp4 || fp32_sums) || architecture / 10 == 12) &&
                    (!r.approximate_exp || architecture == 90);
  if (r.pv == PvFormat::kInt8 && architecture == 90) return "code that is not made for sm_90";
  if (here) return "code for it in the build";
  if (int4) return fp8 ? "INT4 and FP8 tensor cores (sm_89)" : "INT4 tensor cores (sm_80 to sm_89)";
  if (r.approximate_exp) return "tensor cores with wgmma (sm_90)";
  if (fp4) return "NVFP4 tensor cores with mma.sync (sm_120)";
  if (fp32_sums) return "block-scaled FP8 tensor cores (sm_120)";
  return fp16_sums ? "FP8 tensor cores with mma.sync (sm_89 and sm_120)" : "FP8 tensor cores (sm_89 and later)";
}

// ---- The other fields ---------------------------------------------------------------------------------------------

// The largest float16.
constexpr float kFloat16Max = 65504.f;

// The largest value that numbers up to `x` have when they are rounded to e4m3, and at least x.
static float e4m3_at_most(float x) {
  int exponent;
  std::frexp(x, &exponent);
  float const step = std::ldexp(1.f, std::max(exponent - 4, -9));
  return std::max(x, std::nearbyint(x / step) * step);
}

// With NVFP4 Q and K, P is relative to whole octaves: p_max is up to the largest power of two that its format holds, 448
// or 448 * 6. Below 16 small probabilities, from 2^-10 of the largest on, would be subnormal.
static Status check_octaves(Recipe const& r) {
  int exponent;
  float const largest = r.pv == PvFormat::kNvfp4 ? 2048.f : 256.f;
  SAGE_SUPPORT(std::frexp(r.p_max, &exponent) == .5f && r.p_max >= 16.f && r.p_max <= largest,
               "the CUDA kernels for pv %s with qk nvfp4 serve recipe field p_max a power of two in [16, %g] only, got %g",
               name_of(r.pv, kPvFormats), largest, r.p_max);
  return {};
}

// FP8 P and V: their largest values, and how long float16 sums of their products stay finite. The products of a tile of
// 64 keys sum up to 64 p_max v_max. Of that 2^-7 goes to the second sum, in fold_every tiles up to half of
// fold_every p_max v_max: with the factor of 2 no rounding of it matters. The kernels' P is larger than p_max by 2^.016
// at most (kMaxBiasedScale) before it is rounded. Below 1 values would be subnormal, or 0, which would leave a row's
// sum 0.
static Status check_fp8(Recipe const& r) {
  SAGE_SUPPORT(r.p_max >= 1.f && r.p_max <= 448.f, "recipe field p_max must be in [1, 448] for pv fp8_e4m3, got %g",
               r.p_max);
  SAGE_SUPPORT(r.v_max >= 1.f && r.v_max <= 448.f, "recipe field v_max must be in [1, 448] for pv fp8_e4m3, got %g",
               r.v_max);
  if (r.qk == QkFormat::kNvfp4) return check_octaves(r);
  if (r.pv_accum != PvAccum::kFp16Fp32) return {};
  float const product = e4m3_at_most(1.011f * r.p_max) * e4m3_at_most(1.00001f * r.v_max);
  SAGE_SUPPORT(kKTileRows * product <= kFloat16Max,
               "for pv_accum fp16+fp32 recipe fields %d * p_max * v_max, as e4m3 rounds them, must be at most %g, got "
               "p_max %g, v_max %g",
               kKTileRows, kFloat16Max, r.p_max, r.v_max);
  SAGE_SUPPORT(r.fold_every * product <= kFloat16Max,
               "for pv_accum fp16+fp32 recipe fields fold_every * p_max * v_max, as e4m3 rounds them, must be at most "
               "%g, got fold_every %d, p_max %g, v_max %g",
               kFloat16Max, r.fold_every, r.p_max, r.v_max);
  return {};
}

static Status check_scales(Recipe const& r) {
  if (r.pv == PvFormat::kFp8E4m3) return check_fp8(r);
  if (r.pv == PvFormat::kNvfp4) {
    SAGE_SUPPORT(r.v_max == 0.f, "the CUDA kernels for pv nvfp4 serve recipe field v_max 0 only, got %g", r.v_max);
    return check_octaves(r);
  }
  bool const integer = r.pv == PvFormat::kInt8;
  float const p_max = integer ? 255.f : 1.f, v_max = integer ? 127.f : 0.f;
  SAGE_SUPPORT(r.p_max == p_max && r.v_max == v_max,
               "the CUDA kernels for pv %s serve recipe fields p_max %g, v_max %g only, got %g, %g",
               name_of(r.pv, kPvFormats), p_max, v_max, r.p_max, r.v_max);
  return {};
}

static Status check_granularity(Recipe const& r) {
  QkGranularity const x = r.qk_granularity;
  bool const nvfp4 = r.qk == QkFormat::kNvfp4;
  bool const served = nvfp4 ? x == QkGranularity::k1x16
                            : x == QkGranularity::kThread || x == QkGranularity::kWarp || x == QkGranularity::kBlock;
  SAGE_SUPPORT(served, "the CUDA kernels for qk %s serve recipe field qk_granularity %s only, got %s",
               name_of(r.qk, kQkFormats), nvfp4 ? "1x16" : "thread, warp or block", name_of(x, kQkGranularities));
  return {};
}

static Status check_recipe(Recipe const& r) {
  SAGE_TRY(check_granularity(r));
  SAGE_SUPPORT(r.block_q == kQTileRows, "the CUDA kernels serve recipe field block_q %d only, got %d", kQTileRows,
               r.block_q);
  SAGE_SUPPORT(r.block_k == kKTileRows, "the CUDA kernels serve recipe field block_k %d only, got %d", kKTileRows,
               r.block_k);
  SAGE_SUPPORT(!r.v_per_block, "the CUDA kernels serve recipe field v_granularity channel only, got block");
  bool const two_level = r.pv == PvFormat::kNvfp4;
  SAGE_SUPPORT(r.p_two_level == two_level, "the CUDA kernels for pv %s serve recipe field p_two_level %s only, got %s",
               name_of(r.pv, kPvFormats), two_level ? "true" : "false", two_level ? "false" : "true");
  SAGE_SUPPORT(!r.smooth_q || r.qk == QkFormat::kInt4 || r.qk == QkFormat::kNvfp4,
               "the CUDA kernels smooth Q for qk int4 and nvfp4 only, got smooth_q with qk %s",
               name_of(r.qk, kQkFormats));
  SAGE_SUPPORT(!r.smooth_v || r.pv != PvFormat::kFp16,
               "the CUDA kernels smooth V for pv int8, fp8_e4m3 and nvfp4 only, got smooth_v with pv %s",
               name_of(r.pv, kPvFormats));
  SAGE_REQUIRE(r.fold_every >= 1, "recipe field fold_every must be >= 1, got %d", r.fold_every);
  SAGE_SUPPORT(folds(r.pv, r.pv_accum) || r.fold_every == 1,
               "the CUDA kernels for pv %s with pv_accum %s serve recipe field fold_every 1 only, got %d",
               name_of(r.pv, kPvFormats), name_of(r.pv_accum, kPvAccums), r.fold_every);
  return check_scales(r);
}

// What the steps of a kernel demand: those with wgmma have two tiles of keys.
static Status check_steps(CudaForward const& row, Recipe const& r) {
  SAGE_SUPPORT(row.order != OperandOrder::kWgmma || r.fold_every >= 2,
               "the CUDA kernels for pv %s on sm_90 serve recipe field fold_every >= 2 only, got %d",
               name_of(r.pv, kPvFormats), r.fold_every);
  return {};
}

// The largest head_dim of the table for qk nvfp4.
constexpr int32_t kMaxNvfp4HeadDim = 128;

Status select_cuda(AttnDesc const& d, Selection* selection) {
  CudaLimits limits;
  SAGE_TRY(cuda_limits(d.device, &limits));
  SAGE_TRY(check_architecture(limits.architecture));
  SAGE_SUPPORT(d.dtype != DType::kFloat32, "the CUDA kernels serve dtype float16 and bfloat16 only, got float32");
  SAGE_SUPPORT(d.seqlen_k <= kMaxSeqlen, "the CUDA kernels serve seqlen_k up to %lld, got %lld",
               static_cast<long long>(kMaxSeqlen), static_cast<long long>(d.seqlen_k));
  Recipe const& r = d.recipe;
  bool exists = false, runs = false;
  CudaForward const* too_large = nullptr;
  for (CudaForward const& row : kCudaForward) {  // of a kernel by ascending head_dim
    if (!serves(row, d)) continue;
    exists = true;
    bool const runs_here = runs_on(row, limits.architecture);
    runs |= runs_here;
    if (row.head_dim < d.head_dim) continue;
    if (row.attention.smem_bytes > limits.shared_bytes) {
      if (!too_large || row.attention.smem_bytes < too_large->attention.smem_bytes) too_large = &row;
      continue;
    }
    if (!runs_here) continue;
    SAGE_TRY(check_recipe(r));
    SAGE_TRY(check_steps(row, r));
    selection->cuda = &row;
    selection->kernel_name = row.attention.name;
    selection->sm_count = limits.sm_count;
    selection->quantized_q_bytes = quantized_q_bytes(d, row);
    selection->quantized_kv_bytes = quantized_kv_bytes(d, row);
    selection->workspace_bytes = selection->quantized_q_bytes + selection->quantized_kv_bytes;
    return {};
  }
  if (!exists) return no_such_kernel(r);
  if (runs) {  // with a smaller head_dim
    SAGE_TRY(check_recipe(r));
    SAGE_SUPPORT(r.qk != QkFormat::kNvfp4 || d.head_dim <= kMaxNvfp4HeadDim,
                 "the CUDA kernels for qk nvfp4 serve head_dim up to %d only, got %d: the accumulators of more have no "
                 "registers",
                 kMaxNvfp4HeadDim, d.head_dim);
    SAGE_SUPPORT(!too_large, "head_dim %d with pv %s needs %zu bytes of shared memory for a block; sm_%d has %zu",
                 d.head_dim, name_of(r.pv, kPvFormats), too_large->attention.smem_bytes, limits.architecture,
                 limits.shared_bytes);
    return make_status(StatusCode::kUnsupported,
                       "the CUDA kernels of this build for pv %s do not serve head_dim %d on sm_%d: it needs more "
                       "shared memory than there is",
                       name_of(r.pv, kPvFormats), d.head_dim, limits.architecture);
  }
  Enumeration served = architectures([&](CudaForward const& row) { return serves(row, d); });
  return make_status(
      StatusCode::kUnsupported,
      "the CUDA kernels of this build for qk %s, pv %s, pv_accum %s%s run on %s only, got sm_%d: they need "
      "%s",
      name_of(r.qk, kQkFormats), name_of(r.pv, kPvFormats), name_of(r.pv_accum, kPvAccums),
      r.approximate_exp ? ", approximate_exp true" : "", served.text(" and "), limits.architecture,
      needed_by(r, limits.architecture));
}

}  // namespace sage
