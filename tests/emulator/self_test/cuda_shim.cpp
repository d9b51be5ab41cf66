// The arithmetic of simt/cuda_shim.h against what the CUDA C++ manuals say of it, at the edges.
#include "simt/cuda_shim.h"

#include <limits>

#include "self_test/check.h"

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInf = std::numeric_limits<float>::infinity();

void check_conversions() {
  CHECK_EQUAL(__float2int_rn(2.5f), 2);
  CHECK_EQUAL(__float2int_rn(-3.5f), -4);
  CHECK_EQUAL(__float2int_rn(3e9f), INT32_MAX);
  CHECK_EQUAL(__float2int_rn(kInf), INT32_MAX);
  CHECK_EQUAL(__float2int_rn(-3e9f), INT32_MIN);
  CHECK_EQUAL(__float2int_rn(kNan), 0);
  CHECK_EQUAL(__int2float_rn(16777217), 16777216.0f);
  CHECK_EQUAL(__float_as_int(-0.0f), INT32_MIN);
  CHECK_EQUAL(__uint_as_float(0x3fc00000u), 1.5f);
}

void check_min_max() {
  CHECK_EQUAL(max(kNan, 1.0f), 1.0f);
  CHECK_EQUAL(max(1.0f, kNan), 1.0f);
  CHECK_EQUAL(min(kNan, 1.0f), 1.0f);
  CHECK_EQUAL(max(-kInf, -2.0f), -2.0f);
  CHECK_EQUAL(min(-3, 2), -3);
}

void check_integers() {
  CHECK_EQUAL(__popc(0xf0f1u), 9);
  CHECK_EQUAL(__clz(0), 32);
  CHECK_EQUAL(__clz(-1), 0);
  CHECK_EQUAL(__dp4a(static_cast<int>(0xff80017fu), 0x02030405, 10), 10 - 2 - 3 * 128 + 4 + 5 * 127);
  CHECK_EQUAL(__dp4a(0xff80017fu, 0x01010101u, 10u), 10u + 255 + 128 + 1 + 127);
  CHECK_EQUAL(__dp4a(1, 1, INT32_MAX), INT32_MIN);
  CHECK_EQUAL(__byte_perm(0x33221100u, 0x77665544u, 0x7410u), 0x77441100u);
  CHECK_EQUAL(__byte_perm(0x8022ff00u, 0, 0x3bd9u), 0x80ff00ffu);  // 8 and more: the sign, in every bit
}

void check_pairs() {
  float2 const half =
      __half22float2(__hfma2(__floats2half2_rn(3, -2), __floats2half2_rn(5, 7), __floats2half2_rn(0.5f, kInf)));
  CHECK(half.x == 15.5f && half.y == kInf);
  float2 const bfloat = __bfloat1622float2(
      __hfma2(__floats2bfloat162_rn(3, -2), __floats2bfloat162_rn(5, 7), __floats2bfloat162_rn(0.5f, 1)));
  CHECK(bfloat.x == 15.5f && bfloat.y == -13);
}

// Of several blocks, on several OS threads.
void check_atomics() {
  int count = 0, largest = 0;
  float sum = 0;
  simt::launch(8, 64, 0, [&](char*) {
    atomicAdd(&count, 1);
    atomicAdd(&sum, 0.5f);
    atomicMax(&largest, static_cast<int>(blockIdx.x * 64 + threadIdx.x));
  });
  CHECK_EQUAL(count, 512);
  CHECK_EQUAL(sum, 256.0f);
  CHECK_EQUAL(largest, 511);
}

}  // namespace

int main() {
  check_conversions();
  check_min_max();
  check_integers();
  check_pairs();
  check_atomics();
  return self_test::finish("CUDA names");
}
