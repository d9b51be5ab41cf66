#include "kernel_test/problem.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "common/quant_format.h"

namespace kernel_test {

using sage::DType;

namespace {

constexpr uint16_t kNan = 0xFFFF;  // in both 16-bit formats
constexpr int64_t kFar = (int64_t{1} << 31) + 64;
constexpr int64_t kGuardRows = sage::kQTileRows;  // after out and lse
constexpr size_t kGuardBytes = 256;               // after the workspace

}  // namespace

float to_float(uint16_t bits, DType dtype) {
  return dtype == DType::kBFloat16 ? __bfloat162float(__ushort_as_bfloat16(bits))
                                   : __half2float(__ushort_as_half(bits));
}

uint16_t from_float(float x, DType dtype) {
  return dtype == DType::kBFloat16 ? __bfloat16_as_ushort(__float2bfloat16_rn(x))
                                   : __half_as_ushort(__float2half_rn(x));
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
  }
  bool const far = layout == Layout::kFarBatches || layout == Layout::kFarHeads;
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

// A power of two that differs between neighbouring scale groups, heads and sequences.
static float group_scale(int b, int head, int64_t group) { return static_cast<float>(1 << (group + head + 2 * b) % 3); }

Problem::Problem(Case const& c, sage::CudaForward const& kernels)
    : case_(c), kernels_(kernels), generator_(seed_of(c.name)) {
  bool const other = c.other_dtype && kernels.operand == DType::kFloat16;
  desc.device = {sage::DeviceType::kCuda, 0};
  desc.dtype = other ? DType::kBFloat16 : kernels.operand;
  desc.recipe.qk_granularity = c.granularity;
  desc.recipe.pv = kernels.pv;
  desc.recipe.pv_accum = kernels.pv_accum;
  desc.recipe.v_max = kernels.pv == sage::PvFormat::kInt8 ? 127.f : 0.f;
  desc.recipe.smooth_k = c.smooth_k;
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

  double const variance = c.steps.empty() ? 127. * 127. / 3. : 10. * 10. / 3.;  // of the integers
  double const scale = c.data == Data::kExact ? c.scores / (4. * variance) : 1.;
  softmax_scale = static_cast<float>(scale / std::sqrt(desc.head_dim));
  make_q();
  make_k();
  make_v();
  make_mask();
  for (Tensor* input : {q_.get(), k_.get(), v_.get()}) input->remember();
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

void Problem::make_q() {
  using sage::QkGranularity;
  int const dim = desc.head_dim, largest = case_.steps.empty() ? 127 : 10;
  for (int b = 0; b < desc.batch; ++b) {
    for (int h = 0; h < desc.num_heads_q; ++h) {
      for (int64_t i = 0; i < seqlen_q(b); ++i) {
        uint16_t* const row = q_row(b, h, i);
        int64_t const group = case_.granularity == QkGranularity::kThread ? sage::q_scale_index(static_cast<int>(i))
                              : case_.granularity == QkGranularity::kWarp ? i / sage::kQScaleRows
                                                                          : i / sage::kQTileRows;
        int64_t const top = case_.steps.empty() ? i * 7 % dim : 0;  // the channel with 127
        for (int d = 0; d < dim; ++d) {
          int const code = d != top ? uniform(-largest, largest) : case_.steps.empty() && i % 2 ? -127 : 127;
          float const x = case_.data == Data::kExact    ? static_cast<float>(code) * group_scale(b, h, group)
                          : case_.data == Data::kNormal ? normal()
                                                        : 0.f;
          row[d] = from_float(x, desc.dtype);
        }
      }
    }
  }
  if (case_.scores < 0) softmax_scale = -std::fabs(softmax_scale);
}

// Without its bias, K sums to zero over each sequence: neighbouring keys are opposite, and an odd last one is zero.
void Problem::make_k() {
  int const dim = desc.head_dim, largest = case_.steps.empty() ? 127 : 10;
  std::vector<int> codes(dim);
  for (int b = 0; b < desc.batch; ++b) {
    for (int h = 0; h < desc.num_heads_kv; ++h) {
      auto const bias = [&](int d) {
        if (case_.k_bias == 0) return 0;
        int const magnitude = case_.k_bias + 4 * ((d + h + b) % 6);
        return (d + h) % 2 ? -magnitude : magnitude;
      };
      for (int64_t j = 0; j < seqlen_k(b); ++j) {
        uint16_t* const row = k_row(b, h, j);
        int64_t const tile = j / sage::kKTileRows;
        int64_t const group = case_.granularity == sage::QkGranularity::kThread
                                  ? tile + sage::k_scale_index(static_cast<int>(j % sage::kKTileRows))
                                  : tile;
        if (!case_.steps.empty() || j % 2 == 0) {
          bool const zero = case_.smooth_k && j + 1 == seqlen_k(b);
          for (int& code : codes) code = zero ? 0 : uniform(-largest, largest);
          int64_t const top = 1 + (j / 2 * 5 + h) % (dim - 1);
          if (!zero) codes[top] = 127;
          if (!case_.steps.empty()) codes[0] = case_.steps[tile];
        } else {
          for (int& code : codes) code = -code;
        }
        for (int d = 0; d < dim; ++d) {
          float const x = case_.data == Data::kExact    ? static_cast<float>(codes[d]) * group_scale(b, h, group)
                          : case_.data == Data::kNormal ? normal()
                                                        : 0.f;
          row[d] = from_float(x + static_cast<float>(bias(d)), desc.dtype);
        }
      }
    }
  }
}

// A channel's own mean and, for INT8 V, power of two. Channel 3 is zero.
void Problem::make_v() {
  int const dim = desc.head_dim, exponent = desc.dtype == DType::kBFloat16 ? case_.v_exponent : 0;
  for (int b = 0; b < desc.batch; ++b) {
    for (int h = 0; h < desc.num_heads_kv; ++h) {
      for (int64_t j = 0; j < seqlen_k(b); ++j) {
        uint16_t* const row = v_row(b, h, j);
        for (int d = 0; d < dim; ++d) {
          float const mean = case_.data == Data::kNormal ? 0.f : static_cast<float>(d % 3);
          float x = std::ldexp(normal() + mean, exponent);
          if (desc.recipe.pv == sage::PvFormat::kInt8 && case_.data != Data::kNormal) {
            int const code = j == d % seqlen_k(b) ? 127 : uniform(-127, 127);
            x = std::ldexp(static_cast<float>(code), -(d + h + b) % 5 - 4);
          }
          row[d] = from_float(d == 3 ? 0.f : x, desc.dtype);
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
  }
  int64_t const element = mask_.dtype == DType::kBool ? 1 : mask_.dtype == DType::kFloat32 ? 4 : 2;
  mask_bytes_.resize(static_cast<size_t>(size * element));
  mask_.data = mask_bytes_.data();
  for (int64_t i = 0; i < size; ++i) {
    char* const bytes = mask_bytes_.data() + i * element;
    float const x = uniform(0, 7) == 0 ? -INFINITY : normal();
    if (mask_.dtype == DType::kBool) {
      *bytes = static_cast<char>(i / cols % 7 != 2 && uniform(0, 2) != 0);
    } else if (mask_.dtype == DType::kFloat32) {
      std::memcpy(bytes, &x, 4);
    } else {
      uint16_t const bits = from_float(x, mask_.dtype);
      std::memcpy(bytes, &bits, 2);
    }
  }
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
  if (sage::Status const status = run_cuda(desc, kernels_, args, workspace.get(), nullptr); !status.ok()) {
    return status.message;
  }
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

}  // namespace kernel_test
