#include "api/forward_cuda.h"

#include "api/device.h"
#include "api/status.h"

namespace sage {

static VFormat v_format(AttnDesc const& d, CudaForward const& kernels) {
  if (kernels.pv == PvFormat::kInt8) return VFormat::kInt8;
  if (kernels.operand != d.dtype) return VFormat::kFloat16;
  return d.v_aligned && d.head_dim % 8 == 0 ? VFormat::kInPlace : VFormat::kCopy;
}

static bool scales_v(VFormat format) { return format == VFormat::kFloat16 || format == VFormat::kInt8; }

namespace {

// Sizes of one problem, and where its parts lie in the workspace: byte offsets, multiples of 64.
struct Plan {
  VFormat format;
  TileSpace q_tiles, k_tiles;
  int32_t stats_chunks;
  size_t k_sum, v_amax, q, q_scale, k, k_scale, v, v_scale, lse_shift;
  size_t bytes = 0;

  Plan(AttnDesc const& d, CudaForward const& kernels)
      : format(v_format(d, kernels)),
        q_tiles(make_tile_space(d.seqlen_q, d.total_q, d.varlen, d.batch, kQTileRows)),
        k_tiles(make_tile_space(d.seqlen_k, d.total_k, d.varlen, d.batch, kKTileRows)) {
    int64_t const chunks = ceil_div(d.seqlen_k, kMinStatsRows);
    stats_chunks = static_cast<int32_t>(chunks < 1 ? 1 : chunks > kMaxStatsChunks ? kMaxStatsChunks : chunks);
    bool const smooth = d.recipe.smooth_k, scaled = scales_v(format);
    int64_t const channels = int64_t{d.batch} * d.num_heads_kv * kernels.head_dim;
    int64_t const all_q_tiles = d.num_heads_q * q_tiles.per_head, all_k_tiles = d.num_heads_kv * k_tiles.per_head;
    int64_t const k_bytes = all_k_tiles * kKTileRows * kernels.head_dim;
    int64_t const v_element = format == VFormat::kInPlace ? 0 : format == VFormat::kInt8 ? 1 : 2;
    k_sum = take(smooth ? channels * stats_chunks * sizeof(float) : 0);
    v_amax = take(scaled ? channels * stats_chunks * sizeof(float) : 0);
    q = take(all_q_tiles * kQTileRows * kernels.head_dim);
    q_scale = take(all_q_tiles * kQScalesPerTile * sizeof(float));
    k = take(k_bytes);
    k_scale = take(all_k_tiles * kKScalesPerTile * sizeof(float));
    v = take(k_bytes * v_element);
    v_scale = take(scaled ? channels * sizeof(float) : 0);
    lse_shift = take(smooth ? d.num_heads_q * (d.varlen ? d.total_q : d.batch * d.seqlen_q) * sizeof(float) : 0);
  }

 private:
  size_t take(size_t part) {
    size_t const offset = bytes;
    bytes += (part + 63) / 64 * 64;
    return offset;
  }
};

}  // namespace

size_t cuda_workspace_bytes(AttnDesc const& desc, CudaForward const& kernels) { return Plan(desc, kernels).bytes; }

// Whether data and strides are multiples of `bytes`.
static bool is_aligned(TensorView const& view, int element_bytes, int bytes) {
  return reinterpret_cast<uintptr_t>(view.data) % bytes == 0 && view.stride_batch * element_bytes % bytes == 0 &&
         view.stride_head * element_bytes % bytes == 0 && view.stride_seq * element_bytes % bytes == 0;
}

Status run_cuda(AttnDesc const& d, CudaForward const& kernels, AttnArgs const& args, void* workspace, Stream stream) {
  SAGE_REQUIRE(!d.v_aligned || is_aligned(args.v, 2, 16),
               "v must have data and strides that are multiples of 16 bytes where the descriptor says v_aligned");
  if (Status status = check_current_device(d.device.index); !status.ok()) return status;
  Plan const plan(d, kernels);
  auto const at = [&](size_t offset) { return static_cast<char*>(workspace) + offset; };
  auto const floats_at = [&](size_t offset) { return reinterpret_cast<float*>(at(offset)); };
  auto const int8_at = [&](size_t offset) { return reinterpret_cast<int8_t*>(at(offset)); };
  bool const scaled = scales_v(plan.format), shifts_lse = d.recipe.smooth_k && args.lse;

  QuantizeParams x{};
  x.q = args.q;
  x.k = args.k;
  x.v = args.v;
  x.dtype = d.dtype;
  x.sequences = {d.seqlen_q, d.seqlen_k, args.cu_seqlens_q, args.cu_seqlens_k, args.seqused_k};
  x.q_tiles = plan.q_tiles;
  x.k_tiles = plan.k_tiles;
  x.batch = d.batch;
  x.num_heads_q = d.num_heads_q;
  x.num_heads_kv = d.num_heads_kv;
  x.head_dim = d.head_dim;
  x.total_q = d.varlen ? d.total_q : 0;
  x.softmax_scale = args.softmax_scale;
  x.granularity = d.recipe.qk_granularity;
  x.smooth_k = d.recipe.smooth_k;
  x.v_format = plan.format;
  x.v_max = d.recipe.v_max;
  x.stats_chunks = plan.stats_chunks;
  x.k_sum = d.recipe.smooth_k ? floats_at(plan.k_sum) : nullptr;
  x.v_amax = scaled ? floats_at(plan.v_amax) : nullptr;
  x.q_out = int8_at(plan.q);
  x.q_scale = floats_at(plan.q_scale);
  x.k_out = int8_at(plan.k);
  x.k_scale = floats_at(plan.k_scale);
  x.v_out = plan.format == VFormat::kInPlace ? nullptr : at(plan.v);
  x.v_scale = scaled ? floats_at(plan.v_scale) : nullptr;
  x.lse_shift = shifts_lse ? floats_at(plan.lse_shift) : nullptr;

  AttnParams y{};
  y.q = x.q_out;
  y.k = x.k_out;
  y.q_scale = x.q_scale;
  y.k_scale = x.k_scale;
  y.q_tiles = plan.q_tiles;
  y.k_tiles = plan.k_tiles;
  y.v_in_tiles = plan.format != VFormat::kInPlace;
  y.v = y.v_in_tiles ? TensorView{x.v_out, 0, 0, 0} : args.v;
  y.v_scale = x.v_scale;
  y.out = args.out;
  y.out_dtype = d.dtype;
  y.out_in_pairs = d.head_dim % 2 == 0 && is_aligned(args.out, 2, 4);
  y.lse = args.lse;
  y.lse_shift = x.lse_shift;
  y.sequences = x.sequences;
  y.total_q = x.total_q;
  y.batch = d.batch;
  y.num_heads_q = d.num_heads_q;
  y.num_heads_kv = d.num_heads_kv;
  y.head_dim = d.head_dim;
  y.causal = d.causal;
  y.window_left = d.window_left;
  y.window_right = d.window_right;
  y.mask = args.mask;

  if (d.recipe.smooth_k || scaled) {
    if (Status status = kernels.kv_stats.launch(x, stream); !status.ok()) return status;
  }
  if (Status status = kernels.quantize_qkv.launch(x, stream); !status.ok()) return status;
  return kernels.attention.launch(y, stream);
}

}  // namespace sage
