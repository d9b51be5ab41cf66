"""Bugs in the warp-specialised CUDA kernel of sm_90: its pipeline, its items, its softmax and its sums."""

from __future__ import annotations

from .bug import Bug

FWD = "attention/sm90_fwd.cuh"
WORK = "attention/work.h"
STORE = "attention/store_row.h"
D64, D128, D256 = (f"sm90_fwd_wgmma_d{head_dim}" for head_dim in (64, 128, 256))
APPROX = "sm90_fwd_wgmma_approx_d64"

PIPELINE_BUGS = {
    "K released before it is multiplied": Bug(
        FWD,
        "      multiply_q_k(q, k, kStage);\n      release(shared.empty.k[kStage]);\n",
        "      release(shared.empty.k[kStage]);\n      multiply_q_k(q, k, kStage);\n",
        D64,
    ),
    "V released while it is multiplied": Bug(
        FWD,
        "      cute::warpgroup_wait<0>();\n      fence(out);\n      release(shared.empty.v[kStage]);\n",
        "      release(shared.empty.v[kStage]);\n      cute::warpgroup_wait<0>();\n      fence(out);\n",
        D64,
    ),
    "only the first half of P V waited for": Bug(
        FWD, "      cute::warpgroup_wait<0>();\n      fence(out);\n", "      cute::warpgroup_wait<1>();\n", D64
    ),
    "Q released after the first step": Bug(
        FWD,
        "if (is_last) release(shared.empty.q);\n\n      float tile_max",
        "if (step == 0) release(shared.empty.q);\n\n      float tile_max",
        D64,
    ),
    "K not waited for": Bug(FWD, "      Barrier::wait(&shared.full.k[kStage], phase);\n", "", D64),
    "V not waited for": Bug(FWD, "if (half == 0) Barrier::wait(&shared.full.v[kStage], phase);", "", D64),
    "V waited for before its second half only": Bug(
        FWD, "if (half == 0) Barrier::wait(&shared.full.v", "if (half == 1) Barrier::wait(&shared.full.v", D64
    ),
    "Q not waited for": Bug(FWD, "Barrier::wait(&shared.full.q, phases[kStages]);", "", D64),
    "K copied to a stage in use": Bug(FWD, "Barrier::wait(&shared.empty.k[stage], phase);", "", D64),
    "V copied to a stage in use": Bug(FWD, "Barrier::wait(&shared.empty.v[stage], phase);", "", D64),
    "Q copied over the one in use": Bug(FWD, "Barrier::wait(&shared.empty.q, phases >> kStages & 1);", "", D64),
    "the producer's first phase": Bug(FWD, "(2u << kStages) - 1;", "(1u << kStages);", D64),
    "the math warpgroups' first phase": Bug(
        FWD, "uint32_t const phase = phases[kStage];", "uint32_t const phase = phases[kStage] ^ 1;", D64
    ),
    "the producer begins each item with the first phase": Bug(
        FWD,
        "      if (place.steps < 0) return;\n      int64_t const k_tile",
        "      phases |= 3;\n      if (place.steps < 0) return;\n      int64_t const k_tile",
        D64,
    ),
    "the math warpgroups begin each item with the first phase": Bug(
        FWD, "        begin_rows();\n", "        begin_rows();\n        phases[0] = phases[1] = 0;\n", D64
    ),
    "the phase of Q not kept": Bug(FWD, "          phases[kStages] ^= 1;\n", "", D64),
    "the producer's phase of Q not kept": Bug(FWD, "          phases ^= 1u << kStages;\n", "", D64),
    "the phase of a stage without work not kept": Bug(
        FWD,
        "      phases[kStage] ^= 1;\n",
        "      if (place.seen.has(step)) phases[kStage] ^= 1;\n",
        D64,
    ),
    "a barrier of Q for fewer warps": Bug(
        FWD, "Barrier::init(&shared.empty.q, kMathWarps);", "Barrier::init(&shared.empty.q, kMathWarps - 1);", D64
    ),
    "a barrier of K for one warpgroup less": Bug(
        FWD, "Barrier::init(&shared.empty.k[stage], kMathWarps);", "Barrier::init(&shared.empty.k[stage], 8);", D64
    ),
    "a barrier of V for all threads": Bug(
        FWD,
        "Barrier::init(&shared.empty.v[stage], kMathWarps);",
        "Barrier::init(&shared.empty.v[stage], 32 * kMathWarps);",
        D64,
    ),
    "an idle warpgroup does not release K": Bug(
        FWD, "        release(shared.empty.k[kStage]);\n        if (is_last)", "        if (is_last)", D64
    ),
    "an idle warpgroup does not release V": Bug(
        FWD, "        release(shared.empty.v[kStage]);\n        return", "        return", D64
    ),
    "an idle warpgroup does not release Q": Bug(
        FWD, "        if (is_last) release(shared.empty.q);\n        ", "", D64
    ),
    "an idle warpgroup does not wait for V": Bug(
        FWD, "        Barrier::wait(&shared.full.v[kStage], phase);\n        release", "        release", D64
    ),
    "the scales of K not expected": Bug(
        FWD, "kTilesPerStage * (kTileBytes + kScaleBytes)", "kTilesPerStage * kTileBytes", D64
    ),
    "the scales of K read after their stage was released": Bug(
        FWD,
        "exponentiate(i, scale[i / 2]);",
        "exponentiate(i, q_scale * shared.k_scale[kStage][i / 2][quad_lane]);",
        D64,
    ),
    "ones not fenced": Bug(FWD, "    cutlass::arch::fence_view_async_shared();", "    ", D64),
    "no barrier after the preparation": Bug(FWD, "arch::sync_block();", "", D64),
    "ones are zeros": Bug(FWD, "0x38383838u", "0u", D64),
    "ones in the first stage only": Bug(
        FWD, "i < kStages * kTilesPerStage * kWords", "i < kTilesPerStage * kWords", D64
    ),
    "a tile of V copied over the ones": Bug(
        FWD,
        "tile(i) * kTileBytes, kTileBytes,\n                          shared.full.v[stage]);",
        "tile(i) * kTileBytes, kVImageBytes,\n                          shared.full.v[stage]);",
        D64,
    ),
    "more registers than there are": Bug(
        FWD, "kProducerRegisters = 32, kMathRegisters = 160", "kProducerRegisters = 32, kMathRegisters = 168", D64
    ),
    "one warp of the producer's gives its registers away": Bug(
        FWD,
        "      cutlass::arch::warpgroup_reg_dealloc<Tile::kProducerRegisters>();\n      if (",
        "      if (cutlass::canonical_warp_idx_sync() != 0) return;\n"
        "      cutlass::arch::warpgroup_reg_dealloc<Tile::kProducerRegisters>();\n      if (",
        D64,
    ),
    "scores read before they are there": Bug(
        FWD,
        "      warpgroup_commit_batch();\n      warpgroup_wait<0>();\n      fence(scores[0]);\n",
        "      warpgroup_commit_batch();\n      warpgroup_wait<1>();\n      fence(scores[0]);\n",
        D64,
    ),
}

