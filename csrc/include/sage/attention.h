// Quantized attention: out = softmax(softmax_scale * q k^T + mask) v, with both matmuls in low precision.
//
// Three calls: describe the problem, create a plan (host only, microseconds), run it. `run` enqueues and returns: it
// allocates nothing, synchronises nothing and never changes the current device. Nor do the steps of which it consists,
// for callers that keep K and V quantized.
#pragma once
#include <cstddef>
#include <cstdint>

#include "sage/recipe.h"
#include "sage/types.h"

namespace sage {

// Instruction sets of the CPU kernels, best first. kAuto takes the best one that this CPU and its system support.
enum class CpuIsa : int32_t { kAuto, kAvx512Vnni, kAvxVnni, kAvx2, kPortable };

// Everything that selects code or sizes memory. Trivially copyable.
struct AttnDesc {
  Device device;
  DType dtype = DType::kBFloat16;  // of q, k, v and out; CUDA: kFloat16 or kBFloat16
  Recipe recipe;

  int32_t batch = 0;                          // number of sequences
  int32_t num_heads_q = 0, num_heads_kv = 0;  // num_heads_q is a multiple of num_heads_kv
  int32_t head_dim = 0;
  int64_t seqlen_q = 0, seqlen_k = 0;  // with varlen: the longest sequence
  bool varlen = false;                 // q is packed (total_q, heads, head_dim), k and v (total_k, heads, head_dim)
  int64_t total_q = 0, total_k = 0;    // only with varlen

  // Query i sees key j if j - i <= seqlen_k - seqlen_q (causal) and, in the same bottom-right aligned coordinates,
  // -window_left <= j - i - (seqlen_k - seqlen_q) <= window_right; -1 leaves a side open. Lengths are the true ones:
  // of the sequence with varlen, seqused_k[b] where that is given.
  bool causal = false;
  int64_t window_left = -1, window_right = -1;

  // CUDA: v's data and strides are multiples of 16 bytes, so that it can be read in place; `run` refuses another.
  bool v_aligned = true;

  int32_t num_threads = 1;         // CPU: the most threads to use
  CpuIsa cpu_isa = CpuIsa::kAuto;  // CPU: force an instruction set (for tests and comparisons)
};

// Added to the scores (float dtypes, in natural-log units; -inf hides a key) or, as kBool, true where a key is seen.
// Shape (batch, num_heads_q, seqlen_q, seqlen_k); a broadcast dimension has stride 0. Strides count elements.
struct MaskView {
  void const* data = nullptr;
  DType dtype = DType::kBool;
  int64_t stride_batch = 0, stride_head = 0, stride_q = 0, stride_k = 0;
};

// Everything that changes per call. All pointers are on the plan's device.
struct AttnArgs {
  TensorView q, k, v, out;  // out may not overlap the inputs
  float* lse = nullptr;     // optional float32: (batch, num_heads_q, seqlen_q), with varlen (num_heads_q, total_q)
  float softmax_scale = 0.f;
  MaskView mask;                          // optional; not with varlen
  int32_t const* cu_seqlens_q = nullptr;  // varlen: batch + 1 ascending offsets, the first 0, the last total_q
  int32_t const* cu_seqlens_k = nullptr;  // likewise, the last total_k
  int32_t const* seqused_k = nullptr;     // optional (batch): only the first seqused_k[b] keys of sequence b exist
};

// How kernels want quantized operands arranged.
enum class OperandOrder : int32_t;

// Operands that were quantized into memory of the caller: views that can be copied freely and own nothing. `desc`, of
// the plan that wrote them, and `order`, of its kernels, are the tag: another plan takes a view if it has the same
// device, dtype, recipe, order and sizes of the operand, else names what differs. An empty view is of no use to any
// plan.
struct QuantizedKv {
  void* data = nullptr;
  TensorView v;  // the caller's V where the kernel reads it in place (see AttnPlan::quantize_kv); else empty
  AttnDesc desc;
  bool has_seqused_k = false;  // quantize_kv was given seqused_k: the keys behind those are not here
  OperandOrder order = {};
};
struct QuantizedQ {
  void* data = nullptr;
  void const* kv = nullptr;  // `data` of the keys whose mean has gone into what corrects lse
  AttnDesc desc;
  size_t bytes = 0;  // of `data`
  OperandOrder order = {};
};

namespace cpu {
struct ForwardKernel;
}
struct CudaForward;

namespace internal {

// What serves a descriptor: kernels of this build, on one kind of device.
struct Selection {
  cpu::ForwardKernel const* cpu = nullptr;
  CudaForward const* cuda = nullptr;
  char const* kernel_name = "";
  int32_t sm_count = 0;  // CUDA: of the device
  size_t workspace_bytes = 0, quantized_q_bytes = 0, quantized_kv_bytes = 0;
};

}  // namespace internal

// A query that sees no key gives out = 0 and lse = -inf. Non-finite values propagate: a value of q to the output rows
// that share its scale or, with smooth_q, its mean (on CPUs its own), a value of v to its channel, a value of k to
// every query of that head. Smoothing sums the values of a sequence, or of a tile of q: where float32 does not hold the
// sum, it counts as one of them.
class SAGE_API AttnPlan {
 public:
  // Fails with kInvalidArgument or kUnsupported and the reason; `plan` is then left unusable.
  static Status create(AttnDesc const& desc, AttnPlan* plan);

