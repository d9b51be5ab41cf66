#include "kernel_test/problem.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <string_view>

#include "common/quant_format.h"
#include "kernel_test/watch.h"
#include "simt/config.h"

namespace kernel_test {

using sage::DType;

namespace {

constexpr uint16_t kNan = 0xFFFF;  // in both 16-bit formats
constexpr int64_t kFar = (int64_t{1} << 32) + 64;
constexpr int64_t kGuardRows = sage::kQTileRows;  // after out and lse
constexpr size_t kGuardBytes = 256;               // after the workspace

}  // namespace

// The numbers of e4m3: 3 fraction bits, exponents -6 to 8, 448 the largest.
double round_to_e4m3(double x) {
  int exponent;
  std::frexp(x, &exponent);  // |x| < 2^exponent
  double const step = std::ldexp(1., std::max(exponent - 4, -9));
  return std::clamp(std::nearbyint(x / step) * step, -448., 448.);
}

Tensor::Tensor(Layout layout, int64_t batch, int64_t heads, int64_t rows, int64_t head_dim, int64_t guard)
    : batch_(batch), heads_(heads), rows_(rows), head_dim_(head_dim) {
  int64_t offset = 0;
  switch (layout) {
    case Layout::kHeadsFirst: view_ = {nullptr, heads * rows * head_dim, rows * head_dim, head_dim}; break;
    case Layout::kRowsFirst: view_ = {nullptr, rows * heads * head_dim, head_dim, heads * head_dim}; break;
    case Layout::kOdd: {
      int64_t const row = head_dim + 3 - head_dim % 2, head = row * rows + 4 + (row * rows) % 2;
      view_ = {nullptr, head * heads + 2, head, row};
      offset = 1;
      break;
    }
    case Layout::kFarBatches: view_ = {nullptr, kFar, rows * head_dim, head_dim}; break;
    case Layout::kFarHeads: view_ = {nullptr, kFar * heads, kFar, head_dim}; break;
    case Layout::kFarRows: view_ = {nullptr, kFar * heads * rows, kFar * rows, kFar}; break;
  }
  bool const far = view_.stride_batch >= kFar;
  int64_t const last = rows == 0 ? 0
                                 : (batch - 1) * view_.stride_batch + (heads - 1) * view_.stride_head +
                                       (rows - 1) * view_.stride_seq + head_dim;
  int64_t const elements = offset + last + guard;
  size_t const page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), bytes = static_cast<size_t>(elements) * 2;
  mapped_bytes_ = (bytes + page - 1) / page * page + page;
  void* const mapped =
      mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  mapped_ = static_cast<char*>(mapped);
  char* const end = mapped_ + mapped_bytes_ - page;
  if (mprotect(end, page, PROT_NONE) != 0) throw std::bad_alloc();
  // The start of what is aligned must be aligned: then a few elements more than these can be read.
  begin_ = reinterpret_cast<uint16_t*>(end - (bytes + 15) / 16 * 16);
  size_ = far ? 0 : elements;
  std::fill_n(begin_, size_, kNan);
  view_.data = begin_ + offset;
}

Tensor::~Tensor() { munmap(mapped_, mapped_bytes_); }

uint16_t* Tensor::row(int64_t batch, int64_t head, int64_t row) const {
  return static_cast<uint16_t*>(view_.data) + batch * view_.stride_batch + head * view_.stride_head +
         row * view_.stride_seq;
}

bool Tensor::is_aligned() const {
  return reinterpret_cast<uintptr_t>(view_.data) % 16 == 0 && view_.stride_batch % 8 == 0 &&
         view_.stride_head % 8 == 0 && view_.stride_seq % 8 == 0;
}

void Tensor::remember() { remembered_.assign(begin_, begin_ + size_); }

bool Tensor::is_unchanged() const { return std::equal(remembered_.begin(), remembered_.end(), begin_, begin_ + size_); }

