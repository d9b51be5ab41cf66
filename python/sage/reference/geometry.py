"""Shapes, lengths and visibility of one attention problem: the rules every part of the reference shares."""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT32_MAX = torch.finfo(torch.float32).max


class Geometry:
    """Heads are grouped: tensors are (batch, num_heads_kv, group, seqlen, ...), where q has group = num_heads_q /
    num_heads_kv and k, v have group = 1, so that key-value heads broadcast over their queries.

    Attributes:
        seqlen_q, seqlen_k: of the tensors; how many of the keys exist may differ from sequence to sequence.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        *,
        causal: bool,
        window: tuple[int, int],
        attn_mask: Tensor | None,
        seqused_k: Tensor | None,
    ) -> None:
        batch, num_heads_q, self.seqlen_q, _ = q.shape
        _, self._num_heads_kv, self.seqlen_k, _ = k.shape
        if num_heads_q % self._num_heads_kv:
            raise ValueError(f"num_heads_q must be a multiple of num_heads_kv {self._num_heads_kv}, got {num_heads_q}")
        if seqused_k is None:
            seqused_k = torch.full((batch,), self.seqlen_k, device=q.device)
        self._lengths = seqused_k.to(torch.int64)[:, None, None, None, None]
        self._causal = causal
        self._window = window
        self._attn_mask = None
        if attn_mask is not None:
            full = attn_mask.broadcast_to(batch, num_heads_q, self.seqlen_q, self.seqlen_k)
            self._attn_mask = self.split_heads(full)

    def split_heads(self, x: Tensor) -> Tensor:
        """(batch, num_heads, ...) -> (batch, num_heads_kv, num_heads / num_heads_kv, ...)."""
        return x.unflatten(1, (self._num_heads_kv, x.shape[1] // self._num_heads_kv))

    def only_existing(self, x: Tensor) -> Tensor:
        """Zero the rows of a grouped K or V that lie past the sequence's length, whatever they hold."""
        keys = torch.arange(x.shape[-2], device=x.device)
        return x.masked_fill(keys[:, None] >= self._lengths, 0.0)

    def mean_over_keys(self, x: Tensor) -> Tensor:
        """Mean over the keys that exist of a grouped K or V that `only_existing` has zeroed: (..., 1, head_dim)."""
        return x.sum(-2, keepdim=True) / self._lengths.clamp(min=1)

    def mask(self, scores: Tensor, *, first_row: int = 0, first_key: int = 0, unit: float) -> Tensor:
        """Add the mask to a tile of scores and set what its queries do not see to -inf.

        scores (batch, num_heads_kv, group, rows, keys) are for a softmax to the base e^(1 / unit): unit is 1 for exp,
        log2(e) for exp2. A finite mask value never hides a key: its product with `unit` is held to float32's finite
        range, and so is +inf.
        """
        rows = torch.arange(first_row, first_row + scores.shape[-2], device=scores.device)[:, None]
        keys = torch.arange(first_key, first_key + scores.shape[-1], device=scores.device)
        seen = keys < self._lengths
        # Key j stands at this distance after query i, the last query being aligned with the last key.
        distance = keys - rows - self._lengths + self.seqlen_q
        left, right = self._window
        if self._causal:
            seen = seen & (distance <= 0)
        if left >= 0:
            seen = seen & (distance >= -left)
        if right >= 0:
            seen = seen & (distance <= right)
        if self._attn_mask is not None:
            tile = self._attn_mask[
                ..., first_row : first_row + scores.shape[-2], first_key : first_key + scores.shape[-1]
            ]
            if tile.dtype == torch.bool:
                seen = seen & tile
            else:
                tile = tile.to(scores.dtype)
                seen = seen & (tile != -torch.inf)
                scores = scores + (tile * unit).clamp(-FLOAT32_MAX, FLOAT32_MAX)
        return scores.masked_fill(~seen, -torch.inf)
