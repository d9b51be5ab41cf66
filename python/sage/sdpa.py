"""A stand-in for `torch.nn.functional.scaled_dot_product_attention`, by name or by patching it in."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import DTYPES, MAX_HEAD_DIM, check_dense, check_type
from ._drop_in import check_dropout, check_mask_or_causal, top_left_causal
from ._select import choose, is_differentiable
from .attention import attention
from .recipe import Recipe

_torch_sdpa = F.scaled_dot_product_attention


@dataclass
class SdpaCalls:
    """What happened to the calls under `patch_sdpa`.

    Attributes:
        served: how many sage ran.
        fell_back: how many PyTorch ran, by the reason why sage could not.
    """

    served: int = 0
    fell_back: Counter[str] = field(default_factory=Counter)


def sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    recipe: str | Recipe = "auto",
    backend: str = "auto",
    fallback: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` in low precision, with the same meaning of every argument.

    Unlike in `sage.attention`, the causal mask is aligned to the top left (query i sees keys j <= i whatever the
    lengths), leading dimensions broadcast, autocast applies, and an input whose head_dim is not contiguous is copied.
    Heads are not repeated in memory.

    Args:
        query: (..., num_heads_q, seqlen_q, head_dim) or (seqlen_q, head_dim), float32, float16 or bfloat16.
        key, value: (..., num_heads_kv, seqlen_k, head_dim); num_heads_kv is num_heads_q or 1, or with `enable_gqa` any
            divisor.
        attn_mask: bool (True where a key is seen) or floating (added to the scores), broadcastable to
            (..., num_heads_q, seqlen_q, seqlen_k); not together with is_causal.
        dropout_p: a probability; only 0 is served.
        scale: factor of the scores; head_dim ** -0.5 if None.
        recipe, backend: as in `sage.attention`.
        fallback: give a valid call that no recipe serves to PyTorch instead of raising.

    Returns:
        (..., num_heads_q, seqlen_q, head_dim) with the dtype of query; rows that see no key are 0. As PyTorch's result
        it lies in memory as query does, the heads of a token side by side or apart.

    Raises:
        TypeError, ValueError: what PyTorch would not take either.
        NotImplementedError: what PyTorch takes and no recipe serves, without `fallback`: dropout, float64, head_dim
            above 256 or another one in value, a gradient of a recipe that has none or of attn_mask, a device without
            kernels, nested tensors.
    """
    return _attend(
        None, fallback, recipe, backend, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
    )


@contextlib.contextmanager
def patch_sdpa(*, recipe: str | Recipe = "auto", backend: str = "auto", fallback: bool = False) -> Iterator[SdpaCalls]:
    """Within this context `torch.nn.functional.scaled_dot_product_attention` is `sdpa` with these settings.

    It is replaced for the whole process, for callers that look it up in `torch.nn.functional` when they call. Contexts
    may be nested; each restores what it found. Yields a `SdpaCalls`, which counts.
    """
    calls = SdpaCalls()

    def scaled_dot_product_attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        return _attend(
            calls, fallback, recipe, backend, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
        )

    found = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = scaled_dot_product_attention
    try:
        yield calls
    finally:
        F.scaled_dot_product_attention = found


