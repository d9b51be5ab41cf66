// Runs every atom of atoms.h with pseudo-random registers on the GPU and writes golden vectors to standard output:
//   nvcc -gencode arch=compute_90a,code=sm_90a -std=c++17 -I tests -I csrc/kernels -I CUTLASS/include
//     tests/golden/dump_atoms.cu
//   ./a.out > tests/golden/h200.txt
#include <cstdlib>
#include <cstring>
#include <iostream>

#include "golden/atoms.h"
#include "golden/on_gpu.cuh"

namespace {

constexpr int kLinesPerAtom = 128;  // of the file

struct Dump {
  int architecture;

  template <class Case>
  void visit(char const* name) {
    int const first = std::atoi(name + std::strlen("SM"));
    if (architecture < first || (architecture > first && !Case::kOnNewer)) {
      std::cerr << name << " is left out: this GPU is sm_" << architecture << "\n";
      return;
    }
    for (int i = 0; i < kLinesPerAtom / Case::kLanes; ++i) {
      golden::Vector vector = golden::make_vector<Case>(name, i);
      golden::run_on_gpu<Case>(vector);
      golden::write_vector(std::cout, vector);
    }
  }
};

}  // namespace

int main() {
  cudaDeviceProp const device = golden::first_gpu();
  int driver = 0;
  golden::check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  int const architecture = 10 * device.major + device.minor;
  golden::write_header(std::cout, std::string(device.name) + ", sm_" + std::to_string(architecture) + ", CUDA driver " +
                                      std::to_string(driver));
  Dump dump{architecture};
  golden::visit_cases(dump);
  return std::cout.flush().good() ? 0 : 1;
}
