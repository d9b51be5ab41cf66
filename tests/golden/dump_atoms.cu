// Runs every atom of atoms.h with pseudo-random registers on the GPU and writes golden vectors to standard output:
//   nvcc -gencode arch=compute_90a,code=sm_90a -std=c++17 -I tests -I csrc/kernels -I CUTLASS/include
//     tests/golden/dump_atoms.cu
//   ./a.out > tests/golden/h200.txt
#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>
#include <iostream>

#include "golden/atoms.h"
#include "golden/vectors.h"

namespace {

constexpr int kLinesPerAtom = 128;  // of the file

void check(cudaError_t error, char const* what) {
  if (error == cudaSuccess) return;
  std::cerr << what << ": " << cudaGetErrorString(error) << "\n";
  std::exit(1);
}

template <class Case>
__global__ void run_case(uint32_t const* in, uint32_t* out) {
  __shared__ __align__(1024) char smem[Case::kSharedBytes];
  Case::run(in + threadIdx.x * Case::kIn, out + threadIdx.x * Case::kOut, smem);
}

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
      uint32_t *in, *out;
      size_t const in_bytes = vector.in.size() * 4, out_bytes = vector.out.size() * 4;
      check(cudaMalloc(&in, in_bytes), "cudaMalloc");
      check(cudaMalloc(&out, out_bytes), "cudaMalloc");
      check(cudaMemcpy(in, vector.in.data(), in_bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
      run_case<Case><<<1, Case::kLanes>>>(in, out);
      check(cudaGetLastError(), name);
      check(cudaMemcpy(vector.out.data(), out, out_bytes, cudaMemcpyDeviceToHost), name);
      check(cudaFree(in), "cudaFree");
      check(cudaFree(out), "cudaFree");
      golden::write_vector(std::cout, vector);
    }
  }
};

}  // namespace

int main() {
  cudaDeviceProp device;
  int driver = 0;
  check(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  int const architecture = 10 * device.major + device.minor;
  golden::write_header(std::cout, std::string(device.name) + ", sm_" + std::to_string(architecture) + ", CUDA driver " +
                                      std::to_string(driver));
  Dump dump{architecture};
  golden::visit_cases(dump);
  return std::cout.flush().good() ? 0 : 1;
}
