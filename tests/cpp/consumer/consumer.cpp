// Runs causal attention through the public headers alone and compares it with a double-precision loop; then asks for
// what no kernel serves. Prints one line per check; exit status 1 if one fails.
#include <sage/attention.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <new>
#include <random>
#include <vector>

namespace {

constexpr int kBatch = 2, kHeadsQ = 4, kHeadsKv = 2, kSeqlenQ = 33, kSeqlenK = 300, kHeadDim = 64;
int failures = 0;

void check(bool passed, char const* what) {
  std::printf("%s: %s\n", passed ? "ok" : "FAILED", what);
  failures += !passed;
}

std::vector<float> normal(size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution;
  std::vector<float> values(count);
  for (float& value : values) value = distribution(generator);
  return values;
}

// Contiguous (batch, num_heads, seqlen, head_dim).
sage::TensorView view(std::vector<float>& values, int num_heads, int seqlen) {
  int64_t const head = int64_t{seqlen} * kHeadDim;
  return {values.data(), num_heads * head, head, kHeadDim};
}

struct Problem {
  std::vector<float> q = normal(size_t{kBatch} * kHeadsQ * kSeqlenQ * kHeadDim, 1);
  std::vector<float> k = normal(size_t{kBatch} * kHeadsKv * kSeqlenK * kHeadDim, 2);
  std::vector<float> v = normal(size_t{kBatch} * kHeadsKv * kSeqlenK * kHeadDim, 3);
  float softmax_scale = 1.f / std::sqrt(float{kHeadDim});

  sage::AttnDesc desc(sage::Recipe const& recipe) const {
    sage::AttnDesc desc;
    desc.dtype = sage::DType::kFloat32;
    desc.recipe = recipe;
    desc.batch = kBatch;
    desc.num_heads_q = kHeadsQ;
    desc.num_heads_kv = kHeadsKv;
    desc.head_dim = kHeadDim;
    desc.seqlen_q = kSeqlenQ;
    desc.seqlen_k = kSeqlenK;
    desc.causal = true;
    desc.num_threads = 2;
    return desc;
  }
};

struct Result {
  std::vector<float> out = std::vector<float>(size_t{kBatch} * kHeadsQ * kSeqlenQ * kHeadDim, NAN);
  std::vector<float> lse = std::vector<float>(size_t{kBatch} * kHeadsQ * kSeqlenQ, NAN);
};

Result exact(Problem const& problem) {
  Result result;
  for (int batch = 0; batch < kBatch; ++batch)
    for (int head = 0; head < kHeadsQ; ++head)
      for (int i = 0; i < kSeqlenQ; ++i) {
        int const head_kv = head / (kHeadsQ / kHeadsKv);
        size_t const row_q = (size_t(batch) * kHeadsQ + head) * kSeqlenQ + i;
        size_t const rows_kv = (size_t(batch) * kHeadsKv + head_kv) * kSeqlenK;
        int const visible = i + kSeqlenK - kSeqlenQ + 1;
        std::vector<double> score(visible);
        double max = -std::numeric_limits<double>::infinity(), sum = 0;
        for (int j = 0; j < visible; ++j) {
          double dot = 0;
          for (int d = 0; d < kHeadDim; ++d)
            dot += double(problem.q[row_q * kHeadDim + d]) * problem.k[(rows_kv + j) * kHeadDim + d];
          score[j] = dot * problem.softmax_scale;
          max = std::fmax(max, score[j]);
        }
        for (double& s : score) sum += s = std::exp(s - max);
        for (int d = 0; d < kHeadDim; ++d) {
          double value = 0;
          for (int j = 0; j < visible; ++j) value += score[j] / sum * problem.v[(rows_kv + j) * kHeadDim + d];
          result.out[row_q * kHeadDim + d] = float(value);
        }
        result.lse[row_q] = float(max + std::log(sum));
      }
  return result;
}

sage::Status run(Problem& problem, sage::AttnPlan const& plan, Result& result) {
  sage::AttnArgs args;
  args.q = view(problem.q, kHeadsQ, kSeqlenQ);
  args.k = view(problem.k, kHeadsKv, kSeqlenK);
  args.v = view(problem.v, kHeadsKv, kSeqlenK);
  args.out = view(result.out, kHeadsQ, kSeqlenQ);
  args.lse = result.lse.data();
  args.softmax_scale = problem.softmax_scale;
  auto const alignment = std::align_val_t{64};
  void* workspace = ::operator new(plan.workspace_bytes(), alignment);
  sage::Status const status = plan.run(args, workspace, nullptr);
  ::operator delete(workspace, alignment);
  return status;
}

// Root of the mean squared difference over that of the expected values; NaN where a value was not written.
double nrmse(std::vector<float> const& actual, std::vector<float> const& expected) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += std::pow(double(actual[i]) - expected[i], 2);
    norm += std::pow(double(expected[i]), 2);
  }
  return std::sqrt(error / norm);
}

