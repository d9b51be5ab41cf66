#include <cute/tensor.hpp>

// Transposes a tile of kRows x kCols floats.
template <int kRows, int kCols>
__global__ void transpose_tile(float const* in, float* out) {
  using namespace cute;
  auto const shape = make_shape(Int<kRows>{}, Int<kCols>{});
  Tensor source = make_tensor(make_gmem_ptr(in), shape, LayoutRight{});
  Tensor target = make_tensor(make_gmem_ptr(out), shape, LayoutLeft{});
  for (int i = threadIdx.x; i < size(source); i += blockDim.x) target(i) = source(i);
}

template __global__ void transpose_tile<16, 8>(float const*, float*);
