// The steps of a plan (quantize_kv, quantize_q, run_quantized): the same results as `run`, one quantized K and V for
// many queries, views that do not fit a plan.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <stdexcept>

#include "api_test/problem.h"

namespace api_test {
namespace {

using sage::AttnArgs;
using sage::AttnDesc;
using sage::AttnPlan;
using sage::QuantizedKv;
using sage::QuantizedQ;
using sage::Status;
using sage::StatusCode;

int failures = 0;

void report(std::string const& what, std::string const& failure) {
  std::printf("%s: %s%s\n", what.c_str(), failure.empty() ? "passed" : "FAILED: ", failure.c_str());
  failures += !failure.empty();
}

// Runs one test. Its name is printed before, because a kernel may crash.
void test(std::string const& name, std::function<std::string()> const& body) {
  std::printf("%s ...\n", name.c_str());
  std::fflush(stdout);
  try {
    report(name, body());
  } catch (std::exception const& error) {
    report(name, error.what());
  }
}

struct Errors {
  std::string text;

  void operator+=(std::string const& error) {
    if (!error.empty()) text += (text.empty() ? "" : "; ") + error;
  }
};

std::string expect_error(Status const& status, StatusCode code, char const* part) {
  if (status.ok()) return std::string("not refused; expected: ") + part;
  if (status.code != code) return std::string("wrong code: ") + status.message;
  return std::strstr(status.message, part) ? "" : std::string(status.message) + "; expected: " + part;
}

std::string expect_invalid(Status const& status, char const* part) {
  return expect_error(status, StatusCode::kInvalidArgument, part);
}

// Of a view's tag; null: `status` must be ok.
std::string expect(Status const& status, char const* view, char const* message) {
  if (!message) return status.message;
  return expect_invalid(status, (std::string(view) + " " + message).c_str());
}

std::string expect_launches(Result const& result, uint64_t expected) {
  if (result.launches == expected) return "";
  return std::to_string(result.launches) + " launches, not " + std::to_string(expected);
}

// ---- The same results ---------------------------------------------------------------------------------------------

// `stats`: launches of KvStats.
std::string same(Problem const& problem, int stats) {
  Result const expected = problem.run(), actual = problem.run_steps();
  if (std::string const error = difference(actual, expected); !error.empty()) return error;
  if (std::string const error = expect_launches(expected, 2 + stats); !error.empty()) return "run: " + error;
  if (std::string const error = expect_launches(actual, 3 + stats); !error.empty()) return "steps: " + error;
  AttnPlan const plan = problem.plan();
  return plan.workspace_bytes() == plan.quantized_q_bytes() + plan.quantized_kv_bytes() ? "" : "workspace_bytes";
}

// Folded every two tiles of keys.
AttnDesc make_fp8_desc(sage::Recipe const& recipe, int64_t seqlen_q, int64_t seqlen_k, int32_t architecture = 89) {
  AttnDesc desc = make_desc(seqlen_q, seqlen_k);
  desc.device.architecture = architecture;
  desc.recipe = recipe;
  desc.recipe.fold_every = 2;
  return desc;
}

AttnDesc make_fp4_desc(sage::Recipe const& recipe, int64_t seqlen_q, int64_t seqlen_k) {
  AttnDesc desc = make_desc(seqlen_q, seqlen_k);
  desc.device.architecture = 120;
  desc.recipe = recipe;
  return desc;
}

void same_results() {
  test("sage1", [] { return same(Problem(make_desc(150, 300)), 1); });
  test("sage1, K not smoothed", [] {
    AttnDesc desc = make_desc(150, 300);
    desc.recipe.smooth_k = false;
    return same(Problem(desc), 0);
  });
  test("sage1, no lse", [] {
    Problem problem(make_desc(150, 300));
    problem.lse = false;
    return same(problem, 1);
  });
  test("sage1, V copied", [] {
    AttnDesc desc = make_desc(150, 300);
    desc.v_aligned = false;
    return same(Problem(desc), 1);
  });
  test("bfloat16, head_dim 40, causal", [] {
    AttnDesc desc = make_desc(150, 300);
    desc.dtype = sage::DType::kBFloat16;
    desc.head_dim = 40;
    desc.causal = true;
    return same(Problem(desc), 1);
  });
  test("bfloat16 V as float16, K not smoothed", [] {
    AttnDesc desc = make_desc(150, 300);
    desc.dtype = sage::DType::kBFloat16;
    desc.recipe.pv_accum = sage::PvAccum::kFp16Fp32;
    desc.recipe.smooth_k = false;
    return same(Problem(desc), 1);
  });
  test("sage1_int8, negative softmax_scale", [] {
    AttnDesc desc = make_desc(150, 300);
    desc.recipe = sage1_int8();
    Problem problem(desc);
    problem.args.softmax_scale = -.5f;
    return same(problem, 1);
  });
  test("many keys", [] { return same(Problem(make_desc(20, 1100)), 1); });
  test("seqused_k", [] { return same(Problem(make_desc(70, 300), {}, {}, {1, 177}), 1); });
  test("packed", [] { return same(Problem(make_desc(0, 0), {5, 0, 130, 64}, {70, 30, 300, 0}), 1); });
  test("sage2, folded", [] { return same(Problem(make_fp8_desc(sage2(), 150, 300)), 1); });
  test("sage2pp, folded, reverse, packed", [] {
    AttnDesc desc = make_fp8_desc(sage2pp(), 0, 0);
    desc.recipe.key_order = sage::KeyOrder::kReverse;
    return same(Problem(desc, {5, 0, 130, 64}, {70, 30, 300, 0}), 1);
  });
  test("sage2 on sm_120", [] { return same(Problem(make_fp8_desc(sage2(), 150, 300, 120)), 1); });
  test("sage2 on sm_90, folded", [] { return same(Problem(make_fp8_desc(sage2(), 150, 300, 90)), 1); });
  test("sage2 on sm_90, approximate exp, reverse, packed", [] {
    AttnDesc desc = make_fp8_desc(sage2(), 0, 0, 90);
    desc.recipe.approximate_exp = true;
    desc.recipe.key_order = sage::KeyOrder::kReverse;
    return same(Problem(desc, {5, 0, 130, 64}, {70, 30, 300, 0}), 1);
  });
  test("sage2, V smoothed and K not", [] {
    AttnDesc desc = make_fp8_desc(sage2(), 150, 300);
    desc.recipe.smooth_k = false;
    desc.recipe.smooth_v = desc.recipe.hadamard = true;
    return same(Problem(desc, {}, {}, {1, 177}), 1);
  });
  test("sage2_int4, all smoothed", [] {
    AttnDesc desc = make_fp8_desc(sage2(), 150, 300);
    desc.recipe.qk = sage::QkFormat::kInt4;
    desc.recipe.smooth_q = desc.recipe.smooth_v = true;
    return same(Problem(desc), 1);
  });
  test("INT4 with bfloat16, Q smoothed, K not, packed", [] {
    AttnDesc desc = make_desc(0, 0);
    desc.dtype = sage::DType::kBFloat16;
    desc.recipe.qk = sage::QkFormat::kInt4;
    desc.recipe.smooth_q = true;
    desc.recipe.smooth_k = false;
    return same(Problem(desc, {5, 0, 130, 64}, {70, 30, 300, 0}), 0);
  });
  test("sage3, head_dim 72", [] {
    AttnDesc desc = make_fp4_desc(sage3(), 150, 300);
    desc.head_dim = 72;
    return same(Problem(desc), 1);
  });
  test("sage3, packed, reverse, V smoothed and Q not", [] {
    AttnDesc desc = make_fp4_desc(sage3(), 0, 0);
    desc.recipe.smooth_q = false;
    desc.recipe.smooth_v = true;
    desc.recipe.key_order = sage::KeyOrder::kReverse;
    return same(Problem(desc, {5, 0, 130, 64}, {70, 30, 300, 0}), 1);
  });
  test("sage3_fp8, seqused_k", [] { return same(Problem(make_fp4_desc(sage3_fp8(), 150, 300), {}, {}, {1, 177}), 1); });
  test("sage3_fp8, bfloat16, K not smoothed, rotated, no lse", [] {
    AttnDesc desc = make_fp4_desc(sage3_fp8(), 150, 300);
    desc.dtype = sage::DType::kBFloat16;
    desc.recipe.smooth_k = false;
    desc.recipe.hadamard = true;
    Problem problem(desc);
    problem.lse = false;
    return same(problem, 1);
  });
  test("packed, sage1_int8, seqused_k", [] {
    AttnDesc desc = make_desc(0, 0);
    desc.recipe = sage1_int8();
    return same(Problem(desc, {70, 9, 130}, {70, 64, 300}, {33, 0, 250}), 1);
  });
}

std::string no_keys() {
  Problem const problem(make_desc(70, 0));
  Result const actual = problem.run_steps();
  if (std::string const error = difference(actual, problem.run()); !error.empty()) return error;
  for (uint16_t x : actual.out)
    if (x != 0) return "out is not 0";
  for (float x : actual.lse)
    if (x != -INFINITY) return "lse is not -inf";
  return "";
}

// K and V may still be quantized, for other queries; of Q there is nothing.
std::string no_queries() {
  Problem const none(make_desc(0, 300)), some(make_desc(70, 300));
  Result const result = none.run_steps();
  if (!result.status.ok()) return result.status.message;
  if (std::string const error = expect_launches(result, 2); !error.empty()) return error;
  Buffer const kv_buffer(none.plan().quantized_kv_bytes()), q_buffer(some.plan().quantized_q_bytes());
  QuantizedKv kv;
  QuantizedQ q;
  if (Status status = none.plan().quantize_kv(some.args, kv_buffer.data(), nullptr, &kv); !status.ok())
    return status.message;
  if (Status status = some.plan().quantize_q(some.args, kv, q_buffer.data(), nullptr, &q); !status.ok())
    return status.message;
  return difference(some.run_quantized(q, kv), some.run());
}

// A batch of 0, also where it is packed, launches nothing and needs no memory.
std::string no_batch(bool varlen) {
  AttnDesc desc = make_desc(70, 300);
  desc.batch = 0;
  desc.varlen = varlen;
  Problem problem(desc);
  int32_t const zero = 0;
  if (varlen) problem.args.cu_seqlens_q = problem.args.cu_seqlens_k = &zero;
  AttnPlan const plan = problem.plan();
  if (plan.workspace_bytes() != 0) return "needs a workspace";
  QuantizedQ q;
  QuantizedKv kv;
  uint64_t const before = launches();
  if (Status status = plan.quantize_kv(problem.args, nullptr, nullptr, &kv); !status.ok()) return status.message;
  if (Status status = plan.quantize_q(problem.args, kv, nullptr, nullptr, &q); !status.ok()) return status.message;
  if (Status status = plan.run_quantized(problem.args, q, kv, nullptr); !status.ok()) return status.message;
  return launches() == before ? "" : "kernels were launched";
}

// ---- One quantized K and V ----------------------------------------------------------------------------------------

// Of problems of one kind.
std::string many_queries(AttnDesc const& kind, bool varlen) {
  std::vector<int32_t> const seqlens_q = varlen ? std::vector<int32_t>{70, 9} : std::vector<int32_t>{};
  std::vector<int32_t> const seqlens_k = varlen ? std::vector<int32_t>{130, 300} : std::vector<int32_t>{};
  Problem const first(kind, seqlens_q, seqlens_k);
  Buffer const kv_buffer(first.plan().quantized_kv_bytes());
  QuantizedKv kv;
  if (Status status = first.plan().quantize_kv(first.args, kv_buffer.data(), nullptr, &kv); !status.ok())
    return status.message;
  for (int64_t seqlen_q : {1, 70, 200}) {
    AttnDesc desc = kind;
    desc.seqlen_q = seqlen_q;
    desc.num_heads_q = seqlen_q == 1 ? 2 : 6;
    desc.causal = seqlen_q == 70;
    if (seqlen_q == 200) desc.window_left = 40;
    std::vector<int32_t> const lengths =
        varlen ? std::vector<int32_t>{static_cast<int32_t>(seqlen_q), 3} : std::vector<int32_t>{};
    Problem const other(desc, lengths, seqlens_k);
    Buffer const q_buffer(other.plan().quantized_q_bytes());
    QuantizedQ q;
    if (Status status = other.plan().quantize_q(other.args, kv, q_buffer.data(), nullptr, &q); !status.ok())
      return status.message;
    Result const actual = other.run_quantized(q, kv), expected = other.run();
    if (std::string const error = difference(actual, expected); !error.empty())
      return "seqlen_q " + std::to_string(seqlen_q) + ": " + error;
    if (std::string const error = expect_launches(actual, 1); !error.empty()) return error;
  }
  return "";
}

// Keys that were quantized up to seqused_k are refused by a call that would read all of them.
std::string lengths_of_keys() {
  Problem const problem(make_desc(70, 300), {}, {}, {1, 177});
  AttnPlan const plan = problem.plan();
  Buffer const q_buffer(plan.quantized_q_bytes()), kv_buffer(plan.quantized_kv_bytes()), out(2 * 4 * 70 * 64 * 2);
  QuantizedQ q;
  QuantizedKv kv;
  if (Status status = plan.quantize_kv(problem.args, kv_buffer.data(), nullptr, &kv); !status.ok())
    return status.message;
  if (Status status = plan.quantize_q(problem.args, kv, q_buffer.data(), nullptr, &q); !status.ok())
    return status.message;
  AttnArgs args = problem.args;
  args.out = {out.data(), 4 * 70 * 64, 70 * 64, 64};
  args.seqused_k = nullptr;
  return expect_invalid(plan.run_quantized(args, q, kv, nullptr), "seqused_k must be given: kv was quantized with it");
}

// Q knows the mean of one K: with another K there is no exact lse. Without lse it serves any.
std::string two_keys() {
  AttnDesc const desc = make_desc(70, 300);
  Problem const first(desc);
  Problem second(desc, {}, {}, {}, 2);
  second.args.q = first.args.q;
  AttnPlan const plan = first.plan();
  Buffer const q_buffer(plan.quantized_q_bytes()), buffer_1(plan.quantized_kv_bytes()),
      buffer_2(plan.quantized_kv_bytes());
  QuantizedQ q;
  QuantizedKv kv_1, kv_2;
  if (Status status = plan.quantize_kv(first.args, buffer_1.data(), nullptr, &kv_1); !status.ok())
    return status.message;
  if (Status status = plan.quantize_kv(second.args, buffer_2.data(), nullptr, &kv_2); !status.ok())
    return status.message;
  if (Status status = plan.quantize_q(second.args, kv_1, q_buffer.data(), nullptr, &q); !status.ok())
    return status.message;
  if (std::string const error = difference(first.run_quantized(q, kv_1), first.run()); !error.empty()) return error;
  if (std::string const error = expect_invalid(second.run_quantized(q, kv_2).status, "lse needs q and kv of one");
      !error.empty())
    return error;
  second.lse = false;
  return difference(second.run_quantized(q, kv_2), second.run());
}

// Slots for sums that are folded: given back, so that a view of Q serves again; there if the keys need them.
std::string folding() {
  AttnDesc const desc = make_fp8_desc(sage2(), 150, 300);
  Problem const many(desc);
  AttnDesc short_desc = desc;
  short_desc.seqlen_k = 128;
  Problem few(short_desc);
  few.lse = false;
  few.args.q = many.args.q;
  AttnPlan const plan = many.plan(), short_plan = few.plan();
  if (plan.quantized_q_bytes() <= short_plan.quantized_q_bytes()) return "no slots";
  Buffer const q_buffer(plan.quantized_q_bytes()), kv_buffer(plan.quantized_kv_bytes()),
      short_q_buffer(short_plan.quantized_q_bytes()), short_kv_buffer(short_plan.quantized_kv_bytes());
  QuantizedQ q, short_q;
  QuantizedKv kv, short_kv;
  Errors all;
  all += plan.quantize_kv(many.args, kv_buffer.data(), nullptr, &kv).message;
  all += plan.quantize_q(many.args, kv, q_buffer.data(), nullptr, &q).message;
  all += short_plan.quantize_kv(few.args, short_kv_buffer.data(), nullptr, &short_kv).message;
  all += short_plan.quantize_q(few.args, short_kv, short_q_buffer.data(), nullptr, &short_q).message;
  Result const expected = many.run();
  for (int i = 0; i < 2; ++i) all += difference(many.run_quantized(q, kv), expected);
  all += difference(few.run_quantized(short_q, short_kv), few.run());
  all += difference(few.run_quantized(q, short_kv), few.run());
  Problem many_without_lse(desc);
  many_without_lse.lse = false;
  all += expect_invalid(many_without_lse.run_quantized(short_q, kv).status,
                        "q was quantized for seqlen_k 128 and has no room for the sums over 300 keys");

  // On sm_120 nothing is folded.
  Problem const other(make_fp8_desc(sage2(), 150, 300, 120));
  AttnPlan const other_plan = other.plan();
  Buffer const other_buffer(other_plan.quantized_q_bytes());
  QuantizedQ other_q;
  all += other_plan.quantize_q(many.args, kv, other_buffer.data(), nullptr, &other_q).message;
  all += expect_invalid(many.run_quantized(other_q, kv).status,
                        "q was quantized for seqlen_k 300 and has no room for the sums over 300 keys");
  return all.text;
}

// The kernels of one GPU do not read what was arranged for those of another.
std::string operand_orders() {
  Problem const here(make_fp8_desc(sage2(), 70, 300, 90)), there(make_fp8_desc(sage2(), 70, 300, 89));
  AttnPlan const plan = here.plan(), other_plan = there.plan();
  Buffer const q_buffer(plan.quantized_q_bytes()), kv_buffer(plan.quantized_kv_bytes()),
      other_q_buffer(other_plan.quantized_q_bytes()), other_kv_buffer(other_plan.quantized_kv_bytes());
  QuantizedQ q, other_q;
  QuantizedKv kv, other_kv;
  Errors all;
  all += plan.quantize_kv(here.args, kv_buffer.data(), nullptr, &kv).message;
  all += plan.quantize_q(here.args, kv, q_buffer.data(), nullptr, &q).message;
  all += other_plan.quantize_kv(there.args, other_kv_buffer.data(), nullptr, &other_kv).message;
  all += other_plan.quantize_q(there.args, other_kv, other_q_buffer.data(), nullptr, &other_q).message;
  char const *const wgmma = "has operands for wgmma, the plan needs mma.sync",
                    *const mma_sync = "has operands for mma.sync, the plan needs wgmma";
  all += expect(here.run_quantized(q, other_kv).status, "kv", mma_sync);
  all += expect(here.run_quantized(other_q, kv).status, "q", mma_sync);
  all += expect(there.run_quantized(other_q, kv).status, "kv", wgmma);
  all += expect(there.run_quantized(q, other_kv).status, "q", wgmma);
  QuantizedQ unused;
  all += expect(plan.quantize_q(here.args, other_kv, q_buffer.data(), nullptr, &unused), "kv", mma_sync);

  // Those of block-scaled instructions differ from all others in format, too; so the tag is changed.
  Problem const fp4(make_fp4_desc(sage3_fp8(), 70, 300));
  AttnPlan const fp4_plan = fp4.plan();
  Buffer const fp4_buffer(fp4_plan.quantized_kv_bytes());
  QuantizedKv fp4_kv;
  all += fp4_plan.quantize_kv(fp4.args, fp4_buffer.data(), nullptr, &fp4_kv).message;
  fp4_kv.order = kv.order;
  all += expect(fp4_plan.quantize_q(fp4.args, fp4_kv, q_buffer.data(), nullptr, &unused), "kv",
                "has operands for wgmma, the plan needs block-scaled mma");
  fp4_kv.desc.recipe.pv = sage::PvFormat::kNvfp4;
  all += expect(fp4_plan.quantize_q(fp4.args, fp4_kv, q_buffer.data(), nullptr, &unused), "kv",
                "has recipe field pv nvfp4, the plan needs fp8_e4m3");
  return all.text;
}

// ---- Views that do not fit ----------------------------------------------------------------------------------------

struct Field {
  char const* message;  // null: the field may differ
  std::function<void(AttnDesc&)> change;
};

std::vector<Field> const kSharedFields = {
    {"has device type cpu, the plan needs cuda", [](AttnDesc& d) { d.device.type = sage::DeviceType::kCpu; }},
    {"has device index 1, the plan needs 0", [](AttnDesc& d) { d.device.index = 1; }},
    {"has dtype bfloat16, the plan needs float16", [](AttnDesc& d) { d.dtype = sage::DType::kBFloat16; }},
    {"has recipe field qk int4, the plan needs int8", [](AttnDesc& d) { d.recipe.qk = sage::QkFormat::kInt4; }},
    {"has recipe field qk_granularity warp, the plan needs thread",
     [](AttnDesc& d) { d.recipe.qk_granularity = sage::QkGranularity::kWarp; }},
    {"has recipe field pv int8, the plan needs fp16", [](AttnDesc& d) { d.recipe.pv = sage::PvFormat::kInt8; }},
    {"has recipe field pv_accum fp16, the plan needs fp32",
     [](AttnDesc& d) { d.recipe.pv_accum = sage::PvAccum::kFp16; }},
    {"has recipe field block_q 64, the plan needs 128", [](AttnDesc& d) { d.recipe.block_q = 64; }},
    {"has recipe field block_k 128, the plan needs 64", [](AttnDesc& d) { d.recipe.block_k = 128; }},
    {"has recipe field p_max 448, the plan needs 1", [](AttnDesc& d) { d.recipe.p_max = 448.f; }},
    {"has recipe field v_max 127, the plan needs 0", [](AttnDesc& d) { d.recipe.v_max = 127.f; }},
    {"has recipe field v_per_block true, the plan needs false", [](AttnDesc& d) { d.recipe.v_per_block = true; }},
    {"has recipe field fold_every 2, the plan needs 1", [](AttnDesc& d) { d.recipe.fold_every = 2; }},
    {"has recipe field key_order reverse, the plan needs forward",
     [](AttnDesc& d) { d.recipe.key_order = sage::KeyOrder::kReverse; }},
    {"has recipe field p_two_level true, the plan needs false", [](AttnDesc& d) { d.recipe.p_two_level = true; }},
    {"has recipe field smooth_q true, the plan needs false", [](AttnDesc& d) { d.recipe.smooth_q = true; }},
    {"has recipe field smooth_k false, the plan needs true", [](AttnDesc& d) { d.recipe.smooth_k = false; }},
    {"has recipe field smooth_v true, the plan needs false", [](AttnDesc& d) { d.recipe.smooth_v = true; }},
    {"has recipe field approximate_exp true, the plan needs false",
     [](AttnDesc& d) { d.recipe.approximate_exp = true; }},
    {"has recipe field hadamard true, the plan needs false", [](AttnDesc& d) { d.recipe.hadamard = true; }},
    {"has batch 3, the plan needs 2", [](AttnDesc& d) { d.batch = 3; }},
    {"has head_dim 48, the plan needs 64", [](AttnDesc& d) { d.head_dim = 48; }},
    {"has varlen true, the plan needs false", [](AttnDesc& d) { d.varlen = true; }},
    {"is empty", [](AttnDesc& d) { d = {}; }},
    {nullptr, [](AttnDesc& d) { d.causal = true; }},
    {nullptr, [](AttnDesc& d) { d.window_left = d.window_right = 3; }},
    {nullptr, [](AttnDesc& d) { d.num_threads = 2; }},
    {nullptr, [](AttnDesc& d) { d.device.architecture = 80; }},
};
std::vector<Field> const kKvFields = {
    {"has num_heads_kv 4, the plan needs 2", [](AttnDesc& d) { d.num_heads_kv = 4; }},
    {"has seqlen_k 301, the plan needs 300", [](AttnDesc& d) { d.seqlen_k = 301; }},
    {"has V copied, the plan needs read in place", [](AttnDesc& d) { d.v_aligned = false; }},
    {nullptr, [](AttnDesc& d) { d.seqlen_q = d.num_heads_q = 1; }},
};
std::vector<Field> const kQFields = {
    {"has num_heads_q 8, the plan needs 4", [](AttnDesc& d) { d.num_heads_q = 8; }},
    {"has seqlen_q 71, the plan needs 70", [](AttnDesc& d) { d.seqlen_q = 71; }},
    {nullptr, [](AttnDesc& d) { d.seqlen_k = 1, d.num_heads_kv = 1, d.v_aligned = false; }},
};
std::vector<Field> const kPackedKvFields = {
    {"has total_k 371, the plan needs 370", [](AttnDesc& d) { d.total_k = 371; }},
    {"has varlen false, the plan needs true", [](AttnDesc& d) { d.varlen = false; }},
    {nullptr, [](AttnDesc& d) { d.total_q = 1; }},
};
std::vector<Field> const kPackedQFields = {
    {"has total_q 80, the plan needs 79", [](AttnDesc& d) { d.total_q = 80; }},
    {nullptr, [](AttnDesc& d) { d.total_k = 1; }},
};

// Changes a field of the tag of each view in turn: as if another plan had written it.
std::string tags(Problem const& problem, std::vector<std::vector<Field>> const& of_kv,
                 std::vector<std::vector<Field>> const& of_q) {
  AttnPlan const plan = problem.plan();
  Buffer const q_buffer(plan.quantized_q_bytes()), kv_buffer(plan.quantized_kv_bytes()),
      scratch(plan.quantized_q_bytes());
  QuantizedQ q;
  QuantizedKv kv;
  if (Status status = plan.quantize_kv(problem.args, kv_buffer.data(), nullptr, &kv); !status.ok())
    return status.message;
  if (Status status = plan.quantize_q(problem.args, kv, q_buffer.data(), nullptr, &q); !status.ok())
    return status.message;
  Errors all;
  for (std::vector<Field> const& fields : of_kv) {
    for (Field const& field : fields) {
      QuantizedKv other = kv;
      QuantizedQ unused;
      field.change(other.desc);
      all += expect(problem.run_quantized(q, other).status, "kv", field.message);
      Status const status = plan.quantize_q(problem.args, other, scratch.data(), nullptr, &unused);
      all += expect(status, "kv", field.message);
      if (!status.ok() && unused.data) all += "a view is left behind";
    }
  }
  for (std::vector<Field> const& fields : of_q) {
    for (Field const& field : fields) {
      QuantizedQ other = q;
      field.change(other.desc);
      all += expect(problem.run_quantized(other, kv).status, "q", field.message);
    }
  }
  QuantizedKv no_kv = kv;
  QuantizedQ no_q = q;
  no_kv.data = no_q.data = nullptr;
  all += expect_invalid(problem.run_quantized(q, no_kv).status, "kv is empty");
  all += expect_invalid(problem.run_quantized(no_q, kv).status, "q is empty");
  all += expect_invalid(problem.run_quantized(q, {}).status, "kv is empty: quantize_kv must have filled it");
  all += expect_invalid(problem.run_quantized({}, kv).status, "q is empty: quantize_q must have filled it");
  return all.text;
}

std::string arguments() {
  Problem const problem(make_desc(70, 300));
  AttnPlan const plan = problem.plan();
  Buffer const buffer(plan.workspace_bytes());
  QuantizedKv kv;
  QuantizedQ q;
  Errors all;
  char* const odd = static_cast<char*>(buffer.data()) + 32;
  all += expect_invalid(AttnPlan().quantize_kv(problem.args, buffer.data(), nullptr, &kv), "plan was not created");
  all += expect_invalid(plan.quantize_kv(problem.args, nullptr, nullptr, &kv), "buffer must not be null");
  all += expect_invalid(plan.quantize_kv(problem.args, odd, nullptr, &kv), "buffer must be aligned to 64 bytes");
  AttnArgs changed = problem.args;
  changed.v.data = nullptr;
  all += expect_invalid(plan.quantize_kv(changed, buffer.data(), nullptr, &kv), "k and v must not be null");
  changed = problem.args;
  changed.v.stride_head += 1;
  all += expect_invalid(plan.quantize_kv(changed, buffer.data(), nullptr, &kv), "v must have data and strides");
  changed = problem.args;
  int32_t const lengths[] = {0, 1, 2};
  changed.cu_seqlens_k = lengths;
  all += expect_invalid(plan.quantize_kv(changed, buffer.data(), nullptr, &kv), "cu_seqlens_k must be null");
  if (kv.data || kv.desc.head_dim) all += "a failed quantize_kv leaves a view";

  Status const status = plan.quantize_kv(problem.args, buffer.data(), nullptr, &kv);
  all += status.message;
  Buffer const q_buffer(plan.quantized_q_bytes());
  changed = problem.args;
  changed.softmax_scale = NAN;
  all += expect_invalid(plan.quantize_q(changed, kv, q_buffer.data(), nullptr, &q), "softmax_scale must be finite");
  changed = problem.args;
  changed.q.data = nullptr;
  all += expect_invalid(plan.quantize_q(changed, kv, q_buffer.data(), nullptr, &q), "q must not be null");
  all += expect_invalid(plan.quantize_q(problem.args, kv, nullptr, nullptr, &q), "buffer must not be null");
  all += plan.quantize_q(problem.args, kv, q_buffer.data(), nullptr, &q).message;
  all += expect_invalid(plan.run_quantized(problem.args, q, kv, nullptr), "out must not be null");
  return all.text;
}

}  // namespace
}  // namespace api_test

int main() {
  using namespace api_test;
  same_results();
  test("no keys", no_keys);
  test("no queries", no_queries);
  test("no batch", [] { return no_batch(false); });
  test("no batch, packed", [] { return no_batch(true); });
  test("many queries", [] { return many_queries(make_desc(70, 300), false); });
  test("many queries, packed", [] { return many_queries(make_desc(70, 300), true); });
  test("many queries, sage3", [] { return many_queries(make_fp4_desc(sage3(), 70, 300), false); });
  test("lengths of keys", lengths_of_keys);
  test("two keys", two_keys);
  test("folding", folding);
  test("operand orders", operand_orders);
  test("tags", [] { return tags(Problem(make_desc(70, 300)), {kSharedFields, kKvFields}, {kSharedFields, kQFields}); });
  test("tags, packed",
       [] { return tags(Problem(make_desc(0, 0), {70, 9}, {70, 300}), {kPackedKvFields}, {kPackedQFields}); });
  test("arguments", arguments);
  std::printf("%d failed\n", failures);
  return failures != 0;
}
