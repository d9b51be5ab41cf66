#include "api/tags.h"

#include <cstdio>

#include "api/forward_cuda.h"
#include "api/names.h"
#include "api/status.h"

namespace sage {

namespace {

constexpr Named<DeviceType> kDeviceTypes[] = {{"cpu", DeviceType::kCpu}, {"cuda", DeviceType::kCuda}};
constexpr Named<DType> kDTypes[] = {
    {"float32", DType::kFloat32}, {"float16", DType::kFloat16}, {"bfloat16", DType::kBFloat16}, {"bool", DType::kBool}};
constexpr Named<VFormat> kVFormats[] = {{"read in place", VFormat::kInPlace}, {"copied", VFormat::kCopy},
                                        {"float16", VFormat::kFloat16},       {"int8", VFormat::kInt8},
                                        {"fp8_e4m3", VFormat::kFp8E4m3},      {"nvfp4", VFormat::kNvfp4}};
constexpr Named<OperandOrder> kOperandOrders[] = {{"mma.sync", OperandOrder::kMmaSync},
                                                  {"wgmma", OperandOrder::kWgmma},
                                                  {"block-scaled mma", OperandOrder::kBlockScaled}};

// The value of a field, for a message.
struct Text {
  char data[24];

  Text(int64_t x) { std::snprintf(data, sizeof data, "%lld", static_cast<long long>(x)); }
  Text(int32_t x) : Text(int64_t{x}) {}
  Text(float x) { std::snprintf(data, sizeof data, "%g", static_cast<double>(x)); }
  Text(bool x) : Text(x ? "true" : "false") {}
  Text(DeviceType x) : Text(name_of(x, kDeviceTypes)) {}
  Text(DType x) : Text(name_of(x, kDTypes)) {}
  Text(QkFormat x) : Text(name_of(x, kQkFormats)) {}
  Text(QkGranularity x) : Text(name_of(x, kQkGranularities)) {}
  Text(PvFormat x) : Text(name_of(x, kPvFormats)) {}
  Text(PvAccum x) : Text(name_of(x, kPvAccums)) {}
  Text(KeyOrder x) : Text(name_of(x, kKeyOrders)) {}
  Text(VFormat x) : Text(name_of(x, kVFormats)) {}
  Text(OperandOrder x) : Text(name_of(x, kOperandOrders)) {}

 private:
  Text(char const* x) { std::snprintf(data, sizeof data, "%s", x); }
};

// Finds the first field in which a view and a plan differ.
struct Comparison {
  char const* view;
  Status status;

  template <class T>
  void field(char const* name, T const& has, T const& needed) {
    if (status.ok() && !(has == needed)) {
      status = make_status(StatusCode::kInvalidArgument, "%s has %s %s, the plan needs %s", view, name, Text(has).data,
                           Text(needed).data);
    }
  }

  void shared_fields(AttnDesc const& has, AttnDesc const& needed) {
    field("device type", has.device.type, needed.device.type);
    field("device index", has.device.index, needed.device.index);
    field("dtype", has.dtype, needed.dtype);
    Recipe const &x = has.recipe, &y = needed.recipe;
    field("recipe field qk", x.qk, y.qk);
    field("recipe field qk_granularity", x.qk_granularity, y.qk_granularity);
    field("recipe field pv", x.pv, y.pv);
    field("recipe field pv_accum", x.pv_accum, y.pv_accum);
    field("recipe field block_q", x.block_q, y.block_q);
    field("recipe field block_k", x.block_k, y.block_k);
    field("recipe field p_max", x.p_max, y.p_max);
    field("recipe field v_max", x.v_max, y.v_max);
    field("recipe field v_per_block", x.v_per_block, y.v_per_block);
    field("recipe field fold_every", x.fold_every, y.fold_every);
    field("recipe field key_order", x.key_order, y.key_order);
    field("recipe field p_two_level", x.p_two_level, y.p_two_level);
    field("recipe field smooth_q", x.smooth_q, y.smooth_q);
    field("recipe field smooth_k", x.smooth_k, y.smooth_k);
    field("recipe field smooth_v", x.smooth_v, y.smooth_v);
    field("recipe field approximate_exp", x.approximate_exp, y.approximate_exp);
    field("recipe field hadamard", x.hadamard, y.hadamard);
    field("batch", has.batch, needed.batch);
    field("head_dim", has.head_dim, needed.head_dim);
    field("varlen", has.varlen, needed.varlen);
  }
};

}  // namespace

// A descriptor with which a plan was created has a head_dim.
static bool is_empty(void const* data, AttnDesc const& desc, size_t bytes) {
  return desc.head_dim == 0 || (!data && bytes > 0);
}

Status check_tag(QuantizedKv const& kv, AttnDesc const& desc, CudaForward const& kernels, size_t quantized_kv_bytes) {
  SAGE_REQUIRE(!is_empty(kv.data, kv.desc, quantized_kv_bytes), "kv is empty: quantize_kv must have filled it");
  Comparison comparison{"kv", {}};
  comparison.shared_fields(kv.desc, desc);
  comparison.field("num_heads_kv", kv.desc.num_heads_kv, desc.num_heads_kv);
  comparison.field("seqlen_k", kv.desc.seqlen_k, desc.seqlen_k);
  if (desc.varlen) comparison.field("total_k", kv.desc.total_k, desc.total_k);
  comparison.field("operands for", kv.order, kernels.order);
  comparison.field("V", v_format(kv.desc, kernels), v_format(desc, kernels));
  return comparison.status;
}

Status check_tag(QuantizedQ const& q, AttnDesc const& desc, CudaForward const& kernels, size_t quantized_q_bytes) {
  SAGE_REQUIRE(!is_empty(q.data, q.desc, quantized_q_bytes), "q is empty: quantize_q must have filled it");
  Comparison comparison{"q", {}};
  comparison.shared_fields(q.desc, desc);
  comparison.field("num_heads_q", q.desc.num_heads_q, desc.num_heads_q);
  comparison.field("seqlen_q", q.desc.seqlen_q, desc.seqlen_q);
  if (desc.varlen) comparison.field("total_q", q.desc.total_q, desc.total_q);
  comparison.field("operands for", q.order, kernels.order);
  SAGE_TRY(comparison.status);
  // By fewer keys, or by a kernel that folds nothing, on another architecture.
  SAGE_REQUIRE(q.bytes >= quantized_q_bytes,
               "q was quantized for seqlen_k %lld and has no room for the sums over %lld keys that this plan folds: it "
               "has %zu bytes, of %zu",
               static_cast<long long>(q.desc.seqlen_k), static_cast<long long>(desc.seqlen_k), q.bytes,
               quantized_q_bytes);
  return {};
}

}  // namespace sage