bool Tensor::is_clean_between() const {
  if (size_ == 0) return true;
  std::vector<uint16_t> between(begin_, begin_ + size_);
  for (int64_t b = 0; b < batch_; ++b) {
    for (int64_t h = 0; h < heads_; ++h) {
      for (int64_t r = 0; r < rows_; ++r) std::fill_n(between.data() + (row(b, h, r) - begin_), head_dim_, kNan);
    }
  }
  return std::all_of(between.begin(), between.end(), [](uint16_t x) { return x == kNan; });
}

static uint32_t seed_of(std::string const& name) {
  uint32_t seed = 1;
  for (char c : name) seed = seed * 31 + static_cast<unsigned char>(c);
  return seed;
}

static bool is_fp8(sage::CudaForward const& kernels) { return kernels.pv == sage::PvFormat::kFp8E4m3; }
static bool uses_wgmma(sage::CudaForward const& kernels) { return kernels.order == sage::OperandOrder::kWgmma; }
bool is_block_scaled(sage::CudaForward const& kernels) { return kernels.order == sage::OperandOrder::kBlockScaled; }
static bool has_8bit_v(sage::CudaForward const& kernels) {
  return is_fp8(kernels) || kernels.pv == sage::PvFormat::kInt8;
}

// Of block-scaled kernels: powers of two.
static bool has_references(sage::CudaForward const& kernels, float p_max) {
  return p_max <= (is_fp8(kernels) ? 256.f : 2048.f) && std::exp2(std::round(std::log2(p_max))) == p_max;
}

bool serves(sage::CudaForward const& kernels, Case const& c) {
  bool const sums_in_fp32 = kernels.pv_accum == sage::PvAccum::kFp32;  // then there is nothing to fold
  bool const folds = c.fold_every != Case{}.fold_every || c.fold_slots > 0;
  bool const block_scaled = is_block_scaled(kernels);
  if (block_scaled ? c.granularity != Case{}.granularity || !has_references(kernels, c.p_max) : c.block_scaled) {
    return false;
  }
  if (uses_wgmma(kernels) ? c.fold_every < 2 || c.fold_slots > 0 : c.persistent && !block_scaled) return false;
  return (!folds || (is_fp8(kernels) && !sums_in_fp32)) && (c.p_max == 0.f || is_fp8(kernels) || block_scaled) &&
         (c.v_data != VData::kLargest || is_fp8(kernels)) && (!c.smooth_v || has_8bit_v(kernels) || block_scaled) &&
         (c.q_mean == QMean::kNone || kernels.qk == sage::QkFormat::kInt4 || block_scaled);
}

// A power of two that differs between neighbouring scale groups, heads and sequences.
constexpr int kLargestGroupScale = 4;
static int group_scale(int b, int head, int64_t group) { return 1 << (group + head + 2 * b) % 3; }

// Of a channel of K that has a bias.
static int largest_bias(Case const& c) { return c.k_bias == 0 ? 0 : c.k_bias + 20; }

// What rotates codes back: x = signs * (Hadamard matrix of +-1) codes * this, a power of two.
static float rotation_factor(int head_dim) { return head_dim == 64 ? .125f : .0625f; }

