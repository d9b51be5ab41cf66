#include "api/forward_cuda.h"

#include <cmath>
#include <limits>

#include "api/device.h"
#include "api/status.h"
#include "common/nvfp4_format.h"

namespace sage {

VFormat v_format(AttnDesc const& d, CudaForward const& kernels) {
  if (kernels.pv == PvFormat::kInt8) return VFormat::kInt8;
  if (kernels.pv == PvFormat::kFp8E4m3) return VFormat::kFp8E4m3;
  if (kernels.pv == PvFormat::kNvfp4) return VFormat::kNvfp4;
  if (kernels.operand != d.dtype) return VFormat::kFloat16;
  return d.v_aligned && d.head_dim % 8 == 0 ? VFormat::kInPlace : VFormat::kCopy;
}

static int q_tile_bytes(CudaForward const& kernels) {
  if (kernels.qk == QkFormat::kNvfp4) return nvfp4_bytes(kQTileRows, kernels.head_dim);
  return q_tile_bytes(kernels.qk == QkFormat::kInt4 ? 4 : 8, kernels.head_dim);
}

static int q_mean_bytes(CudaForward const& kernels) {
  return kernels.qk == QkFormat::kNvfp4 ? q_mean_nvfp4_bytes(kernels.head_dim) : q_mean_bytes(kernels.head_dim);
}

// NVFP4 has its scales among the codes.
static bool has_q_mean_scale(CudaForward const& kernels) { return kernels.qk != QkFormat::kNvfp4; }

static int k_tile_bytes(CudaForward const& kernels, bool smooth_q) {
  if (kernels.qk == QkFormat::kNvfp4) return nvfp4_bytes(kKTileRows, kernels.head_dim) * (smooth_q ? 2 : 1);
  return k_tile_bytes(kernels.head_dim);
}

static int v_tile_bytes(VFormat format, int head_dim) {
  int const values = kKTileRows * head_dim;
  switch (format) {
    case VFormat::kInPlace: return 0;
    case VFormat::kNvfp4: return nvfp4_bytes(kKTileRows, head_dim);
    case VFormat::kInt8:
    case VFormat::kFp8E4m3: return values;
    case VFormat::kCopy:
    case VFormat::kFloat16: return 2 * values;
  }
  return 0;
}

static bool scales_v(VFormat format) { return format != VFormat::kInPlace && format != VFormat::kCopy; }

// For accumulators that are folded in global memory; 0 where no row sees enough keys.
static int32_t fold_slots(AttnDesc const& d, CudaForward const& kernels) {
  if (!folds(kernels.pv, kernels.pv_accum) || kernels.order == OperandOrder::kWgmma) return 0;
  if (ceil_div(d.seqlen_k, kKTileRows) <= d.recipe.fold_every) return 0;
  int64_t const blocks = ceil_div(d.seqlen_q, kQTileRows) * d.num_heads_q * d.batch;
  return static_cast<int32_t>(blocks < kFoldSlots ? blocks : kFoldSlots);
}

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

// Quantized Q of a problem, and where its parts lie. The slots come last: where they are not used, the other parts are
// where they would be with them.
struct QLayout {
  TileSpace tiles;
  int32_t slots;
  size_t data, scale, mean, mean_scale, lse_shift, fold_busy, fold, bytes;

  QLayout(AttnDesc const& d, CudaForward const& kernels)
      : tiles(make_tile_space(d.seqlen_q, d.total_q, d.varlen, d.batch, kQTileRows)), slots(fold_slots(d, kernels)) {
    int64_t const all_tiles = d.num_heads_q * tiles.per_head;
    int64_t const rows = d.num_heads_q * (d.varlen ? d.total_q : d.batch * d.seqlen_q);
    int64_t const mean_tiles = d.recipe.smooth_q ? all_tiles : 0;
    Parts parts;
    data = parts.take(all_tiles * q_tile_bytes(kernels));
    scale = parts.take(all_tiles * kQScalesPerTile * sizeof(float));
    mean = parts.take(mean_tiles * q_mean_bytes(kernels));
    mean_scale = parts.take(has_q_mean_scale(kernels) ? mean_tiles * sizeof(float) : 0);
    lse_shift = parts.take(d.recipe.smooth_k ? rows * sizeof(float) : 0);
    fold_busy = parts.take(slots * sizeof(uint32_t));
    fold = parts.take(slots * fold_floats(kernels.head_dim) * sizeof(float));
    bytes = parts.bytes;
  }
};

// Likewise of K and V.
struct KvLayout {
  VFormat v_format;
  TileSpace tiles;
  int32_t stats_chunks;
  size_t k_sum, seqlens_k, v_amax, v_sum, v_low, k, k_scale, v, v_scale, v_mean, bytes;

