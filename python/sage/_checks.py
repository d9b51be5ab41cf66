"""What a call may contain. Every check names the field, what it got and what is allowed.

Types are checked before the operator is called (TypeError); shapes, dtypes, devices and strides inside it, so that a
compiled model and a caller of `torch.ops.sage` meet the same checks (ValueError, or NotImplementedError where the
request is valid and nothing serves it). Values of tensors are read only where that needs no synchronisation.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
MASK_DTYPES = {torch.bool: "bool", **DTYPES}
LAYOUTS = {"bhsd": (0, 1, 2), "bshd": (0, 2, 1)}
"""Where batch, head and sequence stand in a 4-D tensor, by layout."""

MAX_HEAD_DIM = 256


class Shape(NamedTuple):
    """One problem; with packed sequences batch counts them and seqlen_q, seqlen_k are the longest."""

    batch: int
    num_heads_q: int
    num_heads_kv: int
    head_dim: int
    seqlen_q: int
    seqlen_k: int


def check_type(name: str, value: Any, *types: type) -> None:
    """A bool is no number here, although Python says it is one."""
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        names = {type(None): "None", Tensor: "torch.Tensor"}
        wanted = " or ".join(names.get(t, t.__name__) for t in types)
        raise TypeError(f"{name} must be {wanted}, got {type(value).__name__}")


def check_window_type(window_size: Any) -> None:
    if not isinstance(window_size, (tuple, list)) or len(window_size) != 2:
        raise TypeError(f"window_size must be a pair (left, right) of int, got {window_size!r}")
    for side in window_size:
        check_type("each side of window_size", side, int)


def check_dense(name: str, t: Any) -> None:
    check_type(name, t, Tensor)
    if t.layout != torch.strided or t.is_nested:
        got = "a nested one" if t.is_nested else t.layout
        raise NotImplementedError(f"{name} must be a dense strided tensor, got {got}")


def check_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None,
    seqused_k: Tensor | None,
    *,
    scale: float | None,
    window: tuple[int, int],
    layout: str,
) -> Shape:
    """The shape of a call on 4-D tensors."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    _check_qkv(q, k, v, rank=4, head_dim_of=layout)
    batch_dim, head, seq = LAYOUTS[layout]
    shape = Shape(q.shape[batch_dim], q.shape[head], k.shape[head], q.shape[3], q.shape[seq], k.shape[seq])
    if k.shape[batch_dim] != shape.batch:
        raise ValueError(f"k must have the batch size of q, {shape.batch}, got {k.shape[batch_dim]}")
    _check_heads(shape)
    _check_numbers(scale, window)
    if attn_mask is not None:
        _check_mask(attn_mask, q, (shape.batch, shape.num_heads_q, shape.seqlen_q, shape.seqlen_k))
    if seqused_k is not None:
        _check_int32("seqused_k", seqused_k, shape.batch, q, of="batch")
    return shape


def check_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    seqused_k: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    scale: float | None,
    window: tuple[int, int],
) -> Shape:
    """The shape of a call on packed 3-D tensors."""
    _check_qkv(q, k, v, rank=3, head_dim_of="total, heads, head_dim")
    for name, cu_seqlens in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1:
            raise ValueError(f"{name} must have shape (batch + 1,), got {_shape(cu_seqlens)}")
    batch = cu_seqlens_q.shape[0] - 1
    _check_int32("cu_seqlens_q", cu_seqlens_q, batch + 1, q, of="batch + 1")
    _check_int32("cu_seqlens_k", cu_seqlens_k, batch + 1, q, of="batch + 1 of cu_seqlens_q")
    if seqused_k is not None:
        _check_int32("seqused_k", seqused_k, batch, q, of="batch")
    for name, value in (("max_seqlen_q", max_seqlen_q), ("max_seqlen_k", max_seqlen_k)):
        if value < 0:
            raise ValueError(f"{name} must be >= 0, got {value}")
    shape = Shape(batch, q.shape[1], k.shape[1], q.shape[2], max_seqlen_q, max_seqlen_k)
    _check_heads(shape)
    _check_numbers(scale, window)
    return shape


def check_seqused_values(seqused_k: Tensor, lengths: list[int]) -> None:
    """Each value within [0, length of its sequence]. Reads the tensor."""
    for index, (used, length) in enumerate(zip(seqused_k.tolist(), lengths)):
        if not 0 <= used <= length:
            raise ValueError(f"seqused_k[{index}] must be within [0, {length}], the keys of that sequence, got {used}")


