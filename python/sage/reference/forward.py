"""Forward pass of every recipe: online softmax over steps of block_k keys, P rounded before it meets V."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..recipe import Recipe
from .accumulator import Accumulator, folds
from .geometry import Geometry
from .numerics import approximate_exp2_e4m3, p_scale_e4m3, round_e4m3, round_integer
from .quantize import fp16_operand_dtype, quantize_nvfp4, quantize_v
from .scores import Scores


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    recipe: Recipe,
    *,
    scale: float,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    attn_mask: Tensor | None = None,
    seqused_k: Tensor | None = None,
    fp22: bool = False,
) -> tuple[Tensor, Tensor]:
    """softmax(scale * q k^T + attn_mask) v with both matmuls rounded as `recipe` says.

    Args:
        q: (batch, num_heads_q, seqlen_q, head_dim), float32, float16 or bfloat16, any device.
        k, v: (batch, num_heads_kv, seqlen_k, head_dim), the dtype of q; num_heads_kv divides num_heads_q.
        scale: factor of q k^T.
        causal: query i sees keys j <= i + length - seqlen_q, where length is the sequence's true number of keys.
        window: (left, right); query i sees keys i + length - seqlen_q - left .. + right; -1 leaves a side open.
        attn_mask: bool (True: seen) or floating (added, natural-log units; -inf hides a key, +inf counts as the
            largest finite value), broadcastable to (batch, num_heads_q, seqlen_q, seqlen_k).
        seqused_k: int32 (batch,), how many keys of each sequence exist; what lies past them is never read.
        fp22: emulate the ~FP22 accumulator of FP8 tensor cores (numerics.add_fp22) where the recipe has float32 as the
            inner one.

    Returns:
        out: dtype and shape of q; 0 in rows that see no key.
        lse: float32 (batch, num_heads_q, seqlen_q), the natural logarithm of the sum of exp of the (rounded) scores;
            -inf in rows that see no key. It is that of the unrounded probabilities, but for FP8 and NVFP4 P V with
            float32 accumulators, where the row sum of the rounded ones is all there is.

    The row sum that divides the output is that of the rounded P, so a common part of V comes back as good as V's own
    rounding; for FP8 P V with fp16 accumulators it is that of the unrounded P, which tensor cores do not have to add
    up. Measured NRMSE, rounded against unrounded sum (1024 keys, head_dim 128): V + 8 N(0, 1) per channel .0014 / .0020
    for sage2 and .0389 / .0304 for sage3; V + 1 .0125 / .0259 for sage3; V of mean 0: no difference.
    """
    if fp22 and (recipe.pv, recipe.pv_accum) != ("fp8_e4m3", "fp32+fp32"):
        raise ValueError(
            "fp22 must be False unless the recipe has pv 'fp8_e4m3' with pv_accum 'fp32+fp32', got True with "
            f"{recipe.pv!r} and {recipe.pv_accum!r}"
        )
    if recipe.v_granularity == "block" and not (folds(recipe) and recipe.fold_every == 1):
        raise NotImplementedError(
            f"v_granularity 'block' needs an accumulator that is folded every step, got pv_accum {recipe.pv_accum!r} "
            f"and fold_every {recipe.fold_every}"
        )
    geometry = Geometry(q, k, causal=causal, window=window, attn_mask=attn_mask, seqused_k=seqused_k)
    out_dtype, v_dtype = q.dtype, v.dtype
    q, k, v = (geometry.split_heads(x.float()) for x in (q, k, v))
    k, v = geometry.only_existing(k), geometry.only_existing(v)

    scores = Scores(q, k, recipe, geometry, scale)
    v_mean = None
    if recipe.smooth_v:
        v_mean = geometry.mean_over_keys(v)
        v = geometry.only_existing(v - v_mean)
    v_values, v_scale = quantize_v(v, recipe, v_dtype)
    per_block = recipe.v_granularity == "block"

    if sum_is_a_channel := _sum_is_a_channel(recipe):
        v_values = torch.cat([v_values, torch.ones_like(v_values[..., :1])], -1)
    accumulator = Accumulator(recipe, q.new_zeros(*q.shape[:-1], v_values.shape[-1]), fp22)
    row_max = q.new_full((*q.shape[:-1], 1), -torch.inf)  # what P is relative to
    row_sum = torch.zeros_like(row_max)  # of the rounded P, in the units of the accumulator
    exp_sum = torch.zeros_like(row_max)  # of the unrounded probabilities, relative to row_max
    steps = range(0, geometry.seqlen_k, recipe.block_k)
    for first in steps if recipe.key_order == "forward" else reversed(steps):
        last = min(first + recipe.block_k, geometry.seqlen_k)
        s = scores.step(first, last)
        step_max = s.amax(-1, keepdim=True)
        new_max = torch.maximum(row_max, step_max.ceil() if _is_relative_to_octaves(recipe) else step_max)
        probabilities = _exp2_difference(s, new_max)
        decay = _exp2_difference(row_max, new_max)
        p = _round_p(s, first, probabilities, step_max, new_max, recipe, v_dtype)
        fold = p.scale
        if per_block:
            fold = fold * _step_scales(v_scale[..., first : first + 1, :], v_values.shape[-1], sum_is_a_channel)
        accumulator.step(decay, p.values, v_values[..., first:last, :], fold)
        row_sum = row_sum * decay + p.values.sum(-1, keepdim=True) * p.scale
        exp_sum = exp_sum * decay + probabilities.sum(-1, keepdim=True)
        row_max = new_max

    out = accumulator.total()
    if sum_is_a_channel:
        out, row_sum = out[..., :-1], out[..., -1:]
        exp_sum = row_sum / _p_max(recipe)
    elif recipe.pv == "fp8_e4m3":
        row_sum = exp_sum * recipe.p_max
    out = (out if per_block else out * v_scale) / row_sum
    if v_mean is not None:
        out = out + v_mean
    out = torch.where(row_sum == 0, 0.0, out)
    lse = ((row_max + exp_sum.log2()) * math.log(2)).squeeze(-1) + scores.lse_shift
    return out.to(out_dtype).flatten(1, 2), lse.flatten(1, 2)


def _sum_is_a_channel(recipe: Recipe) -> bool:
    """Whether the row sum is that of P times a channel of ones in V, so that what its accumulator cuts off is cut off
    of both sides of the division."""
    return recipe.pv in ("fp8_e4m3", "nvfp4") and "fp16" not in recipe.pv_accum


def _is_relative_to_octaves(recipe: Recipe) -> bool:
    """Whether P is relative to the row's maximum so far rounded up to an integer: then every P rounds alike whatever
    keys came before it, but for what underflows, as the maximum moves by powers of two."""
    return recipe.pv == "nvfp4" or (recipe.qk, recipe.pv) == ("nvfp4", "fp8_e4m3")


def _p_max(recipe: Recipe) -> float:
    """What the probability 1 is rounded as."""
    return recipe.p_max if recipe.pv != "nvfp4" or recipe.p_two_level else 1.0


def _step_scales(v_scale: Tensor, channels: int, sum_is_a_channel: bool) -> Tensor:
    """A block's scale of V for each channel of its accumulator; 1 for the row sum."""
    scales = v_scale.expand(*v_scale.shape[:-1], channels).clone()
    if sum_is_a_channel:
        scales[..., -1] = 1.0
    return scales


