// Pointers, strides and streams as integers, names as strings. No torch headers.
#include "bindings/bindings.h"

#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "api/build_info.h"
#include "api/device.h"
#include "api/names.h"
#include "cpu/forward.h"
#include "sage/attention.h"

namespace py = pybind11;

namespace sage {

template <class T, int N>
static T parse(char const* field, std::string const& value, Named<T> const (&names)[N]) {
  std::string allowed;
  for (auto const& [name, result] : names) {
    if (value == name) return result;
    allowed += std::string(allowed.empty() ? "" : ", ") + name;
  }
  throw py::value_error(std::string(field) + " must be one of " + allowed + ", got '" + value + "'");
}

static DType parse_dtype(char const* field, std::string const& value) {
  return parse<DType>(field, value,
                      {{"float32", DType::kFloat32},
                       {"float16", DType::kFloat16},
                       {"bfloat16", DType::kBFloat16},
                       {"bool", DType::kBool}});
}

static CpuIsa parse_isa(std::string const& value) {
  auto const named = [](CpuIsa isa) { return Named<CpuIsa>{cpu::isa_name(isa), isa}; };
  return parse<CpuIsa>("cpu_isa", value,
                       {named(CpuIsa::kAuto), named(CpuIsa::kAvx512Vnni), named(CpuIsa::kAvxVnni), named(CpuIsa::kAvx2),
                        named(CpuIsa::kPortable)});
}

// From a Python sage.Recipe.
static Recipe parse_recipe(py::object const& object) {
  auto const text = [&](char const* field) { return object.attr(field).cast<std::string>(); };
  Recipe recipe;
  recipe.qk = parse("qk", text("qk"), kQkFormats);
  recipe.qk_granularity = parse("qk_granularity", text("qk_granularity"), kQkGranularities);
  recipe.pv = parse("pv", text("pv"), kPvFormats);
  recipe.pv_accum = parse("pv_accum", text("pv_accum"), kPvAccums);
  recipe.block_q = object.attr("block_q").cast<int32_t>();
  recipe.block_k = object.attr("block_k").cast<int32_t>();
  recipe.p_max = object.attr("p_max").cast<float>();
  recipe.v_max = object.attr("v_max").cast<float>();
  recipe.v_per_block = text("v_granularity") == "block";
  recipe.fold_every = object.attr("fold_every").cast<int32_t>();
  recipe.key_order = parse("key_order", text("key_order"), kKeyOrders);
  recipe.p_two_level = object.attr("p_two_level").cast<bool>();
  recipe.smooth_q = object.attr("smooth_q").cast<bool>();
  recipe.smooth_k = object.attr("smooth_k").cast<bool>();
  recipe.smooth_v = object.attr("smooth_v").cast<bool>();
  recipe.approximate_exp = object.attr("approximate_exp").cast<bool>();
  recipe.hadamard = object.attr("hadamard").cast<bool>();
  return recipe;
}

static void raise(Status const& status) {
  switch (status.code) {
    case StatusCode::kOk: return;
    case StatusCode::kInvalidArgument: throw py::value_error(status.message);
    case StatusCode::kUnsupported:
      PyErr_SetString(PyExc_NotImplementedError, status.message);
      throw py::error_already_set();
    case StatusCode::kRuntime: throw std::runtime_error(status.message);
  }
}

using View = std::array<int64_t, 4>;  // pointer, strides of batch, head, seq
using Mask = std::tuple<intptr_t, std::string, int64_t, int64_t, int64_t,
                        int64_t>;  // pointer, dtype, strides of batch, head, q, k

template <class T>
static T* pointer(intptr_t address) {
  return reinterpret_cast<T*>(address);
}

static TensorView view(View const& v) { return {pointer<void>(v[0]), v[1], v[2], v[3]}; }

static AttnPlan make_plan(std::string const& device, int32_t device_index, std::string const& dtype,
                          py::object const& recipe, int32_t batch, int32_t num_heads_q, int32_t num_heads_kv,
                          int32_t head_dim, int64_t seqlen_q, int64_t seqlen_k, bool varlen, int64_t total_q,
                          int64_t total_k, bool causal, int64_t window_left, int64_t window_right, bool v_aligned,
                          int32_t num_threads, std::string const& cpu_isa, int32_t architecture) {
  AttnDesc desc;
  desc.device = {parse<DeviceType>("device", device, {{"cpu", DeviceType::kCpu}, {"cuda", DeviceType::kCuda}}),
                 device_index, architecture};
  desc.dtype = parse_dtype("dtype", dtype);
  desc.recipe = parse_recipe(recipe);
  desc.batch = batch;
  desc.num_heads_q = num_heads_q;
  desc.num_heads_kv = num_heads_kv;
  desc.head_dim = head_dim;
  desc.seqlen_q = seqlen_q;
  desc.seqlen_k = seqlen_k;
  desc.varlen = varlen;
  desc.total_q = total_q;
  desc.total_k = total_k;
  desc.causal = causal;
  desc.window_left = window_left;
  desc.window_right = window_right;
  desc.v_aligned = v_aligned;
  desc.num_threads = num_threads;
  desc.cpu_isa = parse_isa(cpu_isa);
  AttnPlan plan;
  raise(AttnPlan::create(desc, &plan));
  return plan;
}

static MaskView mask_view(std::optional<Mask> const& mask) {
  if (!mask) return {};
  auto const& [data, dtype, stride_batch, stride_head, stride_q, stride_k] = *mask;
  return {pointer<void>(data), parse_dtype("mask dtype", dtype), stride_batch, stride_head, stride_q, stride_k};
}

static AttnArgs lengths(intptr_t cu_seqlens_q, intptr_t cu_seqlens_k, intptr_t seqused_k) {
  AttnArgs args;
  args.cu_seqlens_q = pointer<int32_t>(cu_seqlens_q);
  args.cu_seqlens_k = pointer<int32_t>(cu_seqlens_k);
  args.seqused_k = pointer<int32_t>(seqused_k);
  return args;
}

// Calls a step of a plan without the GIL.
template <class Call>
static void without_gil(Call const& call) {
  Status status;
  {
    py::gil_scoped_release release;
    status = call();
  }
  raise(status);
}

static void run(AttnPlan const& plan, View const& q, View const& k, View const& v, View const& out, intptr_t lse,
                float softmax_scale, std::optional<Mask> const& mask, intptr_t cu_seqlens_q, intptr_t cu_seqlens_k,
                intptr_t seqused_k, intptr_t workspace, intptr_t stream) {
  AttnArgs args = lengths(cu_seqlens_q, cu_seqlens_k, seqused_k);
  args.q = view(q);
  args.k = view(k);
  args.v = view(v);
  args.out = view(out);
  args.lse = pointer<float>(lse);
  args.softmax_scale = softmax_scale;
  args.mask = mask_view(mask);
  without_gil([&] { return plan.run(args, pointer<void>(workspace), pointer<void>(stream)); });
}

static QuantizedKv quantize_kv(AttnPlan const& plan, View const& k, View const& v, intptr_t cu_seqlens_k,
                               intptr_t seqused_k, intptr_t buffer, intptr_t stream) {
  AttnArgs args = lengths(0, cu_seqlens_k, seqused_k);
  args.k = view(k);
  args.v = view(v);
  QuantizedKv kv;
  without_gil([&] { return plan.quantize_kv(args, pointer<void>(buffer), pointer<void>(stream), &kv); });
  return kv;
}

static QuantizedQ quantize_q(AttnPlan const& plan, View const& q, QuantizedKv const& kv, float softmax_scale,
                             intptr_t cu_seqlens_q, intptr_t buffer, intptr_t stream) {
  AttnArgs args = lengths(cu_seqlens_q, 0, 0);
  args.q = view(q);
  args.softmax_scale = softmax_scale;
  QuantizedQ result;
  without_gil([&] { return plan.quantize_q(args, kv, pointer<void>(buffer), pointer<void>(stream), &result); });
  return result;
}

static void run_quantized(AttnPlan const& plan, QuantizedQ const& q, QuantizedKv const& kv, View const& out,
                          intptr_t lse, std::optional<Mask> const& mask, intptr_t cu_seqlens_q, intptr_t cu_seqlens_k,
                          intptr_t seqused_k, intptr_t stream) {
  AttnArgs args = lengths(cu_seqlens_q, cu_seqlens_k, seqused_k);
  args.out = view(out);
  args.lse = pointer<float>(lse);
  args.mask = mask_view(mask);
  without_gil([&] { return plan.run_quantized(args, q, kv, pointer<void>(stream)); });
}

static py::dict build_facts() {
  using namespace py::literals;
  return py::dict("version"_a = build_info::kVersion, "build_type"_a = build_info::kBuildType,
                  "cxx_compiler"_a = build_info::kCxxCompiler, "cuda"_a = build_info::kCuda,
                  "cuda_compiler"_a = build_info::kCudaCompiler,
                  "cuda_architectures"_a = build_info::kCudaArchitectures, "cutlass"_a = build_info::kCutlass);
}

static py::list cuda_devices() {
  using namespace py::literals;
  int32_t count = 0;
  Status status = cuda_device_count(&count);
  if (!status.ok()) throw std::runtime_error(status.message);
  py::list devices;
  for (int32_t index = 0; index < count; ++index) {
    CudaDevice device;
    raise(cuda_device(index, &device));
    std::string const capability =
        std::to_string(device.compute_capability_major) + "." + std::to_string(device.compute_capability_minor);
    devices.append(py::dict("index"_a = index, "name"_a = device.name, "compute_capability"_a = capability,
                            "architecture"_a = 10 * device.compute_capability_major + device.compute_capability_minor,
                            "sm_count"_a = device.sm_count, "memory_bytes"_a = device.memory_bytes));
  }
  return devices;
}

static int32_t cuda_architecture(int32_t index) {
  CudaLimits limits;
  raise(cuda_limits({DeviceType::kCuda, index, 0}, &limits));
  return limits.architecture;
}

void bind(py::module_& m) {
  using namespace py::literals;
  m.doc() = "Kernels of sage, without torch: plans and launches on raw pointers.";
  // Local to the module: two of them have these classes.
  py::class_<QuantizedKv>(m, "QuantizedKv", py::module_local(), "K and V in a buffer, by AttnPlan.quantize_kv.")
      .def(py::init<>());
  py::class_<QuantizedQ>(m, "QuantizedQ", py::module_local(), "Q in a buffer, by AttnPlan.quantize_q.")
      .def(py::init<>());
  py::class_<AttnPlan>(m, "AttnPlan", py::module_local(),
                       "A kernel chosen for one problem; see csrc/include/sage/attention.h.")
      .def(py::init(&make_plan), py::kw_only(), "device"_a = "cpu", "device_index"_a = 0, "dtype"_a = "bfloat16",
           "recipe"_a, "batch"_a, "num_heads_q"_a, "num_heads_kv"_a, "head_dim"_a, "seqlen_q"_a, "seqlen_k"_a,
           "varlen"_a = false, "total_q"_a = 0, "total_k"_a = 0, "causal"_a = false, "window_left"_a = -1,
           "window_right"_a = -1, "v_aligned"_a = true, "num_threads"_a = 1, "cpu_isa"_a = "auto", "architecture"_a = 0)
      .def_property_readonly("workspace_bytes", &AttnPlan::workspace_bytes)
      .def_property_readonly("kernel_name", &AttnPlan::kernel_name)
      .def_property_readonly("quantized_q_bytes", &AttnPlan::quantized_q_bytes)
      .def_property_readonly("quantized_kv_bytes", &AttnPlan::quantized_kv_bytes)
      .def("run", &run, py::kw_only(), "q"_a, "k"_a, "v"_a, "out"_a, "lse"_a = 0, "softmax_scale"_a,
           "mask"_a = py::none(), "cu_seqlens_q"_a = 0, "cu_seqlens_k"_a = 0, "seqused_k"_a = 0, "workspace"_a,
           "stream"_a = 0)
      .def("quantize_kv", &quantize_kv, py::kw_only(), "k"_a, "v"_a, "cu_seqlens_k"_a = 0, "seqused_k"_a = 0,
           "buffer"_a, "stream"_a = 0)
      .def("quantize_q", &quantize_q, py::kw_only(), "q"_a, "kv"_a, "softmax_scale"_a, "cu_seqlens_q"_a = 0, "buffer"_a,
           "stream"_a = 0)
      .def("run_quantized", &run_quantized, py::kw_only(), "q"_a, "kv"_a, "out"_a, "lse"_a = 0, "mask"_a = py::none(),
           "cu_seqlens_q"_a = 0, "cu_seqlens_k"_a = 0, "seqused_k"_a = 0, "stream"_a = 0);
  m.def("best_cpu_isa", [] { return cpu::isa_name(best_cpu_isa()); }, "The instruction set that 'auto' means here.");
  m.def(
      "cpu_isa_available", [](std::string const& isa) { return cpu_isa_available(parse_isa(isa)); }, "isa"_a,
      "Whether this CPU runs the kernels of an instruction set.");
  m.def("build_info", &build_facts, "How this module was built.");
  m.def("cuda_architecture", &cuda_architecture, "index"_a,
        "10 x the compute capability of a CUDA device, in less than a microsecond; of the emulator, what "
        "SAGE_EMULATOR_ARCH says now. NotImplementedError without CUDA, RuntimeError without the device.");
  m.def("cuda_devices", &cuda_devices, "The CUDA devices of this machine; RuntimeError says why there are none.");
}

}  // namespace sage