Problem::Problem(Case const& c, sage::CudaForward const& kernels)
    : case_(c), data_(c.data), kernels_(kernels), generator_(seed_of(c.name)) {
  bool const other = c.other_dtype && kernels.operand == DType::kFloat16;
  desc.device = {sage::DeviceType::kCuda, 0};
  desc.dtype = other ? DType::kBFloat16 : kernels.operand;
  set_recipe();
  desc.num_heads_q = c.num_heads_q;
  desc.num_heads_kv = c.num_heads_kv;
  desc.head_dim = c.head_dim == HeadDim::kWhole         ? kernels.head_dim
                  : c.head_dim == HeadDim::kMultipleOf8 ? kernels.head_dim / 2 + 8
                                                        : kernels.head_dim / 2 + 5;
  desc.causal = c.causal;
  desc.window_left = c.window_left;
  desc.window_right = c.window_right;
  make_lengths();

  int64_t const rows_q = desc.varlen ? desc.total_q : desc.seqlen_q,
                rows_k = desc.varlen ? desc.total_k : desc.seqlen_k;
  int const batch = desc.varlen ? 1 : desc.batch;
  q_ = std::make_unique<Tensor>(c.layout, batch, c.num_heads_q, rows_q, desc.head_dim, 0);
  k_ = std::make_unique<Tensor>(c.layout, batch, c.num_heads_kv, rows_k, desc.head_dim, 0);
  v_ = std::make_unique<Tensor>(c.layout, batch, c.num_heads_kv, rows_k, desc.head_dim, 0);
  int64_t const guard = kGuardRows * c.num_heads_q * desc.head_dim;
  out_ = std::make_unique<Tensor>(c.layout, batch, c.num_heads_q, rows_q, desc.head_dim, guard);
  desc.v_aligned = v_->is_aligned();
  if (c.lse) lse_.assign(static_cast<size_t>(batch * c.num_heads_q * rows_q + kGuardRows), NAN);

  if (is_block_scaled(kernels) && data_ != Data::kNormal) {
    make_block_scaled();
  } else {
    set_magnitudes();
    make_q();
    make_k();
    make_v();
  }
  make_mask();
  for (Tensor* input : {q_.get(), k_.get(), v_.get()}) input->remember();
}

void Problem::set_recipe() {
  using sage::PvFormat;
  sage::Recipe& recipe = desc.recipe;
  recipe.qk = kernels_.qk;
  recipe.qk_granularity = case_.granularity;
  recipe.pv = kernels_.pv;
  recipe.pv_accum = kernels_.pv_accum;
  recipe.p_max = recipe.pv == PvFormat::kInt8 ? 255.f : 1.f;
  recipe.v_max = recipe.pv == PvFormat::kInt8 ? 127.f : 0.f;
  if (is_fp8(kernels_)) {  // as in the presets
    bool const fp16_sums = recipe.pv_accum == sage::PvAccum::kFp16Fp32;
    recipe.p_max = case_.p_max != 0.f ? case_.p_max : fp16_sums ? 112.f : 448.f;
    recipe.v_max = case_.v_max != 0.f ? case_.v_max : fp16_sums ? 9.f : 448.f;
  }
  if (is_block_scaled(kernels_)) {
    recipe.qk_granularity = sage::QkGranularity::k1x16;
    recipe.p_two_level = recipe.pv == PvFormat::kNvfp4;
    recipe.p_max = case_.p_max != 0.f ? case_.p_max : recipe.p_two_level ? 512.f : 128.f;
  }
  recipe.fold_every = is_fp8(kernels_) ? case_.fold_every : 1;
  recipe.key_order = case_.reverse_keys ? sage::KeyOrder::kReverse : sage::KeyOrder::kForward;
  recipe.smooth_q = case_.q_mean != QMean::kNone;
  recipe.smooth_k = case_.smooth_k;
  recipe.smooth_v = case_.smooth_v;
  recipe.hadamard = case_.hadamard;
  recipe.approximate_exp = kernels_.approximate_exp;
}

void Problem::make_lengths() {
  desc.varlen = !case_.seqlens_q.empty();
  if (!desc.varlen) {
    desc.batch = case_.batch;
    desc.seqlen_q = case_.seqlen_q;
    desc.seqlen_k = case_.seqlen_k;
    seqlens_q_.assign(desc.batch, static_cast<int32_t>(desc.seqlen_q));
    seqlens_k_.assign(desc.batch, static_cast<int32_t>(desc.seqlen_k));
    return;
  }
  desc.batch = static_cast<int32_t>(case_.seqlens_q.size());
  seqlens_q_ = case_.seqlens_q;
  seqlens_k_ = case_.seqlens_k;
  auto const pack = [](std::vector<int32_t> const& lengths, std::vector<int32_t>& cu_seqlens, int64_t& longest) {
    cu_seqlens.assign(1, 0);
    for (int32_t length : lengths) cu_seqlens.push_back(cu_seqlens.back() + length);
    longest = *std::max_element(lengths.begin(), lengths.end());
    return int64_t{cu_seqlens.back()};
  };
  desc.total_q = pack(seqlens_q_, cu_seqlens_q_, desc.seqlen_q);
  desc.total_k = pack(seqlens_k_, cu_seqlens_k_, desc.seqlen_k);
}

