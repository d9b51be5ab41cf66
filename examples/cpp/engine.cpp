// An inference engine's call site: one attention layer with a KV cache that reads a prompt and then generates token by
// token, and a memory of keys and values that is quantized once and asked many times. Runs on the GPU where this build
// and machine have kernels for it, else on the CPU, and prints the kernels, their times and their errors.
//
//   AttentionLayer  is what to copy from here: plans made when the engine loads, one arena, the caller's stream.
//   Machine, Buffer are memory and a stream on either device; an engine has its own.
#include <sage/attention.h>
#if ENGINE_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <new>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

namespace engine {

constexpr int kBatch = 2, kHeadsQ = 8, kHeadsKv = 2, kHeadDim = 128;
constexpr int kCapacity = 1024;  // tokens that the KV cache has room for

// sage reports, the engine decides what a failure means: here it ends the program.
void check(sage::Status const& status) {
  if (!status.ok()) throw std::runtime_error(status.message);
}

// ---- memory and a stream

class Machine {
 public:
  explicit Machine(sage::DeviceType type) : type_(type) {
#if ENGINE_HAS_CUDA
    if (on_gpu()) check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
#endif
  }
  Machine(Machine const&) = delete;
  ~Machine() {
#if ENGINE_HAS_CUDA
    if (on_gpu()) cudaStreamDestroy(stream_);
#endif
  }

  bool on_gpu() const { return type_ == sage::DeviceType::kCuda; }
  sage::Device device() const { return {type_, 0}; }
#if ENGINE_HAS_CUDA
  sage::Stream stream() const { return stream_; }
#else
  sage::Stream stream() const { return nullptr; }
#endif

  void* allocate(size_t bytes) const {
#if ENGINE_HAS_CUDA
    if (on_gpu()) {
      void* data = nullptr;
      check_cuda(cudaMalloc(&data, bytes));
      return data;
    }
#endif
    return ::operator new(bytes, std::align_val_t{64});
  }

  void release(void* data) const {
#if ENGINE_HAS_CUDA
    if (on_gpu()) {
      cudaFree(data);
      return;
    }
#endif
    ::operator delete(data, std::align_val_t{64});
  }

  // To or from the device, after all that was enqueued.
  void copy(void* to, void const* from, size_t bytes) const {
#if ENGINE_HAS_CUDA
    if (on_gpu()) {
      check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_));
      return synchronize();
    }
#endif
    std::memcpy(to, from, bytes);
  }

  void synchronize() const {
#if ENGINE_HAS_CUDA
    if (on_gpu()) check_cuda(cudaStreamSynchronize(stream_));
#endif
  }

 private:
#if ENGINE_HAS_CUDA
  static void check_cuda(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
  }
  cudaStream_t stream_ = nullptr;
#endif
  sage::DeviceType type_;
};

// Memory of a machine.
class Buffer {
 public:
  Buffer(Machine const& machine, size_t bytes) : machine_(machine), bytes_(bytes), data_(machine.allocate(bytes)) {}
  Buffer(Buffer const&) = delete;
  ~Buffer() { machine_.release(data_); }

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  void grow(size_t bytes) {
    if (bytes <= bytes_) return;
    void* const larger = machine_.allocate(bytes);
    machine_.release(data_);
    data_ = larger;
    bytes_ = bytes;
  }

 private:
  Machine const& machine_;
  size_t bytes_;
  void* data_;
};

// ---- the layer

// The paper's first recipe, INT8 Q K^T and 16-bit P V, in the form that each device multiplies fastest.
sage::Recipe sage1(sage::DeviceType type) {
  sage::Recipe recipe;  // the defaults are those of the CPU, which multiplies integers
  if (type == sage::DeviceType::kCuda) {
    recipe.qk_granularity = sage::QkGranularity::kThread;
    recipe.pv = sage::PvFormat::kFp16;
    recipe.pv_accum = sage::PvAccum::kFp32;
    recipe.block_k = 64;
    recipe.p_max = 1;
    recipe.v_max = 0;
  }
  return recipe;
}

sage::AttnDesc describe(sage::Device device, int seqlen_q) {
  sage::AttnDesc desc;
  desc.device = device;
  desc.dtype = sage::DType::kBFloat16;
  desc.recipe = sage1(device.type);
  desc.batch = kBatch;
  desc.num_heads_q = kHeadsQ;
  desc.num_heads_kv = kHeadsKv;
  desc.head_dim = kHeadDim;
  desc.seqlen_q = seqlen_q;
  desc.seqlen_k = kCapacity;  // how full the cache is comes with each call
  desc.causal = true;
  desc.num_threads = static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency()));
  return desc;
}

// Contiguous (batch, num_heads, seqlen, head_dim).
sage::TensorView view(Buffer const& buffer, int num_heads, int seqlen) {
  int64_t const head = int64_t{seqlen} * kHeadDim;
  return {buffer.data(), num_heads * head, head, kHeadDim};
}

// Keys and values of kCapacity tokens, of which the first lengths[b] of sequence b are there.
struct Cache {
  Buffer k, v, lengths;

