"""Rounding of Q, K and V to a recipe's formats: scale groups, smoothing, scales.

Tensors are grouped as `Geometry` says: (batch, num_heads_kv, group, seqlen, head_dim), float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..recipe import Recipe
from .numerics import E2M1_MAX, NVFP4_MAX, round_e2m1, round_e4m3, round_integer

# An all-zero group is scaled as if its largest magnitude were this: the scale and its inverse stay normal float32
# numbers for every limit up to 8191, and the rounded values are 0.
AMAX_FLOOR = 1e-34

# Largest magnitudes of the rounded Q and K. For int16, 4095 * 2047 * head_dim < 2^31 up to head_dim 256.
QK_LIMITS = {"int8": (127, 127), "int4": (7, 7), "int16": (4095, 2047)}

# The mean of a tile of Q is one integer per channel: 7777 in hexadecimal digits (csrc/kernels/common/quant_format.h).
Q_MEAN_LIMIT = 0x7777

# The mean of a tile of Q in NVFP4 is a sum of so many rows, and K has a second plane for it
# (csrc/kernels/common/nvfp4_format.h).
Q_MEAN_DIGITS = 4

# Signs of the channels, 32 a word from its lowest bit (csrc/kernels/common/quant_format.h): bits of pi.
_HADAMARD_SIGNS = (
    0x243F6A88,
    0x85A308D3,
    0x13198A2E,
    0x03707344,
    0xA4093822,
    0x299F31D0,
    0x082EFA98,
    0xEC4E6C89,
)
_PADDED_HEAD_DIMS = (64, 128, 256)

WARP_ROWS = 32  # query rows of one warp (SageAttention2, section 3.2)
NVFP4_BLOCK = 16  # elements that share one ue4m3 scale


class Quantized(NamedTuple):
    """x is about values * scale; `scale` broadcasts to `values`, which the format holds exactly."""

    values: Tensor
    scale: Tensor


def query_groups(seqlen: int, recipe: Recipe, device: torch.device) -> Tensor:
    """int64 (seqlen,): the scale group of each query row."""
    row = torch.arange(seqlen, device=device)
    if recipe.qk_granularity == "token":
        return row
    if recipe.qk_granularity == "thread":  # thread lane / 4 = t of a warp owns rows 8i + t
        return row // WARP_ROWS * 8 + row % 8
    return row // (WARP_ROWS if recipe.qk_granularity == "warp" else recipe.block_q)


def key_groups(seqlen: int, recipe: Recipe, device: torch.device) -> Tensor:
    """int64 (seqlen,): the scale group of each key."""
    key = torch.arange(seqlen, device=device)
    if recipe.qk_granularity == "token":
        return key
    if recipe.qk_granularity == "thread":  # thread lane % 4 = t of a warp owns keys 8i + 2t and 8i + 2t + 1
        return key // recipe.block_k * 4 + key % 8 // 2
    return key // recipe.block_k


def quantize_rows(x: Tensor, groups: Tensor, limit: int) -> Quantized:
    """Integers up to +-limit with one scale per group of rows; scale is (..., seqlen, 1)."""
    amax = shared_amax(x, groups)
    return Quantized(round_integer(x * (limit / amax), limit), amax / limit)


def rest_of_int4(x: Tensor, q: Quantized) -> Tensor:
    """What the codes `q` of x leave, in steps of a code: 4 further bits."""
    return (16 * (x / q.scale - q.values)).round().clamp(-8, 7) / 16


def rotate(x: Tensor) -> Tensor:
    """x padded with zero channels to 64, 128 or 256, times random signs, times the orthogonal Hadamard matrix.

    The result's channels have the kernels' order and signs, which scales of 16 channels and INT4's further bits depend
    on: without its two lowest bits the number of a row of the matrix is turned by one bit, the highest one becoming the
    lowest, and the row is negative if an odd number of neighbours among the unturned bits are both 1. Two rotated
    vectors have the product they had before.
    """
    size = next(size for size in _PADDED_HEAD_DIMS if size >= x.shape[-1])
    channels = torch.arange(size, device=x.device)
    bits = torch.tensor(_HADAMARD_SIGNS, device=x.device)[channels // 32] >> channels % 32 & 1
    x = torch.nn.functional.pad(x, (0, size - x.shape[-1])) * (1 - 2 * bits)
    for distance in (2**i for i in range(size.bit_length() - 1)):
        low, high = x.unflatten(-1, (-1, 2, distance)).unbind(-2)
        x = torch.stack([low + high, low - high], -2).flatten(-3)
    of = channels % 4 + channels // 8 * 4 + channels // 4 % 2 * (size // 2)
    pairs = of & of >> 1
    negative = sum(pairs >> bit & 1 for bit in range(2, size.bit_length())) % 2
    return x[..., of] * ((1 - 2 * negative) * size**-0.5)


def scale_of_nvfp4(amax: Tensor) -> Tensor:
    """A block's scale: amax / 6 rounded to e4m3; NaN where amax is not finite."""
    return torch.where(amax.isfinite(), round_e4m3(amax / E2M1_MAX), torch.nan)