// The integers that Q and K are made of, so that these are exact in their 16-bit format, and the softmax scale.
void Problem::set_magnitudes() {
  bool const int4 = desc.recipe.qk == sage::QkFormat::kInt4, bf16 = desc.dtype == DType::kBFloat16;
  int const dim = kernels_.head_dim;
  level_ = int4 ? 7 : 127;
  k_level_ = int4 && data_ == Data::kMeans ? 16 * level_ : level_;
  q_others_ = case_.steps.empty() ? level_ : std::max(1, 10 * level_ / 127);
  k_others_ = case_.steps.empty() ? k_level_ : q_others_;

  // The codes of the means (quant_format.h) are kQMeanLimit = 0x7777 = 7 * 17 * 257 times the mean over its level.
  if (case_.q_mean != QMean::kNone) {
    bool const large = case_.q_mean == QMean::kLarge;
    q_mean_level_ = large && !case_.hadamard ? 119 : 7;
    q_mean_unit_ = case_.hadamard ? 4 : large ? 1 : 2;
  }
  if (case_.hadamard) {
    // Integers of 8 or 11 bits are exact. A sum of `dim` of them hardly reaches five standard deviations.
    double const limit = bf16 ? 256. : 2048., deviation = 5. * std::sqrt(dim / 3.), factor = rotation_factor(dim);
    double const of_q = (limit - level_) / deviation - q_mean_level_ * q_mean_unit_,
                 of_k = (limit - level_ - largest_bias(case_) / factor) / deviation;
    if (of_q < 1. || of_k < 1. || desc.head_dim != dim) data_ = Data::kNormal;
    q_others_ = std::min(level_, static_cast<int>(of_q));
    k_others_ = std::min(level_, static_cast<int>(of_k));
  }

  double scale = 1.;
  if (is_exact()) {
    auto const variance = [&](int others) {  // times that of the groups' scales
      return 4. * (others * others / 3. + (case_.hadamard ? level_ * level_ / dim : 0.));
    };
    double const mean = q_mean_level_ * q_mean_unit_, step = kernels_.head_dim * std::pow(rotation_factor(dim), 2);
    double const of_q = (data_ == Data::kMeans ? 0. : variance(q_others_)) + mean * mean / 3.;
    scale = case_.scores / std::sqrt(of_q * variance(k_others_)) / (case_.hadamard ? step : 1.);
  } else if (case_.scores < 0) {
    scale = -1.;
  }
  softmax_scale = static_cast<float>(scale / std::sqrt(desc.head_dim));
}

bool Problem::has_reduced_sums() const {
  bool const block_scaled = std::string_view(kernels_.attention.name).starts_with("sm120");  // adds in float32
  return !block_scaled && simt::configuration().accumulate == simt::Accumulate::kReduced;
}

int Problem::keys_per_step() const {
  return uses_wgmma(kernels_) && kernels_.head_dim < 256 ? 2 * sage::kKTileRows : sage::kKTileRows;
}

double Problem::score_unit(int b, int head, int64_t row) const {
  if (uses_wgmma(kernels_)) return 0.;  // converts its scores
  double const rotated = case_.hadamard ? kernels_.head_dim * std::pow(rotation_factor(kernels_.head_dim), 2) : 1.;
  double const q_step = data_ == Data::kExact ? group_scale(b, head, q_group(row)) : 0.;
  return std::fabs(softmax_scale) * q_step * kLargestGroupScale * rotated;
}

int64_t Problem::q_group(int64_t row) const {
  using sage::QkGranularity;
  return case_.granularity == QkGranularity::kThread ? sage::q_scale_index(static_cast<int>(row))
         : case_.granularity == QkGranularity::kWarp ? row / sage::kQScaleRows
                                                     : row / sage::kQTileRows;
}