  KvLayout(AttnDesc const& d, CudaForward const& kernels)
      : v_format(sage::v_format(d, kernels)),
        tiles(make_tile_space(d.seqlen_k, d.total_k, d.varlen, d.batch, kKTileRows)) {
    int64_t const chunks = ceil_div(d.seqlen_k, kMinStatsRows);
    stats_chunks = static_cast<int32_t>(chunks < 1 ? 1 : chunks > kMaxStatsChunks ? kMaxStatsChunks : chunks);
    bool const smooth_k = d.recipe.smooth_k, smooth_v = d.recipe.smooth_v, scaled = scales_v(v_format);
    size_t const of_channels = int64_t{d.batch} * d.num_heads_kv * kernels.head_dim * sizeof(float);
    size_t const of_chunks = of_channels * stats_chunks;
    int64_t const all_tiles = d.num_heads_kv * tiles.per_head;
    Parts parts;
    k_sum = parts.take(smooth_k ? of_chunks : 0);
    seqlens_k = parts.take(smooth_k ? d.batch * sizeof(float) : 0);
    v_amax = parts.take(scaled ? of_chunks : 0);
    v_sum = parts.take(smooth_v ? of_chunks : 0);
    v_low = parts.take(smooth_v ? of_chunks : 0);
    k = parts.take(all_tiles * k_tile_bytes(kernels, d.recipe.smooth_q));
    k_scale = parts.take(all_tiles * kKScalesPerTile * sizeof(float));
    v = parts.take(all_tiles * v_tile_bytes(v_format, kernels.head_dim));
    v_scale = parts.take(scaled ? of_channels : 0);
    v_mean = parts.take(smooth_v ? of_channels : 0);
    bytes = parts.bytes;
  }
};

template <class T>
T* at(void* buffer, size_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(buffer) + offset);
}

}  // namespace

static void describe(ProblemParams& p, AttnDesc const& d, QLayout const& q, KvLayout const& kv,
                     Sequences const& sequences) {
  p.sequences = sequences;
  p.q_tiles = q.tiles;
  p.k_tiles = kv.tiles;
  p.batch = d.batch;
  p.num_heads_q = d.num_heads_q;
  p.num_heads_kv = d.num_heads_kv;
  p.head_dim = d.head_dim;
  p.total_q = d.varlen ? d.total_q : 0;
}

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
  Recipe const& r = d.recipe;
  bool const scaled = scales_v(kv_layout.v_format);
  // The quantizers look at the lengths of an operand that is left out, and do nothing with them.
  int32_t const* const cu_seqlens_q = q ? args.cu_seqlens_q : args.cu_seqlens_k;
  int32_t const* const cu_seqlens_k = kv ? args.cu_seqlens_k : args.cu_seqlens_q;

  QuantizeParams p{};
  describe(p, d, q_layout, kv_layout,
           {d.seqlen_q, d.seqlen_k, cu_seqlens_q, cu_seqlens_k, kv ? args.seqused_k : nullptr});
  p.q = args.q;
  p.k = args.k;
  p.v = args.v;
  p.dtype = d.dtype;
  p.softmax_scale = args.softmax_scale;
  p.order = kernels.order;
  p.qk = r.qk;
  p.granularity = r.qk_granularity;
  p.smooth_k = r.smooth_k;
  p.smooth_q = r.smooth_q;
  p.hadamard = r.hadamard;
  p.v_format = kv_layout.v_format;
  p.v_max = r.v_max;
  p.stats_chunks = kv_layout.stats_chunks;
  if (r.smooth_k) {
    p.k_sum = at<float>(k_mean_of.data, kv_layout.k_sum);
    p.seqlens_k = at<float>(k_mean_of.data, kv_layout.seqlens_k);
  }
  if (q) {
    p.q_out = at<char>(q->data, q_layout.data);
    p.q_scale = at<float>(q->data, q_layout.scale);
    if (r.smooth_q) {
      p.q_mean = at<char>(q->data, q_layout.mean);
      if (has_q_mean_scale(kernels)) p.q_mean_scale = at<float>(q->data, q_layout.mean_scale);
    }
    if (r.smooth_k && wants_lse) p.lse_shift = at<float>(q->data, q_layout.lse_shift);
    p.fold_slots = q_layout.slots;
    if (q_layout.slots > 0) p.fold_busy = at<uint32_t>(q->data, q_layout.fold_busy);
  }
  if (kv) {
    p.k_out = at<char>(kv->data, kv_layout.k);
    p.k_scale = at<float>(kv->data, kv_layout.k_scale);
    if (p.v_format != VFormat::kInPlace) p.v_out = at<void>(kv->data, kv_layout.v);
    if (scaled) {
      p.v_amax = at<float>(kv->data, kv_layout.v_amax);
      p.v_scale = at<float>(kv->data, kv_layout.v_scale);
    }
    if (r.smooth_v) {
      p.v_sum = at<float>(kv->data, kv_layout.v_sum);
      p.v_low = at<float>(kv->data, kv_layout.v_low);
      p.v_mean = at<float>(kv->data, kv_layout.v_mean);
    }
    if (r.smooth_k || scaled) SAGE_TRY(kernels.kv_stats.launch(p, stream));
  }
  return kernels.quantizer.launch(p, stream);
}

