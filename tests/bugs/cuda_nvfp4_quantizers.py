"""Bugs in the quantizers of NVFP4 operands and in where these lie."""

from __future__ import annotations

from .bug import Bug

FORMAT = "common/nvfp4_format.h"
BLOCK = "quantize/nvfp4_block.h"
Q_TILE, K_TILE, V_TILE = "quantize/nvfp4_q_tile.h", "quantize/nvfp4_k_tile.h", "quantize/nvfp4_v_tile.h"
PROGRAM = "nvfp4_quantizers"

CUDA_BUGS = {
    # Where values and scales lie.
    "rows and channels of NVFP4 Q's registers exchanged": Bug(
        FORMAT,
        "(row % 16 / 8 + d % 64 / 32 * 2) * 4 + d % 8 / 2;",
        "(row % 16 / 8 * 2 + d % 64 / 32) * 4 + d % 8 / 2;",
        PROGRAM,
    ),
    "scales of NVFP4 Q in words of a block": Bug(
        FORMAT,
        "* 64 + row % 16 * 4 +\n         d % 64 / kNvfp4Block;",
        "* 64 + row % 16 +\n         d % 64 / kNvfp4Block * 16;",
        PROGRAM,
    ),
    "keys of NVFP4 K in another order": Bug(
        FORMAT, "return key % 32 / 8 * 2 + key % 2;", "return key % 2 * 4 + key % 32 / 8;", PROGRAM
    ),
    "keys of NVFP4 K not permuted": Bug(
        FORMAT, "return key / 32 * 4 + key % 8 / 2;", "return key / 32 * 4 + (key % 8 / 2 ^ 1);", PROGRAM
    ),
    "scales of NVFP4 K in the lanes of another instruction": Bug(
        FORMAT,
        "nvfp4_column(key) * 4 + nvfp4_instruction(key) % 4",
        "nvfp4_instruction(key) % 4 * 8 + nvfp4_column(key)",
        PROGRAM,
    ),
    "halves of 64 keys of NVFP4 V swapped": Bug(
        FORMAT, "key / 32 * 4 + key % 8 / 2;\n}\n// Its", "(1 - key / 32) * 4 + key % 8 / 2;\n}\n// Its", PROGRAM
    ),
    "scales of NVFP4 V in the order of channels": Bug(FORMAT, "(d % 8 * 4 + d / 8 % 4)", "(d % 32)", PROGRAM),
    "registers of e4m3 V for NVFP4 Q K swapped": Bug(
        FORMAT, "d % 16 / 8 * 8 + key % 8;", "d % 16 / 8 * 8 + (key % 8 ^ 4);", PROGRAM
    ),
    "digits of the mean of NVFP4 Q in another order": Bug(
        FORMAT, "(digit * 4 + d % 32 / 8) * 8 +", "((digit ^ 1) * 4 + d % 32 / 8) * 8 +", PROGRAM
    ),
    "registers of the digits swapped": Bug(
        FORMAT,
        "* 8 + d % 64 / 32 * 4 + d % 8 / 2;\n}\ntemplate",
        "* 8 + (1 - d % 64 / 32) * 4 + d % 8 / 2;\n}\ntemplate",
        PROGRAM,
    ),
    "scales of the digits in another order": Bug(FORMAT, "16 + digit * 4 +", "16 + (digit ^ 1) * 4 +", PROGRAM),
    "tiles of NVFP4 K overlap with smooth_q": Bug(
        K_TILE, "place.in(p.k_out, p.smooth_q ? 2 * kPlane : kPlane)", "place.in(p.k_out, kPlane)", PROGRAM
    ),
    # Powers of two and scales.
    "power of two an octave too large": Bug(BLOCK, ">> 23) - kExponent;", ">> 23) - kExponent + 1;", PROGRAM),
    "power of two an octave too small for some magnitudes": Bug(
        BLOCK, "0x7fffff - 0x280000", "0x7fffff - 0x480000", PROGRAM
    ),
    "power of two of the rows without the mean": Bug(Q_TILE, "largest = larger_amax(largest, y);", "", PROGRAM),
    "power of two of one warp": Bug(BLOCK, "return max_of(of_warps, kThreads / 32);", "return x;", PROGRAM),
    "NaN of NVFP4 dropped": Bug(
        BLOCK, "arch::max_nan(amax, arch::shuffle_xor(amax, 1))", "fmaxf(amax, arch::shuffle_xor(amax, 1))", PROGRAM
    ),
    "NaN in what NVFP4 leaves": Bug(BLOCK, "return inverse == 0.f ? 0.f : 1.f;", "return 1.f;", PROGRAM),
    "scale of NVFP4 of half a block": Bug(
        BLOCK, "return arch::max_nan(amax, arch::shuffle_xor(amax, 1));", "return amax;", PROGRAM
    ),
    "scale of NVFP4 V of a quarter of a block": Bug(
        V_TILE, "int slot = 0; slot < 4; ++slot", "int slot = 0; slot < 1; ++slot", PROGRAM
    ),
    "scale of NVFP4 maps to 4": Bug(BLOCK, "inverse * (1.f / kE2m1Max)", "inverse * .25f", PROGRAM),
    "NVFP4 Q divided by the scale that is not rounded": Bug(
        Q_TILE,
        "block_inverse(block_scale(scales, j), inverse)",
        "block_inverse(amax[i + j] * scale.inverse / 6.f, inverse)",
        PROGRAM,
    ),
    "NVFP4 V divided by the scale that is not rounded": Bug(
        V_TILE,
        "block_inverse(block_scale(code, 0), of_channel)",
        "block_inverse(amax * of_channel / 6.f, of_channel)",
        PROGRAM,
    ),
    "zero blocks of NVFP4 divided by zero": Bug(
        BLOCK, "return scale > 0.f ? arch::reciprocal(scale) * inverse : 0.f;", "return inverse / scale;", PROGRAM
    ),
    "sign of softmax_scale lost in NVFP4 Q": Bug(
        Q_TILE,
        "float const inverse = QRows::signed_inverse(p, scale);",
        "float const inverse = scale.inverse;",
        PROGRAM,
    ),
    "sign of softmax_scale lost in the digits": Bug(
        Q_TILE, "place, QRows::signed_inverse(p, scale));", "place, scale.inverse);", PROGRAM
    ),
    "scale of NVFP4 Q without softmax_scale": Bug(
        Q_TILE, "[0] = scale.scale * QRows::log2_scale(p);", "[0] = scale.scale;", PROGRAM
    ),
    # What the first NVFP4 leaves.
    "second plane of K is the first": Bug(
        K_TILE, "if (subtract) subtract_block(y[j], inverse, codes, scale);", "(void)subtract;", PROGRAM
    ),
    "second plane of K with the scales of the first": Bug(
        K_TILE, "amax[j] = block_amax(y[j]);\n      put", "amax[j] *= scale.inverse;\n      put", PROGRAM
    ),
    "second plane of K before the power of two": Bug(
        K_TILE,
        "put(shared, kPlane, y, amax, unit_inverse(scale.inverse), false);",
        "put(shared, kPlane, y, amax, scale.inverse, false);",
        PROGRAM,
    ),
    "digits of the mean are all the first": Bug(Q_TILE, "subtract_block(y, left, codes, scale);", "", PROGRAM),
    "last digit of the mean of NVFP4 Q missing": Bug(
        Q_TILE, "digit < kQMeanDigits; ++digit", "digit + 1 < kQMeanDigits; ++digit", PROGRAM
    ),
    "mean added to what the first NVFP4 leaves": Bug(
        BLOCK, "x[i] = fmaf(-scale, y[i], x[i] * inverse);", "x[i] = fmaf(scale, y[i], x[i] * inverse);", PROGRAM
    ),
    # Rows.
    "keys that do not exist have the mean of V": Bug(
        V_TILE,
        "rows.has(key(j)) ? y[j][c] - shared.mean[Lanes::channel() + c] : 0.f",
        "y[j][c] - shared.mean[Lanes::channel() + c]",
        PROGRAM,
    ),
    "keys that do not exist have the mean of K": Bug(
        "quantize/k_rows.h",
        "rows.has(key(j)) ? y[j][c] - shared.mean[channel + c] : 0.f",
        "y[j][c] - shared.mean[channel + c]",
        PROGRAM,
    ),
    "rows that do not exist have the mean of Q": Bug(
        "quantize/q_rows.h",
        "rows.has(row(j / 4, j % 4)) ? y[c] - shared.q_mean[Lanes::channel() + c] : 0.f",
        "y[c] - shared.q_mean[Lanes::channel() + c]",
        PROGRAM,
    ),
    "mean of NVFP4 Q over 128 rows": Bug(
        "quantize/q_rows.h", "num_rows < kQTileRows ? num_rows : kQTileRows", "kQTileRows", PROGRAM
    ),
    "no barrier before the tile of NVFP4 K is stored": Bug(
        K_TILE, "arch::sync_block();  // the tile is complete", "// the tile is complete", PROGRAM
    ),
    "no barrier before the maxima of the warps are read": Bug(
        BLOCK, "arch::sync_block();  // the maxima of all warps", "// the maxima of all warps", PROGRAM
    ),
    "no barrier before the maxima of the quarters are read": Bug(
        V_TILE, "arch::sync_block();  // the maxima of all quarters", "// the maxima of all quarters", PROGRAM
    ),
    "e2m1 beyond 6": Bug("arch/convert.h", "fminf(fabsf(x), 6.f)", "fabsf(x)", PROGRAM),
}
