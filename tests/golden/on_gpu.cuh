// A case of atoms.h on the GPU.
#pragma once
#include <cuda_runtime.h>

#include <cstdlib>
#include <iostream>

#include "golden/vectors.h"

namespace golden {

// Ends the program where `error` is one.
inline void check(cudaError_t error, char const* what) {
  if (error == cudaSuccess) return;
  std::cerr << what << ": " << cudaGetErrorString(error) << "\n";
  std::exit(1);
}

template <class Case>
__global__ void run_case(uint32_t const* in, uint32_t* out) {
  __shared__ __align__(1024) char smem[Case::kSharedBytes];
  Case::run(in + threadIdx.x * Case::kIn, out + threadIdx.x * Case::kOut, smem);
}

template <class Case>
void run_on_gpu(Vector& vector) {
  uint32_t *in, *out;
  size_t const in_bytes = vector.in.size() * 4, out_bytes = vector.out.size() * 4;
  check(cudaMalloc(&in, in_bytes), "cudaMalloc");
  check(cudaMalloc(&out, out_bytes), "cudaMalloc");
  check(cudaMemcpy(in, vector.in.data(), in_bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
  run_case<Case><<<1, Case::kLanes>>>(in, out);
  check(cudaGetLastError(), vector.atom.c_str());
  check(cudaMemcpy(vector.out.data(), out, out_bytes, cudaMemcpyDeviceToHost), vector.atom.c_str());
  check(cudaFree(in), "cudaFree");
  check(cudaFree(out), "cudaFree");
}

// The first GPU's; ends the program where there is none.
inline cudaDeviceProp first_gpu() {
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  return device;
}

}  // namespace golden
