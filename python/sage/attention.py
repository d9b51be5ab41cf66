"""Quantized attention on PyTorch tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from . import ops
from ._checks import LAYOUTS, check_attention, check_dense, check_type, check_window_type
from ._select import choose
from .policy import MixedRecipe
from .recipe import Recipe


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    layout: str = "bhsd",
    window_size: tuple[int, int] = (-1, -1),
    seqused_k: Tensor | None = None,
    recipe: str | Recipe | MixedRecipe = "auto",
    backend: str = "auto",
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale * q k^T + attn_mask) v, with both matmuls in the low precision that `recipe` names.

    The methods are SageAttention (arXiv 2410.02367, section 4), SageAttention2 (2411.10958, section 3),
    SageAttention2++ (2505.21136, section 3), SageAttention3 and SageBwd (2505.11594, sections 3 and 4); `sage.Recipe`
    says what each of them does.

    Args:
        q: (batch, num_heads_q, seqlen_q, head_dim), float32 (not on CUDA), float16 or bfloat16; head_dim within
            [1, 256]. Any strides with a contiguous head_dim are read in place, here and in k and v.
        k, v: (batch, num_heads_kv, seqlen_k, head_dim), dtype and device of q; num_heads_kv divides num_heads_q.
        attn_mask: 2 to 4 dimensions that broadcast to (batch, num_heads_q, seqlen_q, seqlen_k). bool: True where a
            key is seen. float32, float16 or bfloat16: added to the scores; -inf hides a key, a finite value never does.
        is_causal: query i sees keys j <= i + seqlen_k - seqlen_q, so that the last query sees the last key, where
            seqlen_k is `seqused_k` of the sequence if that is given. Applies together with the other rules.
        scale: finite factor of the scores; head_dim ** -0.5 if None.
        layout: "bhsd", or "bshd" for q (batch, seqlen_q, num_heads_q, head_dim), k, v and out likewise.
        window_size: (left, right). Query i sees key i + seqlen_k - seqlen_q, so many keys before it and so many after
            it; -1 leaves a side open.
        seqused_k: int32 (batch,), each within [0, seqlen_k]: only that many keys exist. Values are checked on the CPU.
        recipe: "auto", the name of a preset, which fields may follow ("sage2(smooth_v=True)"), or a `sage.Recipe`.
            To the CPU kernels a preset's name means its twin "<name>@cpu" where there is one. What
            `sage.MixedRecipe.at` returns can compute some tiles of queries by another recipe. Each run of tiles is a
            call of its own, which leaves out the keys behind the last one that any of its queries may see by is_causal
            or window_size: also of K's mean and V's scales.
        backend: "auto", "cpu", "cuda" or "reference", the recipe in plain PyTorch on any device. "emulator", in builds
            that have it, runs the CUDA kernels on CPU tensors: for tests.
        return_lse: also return the logarithm of the softmax's denominator. With pv "fp8_e4m3" and float32 accumulators
            (sage2, sage2_int4, sage3_fp8) it is that of P rounded to FP8, by which it is .0014 off (root mean square)
            for 1024 keys of N(0, 1), and up to .02 where few keys have weight (.06 for sage3_fp8). With pv "nvfp4"
            (sage3) it is that of P rounded to NVFP4, .017 too small on average for such keys, and between .115 too
            small and .032 too large for one key.

    Returns:
        out, with the dtype, shape and layout of q and contiguous; with `return_lse`, (out, lse), where lse is float32
        (batch, num_heads_q, seqlen_q) in natural-log units, whatever the layout. A query that sees no key has out = 0
        and lse = -inf. Non-finite values of q stay in the rows that share their scale (on CPUs their own), of v in
        their channel, of k in their head.
        Only `recipe="sagebwd"` can be differentiated, with respect to q, k and v and through out alone.

    Raises:
        TypeError: an argument has the wrong Python type.
        ValueError: a shape, dtype, device, stride, name or number is not allowed; the message names it.
        NotImplementedError: the request is valid, and no kernel serves it; the message says why.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_dense(name, tensor)
    check_type("attn_mask", attn_mask, Tensor, type(None))
    check_type("layout", layout, str)
    _check_rules(is_causal, scale, window_size, seqused_k, return_lse)
    if isinstance(recipe, MixedRecipe):
        return _mixed(
            q,
            k,
            v,
            attn_mask=attn_mask,
            is_causal=is_causal,
            scale=scale,
            layout=layout,
            window_size=window_size,
            seqused_k=seqused_k,
            recipe=recipe,
            backend=backend,
            return_lse=return_lse,
        )
    backend, recipe = choose(q.device.type, recipe, backend, q.device.index)
    out, lse = ops.attention(
        q,
        k,
        v,
        attn_mask,
        seqused_k,
        is_causal,
        scale,
        window_size[0],
        window_size[1],
        layout,
        recipe,
        backend,
        return_lse or _needs_gradient(q, k, v),
    )
    return (out, lse) if return_lse else out


def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    seqused_k: Tensor | None = None,
    recipe: str | Recipe | MixedRecipe = "auto",
    backend: str = "auto",
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`attention` on sequences of different lengths, packed one after the other without padding.

    Sequence b is q[cu_seqlens_q[b] : cu_seqlens_q[b + 1]], and k and v likewise by cu_seqlens_k. Everything else is as
    in `attention`, per sequence; so are the means and scales of the recipe.

    Args:
        q: (total_q, num_heads_q, head_dim).
        k, v: (total_k, num_heads_kv, head_dim).
        cu_seqlens_q, cu_seqlens_k: int32 (batch + 1,) on the device of q, ascending from 0 to total_q and total_k.
            Values are checked on the CPU.
        max_seqlen_q, max_seqlen_k: at least the longest sequence.
        seqused_k: int32 (batch,), each within [0, the sequence's length]: only that many of its keys exist.
        is_causal, scale, window_size, recipe, backend, return_lse: as in `attention`, with the sequence's lengths. No
            recipe with tiles of another one.

    Returns:
        out, with the dtype and shape of q and contiguous; with `return_lse`, (out, lse), where lse is float32
        (num_heads_q, total_q).

    Raises:
        As `attention`.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_dense(name, tensor)
    check_type("cu_seqlens_q", cu_seqlens_q, Tensor)
    check_type("cu_seqlens_k", cu_seqlens_k, Tensor)
    check_type("max_seqlen_q", max_seqlen_q, int)
    check_type("max_seqlen_k", max_seqlen_k, int)
    _check_rules(is_causal, scale, window_size, seqused_k, return_lse)
    if isinstance(recipe, MixedRecipe):
        _check_layers_are_settled(recipe)
        if recipe.fine_tiles:
            raise NotImplementedError(
                f"recipe with fine_tiles {recipe.fine_tiles}: packed sequences have tiles of their own, and a run of "
                "tiles of each is no packed tensor; attention on each sequence serves it"
            )
        recipe = recipe.base
    backend, recipe = choose(q.device.type, recipe, backend, q.device.index)
    out, lse = ops.attention_varlen(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        seqused_k,
        max_seqlen_q,
        max_seqlen_k,
        is_causal,
        scale,
        window_size[0],
        window_size[1],
        recipe,
        backend,
        return_lse or _needs_gradient(q, k, v),
    )
    return (out, lse) if return_lse else out


def _mixed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    attn_mask: Tensor | None,
    is_causal: bool,
    layout: str,
    window_size: tuple[int, int],
    seqused_k: Tensor | None,
    recipe: MixedRecipe,
    return_lse: bool,
    scale: float | None,
    backend: str,
) -> Tensor | tuple[Tensor, Tensor]:
    """`attention` for each run of tiles of one recipe.

    Query i of seqlen_q sees keys up to i + seqlen_k - seqlen_q + right. With the rows [begin, end) alone the last key
    would be aligned with row end - 1. So keys behind those that it sees are cut off, and if there are fewer than rows
    behind it, because it sees keys to the right of it, the window moves by the rest.
    """
    _check_layers_are_settled(recipe)
    shape = check_attention(q, k, v, attn_mask, seqused_k, scale=scale, window=window_size, layout=layout)
    seq = LAYOUTS[layout][2]
    left, right = window_size
    left = min(left, shape.seqlen_k)  # more is the same, and could overflow below
    results = []
    # The last run first: its keys are all there are, so that what it says of seqused_k has the caller's numbers.
    for begin, end, of_run in reversed(tuple(recipe.runs(shape.seqlen_q))):
        behind = shape.seqlen_q - end
        to_the_right = 0 if is_causal else right
        unseen = max(0, behind - to_the_right) if to_the_right >= 0 else 0
        moved = behind - unseen
        keys = max(0, shape.seqlen_k - unseen)
        result = attention(
            q.narrow(seq, begin, end - begin),
            k.narrow(seq, 0, keys),
            v.narrow(seq, 0, keys),
            attn_mask=None if attn_mask is None else _rows_and_keys(attn_mask, begin, end, keys),
            is_causal=is_causal,
            scale=scale,
            layout=layout,
            window_size=(left + moved if left >= 0 else -1, right - moved if right >= 0 else -1),
            seqused_k=seqused_k if seqused_k is None or unseen == 0 else (seqused_k - unseen).clamp(min=0),
            recipe=of_run,
            backend=backend,
            return_lse=return_lse,
        )
        results.append(result)
    results.reverse()
    if len(results) == 1:
        return results[0]
    if not return_lse:
        return torch.cat(results, seq)
    outs, lses = zip(*results)
    return torch.cat(outs, seq), torch.cat(lses, 2)


def _rows_and_keys(attn_mask: Tensor, begin: int, end: int, keys: int) -> Tensor:
    """Of a mask whose dimensions may be 1, which then stand for all rows or keys."""
    if attn_mask.shape[-2] != 1:
        attn_mask = attn_mask[..., begin:end, :]
    return attn_mask[..., :keys] if attn_mask.shape[-1] != 1 else attn_mask


def _check_layers_are_settled(recipe: MixedRecipe) -> None:
    if recipe.fine_layers:
        raise ValueError(
            f"recipe must be what MixedRecipe.at(layer) returns, got one with fine_layers {recipe.fine_layers}"
        )


def _check_rules(
    is_causal: bool, scale: float | None, window_size: tuple[int, int], seqused_k: Tensor | None, return_lse: bool
) -> None:
    check_type("is_causal", is_causal, bool)
    check_type("scale", scale, float, int, type(None))
    check_window_type(window_size)
    check_type("seqused_k", seqused_k, Tensor, type(None))
    check_type("return_lse", return_lse, bool)


def _needs_gradient(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Then the operator must return the LSE, which the backward pass reads."""
    return torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
