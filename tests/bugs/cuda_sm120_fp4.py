"""Bugs in the NVFP4 CUDA kernel of sm_120: its pipeline, its items, its corrections, its scales and its softmax."""

from __future__ import annotations

from .bug import Bug

FWD = "attention/sm120_fp4_fwd.cuh"
MASK = "tile/mask_scores.h"
SOFTMAX = "tile/lazy_softmax.h"
FP4, FP4_D128 = "sm120_fp4_fwd_nvfp4_d64", "sm120_fp4_fwd_nvfp4_d128"
FP8, FP8_D128 = "sm120_fp4_fwd_fp8_d64", "sm120_fp4_fwd_fp8_d128"


def bug(right: str, wrong: str, program: str = FP4) -> Bug:
    return Bug(FWD, right, wrong, program)


def softmax_bug(right: str, wrong: str, program: str = FP4) -> Bug:
    return Bug(SOFTMAX, right, wrong, program)


PIPELINE_BUGS = {
    "FP4: a stage not waited for": bug("Barrier::wait(&shared.full[stage.index], stage.phase);", ""),
    "FP4: corrections not waited for": bug(
        "if (p.q_mean) Barrier::wait(&shared.corrected[stage.index], stage.phase);", ""
    ),
    "FP4: a stage copied over one in use": bug("Barrier::wait(&shared.empty[slot.index], slot.phase ^ 1);", ""),
    "FP4: a second plane copied over one in use": bug(
        "Barrier::wait(&shared.rest_empty[rest_slot.index], rest_slot.phase ^ 1);", ""
    ),
    "FP4: service warps do not wait for K": bug("Barrier::wait(&shared.full[slot.index], slot.phase);", ""),
    "FP4: service warps do not wait for the second plane": bug(
        "Barrier::wait(&shared.rest_full[rest_slot.index], rest_slot.phase);", ""
    ),
    "FP4: a stage released before its last tile": bug(
        "        take<1>(second, first, next.index, step + 1, whole.has(step + 1));\n        release();\n",
        "        arrive(shared.empty[slot.index]);\n"
        "        take<1>(second, first, next.index, step + 1, whole.has(step + 1));\n        slot = slot.next();\n",
    ),
    "FP4: the next step not waited for": bug("if (!is_last) await(next);", ""),
    "FP4: the producer's first phase": bug(
        "Barrier::wait(&shared.empty[slot.index], slot.phase ^ 1);",
        "Barrier::wait(&shared.empty[slot.index], slot.phase);",
    ),
    "FP4: phases do not change": bug("Slot{0, phase ^ 1}", "Slot{0, phase}"),
    "FP4: phases change with each stage": bug("Slot{index + 1, phase}", "Slot{index + 1, phase ^ 1}"),
    "FP4: a barrier of a stage for one warp less": bug(
        "Barrier::init(&shared.empty[i], kMathWarps);", "Barrier::init(&shared.empty[i], kMathWarps - 1);"
    ),
    "FP4: a barrier of corrections for one warp less": bug(
        "Barrier::init(&shared.corrected[i], kServiceWarps);", "Barrier::init(&shared.corrected[i], kServiceWarps - 1);"
    ),
    "FP4: a barrier of second planes for one warp less": bug(
        "Barrier::init(&shared.rest_empty[i], kServiceWarps);",
        "Barrier::init(&shared.rest_empty[i], kServiceWarps - 1);",
    ),
    "FP4: corrections announced before they are written": bug(
        "          correct(slot.index, rest_slot.index);\n          arrive(shared.corrected[slot.index]);\n",
        "          arrive(shared.corrected[slot.index]);\n          correct(slot.index, rest_slot.index);\n",
    ),
    "FP4: a second plane released before it is read": bug(
        "          correct(slot.index, rest_slot.index);\n          arrive(shared.corrected[slot.index]);\n"
        "          arrive(shared.rest_empty[rest_slot.index]);\n",
        "          arrive(shared.rest_empty[rest_slot.index]);\n          correct(slot.index, rest_slot.index);\n"
        "          arrive(shared.corrected[slot.index]);\n",
    ),
    "FP4: the scales of K not expected": bug(
        "kTilesPerStage * (kPlaneBytes + kVTileBytes + kKScalesPerTile * static_cast<int>(sizeof(float)))",
        "kTilesPerStage * (kPlaneBytes + kVTileBytes)",
    ),
    "FP4: steps without keys not released": bug("        await(slot);\n        release();\n", "        await(slot);\n"),
    "FP4: steps without keys not waited for": bug("        await(slot);\n        release();\n", "        release();\n"),
    "FP4: more stages ahead than second planes": bug(
        "i < kStages - 1; ++i) loader.load()", "i < kStages; ++i) loader.load()"
    ),
    "FP4: no barrier after the preparation": bug("arch::sync_block();", ""),
    "FP4: corrections that nothing writes are not zero": bug("{0.f, 0.f, 0.f, 0.f};", "{0.f, 0.f, 0.f, NAN};"),
    "FP4: corrections of the first stage are zero": bug(
        "kCorrections = kStages * kTilesPerStage", "kCorrections = kTilesPerStage"
    ),
    "FP4: a place read before it is written": bug(
        "        arch::sync_warp();  // the place is visible\n        int32_t const steps",
        "        int32_t const steps",
    ),
    "FP4: a place written while it is read": bug(
        "        arch::sync_warp();  // no lane reads the place of the item before\n        if (lane == 0)",
        "        if (lane == 0)",
    ),
}

