"""Bugs in the CUDA kernels of all recipes, and on the way to them."""

from __future__ import annotations

from .bug import Bug

CUDA_BUGS = {
    "copies not waited for": Bug(
        "attention/mma_sync_fwd.cuh", "arch::cp_async_wait<0>();\n      arch::sync_block();", "arch::sync_block();"
    ),
    "no barrier after the wait": Bug(
        "attention/mma_sync_fwd.cuh", "arch::sync_block();  // tile n is visible", "// tile n is visible"
    ),
    "next tile copied before the barrier": Bug(
        "attention/mma_sync_fwd.cuh",
        "arch::sync_block();  // tile n is visible to every warp, and no warp still reads the other stage\n"
        "      if (n + place.step != place.end) copy_tile(p, shared, n + place.step);\n",
        "if (n + place.step != place.end) copy_tile(p, shared, n + place.step);\n      arch::sync_block();\n",
    ),
    "no barrier before the place is read": Bug(
        "attention/mma_sync_fwd.cuh", "arch::sync_block();  // place is visible", ""
    ),
    "scratch in the stage that is being copied": Bug(
        "attention/mma_sync_fwd.cuh", "shared.stages[(n + 1) % 2].k", "shared.stages[n % 2].k"
    ),
    "V past the last key not zeroed": Bug(
        "attention/mma_sync_fwd.cuh", "return r < rows && c < channels;", "return c < channels;"
    ),
    "V past head_dim not zeroed": Bug(
        "attention/mma_sync_fwd.cuh", "return r < rows && c < channels;", "return r < rows;"
    ),
    "query scales of the first warp": Bug(
        "attention/mma_sync_fwd.cuh", "q_scale_index(arch::warp_index() * 16 * kMTiles + ", "q_scale_index("
    ),
    "one key scale for all": Bug("attention/mma_sync_fwd.cuh", "tile.k_scale[place_k / 16 % 4]", "tile.k_scale[0]"),
    "key scales of the first tile": Bug("attention/mma_sync_fwd.cuh", "k_scale + n * kKScalesPerTile", "k_scale"),
    "wrong head of K and V (CUDA)": Bug(
        "attention/mma_sync_fwd.cuh", "x.head / (p.num_heads_q / p.num_heads_kv)", "x.head % p.num_heads_kv"
    ),
    "offset of V in 32 bits": Bug(
        "attention/mma_sync_fwd.cuh",
        "(x.batch * p.v.stride_batch + x.head_kv",
        "(static_cast<int32_t>(x.batch * p.v.stride_batch) + x.head_kv",
    ),
    "offset of out in 32 bits": Bug(
        "attention/mma_sync_fwd.cuh",
        "place.head * p.out.stride_head +",
        "static_cast<int32_t>(place.head * p.out.stride_head) +",
    ),
    "row stride of V in 32 bits": Bug(
        "attention/mma_sync_fwd.cuh",
        "x.v_stride = p.v.stride_seq * 2;",
        "x.v_stride = static_cast<uint32_t>(p.v.stride_seq) * 2;",
    ),
    "row stride of out in 32 bits": Bug(
        "attention/mma_sync_fwd.cuh", "* p.out.stride_seq;", "* static_cast<uint32_t>(p.out.stride_seq);"
    ),
    "row stride of Q and K in 32 bits": Bug(
        "quantize/tiles.h", "stride_(x.stride_seq),", "stride_(static_cast<uint32_t>(x.stride_seq)),"
    ),
    "a tile of the diagonal taken for whole": Bug(
        "attention/mma_sync_fwd.cuh",
        "static_cast<uint32_t>(visible.col_end(x.row) / kBlockN)",
        "static_cast<uint32_t>(ceil_div(visible.col_end(x.row), kBlockN))",
    ),
    "a tile of the window's start taken for whole": Bug(
        "attention/mma_sync_fwd.cuh",
        "ceil_div(visible.col_begin(last_row), kBlockN)",
        "visible.col_begin(last_row) / kBlockN",
    ),
    "first tile of a window skipped": Bug(
        "attention/mma_sync_fwd.cuh",
        "static_cast<uint32_t>(visible.col_begin(x.row) / kBlockN)",
        "static_cast<uint32_t>(ceil_div(visible.col_begin(x.row), kBlockN))",
    ),
    "causal mask off by one (CUDA)": Bug("common/mask.h", "seqlen_q + right + 1;", "seqlen_q + right;"),
    "window one key too wide (CUDA)": Bug("common/mask.h", "- window_left;", "- window_left - 1;"),
    "sum of the old tiles not rescaled": Bug(
        "attention/mma_sync_fwd.cuh", "      exp_sum[mt][r] *= decay[mt][r];\n", ""
    ),
    "old output not rescaled (CUDA)": Bug("attention/mma_sync_fwd.cuh", "    o.scale(decay);\n", ""),
    "stale maximum always accepted": Bug("tile/pv_accumulator.h", "kSumLimit = 16384.f", "kSumLimit = 1e30f"),
    "stale maximum accepted beyond fp16 accumulators": Bug(
        "tile/pv_accumulator.h", "kF16SumLimit = 16.f", "kF16SumLimit = 16384.f", "sm80_fwd_f16acc_f32_d64"
    ),
    "maximum of half of the lanes": Bug("tile/epilogue.h", "return fmaxf(x, arch::shuffle_xor(x, 2));", "return x;"),
    "row without keys not zeroed (CUDA)": Bug("attention/mma_sync_fwd.cuh", "seen = divisor != 0.f;", "seen = true;"),
    "rows past the last query written": Bug(
        "attention/mma_sync_fwd.cuh", "if (row >= sequence.seqlen_q) continue;", ""
    ),
    "channels past head_dim written": Bug(
        "tile/epilogue.h", "if (channel < head_dim) *reinterpret_cast", "*reinterpret_cast"
    ),
    "LSE of packed sequences at the first one's place": Bug(
        "attention/mma_sync_fwd.cuh", "place.head * p.total_q + sequence.row_q + row", "place.head * p.total_q + row"
    ),
    "stride of the mask's keys": Bug(
        "tile/mask_scores.h",
        "(Columns::key(n + e, 1 - e) - Columns::key(n, e)) * next",
        "(Columns::key(n + e, 1 - e) - Columns::key(n, e) - e) * next",
    ),
    "additive mask not in base 2 (CUDA)": Bug("tile/mask_scores.h", "  value *= kLog2e;\n", ""),
    "integer P beyond 1": Bug(
        "attention/mma_sync_fwd.cuh",
        "kTileMax ? arch::fma_down(-bias, unit, -base[mt][r]) :",
        "",
        "sm80_fwd_int8_d64",
    ),
    "integer P not folded to the row's maximum": Bug(
        "tile/pv_accumulator.h",
        "arch::kRounder, factor[mt][x / 2], outer",
        "arch::kRounder, 1.f, outer",
        "sm80_fwd_int8_d64",
    ),
    "sum of integer P not folded": Bug(
        "attention/mma_sync_fwd.cuh",
        "static_cast<float>(probabilities.sum[i / 2][i % 2]), f,",
        "static_cast<float>(probabilities.sum[i / 2][i % 2]), 1.f,",
        "sm80_fwd_int8_d64",
    ),
    "keys of INT8 V in the wrong order": Bug(
        "quantize/v_tile.h",
        "j / 2 * 8 + Lanes::slot() % 4 * 2 + j % 2; };\n    Channels x[4];\n    rows.load(x, channel, key);\n    float y",
        "j % 2 * 8 + Lanes::slot() % 4 * 2 + j / 2; };\n    Channels x[4];\n    rows.load(x, channel, key);\n    float y",
        "sm80_fwd_int8_d64",
    ),
    "fragments of Q in the wrong order": Bug(
        "common/quant_format.h", "(row % 8 * 4 + d % 16 / 4) * 16", "(d % 16 / 4 * 8 + row % 8) * 16"
    ),
    "registers of Q's fragments in another order": Bug(
        "quantize/q_tile.h",
        "wgmma ? first[1] : second[0], wgmma ? second[0] : first[1]",
        "wgmma ? second[0] : first[1], wgmma ? first[1] : second[0]",
    ),
    "tiles of packed sequences overlap": Bug(
        "common/quant_format.h", "first_row / kTileRows + b :", "first_row / kTileRows :"
    ),
    "LSE not corrected for the mean of K (CUDA)": Bug("quantize/q_rows.h", "= p.softmax_scale * dot;", "= 0.f;"),
    "mean of K over the padded length": Bug(
        "quantize/kv_stats.cuh", "static_cast<float>(sequence.seqlen_k);", "static_cast<float>(p.sequences.seqlen_k);"
    ),
    "mean of K not subtracted in the first tile": Bug(
        "quantize/k_rows.h",
        "y[j][c] - shared.mean[channel + c] :",
        "y[j][c] - (place.first_row ? shared.mean[channel + c] : 0.f) :",
    ),
    "mean of K of another head": Bug(
        "quantize/q_rows.h",
        "place.batch, place.head / (p.num_heads_q / p.num_heads_kv))",
        "place.batch, 0)",
    ),
    "last chunk of K not in the mean": Bug(
        "quantize/tiles.h", "if (i < p.stats_chunks) take", "if (i + 1 < p.stats_chunks || i == 0) take"
    ),
    "sign of softmax_scale lost": Bug(
        "quantize/q_rows.h", "p.softmax_scale < 0.f ? -scale.inverse : scale.inverse", "scale.inverse"
    ),
    "largest magnitude maps to 128": Bug("quantize/tiles.h", "kInt8 ? 127.f : 7.f", "kInt8 ? 128.f : 7.f"),
    "largest magnitude of half of the channels": Bug(
        "quantize/tiles.h",
        "i < kPerRow; i *= 2)\n      x = arch::max_nan",
        "i < kPerRow / 2; i *= 2)\n      x = arch::max_nan",
    ),
    "keys past the last one read": Bug("quantize/tiles.h", "return row < num_rows_;", "return true;"),
    "offset of K in 32 bits": Bug(
        "quantize/tiles.h", "head * x.stride_head +", "static_cast<int32_t>(head * x.stride_head) +"
    ),
    "no barrier before the partial sums are read": Bug(
        "quantize/kv_stats.cuh", "arch::sync_block();  // the partial results", "// the partial results"
    ),
    "no barrier before the mean is read": Bug(
        "quantize/tiles.h", "arch::sync_block();  // the means of all", "// the means of all"
    ),
    "no barrier before the largest magnitudes are read": Bug(
        "quantize/k_tile.h",
        "arch::sync_block();  // the maxima of all slots",
        "// the maxima of all slots",
    ),
    "no barrier before the tile of V is written": Bug(
        "quantize/v_tile.h",
        "arch::sync_block();  // the tile is complete",
        "// the tile is complete",
        "sm80_fwd_int8_d64",
    ),
    "bfloat16 V overflows": Bug(
        "quantize/v_tile.h", "? Scale::power_of_two(amax) :", "? Scale{1.f, 1.f} :", "sm80_fwd_f16acc_f32_d64"
    ),
    "scale of V of the first head": Bug(
        "attention/mma_sync_fwd.cuh",
        "p.num_heads_kv + place.head_kv;",
        "p.num_heads_kv;",
        "sm80_fwd_int8_d64",
    ),
    "length of the last sequence divides every mean of K": Bug(
        "quantize/kv_stats.cuh", "p.seqlens_k[batch] =", "p.seqlens_k[0 * batch] ="
    ),
    "tiles of K launched with those of Q": Bug(
        "quantize/tile_grid.h",
        "return p.k_out ? Place::num_blocks(p.k_tiles, p.batch, p.num_heads_kv) : 0;",
        "return Place::num_blocks(p.k_tiles, p.batch, p.num_heads_kv);",
        "api_steps",
    ),
    "tiles of Q launched with those of K": Bug(
        "quantize/tile_grid.h",
        "return p.q_out ? Place::num_blocks(p.q_tiles, p.batch, p.num_heads_q) : 0;",
        "return Place::num_blocks(p.q_tiles, p.batch, p.num_heads_q);",
        "api_steps",
    ),
    "quantized Q without its part of the LSE": Bug(
        "csrc/api/forward_cuda.cpp", "&q, nullptr, kv, true, stream", "&q, nullptr, kv, args.lse, stream", "api_steps"
    ),
    "LSE with the mean of another K": Bug(
        "csrc/api/attention.cpp", "q.kv == kv.data || !args.lse", "true || !args.lse", "api_steps"
    ),
    "keys that were not quantized are read": Bug(
        "csrc/api/attention.cpp", "args.seqused_k || !kv.has_seqused_k", "true || !kv.has_seqused_k", "api_steps"
    ),
    "V in place is not in the view": Bug(
        "csrc/api/forward_cuda.cpp",
        "== VFormat::kInPlace) *v = args.v;",
        "== VFormat::kCopy) *v = args.v;",
        "api_steps",
    ),
    "quantized Q and K overlap in the workspace": Bug(
        "csrc/api/forward_cuda.cpp",
        "at<void>(workspace, quantized_q_bytes(d, kernels))",
        "at<void>(workspace, quantized_q_bytes(d, kernels) / 128 * 64)",
        "api_steps",
    ),
    "tag without the length of K": Bug(
        "csrc/api/tags.cpp",
        '  comparison.field("seqlen_k", kv.desc.seqlen_k, desc.seqlen_k);\n',
        "",
        "api_steps",
    ),
    "tag without the format of V": Bug(
        "csrc/api/tags.cpp",
        '  comparison.field("V", v_format(kv.desc, kernels), v_format(desc, kernels));\n',
        "",
        "api_steps",
    ),
    "tag of Q with the length of K": Bug(
        "csrc/api/tags.cpp",
        'field("head_dim", has.head_dim, needed.head_dim);',
        'field("head_dim", has.head_dim, needed.head_dim);\n    field("seqlen_k", has.seqlen_k, needed.seqlen_k);',
        "api_steps",
    ),
    "empty views accepted": Bug(
        "csrc/api/tags.cpp", "return desc.head_dim == 0 || (!data && bytes > 0);", "return false;", "api_steps"
    ),
    "what was done on one device counts for all": Bug(
        "arch/once_per_device.h",
        "device < 64 ? uint64_t{1} << device : 0",
        "device < 64 ? 1 : 0",
        "api_once_per_device",
    ),
    "what failed counts as done": Bug(
        "arch/once_per_device.h", "if (error == 0) done_.", "done_.", "api_once_per_device"
    ),
    "done is said before it is": Bug(
        "arch/once_per_device.h",
        "int const error = action();\n    if (error == 0) done_.fetch_or(bit, std::memory_order_release);\n",
        "done_.fetch_or(bit, std::memory_order_release);\n"
        "    int const error = action();\n    if (error != 0) done_.fetch_and(~bit);\n",
        "api_once_per_device",
    ),
}