void Problem::write_row(uint16_t* row, std::vector<int> const& values, std::vector<int> const& offset) {
  int const dim = desc.head_dim;
  for (int d = 0; d < dim; ++d) {
    float x = 0.f;
    if (case_.hadamard) {
      for (int i = 0; i < dim; ++i) x += static_cast<float>(__builtin_popcount(i & d) % 2 ? -values[i] : values[i]);
      x *= sage::hadamard_sign(d) * rotation_factor(dim);
    } else {
      x = static_cast<float>(values[d]);
    }
    x += static_cast<float>(offset[d]);
    row[d] = from_float(x, desc.dtype);
    if (to_float(row[d], desc.dtype) != x) throw std::logic_error("an element of Q or K is not exact");
  }
}

// With a mean, row i + 8 is the opposite of row i beside it, which has the same scale; a row without the other one is
// the mean.
void Problem::make_q() {
  int const dim = desc.head_dim;
  std::vector<int> mean(dim), values(dim), codes[8];
  std::vector<int> const no_offset(dim);
  for (int b = 0; b < desc.batch; ++b) {
    for (int h = 0; h < desc.num_heads_q; ++h) {
      for (int64_t i = 0; i < seqlen_q(b); ++i) {
        if (data_ == Data::kNormal) {
          for (int d = 0; d < dim; ++d) {
            float const x = desc.recipe.smooth_q ? static_cast<float>((d + i / sage::kQTileRows) % 5 - 2) : 0.f;
            q_row(b, h, i)[d] = from_float(normal() + x, desc.dtype);
          }
          continue;
        }
        if (i % sage::kQTileRows == 0) make_q_mean(b, h, i / sage::kQTileRows, mean);
        std::vector<int>& code = codes[i % 8];
        int64_t const top = case_.steps.empty() ? i * 7 % dim : 0;  // the channel with level_
        if (desc.recipe.smooth_q && i % 16 >= 8) {
          for (int& x : code) x = -x;
        } else {
          bool const zero = data_ != Data::kExact || (desc.recipe.smooth_q && i + 8 >= seqlen_q(b));
          code.assign(dim, 0);
          for (int d = 0; d < dim && !zero; ++d) code[d] = uniform(-q_others_, q_others_);
          if (!zero) code[top] = case_.steps.empty() && i % 2 ? -level_ : level_;
        }
        for (int d = 0; d < dim; ++d) values[d] = code[d] * group_scale(b, h, q_group(i)) + mean[d];
        write_row(q_row(b, h, i), values, no_offset);
      }
    }
  }
}

// Of neighbouring tiles one has smaller means.
void Problem::make_q_mean(int b, int head, int64_t tile, std::vector<int>& mean) {
  bool const smaller = (tile + head + b) % 2;
  int const level = smaller && q_mean_unit_ == 1 ? 7 : q_mean_level_;
  int const unit = smaller && q_mean_unit_ > 1 ? q_mean_unit_ / 2 : q_mean_unit_;
  for (int& x : mean) x = unit * uniform(-level, level);
  mean[(tile * 5 + head + 3 * b) % desc.head_dim] = unit * (tile % 2 ? -level : level);
}