ITEM_BUGS = {
    "FP4: a second tile where there is none": bug(
        "first + i < last_tile ? first + i : last_tile", "first + i < last_tile ? first + i : first + i"
    ),
    "FP4: last tile missing": bug(
        "first + i < last_tile ? first + i : last_tile",
        "first + i < last_tile ? first + i : last_tile - (last_tile > 0)",
    ),
    "FP4: tiles of two planes as one": bug("p.q_mean ? 2 : 1;", "1;"),
    "FP4: K and V of a head of Q": bug(
        "p.first_k_tile(place.batch, place.head_kv", "p.first_k_tile(place.batch, place.head"
    ),
    "FP4: keys from the first step on": bug(
        "(place.first + step * place.direction) * kTilesPerStage", "step * kTilesPerStage"
    ),
    "FP4: Q of the first tile": bug(" + place.row / kQTileRows;\n      int const part", ";\n      int const part"),
    "FP4: Q of the first warp": bug("static_cast<int>(place.row % kQTileRows) / kRows * kQkSteps", "0"),
    "FP4: the mean of the first tile": bug(
        " + place.row / kQTileRows;\n      char const* const digits", ";\n      char const* const digits"
    ),
    "FP4: the mean of the item before": bug("if (place.steps > 0) load_mean();", "if (round == 0) load_mean();"),
    "FP4: service warps take an item more": bug(
        "if (place.steps < 0) return;\n        if (place.steps > 0) load_mean();",
        "if (place.steps <= 0) return;\n        load_mean();",
    ),
    "FP4: the last step dropped": bug("bool const is_last = step + 1 == end;", "bool const is_last = step + 2 >= end;"),
    "FP4: sums of an item without keys not cleared": bug(
        "        out[i / 4][i % 4] = 0.f;\n", "        if (place.steps > 0) out[i / 4][i % 4] = 0.f;\n"
    ),
    "FP4: codes of the item before": softmax_bug(
        "    reference[0] = reference[1] = kNoReference;\n    place_codes();\n",
        "    reference[0] = reference[1] = kNoReference;\n    if (!(code_of_one_[0] > 0.f)) place_codes();\n",
    ),
    "FP4: references begin at 0": softmax_bug(
        "reference[0] = reference[1] = kNoReference;", "reference[0] = reference[1] = 0.f;"
    ),
    "FP4: e4m3 P: references begin at 0": softmax_bug(
        "reference[0] = reference[1] = kNoReference;", "reference[0] = reference[1] = 0.f;", FP8
    ),
}

CORRECTION_BUGS = {
    "FP4: odd digits dropped": bug(
        "float x = sum[i][0] + sum[i][1], y = sum[i][2] + sum[i][3];", "float x = sum[i][0], y = sum[i][2];"
    ),
    "FP4: last digits dropped": bug("        x += arch::shuffle_xor(x, 1);\n", ""),
    "FP4: second plane skipped": bug("      add(sum, shared.rest[rest_slot][tile], half);\n", ""),
    "FP4: first plane twice": bug(
        "add(sum, shared.rest[rest_slot][tile], half);", "add(sum, shared.k[slot][tile], half);"
    ),
    "FP4: second plane of the first tile": bug("shared.rest[rest_slot][tile]", "shared.rest[rest_slot][0]"),
    "FP4: corrections of other instructions": bug("[half * 4 + i * 2 + lane % 4]", "[half * 4 + i * 2 + 1 - lane % 4]"),
    "FP4: corrections of other columns": bug("(column % 2 == 0 ? correction.x", "(column % 2 == 1 ? correction.x"),
    "FP4: corrections of half of the rows": bug(
        "          (column % 2 == 0 ? correction.z : correction.w) = value;\n", ""
    ),
    "FP4: scales of the first digit": bug("i * 16 + lane / 4 * 4)", "i * 16)"),
    "FP4: half of the digits": bug("if (lane >= 4 * kQMeanDigits) return;", "if (lane >= 2 * kQMeanDigits) return;"),
    "FP4: digits of the first 64 channels": bug("digits + i * 128 + lane * 8", "digits + lane * 8", FP4_D128),
    "FP4: digits times the scales of the first instructions": bug(
        "i == 0 ? scales[j] : arch::shuffle_xor(scales[j], 2)", "scales[j]"
    ),
    "FP4: digits times the scales of other keys": bug(" + half * (kHeadDim / 16)", ""),
    "FP4: digits times keys in another order": bug(
        "{k[0][2 * j], k[1][2 * j], k[0][2 * j + 1], k[1][2 * j + 1]}",
        "{k[0][2 * j], k[0][2 * j + 1], k[1][2 * j], k[1][2 * j + 1]}",
    ),
    "FP4: the first tile corrected twice": bug("tile = warp / 2, half", "tile = warp / 4, half"),
}