def quantize_nvfp4(x: Tensor, block_scale: Callable[[Tensor], Tensor] = scale_of_nvfp4) -> Tensor:
    """NVFP4 along the last dimension, dequantized: e2m1 values times one ue4m3 scale per 16 elements.

    `block_scale` makes the scale of a block's largest magnitude, and x is multiplied by the inverse of that rounded
    number, as the kernels do: where x / scale would be a tie of e2m1, it may not be one. By default, blocks whose amax
    is below 6 * 2^-10 become zero, and amax saturates at 448 * 6.
    The product of an e2m1 and an e4m3 value has 6 significant bits: float32 holds it, and sums of such products, as
    exactly as the tensor core's float32 accumulator.
    """
    size = x.shape[-1]
    blocks = torch.nn.functional.pad(x, (0, -size % NVFP4_BLOCK)).unflatten(-1, (-(-size // NVFP4_BLOCK), NVFP4_BLOCK))
    scale = block_scale(blocks.abs().amax(-1, keepdim=True))
    values = round_e2m1(blocks * (1 / scale).masked_fill(scale == 0, 0.0))
    return (values * scale).flatten(-2)[..., :size]


def nvfp4_sum(x: Tensor, terms: int) -> Tensor:
    """x as a sum of NVFP4 tensors, each of what those before it leave."""
    total = torch.zeros_like(x)
    for _ in range(terms):
        total = total + quantize_nvfp4(x - total)
    return total


def power_of_two(amax: Tensor) -> Tensor:
    """The second level of NVFP4's scales: it brings amax into (1344, 2688], so that neither small nor large tensors
    leave the range of a block's scale; 2^-115 at least. NaN where amax is not finite."""
    fraction, exponent = torch.frexp(amax / NVFP4_MAX)
    ceil_log2 = exponent - (fraction == 0.5).to(exponent.dtype)
    return torch.where(amax.isfinite(), torch.exp2(ceil_log2.clamp(min=-115).to(amax.dtype)), torch.nan)


def block_mean(x: Tensor, block: int) -> Tensor:
    """Mean of every `block` rows, (..., seqlen, head_dim): each row holds the mean of its block's rows."""
    groups = torch.arange(x.shape[-2], device=x.device) // block
    count = torch.bincount(groups).to(x.dtype)[:, None]
    total = x.new_zeros(*x.shape[:-2], count.shape[0], x.shape[-1]).index_add(-2, groups, x)
    return (total / count).index_select(-2, groups)


def quantize_v(v: Tensor, recipe: Recipe, dtype: torch.dtype) -> Quantized:
    """V in the recipe's format. v is zero past the sequence's length, so those keys do not enter the scales.

    `dtype` is that of the caller's V. scale is (..., 1, head_dim) per channel or (..., seqlen, 1) per block.
    """
    if recipe.v_granularity == "block":
        groups = torch.arange(v.shape[-2], device=v.device) // recipe.block_k
        amax = shared_amax(v, groups)
    else:
        floor = v.new_full((*v.shape[:-2], 1, v.shape[-1]), AMAX_FLOOR)
        amax = torch.cat([floor, v.abs()], -2).amax(-2, keepdim=True)
    operand_dtype = fp16_operand_dtype(recipe, dtype)
    if recipe.pv == "nvfp4":
        scale = power_of_two(amax)
    elif recipe.v_max:
        scale = amax / recipe.v_max
    elif recipe.pv == "fp16" and operand_dtype != dtype:
        # Wider than fp16: the power of two that brings the group below 1 loses nothing and rules out overflow. The
        # largest that float32 has is 2^127.
        scale = torch.exp2(torch.frexp(amax).exponent.clamp(max=127).to(v.dtype))
    else:
        scale = torch.ones_like(amax)
    scaled = v / scale
    if recipe.pv in ("int8", "int16"):
        values = round_integer(scaled, recipe.v_max)
    elif recipe.pv == "fp8_e4m3":
        values = round_e4m3(scaled)
    elif recipe.pv == "nvfp4":  # blocks of 16 consecutive keys of one channel
        values = quantize_nvfp4(scaled.mT).mT
    else:
        values = scaled.to(operand_dtype).float()
    return Quantized(values, scale)


def fp16_operand_dtype(recipe: Recipe, dtype: torch.dtype) -> torch.dtype:
    """The format of P and V for pv "fp16": the caller's V's, but fp16 for float32 and under an fp16 accumulator."""
    return torch.bfloat16 if dtype == torch.bfloat16 and "fp16" not in recipe.pv_accum else torch.float16


def shared_amax(x: Tensor, groups: Tensor) -> Tensor:
    """(..., seqlen, head_dim) -> (..., seqlen, 1): the largest magnitude of each row's group, at least AMAX_FLOOR."""
    num_groups = int(groups.max()) + 1 if groups.numel() else 0
    row_amax = x.abs().amax(-1)
    shared = row_amax.new_full((*row_amax.shape[:-1], num_groups), AMAX_FLOOR)
    shared = shared.scatter_reduce(-1, groups.expand_as(row_amax), row_amax, "amax")
    return shared.index_select(-1, groups)[..., None]