// Enqueues the attention kernel.
static Status attend(AttnDesc const& d, CudaForward const& kernels, int32_t sm_count, AttnArgs const& args,
                     QuantizedQ const& q, QuantizedKv const& kv, Stream stream) {
  QLayout const q_layout(d, kernels);
  KvLayout const kv_layout(d, kernels);
  Recipe const& r = d.recipe;

  AttnParams p{};
  describe(p, d, q_layout, kv_layout, {d.seqlen_q, d.seqlen_k, args.cu_seqlens_q, args.cu_seqlens_k, args.seqused_k});
  p.q = at<char>(q.data, q_layout.data);
  p.k = at<char>(kv.data, kv_layout.k);
  p.q_scale = at<float>(q.data, q_layout.scale);
  p.k_scale = at<float>(kv.data, kv_layout.k_scale);
  if (r.smooth_q) {
    p.q_mean = at<char>(q.data, q_layout.mean);
    if (has_q_mean_scale(kernels)) p.q_mean_scale = at<float>(q.data, q_layout.mean_scale);
  }
  p.v_in_tiles = kv_layout.v_format != VFormat::kInPlace;
  p.v = p.v_in_tiles ? TensorView{at<void>(kv.data, kv_layout.v), 0, 0, 0} : kv.v;
  if (scales_v(kv_layout.v_format)) p.v_scale = at<float>(kv.data, kv_layout.v_scale);
  if (r.smooth_v) p.v_mean = at<float>(kv.data, kv_layout.v_mean);
  p.out = args.out;
  p.out_dtype = d.dtype;
  p.out_in_pairs = d.head_dim % 2 == 0 && is_aligned(args.out, 2, 4);
  p.lse = args.lse;
  if (r.smooth_k && args.lse) p.lse_shift = at<float>(q.data, q_layout.lse_shift);
  p.causal = d.causal;
  p.window_left = d.window_left;
  p.window_right = d.window_right;
  p.mask = args.mask;
  p.sm_count = sm_count;
  p.log2_p_max = r.pv == PvFormat::kFp8E4m3 || r.pv == PvFormat::kNvfp4 ? std::log2(r.p_max) : 0.f;
  p.reverse_keys = r.key_order == KeyOrder::kReverse;
  bool const can_fold = q_layout.slots > 0 || kernels.order == OperandOrder::kWgmma;
  p.fold_every = can_fold ? r.fold_every : std::numeric_limits<int32_t>::max();
  p.fold_slots = q_layout.slots;
  if (q_layout.slots > 0) {
    p.fold_busy = at<uint32_t>(q.data, q_layout.fold_busy);
    p.fold = at<float>(q.data, q_layout.fold);
  }
  return kernels.attention.launch(p, stream);
}

// Where the view is of V itself.
static Status find_v(AttnDesc const& d, CudaForward const& kernels, AttnArgs const& args, TensorView* v) {
  SAGE_REQUIRE(!d.v_aligned || is_aligned(args.v, 2, 16),
               "v must have data and strides that are multiples of 16 bytes where the descriptor says v_aligned");
  if (v_format(d, kernels) == VFormat::kInPlace) *v = args.v;
  return {};
}

Status run_cuda(AttnDesc const& d, CudaForward const& kernels, int32_t sm_count, AttnArgs const& args, void* workspace,
                Stream stream) {
  QuantizedQ const q{workspace, nullptr, d};
  QuantizedKv kv{at<void>(workspace, quantized_q_bytes(d, kernels)), {}, d};
  SAGE_TRY(find_v(d, kernels, args, &kv.v));
  SAGE_TRY(check_current_device(d.device.index));
  SAGE_TRY(quantize(d, kernels, args, &q, &kv, kv, args.lse, stream));
  return attend(d, kernels, sm_count, args, q, kv, stream);
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

Status run_quantized_cuda(AttnDesc const& d, CudaForward const& kernels, int32_t sm_count, AttnArgs const& args,
                          QuantizedQ const& q, QuantizedKv const& kv, Stream stream) {
  SAGE_TRY(check_current_device(d.device.index));
  return attend(d, kernels, sm_count, args, q, kv, stream);
}

}  // namespace sage
