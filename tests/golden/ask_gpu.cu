// Asks an sm_120 GPU the questions of questions.h and how fast its block-scaled instructions are, and prints a line
// `NAME NUMBER` for each answer:
//   nvcc -gencode arch=compute_120a,code=sm_120a -std=c++17 -I tests -I csrc/kernels -I CUTLASS/include
//     tests/golden/ask_gpu.cu
#include <algorithm>
#include <iostream>
#include <string>
#include <vector>

#include "arch/block_scaled.h"
#include "arch/tensor_ops.h"
#include "golden/on_gpu.cuh"
#include "golden/questions.h"

namespace {

struct Gpu {
  template <class Case>
  void run(golden::Vector& vector) {
    golden::run_on_gpu<Case>(vector);
  }
  void answer(std::string const& name, double number) { std::cout << name << " " << number << "\n"; }
};

struct Nvfp4 {
  __device__ static void mma(float (&d)[4], uint32_t const (&a)[4], uint32_t const (&b)[2], uint32_t scales) {
    sage::arch::mma_nvfp4<0>(d, a, b[0], b[1], d, scales, scales);
  }
};
struct Mxfp8 {
  __device__ static void mma(float (&d)[4], uint32_t const (&a)[4], uint32_t const (&b)[2], uint32_t) {
    sage::arch::mma<golden::Mxfp8>(d, a, b, d);
  }
};

// Each warp has so many chains of instructions, enough to hide that one waits for the one before.
constexpr int kChains = 8, kSteps = 512, kThreads = 512, kWarpsPerScheduler = kThreads / 32 / 4;

// clocks: of each block. Operands come from memory, where they are zeros, which the compiler does not know.
template <class Op>
__global__ void time_chains(uint32_t const* operands, float* sums, long long* clocks) {
  uint32_t const a[4] = {operands[0], operands[1], operands[2], operands[3]}, b[2] = {operands[4], operands[5]};
  float d[kChains][4] = {};
  __syncthreads();
  long long const start = clock64();
#pragma unroll 1
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < kChains; ++i) Op::mma(d[i], a, b, operands[6]);
  }
  __syncthreads();
  if (threadIdx.x == 0) clocks[blockIdx.x] = clock64() - start;
  float sum = 0;
  for (auto const& chain : d) sum += chain[0] + chain[1] + chain[2] + chain[3];
  sums[blockIdx.x * kThreads + threadIdx.x] = sum;
}

// Clocks between two instructions of a scheduler when all of the GPU is busy: the median of the multiprocessors.
template <class Op>
double clocks_per_instruction(int num_blocks) {
  uint32_t* operands;
  float* sums;
  long long* clocks;
  golden::check(cudaMalloc(&operands, 7 * sizeof(*operands)), "cudaMalloc");
  golden::check(cudaMemset(operands, 0, 7 * sizeof(*operands)), "cudaMemset");
  golden::check(cudaMalloc(&sums, num_blocks * kThreads * sizeof(*sums)), "cudaMalloc");
  golden::check(cudaMalloc(&clocks, num_blocks * sizeof(*clocks)), "cudaMalloc");
  std::vector<long long> measured(num_blocks);
  for (int i = 0; i < 2; ++i) time_chains<Op><<<num_blocks, kThreads>>>(operands, sums, clocks);  // the first warms up
  golden::check(cudaGetLastError(), "time_chains");
  golden::check(cudaMemcpy(measured.data(), clocks, num_blocks * sizeof(*clocks), cudaMemcpyDeviceToHost),
                "time_chains");
  golden::check(cudaFree(operands), "cudaFree");
  golden::check(cudaFree(sums), "cudaFree");
  golden::check(cudaFree(clocks), "cudaFree");
  std::nth_element(measured.begin(), measured.begin() + num_blocks / 2, measured.end());
  return static_cast<double>(measured[num_blocks / 2]) / (kChains * kSteps * kWarpsPerScheduler);
}

}  // namespace

int main() {
  int const num_blocks = golden::first_gpu().multiProcessorCount;
  Gpu gpu;
  golden::Questions<Gpu>(gpu).ask();
  double const nvfp4 = clocks_per_instruction<Nvfp4>(num_blocks), mxfp8 = clocks_per_instruction<Mxfp8>(num_blocks);
  gpu.answer("nvfp4_m16n8k64_clocks", nvfp4);
  gpu.answer("mxfp8_m16n8k32_clocks", mxfp8);
  gpu.answer("mxfp8_clocks_per_nvfp4_clock", mxfp8 / nvfp4);
  return std::cout.flush().good() ? 0 : 1;
}
