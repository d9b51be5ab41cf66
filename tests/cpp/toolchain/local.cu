// An array whose index is known when the kernel runs only: it cannot be in registers.
__global__ void local_array(int const* in, int* out) {
  int x[16];
  for (int i = 0; i < 16; ++i) x[i] = in[i];
  for (int i = 0; i < 100; ++i) x[in[i] & 15] += i;
  out[threadIdx.x] = x[in[threadIdx.x] & 15];
}