  explicit Cache(Machine const& machine)
      : k(machine, size_t{kBatch} * kHeadsKv * kCapacity * kHeadDim * 2),
        v(machine, k.bytes()),
        lengths(machine, kBatch * sizeof(int32_t)) {}
};

class AttentionLayer {
 public:
  explicit AttentionLayer(Machine const& machine)
      : machine_(machine), arena_(machine, 64), quantized_q_(machine, 64), quantized_kv_(machine, 64) {}

  // When the engine loads: a plan for this number of queries, and memory for it. One plan serves every filling of the
  // cache, so there are as many plans as numbers of queries: here a prompt's and one.
  sage::Status prepare(int seqlen_q) {
    sage::AttnPlan plan;
    if (sage::Status status = sage::AttnPlan::create(describe(machine_.device(), seqlen_q), &plan); !status.ok()) {
      return status;  // which field, what it is and what it may be
    }
    arena_.grow(plan.workspace_bytes());  // layers that run one after the other can share one
    quantized_q_.grow(plan.quantized_q_bytes());
    quantized_kv_.grow(plan.quantized_kv_bytes());
    plans_.insert_or_assign(seqlen_q, plan);
    return {};
  }

  // Enqueues and returns: allocates nothing, waits for nothing, can be captured in a CUDA graph.
  sage::Status forward(Buffer const& q, Cache const& cache, Buffer const& out, int seqlen_q) const {
    return plans_.at(seqlen_q).run(args(q, cache, out, seqlen_q), arena_.data(), machine_.stream());
  }

  // The same for a cache that does not change any more: K and V are quantized here, once, ...
  sage::Status remember(Cache const& cache, int seqlen_q) {
    sage::AttnArgs args;
    args.k = view(cache.k, kHeadsKv, kCapacity);
    args.v = view(cache.v, kHeadsKv, kCapacity);
    args.seqused_k = static_cast<int32_t const*>(cache.lengths.data());
    return plans_.at(seqlen_q).quantize_kv(args, quantized_kv_.data(), machine_.stream(), &remembered_);
  }

  // ... and every call quantizes its queries only.
  sage::Status recall(Buffer const& q, Cache const& cache, Buffer const& out, int seqlen_q) const {
    sage::AttnPlan const& plan = plans_.at(seqlen_q);
    sage::AttnArgs const call = args(q, cache, out, seqlen_q);
    sage::QuantizedQ query;
    sage::Status const status = plan.quantize_q(call, remembered_, quantized_q_.data(), machine_.stream(), &query);
    return status.ok() ? plan.run_quantized(call, query, remembered_, machine_.stream()) : status;
  }

  char const* kernel_name(int seqlen_q) const { return plans_.at(seqlen_q).kernel_name(); }
  size_t arena_bytes() const { return arena_.bytes(); }

 private:
  sage::AttnArgs args(Buffer const& q, Cache const& cache, Buffer const& out, int seqlen_q) const {
    sage::AttnArgs args;
    args.q = view(q, kHeadsQ, seqlen_q);
    args.k = view(cache.k, kHeadsKv, kCapacity);
    args.v = view(cache.v, kHeadsKv, kCapacity);
    args.out = view(out, kHeadsQ, seqlen_q);
    args.softmax_scale = 1.f / std::sqrt(float{kHeadDim});
    args.seqused_k = static_cast<int32_t const*>(cache.lengths.data());
    return args;
  }

  Machine const& machine_;
  std::map<int, sage::AttnPlan> plans_;
  Buffer arena_, quantized_q_, quantized_kv_;
  sage::QuantizedKv remembered_;
};

// ---- numbers to run it on, and what they should give

using bf16 = uint16_t;  // the upper half of a float

