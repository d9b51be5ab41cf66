"""Attention in float64: the truth that every recipe and every kernel is measured against."""

from __future__ import annotations

import torch
from torch import Tensor

from .geometry import Geometry

# Scores held at once: 2^24 float64 values are 128 MiB.
_SCORES_AT_ONCE = 2**24


def exact(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    attn_mask: Tensor | None = None,
    seqused_k: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(scale * q k^T + attn_mask) v in float64, differentiable.

    Args:
        q: (batch, num_heads_q, seqlen_q, head_dim), any floating dtype and device.
        k, v: (batch, num_heads_kv, seqlen_k, head_dim); num_heads_kv divides num_heads_q.
        scale, causal, window, attn_mask, seqused_k: as in `sage.reference.forward`.

    Returns:
        out: float64, the shape of q; 0 in rows that see no key.
        lse: float64 (batch, num_heads_q, seqlen_q), natural logarithm; -inf in rows that see no key.
    """
    geometry = Geometry(q, k, causal=causal, window=window, attn_mask=attn_mask, seqused_k=seqused_k)
    q, k, v = (geometry.split_heads(x.double()) for x in (q, k, v))
    k, v = geometry.only_existing(k), geometry.only_existing(v)
    rows_at_once = (
        max(1, _SCORES_AT_ONCE // max(1, q[..., 0, 0].numel() * geometry.seqlen_k)) if geometry.seqlen_q else 1
    )
    outs, lses = [q[..., :0, :]], [q[..., :0, 0]]
    for first in range(0, geometry.seqlen_q, rows_at_once):
        scores = scale * (q[..., first : first + rows_at_once, :] @ k.mT)
        scores = geometry.mask(scores, first_row=first, unit=1.0)
        row_max = (
            scores.detach().amax(-1, keepdim=True)
            if geometry.seqlen_k
            else scores.new_full((*scores.shape[:-1], 1), -torch.inf)
        )
        # Relative to the maximum, not to lse: in a row of finfo.min that is not fine enough to normalise by.
        weights = torch.exp(scores - row_max.masked_fill(row_max == -torch.inf, 0.0))
        row_sum = weights.sum(-1, keepdim=True)
        outs.append(weights @ v / row_sum.masked_fill(row_sum == 0, 1.0))
        lses.append((row_max + row_sum.log()).squeeze(-1))
    return torch.cat(outs, -2).flatten(1, 2), torch.cat(lses, -1).flatten(1, 2)
