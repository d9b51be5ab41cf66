"""Bugs in the CUDA kernels of operands for wgmma, of INT4 Q and K, of smoothing of Q and of rotation."""

from __future__ import annotations

from .bug import Bug

FWD = "attention/mma_sync_fwd.cuh"
FORMAT = "common/quant_format.h"
Q_TILE, K_TILE, V_TILE, TILES = "quantize/q_tile.h", "quantize/k_tile.h", "quantize/v_tile.h", "quantize/tiles.h"
Q_ROWS, K_ROWS = "quantize/q_rows.h", "quantize/k_rows.h"
Q_MEAN = "tile/q_mean.h"
INT4 = "sm80_fwd_int4_f16_d64"
INT4_WIDE = "sm80_fwd_int4_f16_d128"

CUDA_BUGS = {
    # Operands for wgmma.
    "operands for wgmma not swizzled": Bug(
        FORMAT, "return offset ^ (offset >> 3 & (kRowBytes - 16));", "return offset;", "quantizers"
    ),
    "operands for wgmma swizzled by other rows": Bug(FORMAT, "(offset >> 3 &", "(offset >> 4 &", "quantizers"),
    "operands for wgmma with 64 bytes a row swizzled like those with 128": Bug(
        FORMAT, "(offset >> 3 & (kRowBytes - 16))", "(offset >> 3 & 112)", "quantizers"
    ),
    "panels of operands for wgmma swapped": Bug(
        FORMAT,
        "d / kPanel * (kWgmmaRows * kPanel)",
        "(kHeadDim / kPanel - 1 - d / kPanel) * (kWgmmaRows * kPanel)",
        "quantizers",
    ),
    "images of Q for wgmma a panel apart": Bug(
        FORMAT,
        "row / kWgmmaRows * (kWgmmaRows * kHeadDim)",
        "row / kWgmmaRows * (kWgmmaRows * kPanel)",
        "quantizers",
    ),
    "halves of Q for wgmma swapped": Bug(
        Q_TILE, "wgmma_offset<kHeadDim>(r + odd * 8,", "wgmma_offset<kHeadDim>((r ^ 64) + odd * 8,", "quantizers"
    ),
    "rows of Q for wgmma swapped": Bug(Q_TILE, "(r + odd * 8,", "(r + 8 - odd * 8,", "quantizers"),
    "channels of Q for wgmma exchanged with another lane": Bug(Q_TILE, "wgmma ? 1 : 2);", "2);", "quantizers"),
    "Q for wgmma in the order of mma.sync": Bug(
        Q_TILE, "bool const wgmma = order == OperandOrder::kWgmma;", "bool const wgmma = false;", "quantizers"
    ),
    "keys of K for wgmma in another order": Bug(
        K_TILE, "kWgmma ? wgmma_offset<kHeadDim>(row,", "kWgmma ? wgmma_offset<kHeadDim>(row ^ 1,", "quantizers"
    ),
    "K for wgmma in the order of mma.sync": Bug(K_TILE, "order == OperandOrder::kWgmma ?", "false ?", "quantizers"),
    "keys of V for wgmma not permuted": Bug(
        FORMAT, "swizzled_offset<kKTileRows>(d, v8_position(key))", "swizzled_offset<kKTileRows>(d, key)", "quantizers"
    ),
    "keys of V for wgmma in another order": Bug(
        FORMAT, "(d, v8_position(key))", "(d, v8_position(key ^ 4))", "quantizers"
    ),
    "V for wgmma in the order of mma.sync": Bug(
        V_TILE, "bool const wgmma = p.order == OperandOrder::kWgmma;", "bool const wgmma = false;", "quantizers"
    ),
    "channels of V for wgmma in another order": Bug(
        V_TILE, "v8_wgmma_offset(key(0), channel + c)", "v8_wgmma_offset(key(0), channel + (c ^ 1))", "quantizers"
    ),
    "V put elsewhere than it is read": Bug(
        "quantize/shared_tile.h", "chunk_place(offset / 16) * 16", "offset / 16 * 16", "quantizers"
    ),
    # INT4.
    "largest magnitude maps to 8": Bug(TILES, "kInt8 ? 127.f : 7.f", "kInt8 ? 127.f : 8.f", INT4),
    "low half of a byte has the odd channel": Bug(
        "arch/convert.h",
        "return (even & 0x0f0f0f0fu) | (odd << 4 & 0xf0f0f0f0u);\n}\n\n// Likewise to INT4",
        "return (odd & 0x0f0f0f0fu) | (even << 4 & 0xf0f0f0f0u);\n}\n\n// Likewise to INT4",
        "quantizers",
    ),
    "INT4 channels of a byte in another order in K": Bug(
        K_TILE,
        "codes[j] = quantize_int4x8(y[j], scale.inverse);",
        "codes[j] = quantize_int4x8(y[j], scale.inverse);\n"
        "        codes[j] = (codes[j] >> 4 & 0x0f0f0f0fu) | (codes[j] << 4 & 0xf0f0f0f0u);",
        INT4,
    ),
    "INT4 channels of K in another order": Bug(
        K_TILE,
        "Channels{{codes[0], codes[1], codes[2], codes[3]}}",
        "Channels{{codes[0], codes[2], codes[1], codes[3]}}",
        INT4,
    ),
    "keys of INT4 K in another order": Bug(K_TILE, "k_int4_offset(key(lane), ", "k_int4_offset(key(lane ^ 1), ", INT4),
    "halves of INT4 Q's fragments swapped": Bug(
        Q_TILE,
        "{codes[0][0], codes[1][0], codes[2][0], codes[3][0]}",
        "{codes[2][0], codes[3][0], codes[0][0], codes[1][0]}",
        INT4,
    ),
    "rows of INT4 Q in another order": Bug(Q_TILE, "r + upper * 16,", "r + 16 - upper * 16,", INT4),
    "k-steps of INT4 Q in another order": Bug(
        "common/quant_format.h",
        "return q_int8_offset<kHeadDim / 2>(row, d / 2);",
        "return q_int8_offset<kHeadDim / 2>(row, d / 2 ^ 32);",
        INT4_WIDE,
    ),
    # Smoothing of Q.
    "mean of Q over 128 rows": Bug(Q_ROWS, "num_rows < kQTileRows ? num_rows : kQTileRows", "kQTileRows", INT4),
    "mean of half of the slots": Bug(
        Q_ROWS, "slot < kSlots; ++slot)\n          mean", "slot < kSlots / 2; ++slot)\n          mean", INT4
    ),
    "mean of Q not subtracted": Bug(Q_ROWS, "y[c] - shared.q_mean[Lanes::channel() + c] : 0.f", "y[c] : 0.f", INT4),
    "mean of Q subtracted twice": Bug(
        Q_ROWS,
        "y[c] - shared.q_mean[Lanes::channel() + c] : 0.f",
        "y[c] - 2.f * shared.q_mean[Lanes::channel() + c] : 0.f",
        INT4,
    ),
    "no barrier before the sums of Q are read": Bug(
        Q_ROWS, "arch::sync_block();  // the sums of all slots", "// the sums of all slots", INT4
    ),
    "no barrier before the mean of Q is read": Bug(
        Q_ROWS, "arch::sync_block();  // the mean of all", "// the mean of all", INT4
    ),
    "digits of the mean of Q do not carry": Bug(Q_TILE, "(code + kCarry) ^ kCarry", "code", INT4),
    "last digit of the mean of Q missing": Bug(Q_TILE, "digit < 4; ++digit", "digit < 3; ++digit", INT4),
    "digits of the mean of Q overlap": Bug(Q_TILE, "codes[c] >>= 4;", "codes[c] >>= 3;", INT4),
    "scale of the mean of Q without softmax_scale": Bug(
        Q_TILE, "place.tile] = scale.scale * QRows::log2_scale(p)", "place.tile] = scale.scale", INT4
    ),
    "sign of softmax_scale lost in the mean of Q": Bug(
        Q_TILE,
        "fmaf(y[c], QRows::signed_inverse(p, scale), arch::kRounder)",
        "fmaf(y[c], scale.inverse, arch::kRounder)",
        INT4,
    ),
    "rests of K not written": Bug(K_TILE, "if (p.smooth_q) store_int4(out + k_int4_plane<kHeadDim>, rest);", "", INT4),
    "rests of K have another sign": Bug(
        "arch/convert.h", "fmaf(x[i], factor, -code) * 16.f, 7.f)", "fmaf(-x[i], factor, code) * 16.f, 7.f)", INT4
    ),
    "rests of K are 8ths": Bug(
        "arch/convert.h", "fmaf(x[i], factor, -code) * 16.f, 7.f)", "fmaf(x[i], factor, -code) * 8.f, 7.f)", INT4
    ),
    "codes of K weigh 8 of their rests": Bug(Q_MEAN, "with_codes[group][e] * 16 +", "with_codes[group][e] * 8 +", INT4),
    "scale of K's rests": Bug(Q_MEAN, "* (1.f / 16);", "* (1.f / 8);", INT4),
    "digits of the mean of Q weigh too little": Bug(
        Q_MEAN, "<< lane / 4 % kDigits * 4;", "<< lane / 4 % kDigits * 3;", INT4
    ),
    "digits of the mean of Q not added up": Bug(Q_MEAN, "      sum += arch::shuffle_xor(sum, 4);\n", "", INT4),
    "scale of one key for the mean of Q": Bug(Q_MEAN, "k_scale[lane % 4] *", "k_scale[0] *", INT4),
    "mean of Q times the keys of the first warp": Bug(Q_MEAN, "+ (first_key + lane % 8) * 16", "+ lane % 8 * 16", INT4),
    "mean of Q times the first k-step": Bug(Q_MEAN, "k + step * 2048 + group * 128", "k + group * 128", INT4_WIDE),
    "rests of K not copied": Bug(FWD, "if (Qk::kCodeBytes < kKBytes && p.q_mean) {", "if (false) {", INT4),
    "mean of the first tile of Q": Bug(FWD, "p.q_mean + place.q_tile * q_mean_bytes(kHeadDim)", "p.q_mean", INT4),
    "scale of the mean of the first tile of Q": Bug(FWD, "p.q_mean_scale[place.q_tile]", "p.q_mean_scale[0]", INT4),
    "no barrier before the product with the mean of Q is read": Bug(
        FWD, "arch::sync_block();  // the row is visible", "// the row is visible", INT4
    ),
    "product with the mean of Q left out at stale maxima": Bug(
        FWD, "if (smooth_q) {\n          tile::add_q_mean", "if (smooth_q && exact) {\n          tile::add_q_mean", INT4
    ),
    "product with the mean of Q left out of masked tiles": Bug(
        FWD,
        "if (smooth_q) {\n          tile::add_q_mean",
        "if (smooth_q && n < place.whole_last) {\n          tile::add_q_mean",
        INT4,
    ),
    "product with the mean of Q left out of the maximum": Bug(
        FWD,
        """        if (smooth_q) {
          tile::add_q_mean(s, unit, bias, shared.q_mean_k);
          unit = 1.f;
          bias = 0.f;
        }
        if (n < place.whole_first || n >= place.whole_last || p.mask.data || (!smooth_q && scale > kMaxBiasedScale)) {
          tile::mask_scores<false>(s, unit, bias, place.visible(p), p.mask, place.batch, place.head,
                                   place.row + arch::warp_index() * 16 * kMTiles, int64_t{n} * kBlockN);
          unit = 1.f;
          bias = 0.f;
        }
        if (exact) {
          find_maximum(s, unit, bias, kTileMax ? 0.f : place.max_offset, tile_max);
""",
        """        if (exact) find_maximum(s, unit, bias, kTileMax ? 0.f : place.max_offset, tile_max);
        if (smooth_q) {
          tile::add_q_mean(s, unit, bias, shared.q_mean_k);
          unit = 1.f;
          bias = 0.f;
        }
        if (n < place.whole_first || n >= place.whole_last || p.mask.data || (!smooth_q && scale > kMaxBiasedScale)) {
          tile::mask_scores<false>(s, unit, bias, place.visible(p), p.mask, place.batch, place.head,
                                   place.row + arch::warp_index() * 16 * kMTiles, int64_t{n} * kBlockN);
          unit = 1.f;
          bias = 0.f;
        }
        if (exact) {
""",
        INT4,
    ),
    # Rotation.
    "a step of the rotation missing": Bug(TILES, "step < 8; step *= 2", "step < 4; step *= 2", INT4),
    "a step of the rotation between lanes missing": Bug(
        TILES,
        "int step = 1; step < kPerRow; step *= 2) {\n      bool",
        "int step = 2; step < kPerRow; step *= 2) {\n      bool",
        INT4,
    ),
    "signs of other channels in the rotation": Bug(TILES, "x[c] *= signs[channel() + c];", "x[c] *= signs[c];", INT4),
    "K not rotated": Bug(K_ROWS, "        Lanes::rotate(y[j], shared.signs);\n", "        {}\n", INT4),
    "Q not rotated": Bug(
        Q_ROWS, "      if (p.hadamard) Lanes::rotate(y, shared.signs);\n    }\n  }\n", "    }\n  }\n", INT4
    ),
    "mean of Q not rotated": Bug(
        Q_ROWS, "    if (p.hadamard) Lanes::rotate(y, shared.signs);\n  }\n\n  // Of", "  }\n\n  // Of", INT4
    ),
    "rotation changes lengths": Bug(TILES, "kHadamardFactor<kHeadDim> * hadamard_sign(c)", "hadamard_sign(c)", INT4),
}