ITEM_BUGS = {
    "item before the last one's place is read": Bug(
        FWD, "sync_warpgroup();  // no thread reads the place", "// no thread reads the place", D64
    ),
    "place read before it is written": Bug(
        FWD, "sync_warpgroup();  // the place is visible", "// the place is visible", D64
    ),
    "items skipped and taken twice": Bug(WORK, "blocks - 1 - block : block)", "blocks - block : block)", D64),
    "last item not taken": Bug(
        WORK, "if (index >= heads * pieces) return", "if (index + 1 >= heads * pieces) return", D64
    ),
    "items of the first round only": Bug(
        WORK, "if (index >= heads * pieces) return", "if (round || index >= heads * pieces) return", D64
    ),
    "last group of heads as large as the others": Bug(
        WORK, "heads - first < group ? heads - first : group", "group", D64
    ),
    "heads of all groups from the first": Bug(
        WORK, "item.head = first + rest % size;", "item.head = rest % size;", D64
    ),
    "rows of another head": Bug(
        WORK,
        "item.piece = down ? pieces - 1 - rest / size : rest / size;",
        "item.piece = down ? rest % pieces : pieces - 1 - rest % pieces;",
        D64,
    ),
    "heads of the first sequence": Bug(
        WORK, "x.batch = static_cast<int32_t>(item.head / p.num_heads_q);", "x.batch = 0;", D64
    ),
    "wrong head of K and V (sm_90)": Bug(
        WORK, "x.head_kv = x.head / (p.num_heads_q / p.num_heads_kv);", "x.head_kv = x.head % p.num_heads_kv;", D64
    ),
    "a piece of Q less": Bug(
        WORK, "pieces = num_pieces(p), heads", "pieces = p.sequences.seqlen_q / kItemRows, heads", D64
    ),
    "Q of the first piece": Bug(FWD, "* kQTileRows + place.row;", "* kQTileRows;", D64),
    "second tile where there is none": Bug(
        FWD, "k_tile + (n < last_tile ? n : last_tile);", "k_tile + (n <= last_tile + 1 ? n : last_tile);", D64
    ),
    "last tile missing": Bug(
        FWD, "k_tile + (n < last_tile ? n : last_tile);", "k_tile + (n < last_tile ? n : last_tile - 1);", D64
    ),
    "keys of the first row's window alone": Bug(
        WORK, "interval(begin_of(x.row), end_of(last))", "interval(begin_of(x.row), end_of(x.row))", D64
    ),
    "a step of the diagonal taken for whole": Bug(
        WORK,
        "static_cast<int32_t>(mask.col_end(x.row) / kKeys)",
        "static_cast<int32_t>(ceil_div(mask.col_end(x.row), kKeys))",
        D64,
    ),
    "a step of the window's start taken for whole": Bug(
        WORK, "ceil_div(mask.col_begin(last), kKeys)", "mask.col_begin(last) / kKeys", D64
    ),
    "window's start of the first row taken for all rows'": Bug(
        WORK, "ceil_div(mask.col_begin(last), kKeys)", "ceil_div(mask.col_begin(x.row), kKeys)", D64
    ),
    "mask ignored in whole steps": Bug(WORK, "if (exists && !p.mask.data)", "if (exists)", D64),
    "intervals of steps not reversed": Bug(WORK, "p.reverse_keys ? end - to : from - begin", "from - begin", D64),
    "first step skipped where the last keys are first": Bug(
        WORK, "p.reverse_keys ? end - 1 : begin;", "p.reverse_keys ? end - 2 : begin;", D64
    ),
    "last keys never first (sm_90)": Bug(WORK, "x.direction = p.reverse_keys ? -1 : 1;", "x.direction = 1;", D64),
    "mask of the keys in their order of steps": Bug(
        FWD,
        "int64_t const col = int64_t{place.first + step * place.direction}",
        "int64_t const col = int64_t{place.first + step}",
        D64,
    ),
    "mask of the warpgroup's first warp": Bug(
        FWD, "return place.row + thread / 32 * 16; }", "return place.row; }", D64
    ),
    "rows past the last query written (sm_90)": Bug(STORE, "if (row >= sequence.seqlen_q) return;", "", D64),
}