OPERAND_BUGS = {
    "FP4: scales of K from the first lane": bug("arch::mma_nvfp4<n % 4>(s, q[i]", "arch::mma_nvfp4<0>(s, q[i]"),
    "FP4: scales of the first 32 keys": bug("scales[n / 4 * kQkSteps + i]", "scales[i]"),
    "FP4: scales of Q from other lanes": bug("(lane / 4 + lane % 2 * 8) * 4", "(lane / 4 + lane / 2 % 2 * 8) * 4"),
    "FP4: scales of Q of the first 64 channels": bug("(part + i) * 64", "part * 64", FP4_D128),
    "FP4: the first 64 channels of Q": bug("values + (part + i) * 512", "values + part * 512", FP4_D128),
    "FP4: K scale of the first tile": bug("shared.k_scale[stage][kTile][0]", "shared.k_scale[stage][0][0]"),
    "FP4: K scale of the current stage": bug("shared.k_scale[stage][kTile][0]", "shared.k_scale[slot.index][kTile][0]"),
    "FP4: a scale of Q that nothing writes": bug(
        "p.q_scale[tile * kQScalesPerTile]", "p.q_scale[tile * kQScalesPerTile + 1]"
    ),
    "FP4: scales of V from the lane before": bug(
        "arch::mma_nvfp4<n % 4 + 1>(out[n + 1]", "arch::mma_nvfp4<n % 4>(out[n + 1]"
    ),
    "FP4: scales of the first 32 channels of V": bug("out[n], scales, v_scales[n / 4]", "out[n], scales, v_scales[0]"),
    "FP4: V of the first tile": bug("shared.v[slot.index][kTile]", "shared.v[slot.index][0]"),
    "FP4: ones are twos": bug("unit_scales(constant(0x38383838u))", "unit_scales(constant(0x40404040u))"),
    "FP4: ones in three blocks of four": bug(
        "unit_scales(constant(0x38383838u))", "unit_scales(constant(0x00383838u))"
    ),
    "FP4: scales of P in another order": bug("0x5140", "0x1540"),
    "FP4: scales of P of the row above": bug("lane % 2 ? 0x0073 : 0x0040", "lane % 2 ? 0x0040 : 0x0073"),
    "FP4: scales of P from the neighbour": bug("arch::shuffle_xor(mine, 2)", "arch::shuffle_xor(mine, 1)"),
    "FP4: e4m3 P: ones for half of the keys": bug(
        "ones{constant(kOnes), constant(kOnes)}", "ones{constant(kOnes), 0u}", FP8
    ),
    "FP4: e4m3 P: V of the first 32 keys": bug("v + h * (32 * kHeadDim) +", "v +", FP8),
    "FP4: e4m3 P: registers exchanged": bug(
        "uint32_t const even[2] = {b[0], b[1]}, odd[2] = {b[2], b[3]};",
        "uint32_t const even[2] = {b[0], b[2]}, odd[2] = {b[1], b[3]};",
        FP8,
    ),
}

MASK_BUGS = {
    "FP4: keys as they are without a permutation": Bug(MASK, "n / 4 * 32 + n % 4 * 2 + e", "n * 8 + e", FP4),
    "FP4: keys of the first lane": Bug(MASK, "kKeysPerLane = 8", "kKeysPerLane = 2", FP4),
    "FP4: mask of other keys": Bug(MASK, "Columns::key(n + e, 1 - e) - Columns::key(n, e)", "e == 0 ? 1 : 7", FP8),
    "FP4: mask of the other tile": bug("mask<1 - kTile>(ahead, ahead_step)", "mask<kTile>(ahead, ahead_step)"),
    "FP4: mask of the step before": bug(
        "take<1>(second, first, next.index, step + 1, whole.has(step + 1));",
        "take<1>(second, first, next.index, step, whole.has(step + 1));",
    ),
    "FP4: a step after a whole one is whole": bug(
        "take<1>(second, first, next.index, step + 1, whole.has(step + 1));",
        "take<1>(second, first, next.index, step + 1, whole.has(step));",
    ),
    "FP4: the first tile not masked": bug("if (!whole.has(begin)) mask<0>(first, begin);", ""),
    "FP4: masked scores scaled twice": bug("      scores.scale = 1.f;\n", ""),
    "FP4: mask of the first keys first": bug(
        "{place.first + step * place.direction} * kKeys + kTile", "{place.first + step} * kKeys + kTile"
    ),
}

