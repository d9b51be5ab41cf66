// 16-bit floats on the host.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "sage/types.h"

namespace floats16 {

inline float to_float(uint16_t bits, sage::DType dtype) {
  return dtype == sage::DType::kBFloat16 ? __bfloat162float(__ushort_as_bfloat16(bits))
                                         : __half2float(__ushort_as_half(bits));
}

// To nearest even.
inline uint16_t from_float(float x, sage::DType dtype) {
  return dtype == sage::DType::kBFloat16 ? __bfloat16_as_ushort(__float2bfloat16_rn(x))
                                         : __half_as_ushort(__float2half_rn(x));
}

}  // namespace floats16
