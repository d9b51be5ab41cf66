// One attention problem with its tensors, as the kernels get it, and what of their memory may change.
//
// In most problems the kernel's formats hold Q, K and V without rounding (Data::kExact), so that it must agree with
// exact attention but for the rounding of P: a wrong key, scale or place shows, where a recipe's error would hide it.
#pragma once
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "api/forward_cuda.h"
#include "floats16.h"
#include "sage/attention.h"

namespace kernel_test {

enum class Data {
  kExact,   // integers up to 127 or 7, which each row of Q and K reaches, times a power of two per scale group
  kNormal,  // standard normal
  kZero,    // Q and K: scale groups without a magnitude
  kMeans,   // the rows of a tile of Q are all its mean, so that only K's product with it counts: there INT4 has 8 bits
};

enum class Layout {
  kHeadsFirst,  // contiguous (batch, heads, rows, head_dim)
  kRowsFirst,   // contiguous (batch, rows, heads, head_dim)
  kOdd,         // odd strides, and data that is no multiple of 4 bytes
  kFarBatches,  // a batch stride beyond 32 bits; memory that is not used is not there
  kFarHeads,    // a head stride beyond 32 bits
  kFarRows,     // a row stride beyond 32 bits
};

enum class HeadDim { kWhole, kMultipleOf8, kOdd };  // the kernel's; smaller; likewise

enum class MaskKind {
  kNone,
  kBool,            // (batch, heads, seqlen_q, seqlen_k), some rows without keys
  kFloat32,         // (1, 1, seqlen_q, seqlen_k), some -inf
  kFloat16,         // (batch, 1, seqlen_k, seqlen_q), transposed
  kBFloat16OfKeys,  // (1, heads, 1, seqlen_k)
  kLowest,          // float32, (1, 1, seqlen_q, seqlen_k): 0 or the lowest number, as kLate hides; some rows have no 0
  kLate,            // bool, (1, 1, seqlen_q, seqlen_k): of three rows one does not see the first 150 keys, one the last
};

enum class Operand { kNone, kQ, kK, kV };

enum class QMean { kNone, kLikeCodes, kLarge };  // of a tile of Q, beside its other part

enum class VData {
  kUsual,    // exact in 8-bit V, whose channels have different powers of two; else normal
  kLargest,  // every element is the channel's largest
};

struct Case {
  std::string name;
  bool quick = false;  // runs with --quick, too
  int64_t seqlen_q = 0, seqlen_k = 0;
  int32_t batch = 1, num_heads_q = 1, num_heads_kv = 1;
  HeadDim head_dim = HeadDim::kWhole;
  bool other_dtype = false;  // bfloat16, for kernels that take it beside float16
  Data data = Data::kExact;
  Layout layout = Layout::kHeadsFirst;
  std::vector<int32_t> seqlens_q = {}, seqlens_k = {};  // packed sequences; then batch and seqlen_* follow from these
  std::vector<int32_t> seqused_k = {};                  // keys beyond are NaN
  bool causal = false;
  int64_t window_left = -1, window_right = -1;
  MaskKind mask = MaskKind::kNone;
  sage::QkGranularity granularity = sage::QkGranularity::kThread;
  bool smooth_k = true, smooth_v = false, hadamard = false, lse = true;
  int v_exponent = 0;           // bfloat16: V is multiplied by 2 to this
  int k_bias = 0;               // kExact: a multiple of 4 up to 108 that every channel of K has, with either sign
  QMean q_mean = QMean::kNone;  // else smooth_q
  bool reverse_keys = false;
  VData v_data = VData::kUsual;
  float p_max = 0.f, v_max = 0.f;  // FP8: 448 or 9 or 2.25 of V; 0: the preset's
  int fold_every = 64;             // FP8
  int fold_slots = 0;              // that the attention kernel may use; 0: as many as there are
  bool block_scaled = false;       // for NVFP4 kernels alone
  bool persistent = false;         // for kernels whose blocks walk through several tiles of Q
  int sm_count = 3;                // of the device: at most so many such blocks
  Operand with_nan = Operand::kNone, with_infinity = Operand::kNone;  // one, in the first head of the first sequence
  double scores = 2.;  // kExact: about the standard deviation of the scores; its sign is that of softmax_scale
  // kExact: `steps[n]` times 127 * 2^e is added to the scores of tile n of the keys, in units of q k; then the other
  // channels have integers up to 10, and smooth_k must be off. INT4 has these times 7 / 127. NVFP4: in units of 8.
  std::vector<int> steps = {};
};

// 16-bit (batch, heads, rows, head_dim). What lies between the elements holds NaN, as they do at first; behind the last
// one is a page that cannot be read.
class Tensor {
 public:
  // `guard` elements follow the last one, and count as lying between them.
  Tensor(Layout layout, int64_t batch, int64_t heads, int64_t rows, int64_t head_dim, int64_t guard);
  Tensor(Tensor const&) = delete;
  ~Tensor();