SOFTMAX_BUGS = {
    "FP4: codes one too low": softmax_bug("kCodeOfOne = 35.f", "kCodeOfOne = 34.f"),
    "FP4: codes one too high": softmax_bug("kCodeOfOne = 35.f", "kCodeOfOne = 36.f"),
    "FP4: codes rounded to nearest": softmax_bug("arch::fma_down(largest[h][r]", "fmaf(largest[h][r]"),
    "FP4: no least code": softmax_bug(
        "arch::as_uint(arch::max_nan(code, arch::kRounder + kLeastCode));", "arch::as_uint(code);"
    ),
    "FP4: a larger code than there is": softmax_bug("kLargestCode = 125.f", "kLargestCode = 135.f"),
    "FP4: P divided by a scale that was not rounded": softmax_bug(
        "zero += arch::log2_approx(arch::as_float(code + kCodeZero));",
        "zero += static_cast<float>(code >> 20 & 127u) / 8.f - 7.f;",
    ),
    "FP4: codes of half a block": softmax_bug("arch::max_u16x2(mine, arch::shuffle_xor(mine, 1))", "mine"),
    "FP4: codes of another lane's block": softmax_bug("arch::shuffle_xor(mine, 1)", "arch::shuffle_xor(mine, 2)"),
    "FP4: codes of the other row": softmax_bug("0x4110", "0x0114"),
    "FP4: NaN lost in the maximum of a lane": softmax_bug(
        "arch::max_nan(largest[h][r], tile.score(h, r, j))", "fmaxf(largest[h][r], tile.score(h, r, j))"
    ),
    "FP4: NaN lost in a code": softmax_bug(
        "arch::max_nan(code, arch::kRounder + kLeastCode)", "fmaxf(code, arch::kRounder + kLeastCode)"
    ),
    "FP4: references between whole octaves": softmax_bug(
        "ceilf(arch::fma_down(x, tile.scale, 0.f))", "arch::fma_down(x, tile.scale, 0.f)"
    ),
    "FP4: e4m3 P: references between whole octaves": softmax_bug(
        "ceilf(arch::fma_down(x, tile.scale, 0.f))", "arch::fma_down(x, tile.scale, 0.f)", FP8
    ),
    "FP4: row sums not moved": softmax_bug(
        "for (int n = 0; n < kFragments; ++n) {", "for (int n = 0; n < kFragments - 1; ++n) {"
    ),
    "FP4: O not moved": softmax_bug(
        "for (int n = 0; n < kFragments; ++n) {", "for (int n = kFragments - 1; n < kFragments; ++n) {"
    ),
    "FP4: odd channels not moved": softmax_bug("          sums[n][2 * r + 1] *= decay;\n", ""),
    "FP4: no vote": softmax_bug("arch::any(worst > largest_code_)", "worst > largest_code_"),
    "FP4: e4m3 P: no vote": softmax_bug("arch::any(!fits)", "!fits", FP8),
    "FP4: codes of one reference for both rows": softmax_bug(
        "kCodeOfOne - 8.f * reference[r];", "kCodeOfOne - 8.f * reference[0];"
    ),
    "FP4: maximum of half a row": softmax_bug("      x = arch::max_nan(x, arch::shuffle_xor(x, 2));\n", ""),
    "FP4: references move down": softmax_bug("if (!(least <= reference[r])) {", "if (least != reference[r]) {"),
    "FP4: references far above P": softmax_bug("tile.scale, 0.f)) - log2_p_max_", "tile.scale, 0.f)) + log2_p_max_"),
    "FP4: e4m3 P: larger than there is": softmax_bug(
        "exponent <= kLargestExponent", "exponent <= kLargestExponent + 1.f", FP8
    ),
    "FP4: e4m3 P: registers exchanged": softmax_bug("p[4 * h + r] = ", "p[4 * h + 1 - r] = ", FP8),
    "FP4: LSE without its reference": bug("softmax.reference[r], sum, sum", "0.f, sum, sum"),
    "FP4: LSE of P's largest number": bug(
        "softmax.reference[r], sum, sum", "softmax.reference[r] - p.log2_p_max, sum, sum"
    ),
}

CUDA_BUGS = PIPELINE_BUGS | ITEM_BUGS | CORRECTION_BUGS | OPERAND_BUGS | MASK_BUGS | SOFTMAX_BUGS