float to_float(bf16 value) {
  uint32_t const bits = uint32_t{value} << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

std::vector<bf16> normal(size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution;
  std::vector<bf16> values(count);
  for (bf16& value : values) {
    float const number = distribution(generator);
    uint32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    value = static_cast<bf16>((bits + 0x8000) >> 16);
  }
  return values;
}

void put(Machine const& machine, std::vector<bf16> const& values, Buffer const& buffer) {
  machine.copy(buffer.data(), values.data(), values.size() * sizeof(bf16));
}

// Root of the mean squared difference to attention in double precision, over that of its result. Of the queries of each
// head every `step`-th is looked at.
double error(std::vector<bf16> const& q, std::vector<bf16> const& k, std::vector<bf16> const& v,
             std::vector<bf16> const& out, int seqlen_q, int length, int step) {
  double difference = 0, norm = 0;
  for (int head = 0; head < kBatch * kHeadsQ; ++head) {
    int const head_kv = head / (kHeadsQ / kHeadsKv);
    bf16 const* const keys = &k[size_t(head_kv) * kCapacity * kHeadDim];
    bf16 const* const values = &v[size_t(head_kv) * kCapacity * kHeadDim];
    for (int i = 0; i < seqlen_q; i += step) {
      size_t const row = (size_t(head) * seqlen_q + i) * kHeadDim;
      int const visible = i + length - seqlen_q + 1;
      std::vector<double> p(visible), expected(kHeadDim, 0.);
      double max = -std::numeric_limits<double>::infinity(), sum = 0;
      for (int j = 0; j < visible; ++j) {
        for (int d = 0; d < kHeadDim; ++d) p[j] += double(to_float(q[row + d])) * to_float(keys[j * kHeadDim + d]);
        p[j] /= std::sqrt(double{kHeadDim});
        max = std::max(max, p[j]);
      }
      for (double& x : p) sum += x = std::exp(x - max);
      for (int j = 0; j < visible; ++j) {
        for (int d = 0; d < kHeadDim; ++d) expected[d] += p[j] / sum * to_float(values[j * kHeadDim + d]);
      }
      for (int d = 0; d < kHeadDim; ++d) {
        difference += std::pow(to_float(out[row + d]) - expected[d], 2);
        norm += std::pow(expected[d], 2);
      }
    }
  }
  return std::sqrt(difference / norm);
}

// ---- the program

class Program {
 public:
  explicit Program(Machine const& machine) : machine_(machine), cache_(machine), layer_(machine) {
    put(machine, k_, cache_.k);
    put(machine, v_, cache_.v);
  }

  bool run() {
    for (int seqlen_q : {kPrompt, 1}) check(layer_.prepare(seqlen_q));
    std::printf("%d sequences, %d query heads on %d, head_dim %d, cache of %d tokens; arena %.1f MB\n\n", kBatch,
                kHeadsQ, kHeadsKv, kHeadDim, kCapacity, layer_.arena_bytes() / 1e6);
    std::printf("%-32s %-28s %12s %8s\n", "", "kernel", "ms per call", "error");
    auto const forward = [&](Buffer const& q, Buffer const& out, int n) { return layer_.forward(q, cache_, out, n); };
    attend("prompt of 512 tokens", kPrompt, kPrompt, forward);
    for (int length = kPrompt + 1; length <= kPrompt + 3; ++length) {
      char name[40];
      std::snprintf(name, sizeof name, "1 token, %d in the cache", length);
      attend(name, 1, length, forward);
    }

    fill(kCapacity);
    if (sage::Status const status = layer_.remember(cache_, 1); status.ok()) {
      attend("1 token, K and V quantized once", 1, kCapacity,
             [&](Buffer const& q, Buffer const& out, int n) { return layer_.recall(q, cache_, out, n); });
    } else {
      std::printf("K and V quantized once: %s\n", status.message);
    }
    return passed_;
  }

 private:
  static constexpr int kPrompt = 512;

  void fill(int length) {
    std::vector<int32_t> const lengths(kBatch, length);
    machine_.copy(cache_.lengths.data(), lengths.data(), cache_.lengths.bytes());
  }

  // Runs `forward` on `seqlen_q` new queries and the first `length` tokens of the cache, and prints a line.
  template <class Forward>
  void attend(char const* name, int seqlen_q, int length, Forward const& forward) {
    std::vector<bf16> const queries = normal(size_t{kBatch} * kHeadsQ * seqlen_q * kHeadDim, length);
    std::vector<bf16> result(queries.size());
    Buffer const q(machine_, queries.size() * sizeof(bf16)), out(machine_, q.bytes());
    put(machine_, queries, q);
    fill(length);
    check(forward(q, out, seqlen_q));
    machine_.copy(result.data(), out.data(), out.bytes());

    int calls = 0;
    double ms = 0;
    while (ms < 50) {  // more and more calls, until the clock can tell
      calls = 2 * calls + 1;
      auto const start = std::chrono::steady_clock::now();
      for (int i = 0; i < calls; ++i) check(forward(q, out, seqlen_q));
      machine_.synchronize();
      ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    }
    double const nrmse = error(queries, k_, v_, result, seqlen_q, length, seqlen_q > 1 ? 37 : 1);
    passed_ &= nrmse < .02;  // also false where it is NaN
    std::printf("%-32s %-28s %12.3f %8.5f\n", name, layer_.kernel_name(seqlen_q), ms / calls, nrmse);
  }

  Machine const& machine_;
  std::vector<bf16> const k_ = normal(size_t{kBatch} * kHeadsKv * kCapacity * kHeadDim, 1);
  std::vector<bf16> const v_ = normal(size_t{kBatch} * kHeadsKv * kCapacity * kHeadDim, 2);
  Cache cache_;
  AttentionLayer layer_;
  bool passed_ = true;
};

}  // namespace engine

int main() try {
  sage::DeviceType type = sage::DeviceType::kCuda;
  sage::Status const gpu = sage::is_supported(engine::describe({type, 0}, 1));
  if (!gpu.ok()) {
    std::printf("Runs on the CPU. A GPU: %s\n", gpu.message);
    type = sage::DeviceType::kCpu;
  }
  engine::Machine const machine(type);
  return engine::Program(machine).run() ? EXIT_SUCCESS : EXIT_FAILURE;
} catch (std::exception const& failure) {
  std::fprintf(stderr, "failed: %s\n", failure.what());
  return EXIT_FAILURE;
}