// Without its bias, K sums to zero over each sequence: neighbouring keys are opposite, and an odd last one is zero.
void Problem::make_k() {
  int const dim = desc.head_dim;
  std::vector<int> codes(dim), values(dim), bias(dim);
  // An 8-bit integer of INT4 is a code times 16 and a rest, which cannot be 8.
  auto const code_of_k = [&] {
    int const x = uniform(-k_others_, k_others_);
    return k_level_ > level_ && (x & 15) == 8 ? x - 1 : x;
  };
  for (int b = 0; b < desc.batch; ++b) {
    for (int h = 0; h < desc.num_heads_kv; ++h) {
      for (int d = 0; d < dim && case_.k_bias; ++d) {
        int const magnitude = case_.k_bias + 4 * ((d + h + b) % 6);
        bias[d] = (d + h) % 2 ? -magnitude : magnitude;
      }
      for (int64_t j = 0; j < seqlen_k(b); ++j) {
        if (data_ == Data::kNormal) {
          for (int d = 0; d < dim; ++d) {
            k_row(b, h, j)[d] = from_float(normal() + static_cast<float>(bias[d]), desc.dtype);
          }
          continue;
        }
        int64_t const tile = j / sage::kKTileRows;
        int64_t const group = case_.granularity == sage::QkGranularity::kThread
                                  ? tile + sage::k_scale_index(static_cast<int>(j % sage::kKTileRows))
                                  : tile;
        if (!case_.steps.empty() || j % 2 == 0) {
          bool const zero = data_ == Data::kZero || (case_.smooth_k && j + 1 == seqlen_k(b));
          for (int& code : codes) code = zero ? 0 : code_of_k();
          if (!zero) codes[1 + (j / 2 * 5 + h) % (dim - 1)] = k_level_;
          if (!case_.steps.empty()) codes[0] = static_cast<int>(std::lround(case_.steps[tile] * level_ / 127.));
        } else {
          for (int& code : codes) code = -code;
        }
        for (int d = 0; d < dim; ++d) values[d] = codes[d] * group_scale(b, h, group);
        write_row(k_row(b, h, j), values, bias);
      }
    }
  }
}

// Of 8-bit V with a mean: its codes and its mean are multiples of this, so that their sums are exact.
float Problem::quantum_of_v() const {
  float const v_max = desc.recipe.v_max;
  return !is_fp8(kernels_) ? 1.f : v_max == 448.f ? 4.f : v_max / 144.f;
}

// A code of 8-bit V.
float Problem::random_v(float largest) {
  if (!is_fp8(kernels_)) return static_cast<float>(uniform(-static_cast<int>(largest), static_cast<int>(largest)));
  float const x = std::uniform_real_distribution<float>(-largest, largest)(generator_);
  if (case_.smooth_v) {
    return std::nearbyint(static_cast<float>(round_to_e4m3(x)) / quantum_of_v()) * quantum_of_v();
  }
  return static_cast<float>(round_to_e4m3(std::ldexp(x, uniform(0, 3) == 0 ? -uniform(1, 12) : 0)));
}

// Exact 8-bit codes of one channel, of which one is v_max. With smooth_v their sum is zero: neighbouring keys are
// opposite, and an odd last one is zero; v_max is that of one key, and two others together are its opposite.
void Problem::make_v_codes(int channel, std::vector<float>& codes) {
  float const v_max = desc.recipe.v_max, sign = channel % 2 ? -1.f : 1.f;
  size_t const keys = codes.size();
  if (case_.v_data == VData::kLargest) {
    std::fill(codes.begin(), codes.end(), sign * v_max);
  } else if (!case_.smooth_v) {
    for (float& x : codes) x = random_v(v_max);
    if (keys > 0) codes[channel % keys] = v_max;
  } else {
    std::fill(codes.begin(), codes.end(), 0.f);
    for (size_t j = 0; j + 1 < keys; j += 2) codes[j + 1] = -(codes[j] = random_v(v_max / 2.f));
    if (keys >= 4) {
      float* const top = &codes[channel % (keys / 4) * 4];
      float const half = std::ceil(v_max / 2.f / quantum_of_v()) * quantum_of_v();
      top[0] = -sign * v_max;
      top[1] = sign * half;
      top[2] = sign * (v_max - half);
      top[3] = 0.f;
    } else if (keys >= 2) {
      codes[1] = -(codes[0] = v_max);
    }
  }
}

