// The quantizers of NVFP4, KvStats and QuantizeNvfp4, against plain arithmetic: every byte that is written.
#include <random>

#include "quantizer_test/nvfp4_check.h"
#include "quantizer_test/problem.h"

namespace sage {

extern arch::CompiledKernel<QuantizeParams> const kv_stats_d64, quantize_nvfp4_d64, kv_stats_d128, quantize_nvfp4_d128;

}  // namespace sage

namespace quantizer_test {
namespace {

Case nvfp4(Case c) {
  c.order = OperandOrder::kBlockScaled;
  c.qk = QkFormat::kNvfp4;
  if (c.v_format == VFormat::kInPlace) c.v_format = VFormat::kNvfp4;
  return c;
}

std::vector<Case> cases() {
  std::vector<Case> result;
  auto const add = [&](Case const& c) { result.push_back(nvfp4(c)); };
  add({.name = "plain", .seqlens_q = {130}, .seqlens_k = {70}, .smooth_k = false});
  add({.name = "K smoothed", .seqlens_q = {128}, .seqlens_k = {64}});
  add({.name = "Q smoothed", .seqlens_q = {300}, .seqlens_k = {100}, .softmax_scale = -.1f, .smooth_q = true});
  add({.name = "rotated", .seqlens_q = {130}, .seqlens_k = {65}, .smooth_k = false, .hadamard = true});
  add({.name = "V smoothed", .seqlens_k = {500}, .stats_chunks = 2, .smooth_v = true});
  add({.name = "one key", .seqlens_q = {1}, .seqlens_k = {1}, .smooth_q = true, .hadamard = true, .smooth_v = true});
  add({.name = "no keys", .seqlens_k = {0}, .smooth_v = true});
  for (Data data : {Data::kNormal, Data::kTiny, Data::kHuge, Data::kZeros, Data::kOutliers, Data::kExtreme}) {
    for (bool all : {false, true}) {
      for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
        Case c{.dtype = dtype,
               .data = data,
               .seqlens_q = {129},
               .seqlens_k = {200},
               .stats_chunks = 3,
               .softmax_scale = all ? -2.f : .125f,
               .smooth_k = all,
               .smooth_q = all,
               .hadamard = all,
               .smooth_v = all};
        std::string const suffix = std::string(all ? ", all" : "") + (dtype == DType::kFloat16 ? "" : ", bfloat16");
        c.name = "data " + std::to_string(static_cast<int>(data)) + suffix;
        add(c);
        c.name += ", e4m3 V";
        c.v_format = VFormat::kFp8E4m3;
        c.v_max = 448.f;
        add(c);
      }
    }
  }
  for (bool odd : {false, true}) {
    Case c{.name = "packed",
           .seqlens_q = {128, 0, 1, 70},
           .seqlens_k = {64, 30, 0, 129},
           .packed = true,
           .num_heads_q = 4,
           .num_heads_kv = 2,
           .stats_chunks = 2,
           .smooth_q = true};
    if (odd) {
      c.name += ", seqused_k, odd";
      c.odd = true;
      c.head_dim = 37;
      c.seqused_k = {64, 0, 0, 65};
      c.hadamard = c.smooth_v = true;
    }
    add(c);
    c.name += ", head_dim 80";
    c.head_dim = 80;
    add(c);
  }
  return result;
}

// Any combination; a name stands for its numbers.
Case random_case(int seed) {
  std::mt19937 random(seed);
  auto const any = [&](std::initializer_list<int> values) { return *(values.begin() + random() % values.size()); };
  Case c = random_shape("random " + std::to_string(seed), random);
  c.smooth_k = any({0, 1, 1});
  c.smooth_q = any({0, 1});
  c.hadamard = any({0, 1});
  c.smooth_v = any({0, 1});
  c.v_format = any({0, 1, 1}) ? VFormat::kNvfp4 : VFormat::kFp8E4m3;
  c.v_max = any({0, 1}) ? 448.f : 2.25f;
  c.lse = any({0, 1});
  return nvfp4(c);
}

}  // namespace
}  // namespace quantizer_test

int main(int count, char** arguments) {
  using namespace quantizer_test;
  return Program{.name = "nvfp4_quantizers",
                 .kernels = {{64, sage::kv_stats_d64, sage::quantize_nvfp4_d64},
                             {128, sage::kv_stats_d128, sage::quantize_nvfp4_d128}},
                 .cases = cases(),
                 .random_case = random_case,
                 .check = check_nvfp4,
                 .format = "e2m1",
                 .check_format = check_e2m1,
                 .format_is_quick = true}
      .run(count, arguments);
}