SOFTMAX_BUGS = {
    "scale of K of the first tile of a stage": Bug(
        FWD, "exponentiate(i, scale[i / 2]);", "exponentiate(i, scale[0]);", D64
    ),
    "scale of K of the first stage": Bug(FWD, "shared.k_scale[kStage][i]", "shared.k_scale[0][i]", D128),
    "scale of K in the maximum of the first tile": Bug(
        FWD, "static_cast<float>(x > y ? x : y), scale[i]", "static_cast<float>(x > y ? x : y), scale[0]", D64
    ),
    "scale of K of the first tile where keys are hidden": Bug(FWD, "* scale[i / 32]);", "* scale[0]);", D64),
    "one scale of K for all keys (sm_90)": Bug(
        FWD, "shared.k_scale[kStage][i][arch::lane_index() % 4]", "shared.k_scale[kStage][i][0]", D64
    ),
    "scale of Q of the warp's first row": Bug(
        FWD,
        "first_row() + arch::lane_index() / 4;\n      SAGE_UNROLL for (int r = 0; r < 2; ++r)\n        row_max",
        "first_row();\n      SAGE_UNROLL for (int r = 0; r < 2; ++r)\n        row_max",
        D64,
    ),
    "maximum without the last keys": Bug(
        FWD, "for (int j = 4; j < 16; j += 4)", "for (int j = 4; j < 12; j += 4)", D64
    ),
    "maximum of the second tile only": Bug(
        FWD, "tile_max[r] = i == 0 ? largest : arch::max_nan(tile_max[r], largest);", "tile_max[r] = largest;", D64
    ),
    "large steps of Q K^T not told": Bug(FWD, "arch::any(!whole || is_large(scale))", "!whole", D64),
    "maximum of half of the lanes (sm_90)": Bug(FWD, "arch::shuffle_xor(tile_max[r], 2)", "tile_max[r]", D64),
    "maximum moves for the first row only": Bug(
        FWD, "!(tile_max[0] <= row_max[0]) || !(tile_max[1] <= row_max[1])", "!(tile_max[0] <= row_max[0])", D64
    ),
    "P without its largest value (sm_90)": Bug(FWD, "scale[i], p.log2_p_max)", "scale[i], 0.f)", D64),
    "P without its largest value where keys are hidden": Bug(FWD, "1.f, p.log2_p_max)", "1.f, 0.f)", D64),
    "row sum not rescaled": Bug(
        FWD,
        "n <= kOutTiles; ++n) {\n          out[n][2 * r] *= decay",
        "n < kOutTiles; ++n) {\n          out[n][2 * r] *= decay",
        D64,
    ),
    "output not rescaled (sm_90)": Bug(
        FWD,
        "(int n = 0; n <= kOutTiles; ++n) {\n          out[n][2 * r] *= decay",
        "(int n = kOutTiles; n <= kOutTiles; ++n) {\n          out[n][2 * r] *= decay",
        D256,
    ),
    "accumulators not emptied between items": Bug(FWD, "      clear();\n      q_scale", "      q_scale", D64),
    "maximum of the item before": Bug(
        FWD, "        row_max[r] = -FLT_MAX;", "        row_max[r] = place.row ? row_max[r] : -FLT_MAX;", D64
    ),
    "second half of P V with the first half of V": Bug(
        FWD, "stage * kTilesPerStage + i / 2", "stage * kTilesPerStage", D64
    ),
    "V of the first stage": Bug(FWD, "v(_, _, i % 2, stage * kTilesPerStage + i / 2)", "v(_, _, i % 2, i / 2)", D256),
    "linear codes for other keys": Bug(FWD, "x == 2 + i % 2;", "x == 2;", APPROX),
    "linear codes nowhere": Bug(FWD, "kMode == Mode::kApproximateExp && x", "false && x", APPROX),
    "linear codes too large on average": Bug(FWD, "(7.f - .0573f)", "7.f", APPROX),
    "linear codes cut": Bug(
        "arch/convert.h", "std::nearbyint(x < 255.f ? x : 255.f)", "(x < 255.f ? x : 255.f)", APPROX
    ),
}