// A channel's own mean and, for 8-bit V, power of two. Channel 3 is zero, and channel 4 of V that is smoothed its mean.
void Problem::make_v() {
  int const exponent = desc.dtype == DType::kBFloat16 ? case_.v_exponent : 0;
  bool const exact = has_8bit_v(kernels_) && is_exact(), smooth = case_.smooth_v;
  int const largest_mean = desc.dtype == DType::kBFloat16 ? 96 : 384;  // quanta; exact with codes up to 144
  for (int b = 0; b < desc.batch; ++b) {
    std::vector<float> codes(seqlen_k(b));
    for (int h = 0; h < desc.num_heads_kv; ++h) {
      for (int d = 0; d < desc.head_dim; ++d) {
        make_v_codes(d, codes);
        float const mean = !exact ? static_cast<float>(is_exact() ? d % 3 : 0)
                                  : static_cast<float>(smooth ? (d % 3 - 1) * largest_mean : 0) * quantum_of_v();
        int const unit = exact ? -(d + h + b) % 5 - (is_fp8(kernels_) ? std::ilogb(desc.recipe.v_max) : 4) : 0;
        for (size_t j = 0; j < codes.size(); ++j) {
          float const code = !exact ? normal() : smooth && d == 4 ? 0.f : codes[j];
          float const x = d == 3 ? 0.f : std::ldexp(code + mean, unit + exponent);
          uint16_t& element = v_row(b, h, static_cast<int64_t>(j))[d];
          element = from_float(x, desc.dtype);
          if (exact && to_float(element, desc.dtype) != x) throw std::logic_error("an element of V is not exact");
        }
      }
    }
  }
}

void Problem::make_mask() {
  int64_t const rows = desc.seqlen_q, cols = desc.seqlen_k, heads = desc.num_heads_q;
  int64_t size = 0;
  switch (case_.mask) {
    case MaskKind::kNone: return;
    case MaskKind::kBool:
      mask_ = {nullptr, DType::kBool, heads * rows * cols, rows * cols, cols, 1};
      size = desc.batch * heads * rows * cols;
      break;
    case MaskKind::kFloat32:
      mask_ = {nullptr, DType::kFloat32, 0, 0, cols, 1};
      size = rows * cols;
      break;
    case MaskKind::kFloat16:
      mask_ = {nullptr, DType::kFloat16, rows * cols, 0, 1, rows};
      size = desc.batch * rows * cols;
      break;
    case MaskKind::kBFloat16OfKeys:
      mask_ = {nullptr, DType::kBFloat16, 0, cols, 0, 1};
      size = heads * cols;
      break;
    case MaskKind::kLowest:
      mask_ = {nullptr, DType::kFloat32, 0, 0, cols, 1};
      size = rows * cols;
      break;
    case MaskKind::kLate:
      mask_ = {nullptr, DType::kBool, 0, 0, cols, 1};
      size = rows * cols;
      break;
  }
  int64_t const element = mask_.dtype == DType::kBool ? 1 : mask_.dtype == DType::kFloat32 ? 4 : 2;
  mask_bytes_.resize(static_cast<size_t>(size * element));
  mask_.data = mask_bytes_.data();
  for (int64_t i = 0; i < size; ++i) {
    char* const bytes = mask_bytes_.data() + i * element;
    float const x = uniform(0, 7) == 0 ? -INFINITY : normal();
    int64_t const row = i / cols, col = i % cols;
    bool const late = row % 3 == 0 ? col >= 150 : row % 3 == 1 ? col < cols - 150 : true;
    if (case_.mask == MaskKind::kLate) {
      *bytes = late;
    } else if (case_.mask == MaskKind::kLowest) {
      float const lowest = late && row % 11 != 5 ? 0.f : -std::numeric_limits<float>::max();
      std::memcpy(bytes, &lowest, 4);
    } else if (mask_.dtype == DType::kBool) {
      *bytes = static_cast<char>(i / cols % 7 != 2 && uniform(0, 2) != 0);
    } else if (mask_.dtype == DType::kFloat32) {
      std::memcpy(bytes, &x, 4);
    } else {
      uint16_t const bits = from_float(x, mask_.dtype);
      std::memcpy(bytes, &bits, 2);
    }
  }
}

bool Problem::reaches(int b, int64_t row, int64_t key) const {
  int64_t const diagonal = row + seqlen_k(b) - seqlen_q(b);
  bool const hidden = (desc.causal && key > diagonal) || (desc.window_left >= 0 && key < diagonal - desc.window_left) ||
                      (desc.window_right >= 0 && key > diagonal + desc.window_right);
  return !hidden;
}

