// The kernels of a forward pass, KvStats, QuantizeQkv and AttnFwd, on problems that a wrong one gets wrong.
#include "kernel_test/sm80_fwd.h"

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "kernel_test/problem.h"
#include "kernel_test/reference.h"

namespace kernel_test {
namespace {

using sage::QkGranularity;

std::vector<Case> cases() {
  return {
      {.name = "1x1", .quick = true, .seqlen_q = 1, .seqlen_k = 1},
      {.name = "9x9", .seqlen_q = 9, .seqlen_k = 9},
      {.name = "65x129", .seqlen_q = 65, .seqlen_k = 129},
      {.name = "129x65, K biased", .quick = true, .seqlen_q = 129, .seqlen_k = 65, .k_bias = 48},
      {.name = "200x300", .seqlen_q = 200, .seqlen_k = 300},
      {.name = "33x1001, large bias of K", .seqlen_q = 33, .seqlen_k = 1001, .k_bias = 108},
      {.name = "no keys", .seqlen_q = 70, .seqlen_k = 0},

      {.name = "causal 9x9", .seqlen_q = 9, .seqlen_k = 9, .causal = true},
      {.name = "causal 65x129", .seqlen_q = 65, .seqlen_k = 129, .causal = true},
      {.name = "causal 300x200, rows without keys", .quick = true, .seqlen_q = 300, .seqlen_k = 200, .causal = true},
      {.name = "causal 200x300", .seqlen_q = 200, .seqlen_k = 300, .causal = true, .k_bias = 48},
      {.name = "window to the left", .seqlen_q = 200, .seqlen_k = 300, .window_left = 70},
      {.name = "window to the right", .seqlen_q = 200, .seqlen_k = 300, .window_right = 10},
      {.name = "window on both sides",
       .quick = true,
       .seqlen_q = 200,
       .seqlen_k = 300,
       .window_left = 17,
       .window_right = 5},
      {.name = "causal window", .seqlen_q = 129, .seqlen_k = 129, .causal = true, .window_left = 63},
      {.name = "window 9x9", .seqlen_q = 9, .seqlen_k = 9, .window_left = 2, .window_right = 0},

      {.name = "2 of 4 heads, rows first",
       .quick = true,
       .seqlen_q = 70,
       .seqlen_k = 130,
       .batch = 2,
       .num_heads_q = 4,
       .num_heads_kv = 2,
       .layout = Layout::kRowsFirst,
       .k_bias = 32},
      {.name = "1 of 6 heads, causal", .seqlen_q = 150, .seqlen_k = 70, .batch = 3, .num_heads_q = 6, .causal = true},
      {.name = "odd strides",
       .quick = true,
       .seqlen_q = 70,
       .seqlen_k = 130,
       .batch = 2,
       .num_heads_q = 4,
       .num_heads_kv = 2,
       .layout = Layout::kOdd,
       .k_bias = 32},
      {.name = "far batches", .seqlen_q = 20, .seqlen_k = 70, .batch = 3, .layout = Layout::kFarBatches, .k_bias = 32},
      {.name = "far heads",
       .seqlen_q = 20,
       .seqlen_k = 70,
       .batch = 2,
       .num_heads_q = 3,
       .num_heads_kv = 3,
       .layout = Layout::kFarHeads,
       .k_bias = 32},
      {.name = "smaller head_dim",
       .quick = true,
       .seqlen_q = 130,
       .seqlen_k = 70,
       .batch = 2,
       .num_heads_q = 2,
       .num_heads_kv = 2,
       .head_dim = HeadDim::kMultipleOf8,
       .k_bias = 32},
      {.name = "odd head_dim",
       .seqlen_q = 130,
       .seqlen_k = 70,
       .num_heads_q = 2,
       .num_heads_kv = 2,
       .head_dim = HeadDim::kOdd,
       .k_bias = 32},
      {.name = "odd head_dim, odd strides, causal",
       .seqlen_q = 70,
       .seqlen_k = 130,
       .num_heads_q = 2,
       .head_dim = HeadDim::kOdd,
       .layout = Layout::kOdd,
       .causal = true},

      {.name = "packed",
       .quick = true,
       .num_heads_q = 4,
       .num_heads_kv = 2,
       .layout = Layout::kRowsFirst,
       .seqlens_q = {5, 0, 130, 64, 1},
       .seqlens_k = {70, 30, 200, 0, 65},
       .k_bias = 32},
      {.name = "packed, causal",
       .num_heads_q = 2,
       .layout = Layout::kRowsFirst,
       .seqlens_q = {1, 128, 40},
       .seqlens_k = {128, 64, 100},
       .causal = true},
      {.name = "packed, seqused_k, odd strides",
       .num_heads_q = 2,
       .layout = Layout::kOdd,
       .seqlens_q = {70, 9, 130},
       .seqlens_k = {70, 64, 200},
       .seqused_k = {33, 0, 150},
       .causal = true,
       .k_bias = 48},
      {.name = "seqused_k",
       .quick = true,
       .seqlen_q = 70,
       .seqlen_k = 150,
       .batch = 4,
       .num_heads_q = 2,
       .seqused_k = {1, 77, 0, 128},
       .k_bias = 48},
      {.name = "seqused_k, causal",
       .seqlen_q = 140,
       .seqlen_k = 300,
       .batch = 2,
       .seqused_k = {290, 101},
       .causal = true},

      {.name = "bool mask",
       .quick = true,
       .seqlen_q = 70,
       .seqlen_k = 130,
       .batch = 2,
       .num_heads_q = 2,
       .mask = MaskKind::kBool,
       .k_bias = 32},
      {.name = "float32 mask, causal",
       .seqlen_q = 130,
       .seqlen_k = 150,
       .batch = 2,
       .num_heads_q = 2,
       .causal = true,
       .mask = MaskKind::kFloat32},
      {.name = "float16 mask, transposed",
       .seqlen_q = 130,
       .seqlen_k = 150,
       .batch = 2,
       .num_heads_q = 2,
       .mask = MaskKind::kFloat16},
      {.name = "bfloat16 mask of keys",
       .seqlen_q = 65,
       .seqlen_k = 150,
       .batch = 2,
       .num_heads_q = 2,
       .mask = MaskKind::kBFloat16OfKeys},

      {.name = "scale per warp", .seqlen_q = 150, .seqlen_k = 150, .granularity = QkGranularity::kWarp, .k_bias = 32},
      {.name = "scale per block", .seqlen_q = 150, .seqlen_k = 150, .granularity = QkGranularity::kBlock, .k_bias = 32},
      {.name = "K not smoothed", .seqlen_q = 70, .seqlen_k = 130, .smooth_k = false},
      {.name = "no LSE", .seqlen_q = 70, .seqlen_k = 130, .lse = false, .k_bias = 32},
      {.name = "negative softmax_scale", .quick = true, .seqlen_q = 130, .seqlen_k = 70, .k_bias = 32, .scores = -2.},
      {.name = "large scores", .quick = true, .seqlen_q = 200, .seqlen_k = 300, .scores = 200.},
      {.name = "large scores, causal", .seqlen_q = 300, .seqlen_k = 300, .causal = true, .scores = 50.},
      {.name = "small scores", .seqlen_q = 65, .seqlen_k = 300, .scores = .05},
      {.name = "no scores", .seqlen_q = 70, .seqlen_k = 130, .data = Data::kZero},
      {.name = "bfloat16",
       .seqlen_q = 130,
       .seqlen_k = 150,
       .num_heads_q = 2,
       .other_dtype = true,
       .v_exponent = 30,
       .k_bias = 48},
      {.name = "bfloat16, odd",
       .seqlen_q = 70,
       .seqlen_k = 130,
       .head_dim = HeadDim::kOdd,
       .other_dtype = true,
       .layout = Layout::kOdd,
       .causal = true},

      // At head_dim 64 the maxima move by about 1, 7 and 57 from tile to tile: within what a stale maximum takes,
      // around its limit, and far beyond.
      {.name = "maxima that grow slowly",
       .seqlen_q = 130,
       .seqlen_k = 320,
       .smooth_k = false,
       .scores = .1,
       .steps = {-40, -20, 0, 20, 40}},
      {.name = "maxima that grow",
       .quick = true,
       .seqlen_q = 130,
       .seqlen_k = 320,
       .smooth_k = false,
       .scores = .3,
       .steps = {-100, -50, 0, 50, 100}},
      {.name = "maxima that grow fast",
       .seqlen_q = 130,
       .seqlen_k = 320,
       .smooth_k = false,
       .scores = 2.,
       .steps = {-120, -60, 0, 60, 120}},
      {.name = "maxima that shrink",
       .seqlen_q = 130,
       .seqlen_k = 320,
       .smooth_k = false,
       .scores = .3,
       .steps = {100, 50, 0, -50, -100}},
      {.name = "maxima up and down, causal",
       .seqlen_q = 320,
       .seqlen_k = 320,
       .causal = true,
       .smooth_k = false,
       .scores = .5,
       .steps = {0, 60, -100, 120, -20}},
      {.name = "maxima that grow, masked",
       .seqlen_q = 130,
       .seqlen_k = 320,
       .mask = MaskKind::kBool,
       .smooth_k = false,
       .scores = .3,
       .steps = {-100, -50, 0, 50, 100}},

      {.name = "normal", .quick = true, .seqlen_q = 200, .seqlen_k = 300, .num_heads_q = 2, .data = Data::kNormal},
      {.name = "normal, causal, K biased",
       .seqlen_q = 300,
       .seqlen_k = 300,
       .data = Data::kNormal,
       .causal = true,
       .k_bias = 8},
      {.name = "normal, scale per block",
       .seqlen_q = 200,
       .seqlen_k = 300,
       .data = Data::kNormal,
       .granularity = QkGranularity::kBlock},
  };
}

// What is wrong; empty if nothing.
std::string run(Case const& c, sage::CudaForward const& kernels, double* worst) {
  Problem problem(c, kernels);
  if (std::string const error = problem.run(); !error.empty()) return error;
  if (std::string const error = problem.changed(); !error.empty()) return error;
  Comparison const comparison = c.data == Data::kNormal ? compare_recipe(problem) : compare_elements(problem);
  *worst = comparison.worst;
  return comparison.failure;
}

}  // namespace

int run_cases(char const* name, sage::CudaForward const& kernels, int count, char** arguments) {
  bool const quick = count == 2 && !std::strcmp(arguments[1], "--quick");
  if (count > 1 && !quick) {
    std::fprintf(stderr, "usage: %s [--quick]\n", arguments[0]);
    return 2;
  }
  int failures = 0, total = 0;
  for (Case const& c : cases()) {
    if (quick && !c.quick) continue;
    ++total;
    std::printf("%s, %s: ", name, c.name.c_str());
    std::fflush(stdout);  // the kernel may crash
    double worst = 0.;
    std::string const failure = run(c, kernels, &worst);
    if (failure.empty()) {
      std::printf("passed, at worst %.2f of what is allowed\n", worst);
    } else {
      ++failures;
      std::printf("FAILED: %s\n", failure.c_str());
    }
  }
  std::printf("%s: %d of %d cases failed\n", name, failures, total);
  return failures ? 1 : 0;
}

}  // namespace kernel_test