// INT8 Q K^T, fp16 P V: what CUDA kernels have and CPU kernels do not.
sage::Recipe sage1_on_cuda() {
  sage::Recipe recipe;
  recipe.qk_granularity = sage::QkGranularity::kThread;
  recipe.pv = sage::PvFormat::kFp16;
  recipe.pv_accum = sage::PvAccum::kFp32;
  recipe.block_k = 64;
  recipe.p_max = 1;
  recipe.v_max = 0;
  return recipe;
}

}  // namespace

int main() {
  sage::Recipe const int8_int16;  // the defaults of sage::Recipe
  sage::Recipe int16 = int8_int16;
  int16.qk = sage::QkFormat::kInt16;
  struct {
    sage::Recipe recipe;
    double max_nrmse;
  } const cases[] = {{int8_int16, .012}, {int16, .0012}};

  Problem problem;
  Result const expected = exact(problem);
  for (auto const& [recipe, max_nrmse] : cases) {
    sage::AttnPlan plan;
    sage::Status const status = sage::AttnPlan::create(problem.desc(recipe), &plan);
    check(status.ok() && sage::is_supported(problem.desc(recipe)).ok(), status.ok() ? "plan created" : status.message);
    if (!status.ok()) continue;
    Result actual;
    sage::Status const ran = run(problem, plan, actual);
    check(ran.ok(), ran.ok() ? plan.kernel_name() : ran.message);
    double const out_error = nrmse(actual.out, expected.out), lse_error = nrmse(actual.lse, expected.lse);
    std::printf("NRMSE: out %.5f (at most %.5f), lse %.6f\n", out_error, max_nrmse, lse_error);
    check(out_error <= max_nrmse, "out agrees with the double-precision loop");
    check(lse_error <= 1e-3, "lse agrees with the double-precision loop");
  }

  sage::AttnDesc wide = problem.desc(int8_int16);
  wide.head_dim = 300;
  sage::AttnPlan plan;
  sage::Status const too_wide = sage::AttnPlan::create(wide, &plan);
  check(too_wide.code == sage::StatusCode::kInvalidArgument && std::strstr(too_wide.message, "head_dim") &&
            std::strstr(too_wide.message, "300"),
        "head_dim 300 is refused by name");

  sage::Recipe fp4;
  fp4.qk = sage::QkFormat::kNvfp4;
  sage::Status const no_kernel = sage::is_supported(problem.desc(fp4));
  check(no_kernel.code == sage::StatusCode::kUnsupported && no_kernel.message[0], "NVFP4 has no CPU kernel");

  // A plan for the first GPU of this machine: created, or refused with the reason.
  sage::AttnDesc cuda = problem.desc(sage1_on_cuda());
  cuda.device = {sage::DeviceType::kCuda, 0};
  cuda.dtype = sage::DType::kFloat16;
  sage::Status const on_gpu = sage::AttnPlan::create(cuda, &plan);
  check(on_gpu.ok() || ((on_gpu.code == sage::StatusCode::kUnsupported || on_gpu.code == sage::StatusCode::kRuntime) &&
                        on_gpu.message[0]),
        "a CUDA plan is created or says why not");
  std::printf("CUDA: %s\n", on_gpu.ok() ? plan.kernel_name() : on_gpu.message);

  // For a GPU that is not here a plan needs no driver, only a build with CUDA; running it fails with CUDA's words.
  cuda.device.architecture = 80;
  sage::Status const elsewhere = sage::AttnPlan::create(cuda, &plan);
  std::printf("CUDA on sm_80: %s\n", elsewhere.ok() ? plan.kernel_name() : elsewhere.message);
  if (elsewhere.ok() && on_gpu.code == sage::StatusCode::kRuntime) {  // no driver, or no GPU
    Result untouched;
    sage::Status const not_run = run(problem, plan, untouched);
    check(not_run.code == sage::StatusCode::kRuntime && not_run.message[0],
          "a CUDA plan does not run without a driver");
    std::printf("CUDA without a driver: %s\n", not_run.message);
  }
  return failures != 0;
}
