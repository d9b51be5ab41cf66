// The quantizers, KvStats and QuantizeQkv, against plain arithmetic: every format, what is written and what is not.
#include <algorithm>
#include <cstring>
#include <random>

#include "quantizer_test/check.h"
#include "quantizer_test/problem.h"

namespace sage {

extern arch::CompiledKernel<QuantizeParams> const kv_stats_d64, quantize_qkv_d64, kv_stats_d128, quantize_qkv_d128,
    kv_stats_d256, quantize_qkv_d256;

}  // namespace sage

namespace quantizer_test {
namespace {

// Each format of Q and K once on plain data; the others are varied along with it.
std::vector<Case> cases() {
  std::vector<Case> result;
  auto const add = [&](Case c) { result.push_back(c); };
  using Qk = QkFormat;
  using By = QkGranularity;
  add({.name = "INT8", .seqlens_q = {130}, .seqlens_k = {70}, .v_format = VFormat::kCopy});
  add({.name = "INT8 per warp", .seqlens_q = {200}, .granularity = By::kWarp});
  add({.name = "INT8 per block, bfloat16 V",
       .dtype = DType::kBFloat16,
       .granularity = By::kBlock,
       .v_format = VFormat::kFloat16});
  add({.name = "INT8, rotated", .seqlens_q = {130}, .hadamard = true, .v_format = VFormat::kInt8, .v_max = 127.f});
  add({.name = "INT4", .seqlens_q = {130}, .qk = Qk::kInt4});
  add({.name = "INT4, Q smoothed", .seqlens_q = {300}, .softmax_scale = -.1f, .qk = Qk::kInt4, .smooth_q = true});
  add({.name = "INT4 per warp, all",
       .seqlens_q = {129},
       .seqlens_k = {200},
       .stats_chunks = 3,
       .qk = Qk::kInt4,
       .granularity = By::kWarp,
       .smooth_q = true,
       .hadamard = true});
  add({.name = "INT4 per block, all",
       .dtype = DType::kBFloat16,
       .seqlens_q = {129},
       .softmax_scale = -2.f,
       .qk = Qk::kInt4,
       .granularity = By::kBlock,
       .smooth_q = true,
       .hadamard = true});
  add({.name = "e4m3", .seqlens_k = {150}, .v_format = VFormat::kFp8E4m3, .v_max = 448.f});
  add({.name = "e4m3, smoothed",
       .seqlens_k = {500},
       .stats_chunks = 2,
       .smooth_v = true,
       .v_format = VFormat::kFp8E4m3,
       .v_max = 2.25f});
  add({.name = "INT8 V, smoothed", .seqlens_k = {77}, .smooth_v = true, .v_format = VFormat::kInt8, .v_max = 127.f});
  add({.name = "chunks without rows",
       .seqlens_k = {5},
       .stats_chunks = 16,
       .smooth_v = true,
       .v_format = VFormat::kFp8E4m3,
       .v_max = 448.f});
  add({.name = "one key",
       .seqlens_q = {1},
       .seqlens_k = {1},
       .qk = Qk::kInt4,
       .smooth_q = true,
       .hadamard = true,
       .smooth_v = true,
       .v_format = VFormat::kFp8E4m3,
       .v_max = 448.f});
  add({.name = "no keys", .seqlens_k = {0}, .smooth_v = true, .v_format = VFormat::kFp8E4m3, .v_max = 448.f});
  constexpr OperandOrder kWgmma = OperandOrder::kWgmma;
  add({.name = "wgmma",
       .seqlens_q = {130},
       .seqlens_k = {70},
       .order = kWgmma,
       .v_format = VFormat::kFp8E4m3,
       .v_max = 448.f});
  add({.name = "wgmma, INT8 V", .seqlens_k = {128}, .order = kWgmma, .v_format = VFormat::kInt8, .v_max = 127.f});
  add({.name = "wgmma per warp", .seqlens_q = {200}, .order = kWgmma, .granularity = By::kWarp});
  add({.name = "wgmma per block, all",
       .dtype = DType::kBFloat16,
       .seqlens_q = {129},
       .seqlens_k = {200},
       .stats_chunks = 3,
       .softmax_scale = -2.f,
       .order = kWgmma,
       .granularity = By::kBlock,
       .hadamard = true,
       .smooth_v = true,
       .v_format = VFormat::kFp8E4m3,
       .v_max = 2.25f});
  for (VFormat format : {VFormat::kInt8, VFormat::kFp8E4m3, VFormat::kFloat16, VFormat::kCopy}) {
    bool const v8 = format == VFormat::kInt8 || format == VFormat::kFp8E4m3;
    for (char const* variant : {"", ", all", ", wgmma"}) {
      bool const all = *variant, wgmma = !std::strcmp(variant, ", wgmma");
      if (wgmma && !v8) continue;
      Case c{.seqlens_q = {128, 0, 1, 70},
             .seqlens_k = {64, 30, 0, 129},
             .packed = true,
             .num_heads_q = 4,
             .num_heads_kv = 2,
             .stats_chunks = 2,
             .order = wgmma ? kWgmma : OperandOrder::kMmaSync,
             .qk = all && !wgmma ? Qk::kInt4 : Qk::kInt8,
             .smooth_q = all && !wgmma,
             .hadamard = all,
             .smooth_v = all && v8,
             .v_format = format,
             .v_max = format == VFormat::kInt8 ? 127.f : 448.f};
      std::string const suffix = std::to_string(static_cast<int>(format)) + variant;
      c.name = "packed, V format " + suffix;
      add(c);
      c.name = "packed, seqused_k, odd, V format " + suffix;
      c.odd = true;
      c.head_dim = 37;
      c.seqused_k = {64, 0, 0, 65};
      add(c);
      c.name = "zeros, V format " + suffix;
      c.data = Data::kZeros;
      add(c);
      c.name = "NaN and infinity, V format " + suffix;
      c.data = Data::kOutliers;
      add(c);
      c.name = "extremes, V format " + suffix;
      c.data = Data::kExtreme;
      c.granularity = By::kBlock;
      add(c);
      c.name = "extremes of bfloat16, V format " + suffix;
      c.dtype = DType::kBFloat16;
      add(c);
    }
  }
  return result;
}

Case random_case(int seed) {
  std::mt19937 random(seed);
  auto const any = [&](std::initializer_list<int> values) { return *(values.begin() + random() % values.size()); };
  Case c = random_shape("random " + std::to_string(seed), random);
  c.qk = any({0, 1}) ? QkFormat::kInt8 : QkFormat::kInt4;
  c.granularity = static_cast<QkGranularity>(any({1, 2, 3}));
  c.smooth_k = any({0, 1, 1});
  c.smooth_q = any({0, 1}) && c.qk == QkFormat::kInt4;
  c.hadamard = any({0, 1});
  c.v_format = static_cast<VFormat>(any({0, 1, 2, 3, 4, 4}));
  c.v_max = c.v_format == VFormat::kInt8 ? 127.f : any({0, 1}) ? 448.f : 2.25f;
  bool const v8 = c.v_format == VFormat::kInt8 || c.v_format == VFormat::kFp8E4m3;
  c.smooth_v = v8 && any({0, 1});
  c.lse = any({0, 1});
  if (c.qk == QkFormat::kInt8 && v8 && any({0, 1})) c.order = OperandOrder::kWgmma;
  return c;
}

}  // namespace
}  // namespace quantizer_test

int main(int count, char** arguments) {
  using namespace quantizer_test;
  return Program{.name = "quantizers",
                 .kernels = {{64, sage::kv_stats_d64, sage::quantize_qkv_d64},
                             {128, sage::kv_stats_d128, sage::quantize_qkv_d128},
                             {256, sage::kv_stats_d256, sage::quantize_qkv_d256}},
                 .cases = cases(),
                 .random_case = random_case,
                 .check = check,
                 .format = "e4m3",
                 .check_format = check_e4m3,
                 .format_is_quick = false}
      .run(count, arguments);
}
