#include "api_test/problem.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <random>
#include <stdexcept>

#include "simt/stats.h"

namespace api_test {

using sage::AttnArgs;
using sage::AttnDesc;
using sage::AttnPlan;
using sage::Status;

namespace {

constexpr size_t kGuardBytes = 256;
constexpr std::align_val_t kAlignment{64};

// About half of the keys' channels are biased, so that their mean matters.
std::vector<uint16_t> values(int64_t rows, int64_t head_dim, sage::DType dtype, unsigned seed, bool biased) {
  bool const bf16 = dtype == sage::DType::kBFloat16;
  int const mantissa_bits = bf16 ? 7 : 10, smallest_exponent = bf16 ? 124 : 12;
  std::mt19937 generator(seed);
  std::vector<uint16_t> x(rows * head_dim);
  for (size_t i = 0; i < x.size(); ++i) {  // of magnitudes 1/8 to 1
    unsigned const random = generator();
    unsigned const sign = biased && i % head_dim % 2 ? 0 : random & 0x8000;
    x[i] = static_cast<uint16_t>(sign | (smallest_exponent + random % 3) << mantissa_bits |
                                 (random >> 16 & ((1u << mantissa_bits) - 1)));
  }
  return x;
}

std::vector<int32_t> offsets(std::vector<int32_t> const& lengths) {
  std::vector<int32_t> result{0};
  for (int32_t length : lengths) result.push_back(result.back() + length);
  return result;
}

int64_t rows_q(AttnDesc const& d) { return d.varlen ? d.total_q : d.batch * d.seqlen_q; }
int64_t rows_k(AttnDesc const& d) { return d.varlen ? d.total_k : d.batch * d.seqlen_k; }

// Contiguous (batch, heads, rows, head_dim), packed (rows, heads, head_dim).
sage::TensorView view(uint16_t const* data, AttnDesc const& d, int64_t heads, int64_t seqlen) {
  auto* const p = const_cast<uint16_t*>(data);
  if (d.varlen) return {p, 0, d.head_dim, heads * d.head_dim};
  return {p, heads * seqlen * d.head_dim, seqlen * d.head_dim, d.head_dim};
}

}  // namespace

void Buffer::Free::operator()(char* p) const { ::operator delete(p, kAlignment); }

Buffer::Buffer(size_t bytes)
    : bytes_(bytes), data_(static_cast<char*>(::operator new(bytes + kGuardBytes, kAlignment))) {
  std::memset(data_.get(), 0xFF, bytes + kGuardBytes);
}

bool Buffer::is_clean_behind() const {
  return std::all_of(data_.get() + bytes_, data_.get() + bytes_ + kGuardBytes, [](char x) { return x == '\xFF'; });
}

sage::Recipe sage1() {
  sage::Recipe recipe;
  recipe.qk_granularity = sage::QkGranularity::kThread;
  recipe.pv = sage::PvFormat::kFp16;
  recipe.pv_accum = sage::PvAccum::kFp32;
  recipe.block_k = 64;
  recipe.p_max = 1.f;
  recipe.v_max = 0.f;
  return recipe;
}

sage::Recipe sage1_int8() {
  sage::Recipe recipe = sage1();
  recipe.pv = sage::PvFormat::kInt8;
  recipe.pv_accum = sage::PvAccum::kInt32;
  recipe.p_max = 255.f;
  recipe.v_max = 127.f;
  return recipe;
}

sage::Recipe sage2() {
  sage::Recipe recipe = sage1();
  recipe.pv = sage::PvFormat::kFp8E4m3;
  recipe.pv_accum = sage::PvAccum::kFp32Fp32;
  recipe.p_max = recipe.v_max = 448.f;
  return recipe;
}

sage::Recipe sage2pp() {
  sage::Recipe recipe = sage2();
  recipe.pv_accum = sage::PvAccum::kFp16Fp32;
  recipe.v_max = 2.25f;
  return recipe;
}

sage::Recipe sage3() {
  sage::Recipe recipe = sage1();
  recipe.qk = sage::QkFormat::kNvfp4;
  recipe.qk_granularity = sage::QkGranularity::k1x16;
  recipe.pv = sage::PvFormat::kNvfp4;
  recipe.p_max = 2048.f;
  recipe.p_two_level = recipe.smooth_q = true;
  return recipe;
}

sage::Recipe sage3_fp8() {
  sage::Recipe recipe = sage3();
  recipe.pv = sage::PvFormat::kFp8E4m3;
  recipe.p_max = 256.f;
  recipe.v_max = 448.f;
  recipe.p_two_level = false;
  return recipe;
}

AttnDesc make_desc(int64_t seqlen_q, int64_t seqlen_k) {
  AttnDesc desc;
  desc.device.type = sage::DeviceType::kCuda;
  desc.dtype = sage::DType::kFloat16;
  desc.recipe = sage1();
  desc.batch = 2;
  desc.num_heads_q = 4;
  desc.num_heads_kv = 2;
  desc.head_dim = 64;
  desc.seqlen_q = seqlen_q;
  desc.seqlen_k = seqlen_k;
  return desc;
}

std::string difference(Result const& actual, Result const& expected) {
  if (!actual.status.ok()) return actual.status.message;
  if (!expected.status.ok()) return expected.status.message;
  if (actual.out != expected.out) return "out differs";
  auto const bits_equal = [](float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; };
  bool const same =
      std::equal(actual.lse.begin(), actual.lse.end(), expected.lse.begin(), expected.lse.end(), bits_equal);
  return same ? "" : "lse differs";
}

Problem::Problem(AttnDesc const& given, std::vector<int32_t> const& seqlens_q, std::vector<int32_t> const& seqlens_k,
                 std::vector<int32_t> const& seqused_k, unsigned seed)
    : desc(given), seqused_k_(seqused_k) {
  if (!seqlens_q.empty()) {
    cu_seqlens_q_ = offsets(seqlens_q);
    cu_seqlens_k_ = offsets(seqlens_k);
    desc.varlen = true;
    desc.batch = static_cast<int32_t>(seqlens_q.size());
    desc.seqlen_q = *std::max_element(seqlens_q.begin(), seqlens_q.end());
    desc.seqlen_k = *std::max_element(seqlens_k.begin(), seqlens_k.end());
    desc.total_q = cu_seqlens_q_.back();
    desc.total_k = cu_seqlens_k_.back();
    args.cu_seqlens_q = cu_seqlens_q_.data();
    args.cu_seqlens_k = cu_seqlens_k_.data();
  }
  if (!seqused_k_.empty()) args.seqused_k = seqused_k_.data();
  q_ = values(rows_q(desc) * desc.num_heads_q, desc.head_dim, desc.dtype, 3 * seed, false);
  k_ = values(rows_k(desc) * desc.num_heads_kv, desc.head_dim, desc.dtype, 3 * seed + 1, true);
  v_ = values(rows_k(desc) * desc.num_heads_kv, desc.head_dim, desc.dtype, 3 * seed + 2, false);
  args.q = view(q_.data(), desc, desc.num_heads_q, desc.seqlen_q);
  args.k = view(k_.data(), desc, desc.num_heads_kv, desc.seqlen_k);
  args.v = view(v_.data(), desc, desc.num_heads_kv, desc.seqlen_k);
  args.softmax_scale = .5f;
}

AttnPlan Problem::plan() const {
  AttnPlan plan;
  if (Status const status = AttnPlan::create(desc, &plan); !status.ok()) throw std::runtime_error(status.message);
  return plan;
}

Result Problem::poisoned(AttnArgs* with_outputs) const {
  Result result;
  result.out.assign(rows_q(desc) * desc.num_heads_q * desc.head_dim, 0xFFFF);
  result.lse.assign(rows_q(desc) * desc.num_heads_q, NAN);
  *with_outputs = args;
  with_outputs->out = view(result.out.data(), desc, desc.num_heads_q, desc.seqlen_q);
  with_outputs->lse = lse ? result.lse.data() : nullptr;
  return result;
}

Result Problem::finished(Result result, uint64_t launches_before) const {
  result.launches = launches() - launches_before;
  return result;
}

Result Problem::run() const {
  AttnPlan const made = plan();
  Buffer const workspace(made.workspace_bytes());
  uint64_t const before = launches();
  AttnArgs all;
  Result result = poisoned(&all);
  result.status = made.run(all, workspace.data(), nullptr);
  if (result.status.ok() && !workspace.is_clean_behind()) throw std::runtime_error("run wrote beyond its workspace");
  return finished(std::move(result), before);
}

Result Problem::run_steps() const {
  AttnPlan const made = plan();
  Buffer const q_buffer(made.quantized_q_bytes()), kv_buffer(made.quantized_kv_bytes());
  uint64_t const before = launches();
  sage::QuantizedQ q;
  sage::QuantizedKv kv;
  Result result;
  result.status = made.quantize_kv(args, kv_buffer.data(), nullptr, &kv);
  std::string const quantized = kv_buffer.contents();
  if (result.status.ok()) result.status = made.quantize_q(args, kv, q_buffer.data(), nullptr, &q);
  if (result.status.ok()) result = run_quantized(q, kv);
  if (!q_buffer.is_clean_behind()) throw std::runtime_error("the steps wrote beyond the buffer of q");
  if (!kv_buffer.is_clean_behind()) throw std::runtime_error("the steps wrote beyond the buffer of kv");
  if (kv_buffer.contents() != quantized) throw std::runtime_error("quantized keys have changed in use");
  return finished(std::move(result), before);
}

Result Problem::run_quantized(sage::QuantizedQ const& q, sage::QuantizedKv const& kv) const {
  uint64_t const before = launches();
  AttnArgs all;
  Result result = poisoned(&all);
  all.q = all.k = all.v = {};  // only quantize_* read them
  result.status = plan().run_quantized(all, q, kv, nullptr);
  return finished(std::move(result), before);
}

uint64_t launches() { return simt::stats().launches; }

}  // namespace api_test
