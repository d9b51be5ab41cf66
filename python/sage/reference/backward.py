"""Backward pass of SageBwd (arXiv 2505.11594, section 4): five matmuls, all but dO V^T in INT8, one scale per tile."""

from __future__ import annotations

import torch
from torch import Tensor

from ..recipe import Recipe
from .geometry import Geometry
from .numerics import integer_matmul, round_integer
from .quantize import AMAX_FLOOR, Quantized
from .scores import LOG2_E, Scores

_LIMIT = 127


def backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    recipe: Recipe,
    *,
    scale: float,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    attn_mask: Tensor | None = None,
    seqused_k: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `forward` with respect to q, k and v, for recipes of the SageBwd family.

    Args:
        dout: gradient of out, its shape and dtype.
        q, k, v, scale, causal, window, attn_mask, seqused_k: what `forward` got.
        out, lse: what `forward` returned.

    Returns:
        dq, dk, dv: shapes and dtypes of q, k, v; dk and dv are summed over the query heads that share them.

    Raises:
        NotImplementedError: unless the recipe has qk "int8" with one scale per block, and pv "int8".

    Per tile of block_q rows and block_k keys: S = Q K^T recomputed as in the forward pass, P = exp(S - lse),
    dV += P^T dO, dP = dO V^T (16 bit, or INT8 with the recipe's dp "int8"), dS = P (dP - rowsum(dO O)), dQ += dS K,
    dK += dS^T Q. K is the smoothed K: the rows of dS add up to 0, so its mean would not change dQ, nor does it dK.
    """
    if (recipe.qk, recipe.qk_granularity, recipe.pv) != ("int8", "block", "int8"):
        raise NotImplementedError(
            f"a backward pass exists for recipes with qk 'int8' per 'block' and pv 'int8' (sagebwd), got {recipe}"
        )
    if recipe.hadamard:
        raise NotImplementedError(f"a backward pass needs recipe field hadamard False, got {recipe}")
    geometry = Geometry(q, k, causal=causal, window=window, attn_mask=attn_mask, seqused_k=seqused_k)
    dtypes = q.dtype, k.dtype, v.dtype
    q, k, v, dout, out, lse = (geometry.split_heads(x.float()) for x in (q, k, v, dout, out, lse))
    k, v = geometry.only_existing(k), geometry.only_existing(v)
    scores = Scores(q, k, recipe, geometry, scale)
    # Scores are those of the smoothed K, so lse must be too. A row that sees no key has only -inf scores: P is 0.
    lse_log2 = (lse - scores.lse_shift).masked_fill(lse == -torch.inf, 0.0)[..., None] * LOG2_E
    row_dot = (dout * out).sum(-1, keepdim=True)

    rows = _Tiles(geometry.seqlen_q, recipe.block_q)
    q_values, q_scale = rows.split(scores.q.values), rows.split(scores.q.scale)[..., :1, :]
    dout_tiles = _quantize_tiles(rows.split(dout))
    dq = torch.zeros_like(q)
    dk, dv = (torch.zeros(*q.shape[:-2], *x.shape[-2:], device=q.device) for x in (k, v))
    for first in range(0, geometry.seqlen_k, recipe.block_k):
        last = min(first + recipe.block_k, geometry.seqlen_k)
        v_step = v[..., first:last, :]
        # No probability exceeds 1. Rounding alone would break that in a row whose scores are near float32's limits
        # (all finfo.min, say), where lse cannot hold the logarithm of the sum any more.
        p = torch.exp2((scores.step(first, last) - lse_log2).clamp(max=0))
        p_tiles = _quantize_tiles(rows.split(p))
        dv[..., first:last, :] = _tile_matmul(
            p_tiles.values.mT, p_tiles.scale, dout_tiles.values, dout_tiles.scale
        ).sum(-3)
        dp = _dp_int8(dout_tiles, v_step, rows) if recipe.dp == "int8" else _dp_16bit(dout, v_step, dtypes[2])
        ds = _quantize_tiles(rows.split(p * (dp - row_dot)))
        k_values, k_scale = scores.k.values[..., first:last, :], scores.k.scale[..., first : first + 1, :]
        dq += rows.join(_tile_matmul(ds.values, ds.scale, k_values[..., None, :, :], k_scale[..., None, :, :]))
        dk[..., first:last, :] = _tile_matmul(ds.values.mT, ds.scale, q_values, q_scale).sum(-3)
        if scores.q_mean is not None:
            # Q = smoothed Q + mean of its block: the mean's share of dS^T Q.
            q_mean = rows.split(scores.q_mean)[..., :1, :]
            dk[..., first:last, :] += ((ds.values.sum(-2)[..., None] * ds.scale) * q_mean).sum(-3)
    dq, dk, dv = scale * dq, scale * dk.sum(2, keepdim=True), dv.sum(2, keepdim=True)
    return tuple(x.flatten(1, 2).to(dtype) for x, dtype in zip((dq, dk, dv), dtypes))


class _Tiles:
    """Rows in blocks of `block`: (..., seqlen, n) <-> (..., blocks, block, n), the last block filled up with zeros."""

    def __init__(self, seqlen: int, block: int) -> None:
        self._seqlen, self._block, self._count = seqlen, block, -(-seqlen // block)

    def split(self, x: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(x, (0, 0, 0, -self._seqlen % self._block))
        return padded.unflatten(-2, (self._count, self._block))

    def join(self, x: Tensor) -> Tensor:
        return x.flatten(-3, -2)[..., : self._seqlen, :]


def _quantize_tiles(x: Tensor) -> Quantized:
    """INT8 with one scale per (rows, columns) tile, the last two dimensions; scale is (..., 1, 1)."""
    amax = x.abs().amax((-2, -1), keepdim=True).clamp(min=AMAX_FLOOR)
    return Quantized(round_integer(x * (_LIMIT / amax), _LIMIT), amax / _LIMIT)


def _tile_matmul(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor) -> Tensor:
    return integer_matmul(a, b, _LIMIT * _LIMIT * a.shape[-1]) * (a_scale * b_scale)


def _dp_int8(dout_tiles: Quantized, v: Tensor, rows: _Tiles) -> Tensor:
    v_tile = _quantize_tiles(v[..., None, :, :])
    return rows.join(_tile_matmul(dout_tiles.values, dout_tiles.scale, v_tile.values.mT, v_tile.scale))


def _dp_16bit(dout: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """dO V^T summed in float32, its operands in the caller's 16-bit format; bfloat16 for float32, for its range."""
    dtype = torch.bfloat16 if dtype == torch.float32 else dtype
    return dout.to(dtype).float() @ v.to(dtype).float().mT
