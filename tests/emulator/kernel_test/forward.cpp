// The kernels of a forward pass, KvStats, QuantizeQkv and AttnFwd, on problems that a wrong one gets wrong.
#include "kernel_test/forward.h"

#include <cstdio>
#include <cstring>
#include <string>

#include "kernel_test/cases.h"
#include "kernel_test/nvfp4_packer.h"
#include "kernel_test/problem.h"
#include "kernel_test/reference.h"

namespace kernel_test {
namespace {

// What is wrong; empty if nothing.
std::string run(Case const& c, sage::CudaForward const& kernels, double* worst, uint32_t* digest) {
  bool const pack = is_block_scaled(kernels) && c.data != Data::kNormal;
  sage::CudaForward const packed{kernels.head_dim,
                                 kernels.qk,
                                 kernels.pv,
                                 kernels.pv_accum,
                                 kernels.operand,
                                 kernels.order,
                                 kernels.approximate_exp,
                                 no_stats,
                                 kernels.head_dim == 64 ? packer_d64 : packer_d128,
                                 kernels.attention,
                                 {}};
  Problem problem(c, pack ? packed : kernels);
  if (std::string const error = problem.run(); !error.empty()) return error;
  if (std::string const error = problem.changed(); !error.empty()) return error;
  Comparison const comparison = pack                 ? compare_packed(problem)
                                : problem.is_exact() ? compare_elements(problem)
                                                     : compare_recipe(problem);
  *worst = comparison.worst;
  *digest = problem.digest();
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
    if ((quick && !c.quick) || !serves(kernels, c)) continue;
    ++total;
    std::printf("%s, %s: ", name, c.name.c_str());
    std::fflush(stdout);  // the kernel may crash
    double worst = 0.;
    uint32_t digest = 0;
    std::string const failure = run(c, kernels, &worst, &digest);
    if (failure.empty()) {
      std::printf("passed, at worst %.2f of what is allowed, results %08x\n", worst, digest);
    } else {
      ++failures;
      std::printf("FAILED: %s\n", failure.c_str());
    }
  }
  std::printf("%s: %d of %d cases failed\n", name, failures, total);
  return failures ? 1 : 0;
}

}  // namespace kernel_test
