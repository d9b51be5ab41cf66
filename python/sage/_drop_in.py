"""What the stand-ins for functions of other libraries share, where these differ from `sage.attention`."""

from __future__ import annotations

from torch import Tensor

from ._checks import check_type


def check_mask_or_causal(attn_mask: Tensor | None, is_causal: bool) -> None:
    check_type("attn_mask", attn_mask, Tensor, type(None))
    check_type("is_causal", is_causal, bool)
    if attn_mask is not None and is_causal:
        raise ValueError("attn_mask must be None with is_causal=True, got a tensor")


def check_dropout(dropout_p: float) -> None:
    check_type("dropout_p", dropout_p, float, int)
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"dropout_p must be within [0, 1], got {dropout_p}")
    if dropout_p > 0:
        raise NotImplementedError(f"dropout_p {dropout_p}: no recipe has dropout, only 0 is served")


def top_left_causal(q: Tensor, k: Tensor, v: Tensor, seq_dim: int) -> tuple[Tensor, Tensor, bool, tuple[int, int]]:
    """k, v, is_causal and window_size with which `attention` lets query i see keys j <= i, whatever the lengths.

    Wrong shapes pass through: `attention` says what is wrong with them.
    """
    seqlen_q, seqlen_k = q.shape[seq_dim], k.shape[seq_dim]
    if seqlen_q > seqlen_k:
        return k, v, False, (-1, seqlen_q - seqlen_k)  # j <= i, in coordinates aligned to the bottom right
    if seqlen_q < seqlen_k == v.shape[seq_dim]:
        k, v = (t.narrow(seq_dim, 0, seqlen_q) for t in (k, v))  # what any query sees: lengths are now equal
    return k, v, True, (-1, -1)
