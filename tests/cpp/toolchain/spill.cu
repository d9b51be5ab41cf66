// 64 live values in the 32 registers that two blocks of 1024 threads leave to each.
__global__ void __launch_bounds__(1024, 2) spill(float const* in, float* out) {
  float x[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) x[i] = in[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) out[i * 1024 + threadIdx.x] = x[i] * x[63 - i];
}