double Problem::mask(int b, int head, int64_t row, int64_t col) const {
  if (!mask_.data) return 0.;
  int64_t const i = b * mask_.stride_batch + head * mask_.stride_head + row * mask_.stride_q + col * mask_.stride_k;
  if (mask_.dtype == DType::kBool) return static_cast<bool const*>(mask_.data)[i] ? 0. : -INFINITY;
  if (mask_.dtype == DType::kFloat32) return static_cast<float const*>(mask_.data)[i];
  return to_float(static_cast<uint16_t const*>(mask_.data)[i], mask_.dtype);
}

float Problem::lse(int b, int head, int64_t row) const {
  return desc.varlen ? lse_[head * desc.total_q + cu_seqlens_q_[b] + row]
                     : lse_[(int64_t{b} * desc.num_heads_q + head) * desc.seqlen_q + row];
}

std::string Problem::run() {
  sage::AttnArgs args;
  args.q = q_->view();
  args.k = k_->view();
  args.v = v_->view();
  args.out = out_->view();
  if (desc.varlen) args.q.stride_batch = args.k.stride_batch = args.v.stride_batch = args.out.stride_batch = 0;
  args.lse = case_.lse ? lse_.data() : nullptr;
  args.softmax_scale = softmax_scale;
  args.mask = mask_;
  args.cu_seqlens_q = desc.varlen ? cu_seqlens_q_.data() : nullptr;
  args.cu_seqlens_k = desc.varlen ? cu_seqlens_k_.data() : nullptr;
  args.seqused_k = case_.seqused_k.empty() ? nullptr : case_.seqused_k.data();

  size_t const bytes = sage::quantized_q_bytes(desc, kernels_) + sage::quantized_kv_bytes(desc, kernels_);
  auto const free_aligned = [](char* p) { ::operator delete[](p, std::align_val_t{64}); };
  std::unique_ptr<char[], decltype(free_aligned)> const workspace(
      static_cast<char*>(::operator new[](bytes + kGuardBytes, std::align_val_t{64})), free_aligned);
  std::memset(workspace.get(), 0xFF, bytes + kGuardBytes);
  set_fold_slots(case_.fold_slots);
  if (sage::Status const status = run_cuda(desc, kernels_, case_.sm_count, args, workspace.get(), nullptr);
      !status.ok()) {
    return status.message;
  }
  if (!last_launch().all_given_back) return "a fold slot was not given back";
  bool const has_slots = last_launch().fold_slots > 0, folds = case_.fold_slots > 0;
  if (folds && !has_slots) return "the kernel got no fold slots";
  char const* const guard = workspace.get() + bytes;
  bool const clean = std::all_of(guard, guard + kGuardBytes, [](char x) { return x == '\xFF'; });
  return clean ? "" : "the kernels wrote beyond their workspace";
}

std::string Problem::changed() const {
  if (!q_->is_unchanged()) return "q was written";
  if (!k_->is_unchanged()) return "k was written";
  if (!v_->is_unchanged()) return "v was written";
  bool const clean = lse_.empty() || std::all_of(lse_.end() - kGuardRows, lse_.end(), [](float x) { return x != x; });
  if (!clean) return "lse was written beyond its end";
  return out_->is_clean_between() ? "" : "out was written between or after its elements";
}

uint32_t Problem::digest() const {
  uint32_t hash = 2166136261u;  // FNV-1a
  auto const add = [&hash](uint32_t bits) { hash = (hash ^ bits) * 16777619u; };
  for (int b = 0; b < desc.batch; ++b) {
    for (int h = 0; h < desc.num_heads_q; ++h) {
      for (int64_t i = 0; i < seqlen_q(b); ++i) {
        for (int d = 0; d < desc.head_dim; ++d) add(out_row(b, h, i)[d]);
        uint32_t bits = 0;
        float const x = has_lse() ? lse(b, h, i) : 0.f;
        std::memcpy(&bits, &x, sizeof bits);
        add(bits);
      }
    }
  }
  return hash;
}

}  // namespace kernel_test
