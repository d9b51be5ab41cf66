#include "api/forward_cuda.h"

#include "api/device.h"
#include "api/status.h"

namespace sage {

VFormat v_format(AttnDesc const& d, CudaForward const& kernels) {
  if (kernels.pv == PvFormat::kInt8) return VFormat::kInt8;
  if (kernels.operand != d.dtype) return VFormat::kFloat16;
  return d.v_aligned && d.head_dim % 8 == 0 ? VFormat::kInPlace : VFormat::kCopy;
}

static bool scales_v(VFormat format) { return format == VFormat::kFloat16 || format == VFormat::kInt8; }

namespace {

// The parts of a buffer, one behind the other, at multiples of 64 bytes.
struct Parts {
  size_t bytes = 0;

  size_t take(size_t part) {
    size_t const offset = bytes;
    bytes += (part + 63) / 64 * 64;
    return offset;
  }
};

// Quantized Q of a problem, and where its parts lie.
struct QLayout {
  TileSpace tiles;
  size_t data, scale, lse_shift, bytes;

  QLayout(AttnDesc const& d, CudaForward const& kernels)
      : tiles(make_tile_space(d.seqlen_q, d.total_q, d.varlen, d.batch, kQTileRows)) {
    int64_t const all_tiles = d.num_heads_q * tiles.per_head;
    int64_t const rows = d.num_heads_q * (d.varlen ? d.total_q : d.batch * d.seqlen_q);
    Parts parts;
    data = parts.take(all_tiles * kQTileRows * kernels.head_dim);
    scale = parts.take(all_tiles * kQScalesPerTile * sizeof(float));
    lse_shift = parts.take(d.recipe.smooth_k ? rows * sizeof(float) : 0);
    bytes = parts.bytes;
  }
};

// Likewise of K and V.
struct KvLayout {
  VFormat v_format;
  TileSpace tiles;
  int32_t stats_chunks;
  size_t k_sum, k_seqlens, v_amax, k, k_scale, v, v_scale, bytes;

  KvLayout(AttnDesc const& d, CudaForward const& kernels)
      : v_format(sage::v_format(d, kernels)),
        tiles(make_tile_space(d.seqlen_k, d.total_k, d.varlen, d.batch, kKTileRows)) {
    int64_t const chunks = ceil_div(d.seqlen_k, kMinStatsRows);
    stats_chunks = static_cast<int32_t>(chunks < 1 ? 1 : chunks > kMaxStatsChunks ? kMaxStatsChunks : chunks);
    bool const scaled = scales_v(v_format);
    int64_t const channels = int64_t{d.batch} * d.num_heads_kv * kernels.head_dim;
    int64_t const all_tiles = d.num_heads_kv * tiles.per_head;
    int64_t const k_bytes = all_tiles * kKTileRows * kernels.head_dim;
    int64_t const v_element = v_format == VFormat::kInPlace ? 0 : v_format == VFormat::kInt8 ? 1 : 2;
    Parts parts;
    k_sum = parts.take(d.recipe.smooth_k ? channels * stats_chunks * sizeof(float) : 0);
    k_seqlens = parts.take(d.recipe.smooth_k ? d.batch * sizeof(float) : 0);
    v_amax = parts.take(scaled ? channels * stats_chunks * sizeof(float) : 0);
    k = parts.take(k_bytes);
    k_scale = parts.take(all_tiles * kKScalesPerTile * sizeof(float));
    v = parts.take(k_bytes * v_element);
    v_scale = parts.take(scaled ? channels * sizeof(float) : 0);
    bytes = parts.bytes;
  }
};

template <class T>
T* at(void* buffer, size_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(buffer) + offset);
}

}  // namespace

size_t quantized_q_bytes(AttnDesc const& d, CudaForward const& kernels) { return QLayout(d, kernels).bytes; }
size_t quantized_kv_bytes(AttnDesc const& d, CudaForward const& kernels) { return KvLayout(d, kernels).bytes; }

// Whether data and strides are multiples of `bytes`.
static bool is_aligned(TensorView const& view, int element_bytes, int bytes) {
  return reinterpret_cast<uintptr_t>(view.data) % bytes == 0 && view.stride_batch * element_bytes % bytes == 0 &&
         view.stride_head * element_bytes % bytes == 0 && view.stride_seq * element_bytes % bytes == 0;
}