class _RoundedP(NamedTuple):
    values: Tensor  # (..., seqlen_q, keys), rounded
    scale: Tensor | float  # what one unit is worth, relative to the row's maximum so far times a constant of the recipe


def _round_p(
    s: Tensor,
    first: int,
    probabilities: Tensor,
    step_max: Tensor,
    new_max: Tensor,
    recipe: Recipe,
    v_dtype: torch.dtype,
) -> _RoundedP:
    """Probabilities of one step in the recipe's format. s: scores of the keys from `first`; probabilities:
    exp2(s - new_max)."""
    if recipe.pv in ("int8", "int16"):
        # The largest probability of the row and step becomes p_max, whatever the steps before it held.
        values = round_integer(_exp2_difference(s, step_max) * recipe.p_max, recipe.p_max)
        return _RoundedP(values, _exp2_difference(step_max, new_max) / recipe.p_max)
    if recipe.pv == "fp8_e4m3":
        values = round_e4m3(probabilities * recipe.p_max)
        if recipe.approximate_exp:
            exponent = _difference(s, new_max) + math.log2(recipe.p_max)
            values = torch.where(_is_approximate(s, first), approximate_exp2_e4m3(exponent), values)
        return _RoundedP(values, 1.0)
    if recipe.pv == "nvfp4":
        return _RoundedP(quantize_nvfp4(probabilities * _p_max(recipe), p_scale_e4m3), 1.0)
    return _RoundedP((probabilities * recipe.p_max).to(fp16_operand_dtype(recipe, v_dtype)).float(), 1.0)


def _is_approximate(s: Tensor, first: int) -> Tensor:
    """(seqlen_q, keys): which quarter of P approximate_exp takes, 16 keys in a row out of each 64 and 8 of 16 rows: what
    a tensor-core thread holds in the same registers for every 32 keys."""
    row = torch.arange(s.shape[-2], device=s.device)[:, None]
    key = torch.arange(first, first + s.shape[-1], device=s.device)
    return (key % 32 >= 16) & (key // 32 % 2 == row % 16 // 8)


def _difference(x: Tensor, maximum: Tensor) -> Tensor:
    """x - maximum, -inf where x is even if maximum is."""
    return x - maximum.masked_fill(maximum == -torch.inf, 0.0)


def _exp2_difference(x: Tensor, maximum: Tensor) -> Tensor:
    return torch.exp2(_difference(x, maximum))