  // Scratch that `run` needs, from the descriptor alone; 64-byte alignment is enough.
  size_t workspace_bytes() const { return selection_.workspace_bytes; }

  // On the CPU the work is done when this returns; `stream` must then be nullptr. On CUDA the plan's device must be the
  // current one, and the contents of the length arrays are not read here: they must be as AttnArgs says.
  Status run(AttnArgs const& args, void* workspace, Stream stream) const;

  // `run` in steps, on CUDA, with the same results bit for bit: K and V that are quantized once serve any number of
  // queries, of any plan that differs in seqlen_q, total_q, num_heads_q, causal and windows alone. The buffers are
  // aligned to 64 bytes and, like all that `args` points to, on the plan's device; a view is valid while its buffer
  // keeps what was written there. The steps are enqueued on one stream, or on streams that wait for each other. Lengths
  // (cu_seqlens_*, seqused_k) are the same in each. The CPU kernels quantize in their loop: there the steps are
  // kUnsupported, and the sizes 0.
  size_t quantized_q_bytes() const { return selection_.quantized_q_bytes; }
  size_t quantized_kv_bytes() const { return selection_.quantized_kv_bytes; }

  // Reads k, v, cu_seqlens_k and seqused_k. Where the kernel needs V as it is (16-bit P V in the dtype of v, v_aligned
  // and head_dim a multiple of 8), V is not in the buffer: the view refers to args.v, which must then stay unchanged as
  // long as the view is used. With v_aligned = false V is copied.
  Status quantize_kv(AttnArgs const& args, void* buffer, Stream stream, QuantizedKv* kv) const;

  // Reads q, softmax_scale and cu_seqlens_q, and from `kv` the mean of K, for an exact lse. The result is for use with
  // these keys; without lse, or without smooth_k, for use with any: with FP8 P V, of a plan with no larger seqlen_k.
  Status quantize_q(AttnArgs const& args, QuantizedKv const& kv, void* buffer, Stream stream, QuantizedQ* q) const;

  // Reads out, lse, mask, cu_seqlens_q, cu_seqlens_k and seqused_k: one kernel. With FP8 P V the buffer of `q` has room
  // for sums that the kernel sets aside (recipe field fold_every), which makes it the scratch of this call: runs on one
  // view of Q wait for each other, as those of a stream do.
  Status run_quantized(AttnArgs const& args, QuantizedQ const& q, QuantizedKv const& kv, Stream stream) const;

  // The kernel that runs, for logs, tests and benchmarks: "cpu_int8_int16_avx512_vnni", "sm80_fwd_f16_d128".
  char const* kernel_name() const { return selection_.kernel_name; }

  AttnDesc const& desc() const { return desc_; }

 private:
  AttnDesc desc_;
  internal::Selection selection_;
};

// Whether a plan could be created, and if not why.
SAGE_API Status is_supported(AttnDesc const& desc);

// The instruction set that kAuto means on this machine, and whether this build and machine can run a given one.
SAGE_API CpuIsa best_cpu_isa();
SAGE_API bool cpu_isa_available(CpuIsa isa);

}  // namespace sage