// Enqueues what fills the buffers of `q` and `kv`; one of them is null for its operands to be left out. `k_mean_of` has
// the mean of K, quantized before or here.
static Status quantize(AttnDesc const& d, CudaForward const& kernels, AttnArgs const& args, QuantizedQ const* q,
                       QuantizedKv const* kv, QuantizedKv const& k_mean_of, bool wants_lse, Stream stream) {
  QLayout const q_layout(d, kernels);
  KvLayout const kv_layout(d, kernels);
  bool const smooth = d.recipe.smooth_k, scaled = scales_v(kv_layout.v_format);
  // The quantizers look at the lengths of an operand that is left out, and do nothing with them.
  int32_t const* const cu_seqlens_q = q ? args.cu_seqlens_q : args.cu_seqlens_k;
  int32_t const* const cu_seqlens_k = kv ? args.cu_seqlens_k : args.cu_seqlens_q;

  QuantizeParams p{};
  p.q = args.q;
  p.k = args.k;
  p.v = args.v;
  p.dtype = d.dtype;
  p.sequences = {d.seqlen_q, d.seqlen_k, cu_seqlens_q, cu_seqlens_k, kv ? args.seqused_k : nullptr};
  p.q_tiles = q_layout.tiles;
  p.k_tiles = kv_layout.tiles;
  p.batch = d.batch;
  p.num_heads_q = d.num_heads_q;
  p.num_heads_kv = d.num_heads_kv;
  p.head_dim = d.head_dim;
  p.total_q = d.varlen ? d.total_q : 0;
  p.softmax_scale = args.softmax_scale;
  p.granularity = d.recipe.qk_granularity;
  p.smooth_k = smooth;
  p.v_format = kv_layout.v_format;
  p.v_max = d.recipe.v_max;
  p.stats_chunks = kv_layout.stats_chunks;
  if (smooth) {
    p.k_sum = at<float>(k_mean_of.data, kv_layout.k_sum);
    p.k_seqlens = at<float>(k_mean_of.data, kv_layout.k_seqlens);
  }
  if (q) {
    p.q_out = at<int8_t>(q->data, q_layout.data);
    p.q_scale = at<float>(q->data, q_layout.scale);
    if (smooth && wants_lse) p.lse_shift = at<float>(q->data, q_layout.lse_shift);
  }
  if (kv) {
    p.k_out = at<int8_t>(kv->data, kv_layout.k);
    p.k_scale = at<float>(kv->data, kv_layout.k_scale);
    if (p.v_format != VFormat::kInPlace) p.v_out = at<void>(kv->data, kv_layout.v);
    if (scaled) {
      p.v_amax = at<float>(kv->data, kv_layout.v_amax);
      p.v_scale = at<float>(kv->data, kv_layout.v_scale);
    }
    if (smooth || scaled) {
      SAGE_TRY(kernels.kv_stats.launch(p, stream));
    }
  }
  return kernels.quantize_qkv.launch(p, stream);
}

// Enqueues the attention kernel.
static Status attend(AttnDesc const& d, CudaForward const& kernels, AttnArgs const& args, QuantizedQ const& q,
                     QuantizedKv const& kv, Stream stream) {
  QLayout const q_layout(d, kernels);
  KvLayout const kv_layout(d, kernels);

  AttnParams p{};
  p.q = at<int8_t>(q.data, q_layout.data);
  p.k = at<int8_t>(kv.data, kv_layout.k);
  p.q_scale = at<float>(q.data, q_layout.scale);
  p.k_scale = at<float>(kv.data, kv_layout.k_scale);
  p.q_tiles = q_layout.tiles;
  p.k_tiles = kv_layout.tiles;
  p.v_in_tiles = kv_layout.v_format != VFormat::kInPlace;
  p.v = p.v_in_tiles ? TensorView{at<void>(kv.data, kv_layout.v), 0, 0, 0} : kv.v;
  p.v_scale = scales_v(kv_layout.v_format) ? at<float>(kv.data, kv_layout.v_scale) : nullptr;
  p.out = args.out;
  p.out_dtype = d.dtype;
  p.out_in_pairs = d.head_dim % 2 == 0 && is_aligned(args.out, 2, 4);
  p.lse = args.lse;
  p.lse_shift = d.recipe.smooth_k && args.lse ? at<float>(q.data, q_layout.lse_shift) : nullptr;
  p.sequences = {d.seqlen_q, d.seqlen_k, args.cu_seqlens_q, args.cu_seqlens_k, args.seqused_k};
  p.total_q = d.varlen ? d.total_q : 0;
  p.batch = d.batch;
  p.num_heads_q = d.num_heads_q;
  p.num_heads_kv = d.num_heads_kv;
  p.head_dim = d.head_dim;
  p.causal = d.causal;
  p.window_left = d.window_left;
  p.window_right = d.window_right;
  p.mask = args.mask;
  return kernels.attention.launch(p, stream);
}

// Where the view is of V itself.
static Status find_v(AttnDesc const& d, CudaForward const& kernels, AttnArgs const& args, TensorView* v) {
  SAGE_REQUIRE(!d.v_aligned || is_aligned(args.v, 2, 16),
               "v must have data and strides that are multiples of 16 bytes where the descriptor says v_aligned");
  if (v_format(d, kernels) == VFormat::kInPlace) *v = args.v;
  return {};
}

Status run_cuda(AttnDesc const& d, CudaForward const& kernels, AttnArgs const& args, void* workspace, Stream stream) {
  QuantizedQ const q{workspace, nullptr, d};
  QuantizedKv kv{at<void>(workspace, quantized_q_bytes(d, kernels)), {}, d};
  SAGE_TRY(find_v(d, kernels, args, &kv.v));
  SAGE_TRY(check_current_device(d.device.index));
  SAGE_TRY(quantize(d, kernels, args, &q, &kv, kv, args.lse, stream));
  return attend(d, kernels, args, q, kv, stream);
}

Status quantize_kv_cuda(AttnDesc const& d, CudaForward const& kernels, AttnArgs const& args, Stream stream,
                        QuantizedKv* kv) {
  SAGE_TRY(find_v(d, kernels, args, &kv->v));
  SAGE_TRY(check_current_device(d.device.index));
  return quantize(d, kernels, args, nullptr, kv, *kv, false, stream);
}

Status quantize_q_cuda(AttnDesc const& d, CudaForward const& kernels, AttnArgs const& args, QuantizedKv const& kv,
                       QuantizedQ const& q, Stream stream) {
  SAGE_TRY(check_current_device(d.device.index));
  return quantize(d, kernels, args, &q, nullptr, kv, true, stream);
}

Status run_quantized_cuda(AttnDesc const& d, CudaForward const& kernels, AttnArgs const& args, QuantizedQ const& q,
                          QuantizedKv const& kv, Stream stream) {
  SAGE_TRY(check_current_device(d.device.index));
  return attend(d, kernels, args, q, kv, stream);
}

}  // namespace sage
