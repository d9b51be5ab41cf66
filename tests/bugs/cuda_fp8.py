"""Bugs in the CUDA kernels of FP8 P V, of 8-bit V with a mean and of the order of keys."""

from __future__ import annotations

from .bug import Bug

FWD = "attention/mma_sync_fwd.cuh"
FP8 = "tile/pv_accumulator_fp8.h"
V_TILE, V_SCALE = "quantize/v_tile.h", "quantize/v_scale.h"
FP32 = "sm89_fwd_fp8_d64"
FP16 = "sm89_fwd_fp8_f16acc_d64"

CUDA_BUGS = {
    # Quantized V.
    "e4m3 truncates": Bug("arch/convert.h", "magnitude + 0x7ffffu + (magnitude >> 20 & 1)", "magnitude", FP32),
    "small e4m3 are zero": Bug(
        "arch/convert.h", "if (magnitude < kLeastNormal) {", "if (magnitude < kLeastNormal) return sign;\n  {", FP32
    ),
    "FP8 V is scaled to 448": Bug(V_TILE, "Scale::linear(amax, p.v_max)", "Scale::linear(amax, 448.f)", FP16),
    "scale of V of another channel": Bug(FWD, "x *= v_scale[channel];", "x *= v_scale[channel + 1];", FP32),
    "keys of FP8 V in the wrong order": Bug(
        "common/quant_format.h", "key % 8 / 2 * 4 + key / 8 % 2 * 2", "key / 8 % 2 * 8 + key % 8 / 2 * 2", FP32
    ),
    "keys of FP8 P in the wrong order": Bug(FP8, "n % 4 / 2 * 2 + r", "n % 4 / 2 + r * 2", FP32),
    "channels of 8-bit V in the wrong panel": Bug(FP8, "v + n / 8 * 4096 +", "v + n / 8 * 2048 +", "sm89_fwd_fp8_d128"),
    "mean of V not added": Bug(FWD, "      x += v_mean[channel];\n", "", FP32),
    "mean of V of another head": Bug(FWD, "p.v_mean + head_kv * kHeadDim", "p.v_mean", FP32),
    "mean of V in rows without keys": Bug(
        FWD, "seen ? x : 0.f, seen ? y : 0.f", "seen || v_mean ? x : 0.f, seen ? y : 0.f", FP32
    ),
    "mean of V over the padded length": Bug(
        V_SCALE, "sum / static_cast<float>(seqlen_k)", "sum / static_cast<float>(p.sequences.seqlen_k)", FP32
    ),
    "mean of V not subtracted": Bug(V_TILE, "y[j][c] -= shared.mean[channel + c];", "{}", FP32),
    "smallest V not in the scale": Bug(V_SCALE, "arch::max_nan(amax - mean, mean - low)", "amax - mean", FP32),
    "largest V not in the scale": Bug(
        V_SCALE, "arch::max_nan(amax - mean, mean - low)", "mean - low", "sm80_fwd_int8_d64"
    ),
    "rows beyond the sequence in the extremes of V": Bug(
        "quantize/kv_stats.cuh",
        "high[i] = exists ? larger(high[i], row[i]) : high[i];",
        "high[i] = larger(high[i], row[i]);",
        FP32,
    ),
    "no barrier between the sums of V and the extremes": Bug(
        "quantize/kv_stats.cuh", "arch::sync_block();  // the sums of all slots have been read\n", "\n", FP32
    ),
    # FP8 P.
    "maximum of the first tile only": Bug(
        FWD, "if (exact) {\n          find_maximum", "if (n == place.begin) {\n          find_maximum", FP32
    ),
    "P without its largest value": Bug(FWD, "kFp8 ? p.log2_p_max : 0.f", "0.f", FP32),
    "P to 448": Bug(FWD, "p.log2_p_max", "log2f(448.f)", FP16),
    "LSE with the largest value of P": Bug(
        FWD, "tile::log_sum_exp(row_max[mt][r], sum)", "tile::log_sum_exp(row_max[mt][r] + place.max_offset, sum)", FP32
    ),
    "column of twos": Bug(
        FP8,
        "0x38383838u, 0x38383838u, 0x38383838u, 0x38383838u",
        "0x40404040u, 0x40404040u, 0x40404040u, 0x40404040u",
        FP32,
    ),
    "column of ones not rescaled": Bug(
        FP8, "      sum[i / 4][i % 4] *= factor[i / 4][i % 4 / 2];\n", "      {}\n", FP32
    ),
    "sum of exact P with float32 accumulators": Bug(
        FP8, "kDivisor = Divisor::kAccumulated;", "kDivisor = Divisor::kProbabilities;", FP32
    ),
    "tiles weigh twice as much in fp16": Bug(
        FP8, "arch::pack_f16(0x1p-7f, 0x1p-7f)", "arch::pack_f16(0x1p-6f, 0x1p-6f)", FP16
    ),
    "scale of an MXFP8 instruction": Bug(
        "arch/tensor_ops.h", "uint8_t one = 127;", "uint8_t one = 128;", "sm120_fwd_mxfp8_d64"
    ),
    # Folds.
    "no fold before the end": Bug(FWD, "if (n == next_fold) {", "if (false) {", FP16),
    "accumulators not emptied by a fold": Bug(FWD, "    o = {};\n", "", FP32),
    "no fold at the end": Bug(FWD, "if (place.fold) fold(place, o, row_max, false);", "", FP16),
    "first fold adds what is in the slot": Bug(FWD, "first ? float4{0.f, 0.f, 0.f, 0.f} : sum", "sum", FP16),
    "folded sums of rows g not rescaled": Bug(FWD, "f0 = arch::exp2_approx(old.x - row_max[mt][0])", "f0 = 1.f", FP16),
    "folded sums of rows g + 8 not rescaled": Bug(
        FWD, "f1 = arch::exp2_approx(old.z - row_max[mt][1])", "f1 = 1.f", FP32
    ),
    "folded sums of P not rescaled": Bug(FWD, "rows.y = fmaf(old.y, f0,", "rows.y = fmaf(old.y, 1.f,", FP32),
    "fold slot not given back": Bug(FWD, "if (place.fold) give_fold_slot_back(p, place);", "", FP16),
    "fold slot given back before it is read": Bug(
        FWD, "    arch::sync_block();  // all threads have read theirs\n", "", FP16
    ),
    "fold slots not cleared": Bug("quantize/tile_grid.h", "p.fold_busy[i] = 0;", "p.fold_busy[i] = i % 2;", FP16),
    "two blocks in a fold slot": Bug(
        FWD,
        "while (arch::exchange(&p.fold_busy[slot], 1)) {",
        "arch::exchange(&p.fold_busy[slot], 1);\n    while (false) {",
        FP16,
    ),
    # Order of keys.
    "last keys first for K but not for V": Bug(
        FWD,
        "char const* const src = v + int64_t{n * (kVBytes / 16) + thread} * 16;",
        "uint32_t const m = p.reverse_keys ? shared.place.begin - n : n;\n"
        "      char const* const src = v + int64_t{m * (kVBytes / 16) + thread} * 16;",
        FP32,
    ),
    "last keys never first": Bug(
        FWD,
        "    x.begin = p.reverse_keys ? last - 1 : first;\n"
        "    x.end = p.reverse_keys ? first - 1 : last;\n"
        "    x.step = p.reverse_keys ? -1 : 1;\n",
        "    x.begin = first;\n    x.end = last;\n    x.step = 1;\n",
        FP32,
    ),
    "first tile skipped where the last keys are first": Bug(
        FWD, "p.reverse_keys ? first - 1 : last;", "p.reverse_keys ? first : last;"
    ),
    "rows that see no key in their first tile": Bug(FWD, "last = last < first ? first : last;", ""),
}
