// CPU attention kernels: what the API layer calls. One kernel template (attention_tile.h, attention_kernel.h) is
// compiled once per instruction set, each in its own translation unit with its own compiler flags.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/seqlen.h"
#include "sage/attention.h"

namespace sage::cpu {

struct ForwardParams {
  DType dtype;
  int32_t batch, num_heads_q, num_heads_kv, head_dim;
  Sequences sequences;
  bool varlen;
  int64_t total_q, total_k;  // rows of packed tensors
  bool causal;
  int64_t window_left, window_right;
  bool smooth_k;
  int32_t num_threads;

  TensorView q, k, v, out;
  float* lse;  // optional
  float softmax_scale;
  MaskView mask;
  void* workspace;  // aligned to 64 bytes
};

struct ForwardKernel {
  CpuIsa isa;
  QkFormat qk;
  PvFormat pv;
  int32_t block_k;
  float p_max, v_max;
  char const* name;
  size_t (*workspace_bytes)(ForwardParams const&);  // reads sizes only, no pointer
  void (*run)(ForwardParams const&);
};

// The kernels of one instruction set: int8/int8, int8/int16, int16/int16.
constexpr int kKernelsPerIsa = 3;
extern ForwardKernel const kForwardAvx512Vnni[kKernelsPerIsa];
extern ForwardKernel const kForwardAvxVnni[kKernelsPerIsa];
extern ForwardKernel const kForwardAvx2[kKernelsPerIsa];
extern ForwardKernel const kForwardPortable[kKernelsPerIsa];

// The kernels of `isa` in this build, nullptr where the build has none.
ForwardKernel const* forward_kernels(CpuIsa isa);
char const* isa_name(CpuIsa isa);

}  // namespace sage::cpu
