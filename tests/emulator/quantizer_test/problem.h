// One problem of the quantizers: inputs, buffers, and what is in them after the launches.
#pragma once
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "arch/launch.h"
#include "floats16.h"
#include "quantize/params.h"

namespace quantizer_test {

using floats16::from_float;
using floats16::to_float;
using sage::DType;
using sage::OperandOrder;
using sage::QkFormat;
using sage::QkGranularity;
using sage::VFormat;

struct Kernels {
  int head_dim;  // padded
  sage::arch::CompiledKernel<sage::QuantizeParams> kv_stats, quantize;
};

enum class Data {
  kNormal,    // standard normal, a mean of its own for each channel and for each tile of Q
  kZeros,     // Q and K are zero; of V channel 1 is zero and channel 2 constant
  kOutliers,  // single elements of Q, K and V are NaN, others infinite
  kExtreme,   // magnitudes around the ends of the dtype's range
  kTiny,      // like kNormal, but all of 1e-30 or, in float16, 1e-5 ...
  kHuge,      // ... and 1e30 or 1e3
};

struct Case {
  std::string name;
  int head_dim = 0;  // the true one; 0: the kernels'
  DType dtype = DType::kFloat16;
  Data data = Data::kNormal;
  bool odd = false;                                         // strides and the data's address
  std::vector<int32_t> seqlens_q = {70}, seqlens_k = {70};  // of the sequences; equal unless packed
  bool packed = false;
  std::vector<int32_t> seqused_k = {};
  int32_t num_heads_q = 1, num_heads_kv = 1;
  int32_t stats_chunks = 1;
  float softmax_scale = .125f;
  OperandOrder order = OperandOrder::kMmaSync;
  QkFormat qk = QkFormat::kInt8;
  QkGranularity granularity = QkGranularity::kThread;
  bool smooth_k = true, smooth_q = false, hadamard = false, smooth_v = false;
  VFormat v_format = VFormat::kInPlace;
  float v_max = 0.f;
  bool lse = true;
};

// 16-bit rows; what lies between the elements and behind them is NaN.
class Input {
 public:
  // Of (batch, heads, rows): `odd` strides and address, or contiguous (batch, rows, heads).
  Input(bool odd, int64_t batch, int64_t heads, int64_t rows, int64_t head_dim);
  uint16_t* row(int64_t batch, int64_t head, int64_t row) const;
  sage::TensorView const& view() const { return view_; }

 private:
  std::vector<uint16_t> data_;
  sage::TensorView view_;
};

class Problem {
 public:
  Problem(Case const& c, Kernels const& kernels);
  std::string run();  // the error of a launch; empty if there was none

  int head_dim() const { return p.head_dim; }
  bool scales_v() const { return c.v_format >= VFormat::kFloat16; }
  int v_bytes() const { return c.v_format == VFormat::kInPlace ? 0 : c.v_format >= VFormat::kInt8 ? 1 : 2; }
  int batch() const { return p.batch; }
  int64_t rows_q(int b) const { return c.seqlens_q[b]; }
  int64_t rows_k(int b) const { return c.seqused_k.empty() ? c.seqlens_k[b] : c.seqused_k[b]; }
  float q(int b, int head, int64_t row, int d) const { return element(q_, cu_seqlens_q_, b, head, row, d); }
  float k(int b, int head, int64_t row, int d) const { return element(k_, cu_seqlens_k_, b, head, row, d); }
  float v(int b, int head, int64_t row, int d) const { return element(v_, cu_seqlens_k_, b, head, row, d); }
  int64_t q_tile(int b, int head, int64_t tile) const;  // in the buffers
  int64_t k_tile(int b, int head, int64_t tile) const;
  float lse_shift_of(int b, int head, int64_t row) const;

  Case const c;
  Kernels const& kernels;
  sage::QuantizeParams p;
  std::vector<char> q_out, k_out, q_mean, v_out;
  std::vector<float> q_scale, k_scale, q_mean_scale, v_scale, v_mean, lse_shift;
  std::vector<uint32_t> fold_busy;
  static constexpr int32_t kFoldSlots = 300;
  static constexpr char kUntouched = '\x5A';  // what the buffers hold at first

 private:
  void fill();
  float element(Input const& x, std::vector<int32_t> const& cu_seqlens, int b, int head, int64_t row, int d) const;

  std::vector<int32_t> cu_seqlens_q_, cu_seqlens_k_;
  Input q_, k_, v_;
  std::vector<float> k_sum_, seqlens_k_, v_amax_, v_sum_, v_low_;
};

// Any tensors, lengths and heads; formats are the caller's to choose. A name stands for its numbers.
Case random_shape(std::string const& name, std::mt19937& random);

struct Total {
  int cases = 0, failures = 0;
  void add(std::string const& name, std::string const& failure);
  // Runs and checks a case with its head_dim, or as much of it as the kernels have.
  void add(Case c, Kernels const& kernels, std::string (*check)(Problem const&));
};

// What a program tests: on all kernels, `cases` and 60 random ones, with --quick 5.
struct Program {
  char const* name;
  std::vector<Kernels> kernels;
  std::vector<Case> cases;
  Case (*random_case)(int seed);
  std::string (*check)(Problem const&);
  // Of a number format alone; not with --quick unless it is.
  char const* format;
  std::string (*check_format)();
  bool format_is_quick;

  int run(int count, char** arguments) const;  // the arguments and the result are those of `main`
};

}  // namespace quantizer_test
