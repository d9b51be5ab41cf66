// One attention problem through the public API: tensors, buffers that are poisoned, and the two ways to run it.
#pragma once
#include <sage/attention.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace api_test {

// Memory of a given size, aligned to 64 bytes, full of 0xFF; what follows it must stay so.
class Buffer {
 public:
  explicit Buffer(size_t bytes);
  void* data() const { return data_.get(); }
  std::string contents() const { return {data_.get(), bytes_}; }
  bool is_clean_behind() const;

 private:
  struct Free {
    void operator()(char* p) const;
  };
  size_t bytes_;
  std::unique_ptr<char, Free> data_;
};

// sage1: INT8 Q K^T; FP16 P V in the dtype of v, accumulated in float.
sage::Recipe sage1();
sage::Recipe sage1_int8();
// FP8 P V with float32 accumulators, and with float16 ones (SageAttention2++).
sage::Recipe sage2();
sage::Recipe sage2pp();
// NVFP4 Q and K, smoothed both; P V in NVFP4, and in FP8 (SageAttention3).
sage::Recipe sage3();
sage::Recipe sage3_fp8();

// Float16, sage1, 2 of 4 heads of 64, contiguous (batch, heads, rows, head_dim).
sage::AttnDesc make_desc(int64_t seqlen_q, int64_t seqlen_k);

struct Result {
  sage::Status status;
  uint64_t launches = 0;  // of all kernels, in all steps
  std::vector<uint16_t> out;
  std::vector<float> lse;  // poisoned where it was not wanted
};

// What differs, or empty. Bit for bit, so that NaN equals itself.
std::string difference(Result const& actual, Result const& expected);

struct Problem {
  sage::AttnDesc desc;
  sage::AttnArgs args;  // all but out and lse
  bool lse = true;

  // Random values from `seed`; q, k and v from seeds of their own, so that a problem of other queries has the same
  // keys. With lengths the sequences are packed; `seqused_k` may be empty.
  explicit Problem(sage::AttnDesc const& desc, std::vector<int32_t> const& seqlens_q = {},
                   std::vector<int32_t> const& seqlens_k = {}, std::vector<int32_t> const& seqused_k = {},
                   unsigned seed = 1);
  Problem(Problem const&) = delete;

  sage::AttnPlan plan() const;
  Result run() const;
  Result run_steps() const;
  Result run_quantized(sage::QuantizedQ const& q, sage::QuantizedKv const& kv) const;

 private:
  Result poisoned(sage::AttnArgs* with_outputs) const;
  Result finished(Result result, uint64_t launches_before) const;

  std::vector<int32_t> cu_seqlens_q_, cu_seqlens_k_, seqused_k_;
  std::vector<uint16_t> q_, k_, v_;
};

uint64_t launches();  // so far

}  // namespace api_test