def _attend(
    calls: SdpaCalls | None,
    fallback: bool,
    recipe: str | Recipe,
    backend: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    try:
        out = _serve(recipe, backend, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    except NotImplementedError as reason:
        if not fallback:
            raise
        if calls is not None:
            calls.fell_back[str(reason)] += 1
        return _torch_sdpa(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if calls is not None:
        calls.served += 1
    return out


def _serve(
    recipe: str | Recipe,
    backend: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    named = (("query", query), ("key", key), ("value", value))
    for name, tensor in named:
        check_dense(name, tensor)
    check_mask_or_causal(attn_mask, is_causal)
    check_type("enable_gqa", enable_gqa, bool)
    for name, tensor in named:
        if tensor.dim() < 2:
            raise ValueError(f"{name} must have at least 2 dimensions, got shape {tuple(tensor.shape)}")
    _, resolved = choose(query.device.type, recipe, backend, query.device.index)
    _check_served(query, key, value, dropout_p, resolved)

    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    rank = max(query.dim(), key.dim(), value.dim())
    batch_shape = _broadcast("query, key and value must have batch dimensions", *(t.shape[:-3] for _, t in named))
    query, key, value = (
        t if t.stride(-1) == 1 else t.contiguous() for t in _broadcast_heads(query, key, value, batch_shape, enable_gqa)
    )
    if attn_mask is not None and attn_mask.dim() > 3:
        lead = _broadcast("attn_mask must have batch dimensions", attn_mask.shape[:-3], batch_shape)
        attn_mask = _to_4d(attn_mask, lead, attn_mask.shape[-3])

    window_size = (-1, -1)
    if is_causal:
        key, value, is_causal, window_size = top_left_causal(query, key, value, seq_dim=2)
    layout = "bhsd"
    if 0 < query.stride(1) < query.stride(2):  # the heads of a token lie side by side, and so will those of the result
        layout = "bshd"
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
    out = attention(
        query,
        key,
        value,
        attn_mask=attn_mask,
        is_causal=is_causal,
        scale=scale,
        layout=layout,
        window_size=window_size,
        recipe=recipe,
        backend=backend,
    )
    if layout == "bshd":
        out = out.transpose(1, 2)
    return out.reshape((*batch_shape, *out.shape[1:])[-rank:]) if rank != 4 else out


def _check_served(query: Tensor, key: Tensor, value: Tensor, dropout_p: float, recipe: str) -> None:
    """Everything else that PyTorch takes and `attention` does not is found there."""
    check_dropout(dropout_p)
    if query.dtype == key.dtype == value.dtype == torch.float64:
        raise NotImplementedError(f"dtype float64: only {', '.join(DTYPES.values())} are served")
    if query.shape[-1] == key.shape[-1] and not 1 <= query.shape[-1] <= MAX_HEAD_DIM:
        raise NotImplementedError(f"head_dim {query.shape[-1]}: only 1 to {MAX_HEAD_DIM} is served")
    if not is_differentiable(recipe) and torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value)):
        raise NotImplementedError(
            f"recipe {recipe} has no backward pass and an input requires a gradient: call under "
            'torch.no_grad(), or take recipe="sagebwd" with backend="reference"'
        )


def _broadcast(what: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    if all(shape == shapes[0] for shape in shapes):
        return tuple(shapes[0])
    try:
        return tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        raise ValueError(f"{what} that broadcast, got {', '.join(str(tuple(shape)) for shape in shapes)}") from None


def _broadcast_heads(
    query: Tensor, key: Tensor, value: Tensor, batch_shape: tuple[int, ...], enable_gqa: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """To (batch, heads, seqlen, head_dim), where key and value may keep fewer heads than query."""
    heads = [t.shape[-3] if t.dim() > 2 else 1 for t in (query, key, value)]
    heads_q, heads_k, heads_v = heads
    if enable_gqa and heads_k != heads_v:
        raise NotImplementedError(f"{heads_k} heads of key and {heads_v} of value: only equal numbers are served")
    if not enable_gqa:
        (heads_q,) = _broadcast(
            "query, key and value must have numbers of heads, without enable_gqa,", *((n,) for n in heads)
        )
        if max(heads_k, heads_v) > 1:
            heads_k = heads_v = heads_q
    return _to_4d(query, batch_shape, heads_q), _to_4d(key, batch_shape, heads_k), _to_4d(value, batch_shape, heads_v)


def _to_4d(t: Tensor, batch_shape: tuple[int, ...], heads: int) -> Tensor:
    """With batch dimensions joined, a view where strides allow one."""
    shape = (*batch_shape, heads, *t.shape[-2:])
    if t.shape != shape:
        t = t.expand(shape)
    if len(shape) != 4:
        t = t.reshape((math.prod(batch_shape), *shape[-3:]))
    return t