  uint16_t* row(int64_t batch, int64_t head, int64_t row) const;
  sage::TensorView view() const { return view_; }
  bool is_aligned() const;  // data and strides are multiples of 16 bytes

  // These look at nothing in the far layouts, and are true.
  void remember();  // what is_unchanged compares with
  bool is_unchanged() const;
  bool is_clean_between() const;  // what lies between the elements still holds NaN

 private:
  int64_t batch_, heads_, rows_, head_dim_;
  sage::TensorView view_;
  char* mapped_;
  size_t mapped_bytes_;
  uint16_t* begin_;  // of the elements and what lies between them
  int64_t size_;     // 0: a far layout
  std::vector<uint16_t> remembered_;
};

using floats16::from_float;
using floats16::to_float;
double round_to_e4m3(double x);  // to nearest even, saturating
double round_to_e2m1(double x);  // likewise

bool is_block_scaled(sage::CudaForward const& kernels);

// Whether the kernels have what the case is about.
bool serves(sage::CudaForward const& kernels, Case const& c);

class Problem {
 public:
  Problem(Case const& c, sage::CudaForward const& kernels);

  // Runs the kernels; empty, or what went wrong.
  std::string run();
  // What must not have changed, but has; or empty.
  std::string changed() const;
  // A hash of the results.
  uint32_t digest() const;

  int64_t seqlen_q(int b) const { return seqlens_q_[b]; }
  int64_t seqlen_k(int b) const { return case_.seqused_k.empty() ? seqlens_k_[b] : case_.seqused_k[b]; }
  // Row `row` of sequence b.
  uint16_t* q_row(int b, int head, int64_t row) const {
    return q_->row(batch_of(b), head, row_of(cu_seqlens_q_, b, row));
  }
  uint16_t* k_row(int b, int head, int64_t row) const {
    return k_->row(batch_of(b), head, row_of(cu_seqlens_k_, b, row));
  }
  uint16_t* v_row(int b, int head, int64_t row) const {
    return v_->row(batch_of(b), head, row_of(cu_seqlens_k_, b, row));
  }
  uint16_t* out_row(int b, int head, int64_t row) const {
    return out_->row(batch_of(b), head, row_of(cu_seqlens_q_, b, row));
  }
  // Whether a query may see a key, by causality and window, and by the mask, too.
  bool reaches(int b, int64_t row, int64_t key) const;
  bool sees(int b, int head, int64_t row, int64_t key) const {
    return reaches(b, row, key) && mask(b, head, row, key) != -INFINITY;
  }
  bool has_lse() const { return case_.lse; }
  bool is_exact() const { return data_ != Data::kNormal; }
  // How many keys the kernel takes one maximum of: tiles of 64, or aligned pairs of them.
  int keys_per_step() const;
  // Whether the tensor cores that add FP8 products in float32 are told to do so with fewer bits, as on sm89.
  bool has_reduced_sums() const;
  // Of the scores of a row: the largest product of a step of Q and a step of K; 0 where the kernel adds nothing to them
  // that could round them.
  double score_unit(int b, int head, int64_t row) const;
  float lse(int b, int head, int64_t row) const;
  double mask(int b, int head, int64_t row, int64_t col) const;

  sage::AttnDesc desc;
  float softmax_scale = 0.f;

 private:
  void set_recipe();
  void make_lengths();
  void set_magnitudes();
  void make_q();
  void make_k();
  void make_v();
  void make_mask();
  void make_block_scaled();
  void make_q_mean(int b, int head, int64_t tile, std::vector<int>& mean);
  // Writes values + offset, the values rotated back where the kernels will rotate them. Exact, or throws.
  void write_row(uint16_t* row, std::vector<int> const& values, std::vector<int> const& offset);
  float quantum_of_v() const;
  float random_v(float largest);
  void make_v_codes(int channel, std::vector<float>& codes);
  int64_t q_group(int64_t row) const;
  int batch_of(int b) const { return desc.varlen ? 0 : b; }
  int64_t row_of(std::vector<int32_t> const& cu_seqlens, int b, int64_t row) const {
    return desc.varlen ? cu_seqlens[b] + row : row;
  }
  int uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator_); }
  float normal() { return normal_(generator_); }

  Case case_;
  Data data_;
  sage::CudaForward const& kernels_;
  int level_;                               // the largest code of Q and K
  int k_level_;                             // the largest integer in K; more than level_ where INT4 has 8 bits of it
  int q_others_, k_others_;                 // the largest integer of the channels that need not reach a level
  int q_mean_level_ = 0, q_mean_unit_ = 0;  // integers up to the level, times the unit
  std::mt19937 generator_;
  std::normal_distribution<float> normal_;
  std::vector<int32_t> seqlens_q_, seqlens_k_, cu_seqlens_q_, cu_seqlens_k_;
  std::unique_ptr<Tensor> q_, k_, v_, out_;
  std::vector<float> lse_;
  std::vector<char> mask_bytes_;
  sage::MaskView mask_;
};

}  // namespace kernel_test