FOLD_BUGS = {
    "no fold at the end (sm_90)": Bug(FWD, "if (folded) fold(false);", "", D64),
    "accumulators not emptied by a fold (sm_90)": Bug(
        FWD, "      clear();\n    }\n\n    SAGE_DEVICE void store", "    }\n\n    SAGE_DEVICE void store", D64
    ),
    "first fold adds the last item's": Bug(FWD, "first ? float4{0.f, 0.f, 0.f, 0.f} : sum", "sum", D64),
    "first fold of the row sums adds the last item's": Bug(FWD, "first ? float2{row_max[r], 0.f} : row", "row", D64),
    "a fold without decay of rows g": Bug(FWD, "fmaf(x.x, factor[0], out[n][0])", "x.x + out[n][0]", D64),
    "a fold without decay of rows g + 8": Bug(FWD, "fmaf(x.w, factor[1], out[n][3])", "x.w + out[n][3]", D64),
    "a fold without decay of the row sums": Bug(FWD, "fmaf(old.y, factor[r],", "fmaf(old.y, 1.f,", D64),
    "row sum written before all lanes have read the maximum": Bug(
        FWD, "arch::sync_warp();  // all four lanes have read it", "", D64
    ),
    "row sum read before it is written": Bug(FWD, "arch::sync_warp();  // the rows' sums", "// the rows' sums", D64),
    "every fold is the first": Bug(FWD, "fold(next_fold == first_fold());", "fold(true);", D64),
    "results of the first fold alone": Bug(FWD, "next_fold != first_fold();", "false;", D64),
}

CUDA_BUGS = PIPELINE_BUGS | ITEM_BUGS | SOFTMAX_BUGS | FOLD_BUGS
