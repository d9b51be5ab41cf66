// Plain types shared by every public header: no CUDA, no torch, no C++ standard-library types, no exceptions.
#pragma once
#include <cstdint>

#if defined(_WIN32)
#define SAGE_API
#else
#define SAGE_API __attribute__((visibility("default")))
#endif

namespace sage {

enum class StatusCode : int32_t {
  kOk = 0,
  kInvalidArgument,  // a value that no device and no recipe would accept
  kUnsupported,      // a valid request that no kernel in this build serves on this device
  kRuntime,          // the machine failed: a CUDA error, an allocation that could not be had
};

// The outcome of every call. `message` names the field, what it got and what is allowed; empty when ok.
struct [[nodiscard]] Status {
  StatusCode code = StatusCode::kOk;
  char message[256] = {};
  bool ok() const { return code == StatusCode::kOk; }
};

enum class DType : int32_t { kFloat32, kFloat16, kBFloat16, kBool };

enum class DeviceType : int32_t { kCpu, kCuda };

struct Device {
  DeviceType type = DeviceType::kCpu;
  int32_t index = 0;
  int32_t architecture = 0;  // CUDA: 10 x compute capability, to plan for a device that is not here; 0: that of `index`
};

// A CUDA stream (cudaStream_t), passed explicitly and never defaulted by the library; nullptr on the CPU.
using Stream = void*;

// A (batch, num_heads, seqlen, head_dim) view in any outer order. Strides count elements; head_dim is contiguous.
// Packed varlen tensors (total, num_heads, head_dim) have stride_batch = 0.
struct TensorView {
  void* data = nullptr;
  int64_t stride_batch = 0, stride_head = 0, stride_seq = 0;
};

}  // namespace sage
