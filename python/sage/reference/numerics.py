"""Low-precision number formats and tensor-core arithmetic, emulated in float32 tensors.

Every rounding function takes and returns float32 and hands NaN through.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..recipe import E4M3_MAX

_E4M3_MAX_CODE = 0x7E  # of E4M3_MAX; the next one is NaN
E2M1_MAX = 6.0  # largest e2m1 value: 1.5 * 2^2
NVFP4_MAX = E4M3_MAX * E2M1_MAX
FP22_FRACTION_BITS = 13
FP16_MMA_DEPTH = 16  # products summed by one mma.m16n8k16 with 16-bit operands
FP8_MMA_DEPTH = 32  # products summed by one mma.m16n8k32 with 8-bit operands


def round_integer(x: Tensor, limit: float) -> Tensor:
    """Round to the nearest integer, ties to even, and saturate at +-limit."""
    return x.round().clamp(-limit, limit)


def round_e4m3(x: Tensor) -> Tensor:
    """Round to the nearest e4m3 value, ties to even, and saturate at +-448. For x >= 0 this is also ue4m3."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(x.dtype)


def approximate_exp2_e4m3(x: Tensor) -> Tensor:
    """2^x for x <= log2(448) as an e4m3 value: its code is the integer nearest to a straight line.

    e4m3's exponent has a bias of 7 and stands 3 bits up: 8 (x + 7) is the code of 2^x where x is an integer, and would
    be everywhere if 2^f were 1 + f for the fraction f of x. log2(1 + f) exceeds f by .0573 on average.
    """
    code = (8 * (x + (7 - 0.0573))).round().clamp(0, _E4M3_MAX_CODE)
    values = code.nan_to_num().to(torch.uint8).view(torch.float8_e4m3fn).to(x.dtype)
    return torch.where(x.isnan(), x, values)


def p_scale_e4m3(amax: Tensor) -> Tensor:
    """The scale of a block of NVFP4 P whose largest value is amax: the e4m3 number with the code 8 log2(amax) + 35.

    Codes are rounded down to integers and held to those of normal numbers, [8, 126]. As in `approximate_exp2_e4m3` 8
    codes are an octave, and 2^f is taken for 1 + f, without which 8 (log2(amax / 6) + 7) = 8 log2(amax) + 35.3 would be
    the code of amax / 6, to be rounded to nearest. Of the offsets 33.5, 34.5, 35, 35.5 and 36.5, 35 has the least error
    (NRMSE of sage3 on normal inputs .1905; amax / 6 rounded to e4m3: .1920).
    """
    code = (8 * amax.log2() + 35).floor().clamp(8, _E4M3_MAX_CODE)
    return (1 + code % 8 / 8) * torch.exp2((code / 8).floor() - 7)


def round_e2m1(x: Tensor) -> Tensor:
    """Round to the nearest of 0, .5, 1, 1.5, 2, 3, 4, 6 (either sign), ties to the even code, and saturate at +-6."""
    # One fraction bit: the values in [2^e, 2^(e+1)) lie 2^(e-1) apart; below 1 they keep the spacing of [1, 2).
    exponent = torch.frexp(x.clamp(-E2M1_MAX, E2M1_MAX)).exponent - 1
    spacing = torch.exp2((exponent.clamp(min=0) - 1).to(x.dtype))
    return ((x / spacing).round() * spacing).clamp(-E2M1_MAX, E2M1_MAX)


def round_fp16(x: Tensor) -> Tensor:
    """Round to fp16, ties to even; beyond 65504 this overflows to infinity, as an fp16 register does."""
    return x.to(torch.float16).to(x.dtype)


def add_fp16(acc: Tensor, dot: Tensor) -> Tensor:
    """One mma with an fp16 accumulator: the products are summed with the accumulator and rounded to fp16 once."""
    return round_fp16(acc + dot)


def add_fp22(acc: Tensor, dot: Tensor) -> Tensor:
    """One FP8 mma with the accumulator of Ada and Hopper tensor cores: 1 + 8 + 13 bits (SageAttention2, section 3.4).

    Model: accumulator and dot product are aligned to the larger exponent of the two, cut (towards zero) below 13
    fraction bits, added, and the sum is cut to 13 fraction bits again. The dot product itself is taken as exact. The
    width is measured by the paper; cutting rather than rounding, and where, is not documented by the vendor.
    """
    largest = torch.maximum(acc.abs(), dot.abs())
    return _cut(_cut(acc, largest) + _cut(dot, largest), largest=None)


def _cut(x: Tensor, largest: Tensor | None) -> Tensor:
    """Drop the bits of x below FP22_FRACTION_BITS fraction bits of `largest` (of x itself where that is None)."""
    exponent = torch.frexp(x if largest is None else largest).exponent - 1
    # 2^-100 is far below what a fold could see, and keeps the quotient finite for zeros.
    ulp = torch.exp2((exponent - FP22_FRACTION_BITS).clamp(min=-100).to(x.dtype))
    return (x / ulp).trunc() * ulp


def chained_mma(acc: Tensor, a: Tensor, b: Tensor, depth: int, add) -> Tensor:
    """acc + a @ b as a chain of tensor-core instructions that sum `depth` products each.

    acc (..., m, n), a (..., m, k), b (..., k, n). `add(acc, dot)` is the accumulator: add_fp16 or add_fp22.
    """
    for start in range(0, a.shape[-1], depth):
        acc = add(acc, a[..., start : start + depth] @ b[..., start : start + depth, :])
    return acc


def integer_matmul(a: Tensor, b: Tensor, bound: float) -> Tensor:
    """a @ b for float32 tensors that hold integers, as an int32 accumulator converted to float32 gives it.

    `bound` must be at least every partial sum's magnitude. Below 2^24 a float32 matmul is exact in any order; above,
    float64 is (up to 2^53), and the exact sum is rounded to float32 once.
    """
    if bound < 2**24:
        return a @ b
    return (a.double() @ b.double()).float()