def check_cu_seqlens_values(of: str, cu_seqlens: Tensor, total: int, max_seqlen: int) -> list[int]:
    """Starts at 0, ascends to `total`, no sequence longer than `max_seqlen`. Reads the tensor; returns the lengths."""
    name, offsets = f"cu_seqlens_{of}", cu_seqlens.tolist()
    if offsets[0] != 0:
        raise ValueError(f"{name} must start at 0, got {offsets[0]}")
    lengths = [end - begin for begin, end in zip(offsets, offsets[1:])]
    for index, length in enumerate(lengths):
        if length < 0:
            raise ValueError(f"{name} must ascend, got {offsets[index : index + 2]} at index {index}")
        if length > max_seqlen:
            raise ValueError(f"max_seqlen_{of} must be at least the longest sequence, {length}, got {max_seqlen}")
    if offsets[-1] != total:
        raise ValueError(f"{name} must end at the packed length, {total}, got {offsets[-1]}")
    return lengths


def _check_qkv(q: Tensor, k: Tensor, v: Tensor, *, rank: int, head_dim_of: str) -> None:
    for name, t in (("q", q), ("k", k), ("v", v)):
        if t.dim() != rank:
            raise ValueError(f"{name} must have {rank} dimensions ({head_dim_of}), got shape {_shape(t)}")
        if t.dtype not in DTYPES:
            raise ValueError(f"{name} must have dtype {', '.join(DTYPES.values())}, got {_dtype(t)}")
        if t.dtype != q.dtype:
            raise ValueError(f"{name} must have the dtype of q, {_dtype(q)}, got {_dtype(t)}")
        if t.device != q.device:
            raise ValueError(f"{name} must be on the device of q, {q.device}, got {t.device}")
    head_dim = q.shape[-1]
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"head_dim must be within [1, {MAX_HEAD_DIM}], got {head_dim}")
    if k.shape[-1] != head_dim:
        raise ValueError(f"k must have the head_dim of q, {head_dim}, got {k.shape[-1]}")
    if v.shape[-1] != head_dim:
        raise NotImplementedError(f"v must have the head_dim of q, {head_dim}, got {v.shape[-1]}: no recipe serves two")
    if v.shape != k.shape:
        raise ValueError(f"v must have the shape of k, {_shape(k)}, got {_shape(v)}")
    for name, t in (("q", q), ("k", k), ("v", v)):
        if head_dim > 1 and t.stride(-1) != 1:
            raise ValueError(
                f"{name} must have a contiguous head_dim (stride 1), got stride {t.stride(-1)}; "
                f"{name}.contiguous() makes it so"
            )


def _check_heads(shape: Shape) -> None:
    if shape.num_heads_q < 1 or shape.num_heads_kv < 1:
        raise ValueError(
            f"the number of heads must be at least 1, got {shape.num_heads_q} of q and {shape.num_heads_kv} of k and v"
        )
    if shape.num_heads_q % shape.num_heads_kv:
        raise ValueError(
            "the number of heads of q must be a multiple of that of k and v, "
            f"{shape.num_heads_kv}, got {shape.num_heads_q}"
        )


def _check_numbers(scale: float | None, window: tuple[int, int]) -> None:
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    for side, value in zip(("left", "right"), window):
        if value < -1:
            raise ValueError(f"window_size {side} must be >= -1 (-1 leaves that side open), got {value}")


def _check_mask(attn_mask: Tensor, q: Tensor, full: tuple[int, int, int, int]) -> None:
    if attn_mask.dtype not in MASK_DTYPES:
        raise ValueError(f"attn_mask must have dtype {', '.join(MASK_DTYPES.values())}, got {_dtype(attn_mask)}")
    if attn_mask.device != q.device:
        raise ValueError(f"attn_mask must be on the device of q, {q.device}, got {attn_mask.device}")
    rank = attn_mask.dim()
    if not 2 <= rank <= 4 or any(got != 1 and got != want for got, want in zip(attn_mask.shape, full[4 - rank :])):
        raise ValueError(
            "attn_mask must have 2 to 4 dimensions that broadcast to "
            f"(batch, num_heads_q, seqlen_q, seqlen_k) = {full}, got shape {_shape(attn_mask)}"
        )


def _check_int32(name: str, t: Tensor, length: int, q: Tensor, *, of: str) -> None:
    if t.dtype != torch.int32:
        raise ValueError(f"{name} must have dtype int32, got {_dtype(t)}")
    if t.dim() != 1 or t.shape[0] != length:
        raise ValueError(f"{name} must have shape ({length},), {of}, got {_shape(t)}")
    if t.device != q.device:
        raise ValueError(f"{name} must be on the device of q, {q.device}, got {t.device}")
    if not t.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got stride {t.stride(0)}")


def _shape(t: Tensor) -> tuple[int, ...]:
    return tuple(t.shape)


def _dtype(t: Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")
