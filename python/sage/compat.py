"""The names of the SageAttention package, for programs that were written for it.

    from sage.compat import sageattn

or, for a program whose imports are to stay, before it runs:

    import sys, sage.compat
    sys.modules["sageattention"] = sys.modules["sageattn3"] = sage.compat  # then `from sageattention import sageattn`

The parameters are those of SageAttention 2.2.0, in their order and with their defaults. In place of its `**kwargs`,
which took any keyword and dropped it, stand the keywords that programs pass; others raise TypeError. Each function
means one `sage.Recipe` and runs that or raises:

| function                          | recipe                                                                       |
|-----------------------------------|------------------------------------------------------------------------------|
| sageattn, sageattn_varlen         | "auto", as in `sage.attention`                                               |
| sageattn_qk_int8_pv_fp16_cuda     | sage1 with pv_accum=pv_accum_dtype                                           |
| sageattn_qk_int8_pv_fp16_triton   | sage1 with qk_granularity=block, pv_accum=fp16+fp32                          |
| sageattn_qk_int8_pv_fp8_cuda      | by pv_accum_dtype: "fp32+fp16" sage2pp; "fp32+fp32" and "fp32" sage2, which  |
|                                   | accumulates 32 steps in place between additions in float32                   |
| sageattn_qk_int8_pv_fp8_cuda_sm90 | sage2                                                                        |
| sageattn3_blackwell               | sage3                                                                        |

A suffix ("_cuda", "_triton", "_sm90", "_blackwell") says which kernel it was there. Here any device runs any recipe
that it has a kernel for and raises NotImplementedError for the others. So do CPUs for every name but the first two:
the CPU kernels have recipes of their own.

What the arguments do, wherever they occur:

| argument             | effect                                                                                    |
|----------------------|-------------------------------------------------------------------------------------------|
| q, k, v              | as in `sage.attention`: dtypes, strides, any head_dim up to 256, fewer heads in k and v   |
| tensor_layout        | "HND": (batch, heads, seqlen, head_dim), "NHD": (batch, seqlen, heads, head_dim)          |
| is_causal            | query i sees keys j <= i whatever the lengths (top left aligned); not with attn_mask      |
| attn_mask            | bool (True: seen) or floating (added, natural-log units), as in `sage.attention`          |
| sm_scale, scale      | factor of the scores, head_dim ** -0.5 if None; only one of the two may be given          |
| smooth_k, smooth_v   | the recipe's fields: subtract the mean of K, of V; where no kernel does that, it raises   |
| qk_quant_gran        | the recipe's qk_granularity: "per_thread" or "per_warp"                                   |
| pv_accum_dtype       | see above; in sageattn_qk_int8_pv_fp8_cuda_sm90 "fp32" raises                             |
| return_lse           | return (out, lse): lse is float32 (batch, heads, seqlen_q), natural logarithm, as in      |
|                      | `sage.attention`: with sage2 that of the rounded P                                        |
| per_block_mean       | False raises: sage3 subtracts the mean of each block of queries, no recipe that of all    |
| dropout_p            | anything but 0 raises                                                                     |
| enable_gqa           | none: k and v may have fewer heads anyway                                                 |
| quantization_backend | none: "triton" and "cuda" quantize alike                                                  |
| cu_seqlens_q, _k     | as in `sage.attention_varlen`, and so are max_seqlen_q, max_seqlen_k                      |

out is contiguous, with the dtype, shape and layout of q, and 0 in rows that see no key. Inputs are never written.
Errors are those of `sage.attention`: TypeError, ValueError and NotImplementedError.

`F.scaled_dot_product_attention = sageattn` serves calls with 4-D q, k, v by position and the rest by keyword;
`sage.patch_sdpa` serves all. Programs that look for an installed distribution "sageattention" (diffusers) do not find
one, nor are there submodules (sageattention.core).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection

from torch import Tensor

from ._checks import check_type
from ._drop_in import check_dropout, check_mask_or_causal, top_left_causal
from ._select import choose
from .attention import attention, attention_varlen
from .recipe import PRESETS, Recipe

__version__ = "2.2.0"  # the SageAttention whose signatures these are

__all__ = [
    "sageattn",
    "sageattn3_blackwell",
    "sageattn_qk_int8_pv_fp8_cuda",
    "sageattn_qk_int8_pv_fp8_cuda_sm90",
    "sageattn_qk_int8_pv_fp16_cuda",
    "sageattn_qk_int8_pv_fp16_triton",
    "sageattn_varlen",
]

_Recipes = dict[tuple[str, str, bool, bool], Recipe]

_LAYOUTS = {"HND": ("bhsd", 2), "NHD": ("bshd", 1)}  # the layout's name here, and where the sequence stands
_GRANULARITIES = {"per_thread": "thread", "per_warp": "warp"}


def _variants(by_accumulator: dict[str, Recipe]) -> _Recipes:
    """The recipe that (pv_accum_dtype, qk_quant_gran, smooth_k, smooth_v) mean, from what the first of them does.

    Objects, because to the CPU kernels the name of a preset would mean its twin, and made beforehand, because
    torch.compile takes them as constants only if the module holds them.
    """
    return {
        (accumulator, granularity, smooth_k, smooth_v): recipe.replace(
            qk_granularity=_GRANULARITIES[granularity], smooth_k=smooth_k, smooth_v=smooth_v
        )
        for accumulator, recipe in by_accumulator.items()
        for granularity, smooth_k, smooth_v in itertools.product(_GRANULARITIES, (True, False), (True, False))
    }


_SAGE1, _SAGE2, _SAGE2PP, _SAGE3 = (PRESETS[name] for name in ("sage1", "sage2", "sage2pp", "sage3"))
_FP16 = _variants({accumulator: _SAGE1.replace(pv_accum=accumulator) for accumulator in ("fp32", "fp16", "fp16+fp32")})
_FP8 = _variants({"fp32": _SAGE2, "fp32+fp32": _SAGE2, "fp32+fp16": _SAGE2PP})
_TRITON = {
    smooth_k: _SAGE1.replace(qk_granularity="block", pv_accum="fp16+fp32", smooth_k=smooth_k)
    for smooth_k in (True, False)
}


def sageattn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensor_layout: str = "HND",
    is_causal: bool = False,
    sm_scale: float | None = None,
    return_lse: bool = False,
    *,
    attn_mask: Tensor | None = None,
    smooth_k: bool = True,
    dropout_p: float = 0.0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Quantized attention with the recipe that suits the device (SageAttention, arXiv 2410.02367, section 4)."""
    check_dropout(dropout_p)
    check_type("scale", scale, float, int, type(None))
    check_type("enable_gqa", enable_gqa, bool)
    if scale is not None:
        if sm_scale is not None:
            raise ValueError(f"scale and sm_scale are one factor: at most one may be given, got {scale} and {sm_scale}")
        sm_scale = scale
    check_type("q", q, Tensor)
    recipe = _auto(q.device.type, q.device.index, smooth_k)
    return _attend(recipe, q, k, v, tensor_layout, is_causal, sm_scale, return_lse, attn_mask)


def sageattn_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    is_causal: bool = False,
    sm_scale: float | None = None,
    smooth_k: bool = True,
) -> Tensor:
    """`sageattn` on packed sequences: q (total_q, heads, head_dim), k and v (total_k, heads, head_dim).

    With is_causal, no sequence may have more queries than keys (NotImplementedError). Unless cu_seqlens_q and
    cu_seqlens_k are one object, which rules it out, their values are read for that, on CUDA with a synchronisation.
    """
    check_type("q", q, Tensor)
    check_type("is_causal", is_causal, bool)
    check_type("sm_scale", sm_scale, float, int, type(None))
    recipe = _auto(q.device.type, q.device.index, smooth_k)
    seqused_k = _keys_from_top_left(cu_seqlens_q, cu_seqlens_k) if is_causal else None
    return attention_varlen(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        is_causal=is_causal,
        scale=sm_scale,
        seqused_k=seqused_k,
        recipe=recipe,
    )


def sageattn_qk_int8_pv_fp16_cuda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensor_layout: str = "HND",
    is_causal: bool = False,
    qk_quant_gran: str = "per_thread",
    sm_scale: float | None = None,
    pv_accum_dtype: str = "fp32",
    smooth_k: bool = True,
    smooth_v: bool = False,
    return_lse: bool = False,
    *,
    attn_mask: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """INT8 Q K^T and 16-bit P V (SageAttention, arXiv 2410.02367, section 4)."""
    recipe = _recipe(_FP16, pv_accum_dtype, qk_quant_gran, smooth_k, smooth_v)
    return _attend(recipe, q, k, v, tensor_layout, is_causal, sm_scale, return_lse, attn_mask)


def sageattn_qk_int8_pv_fp16_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensor_layout: str = "HND",
    quantization_backend: str = "triton",
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
    sm_scale: float | None = None,
    smooth_k: bool = True,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """INT8 Q K^T with one scale per block and 16-bit P V (SageAttention, arXiv 2410.02367, section 4)."""
    _check_name("quantization_backend", quantization_backend, ("triton", "cuda"))
    check_type("smooth_k", smooth_k, bool)
    return _attend(_TRITON[smooth_k], q, k, v, tensor_layout, is_causal, sm_scale, return_lse, attn_mask)


def sageattn_qk_int8_pv_fp8_cuda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensor_layout: str = "HND",
    is_causal: bool = False,
    qk_quant_gran: str = "per_thread",
    sm_scale: float | None = None,
    pv_accum_dtype: str = "fp32+fp16",
    smooth_k: bool = True,
    smooth_v: bool = False,
    return_lse: bool = False,
    *,
    attn_mask: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """INT8 Q K^T and FP8 P V (SageAttention2, arXiv 2411.10958, section 3; SageAttention2++, 2505.21136, section 3)."""
    recipe = _recipe(_FP8, pv_accum_dtype, qk_quant_gran, smooth_k, smooth_v)
    return _attend(recipe, q, k, v, tensor_layout, is_causal, sm_scale, return_lse, attn_mask)


def sageattn_qk_int8_pv_fp8_cuda_sm90(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensor_layout: str = "HND",
    is_causal: bool = False,
    qk_quant_gran: str = "per_thread",
    sm_scale: float | None = None,
    pv_accum_dtype: str = "fp32+fp32",
    smooth_k: bool = True,
    return_lse: bool = False,
    *,
    attn_mask: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """INT8 Q K^T and FP8 P V with two-level accumulation (SageAttention2, arXiv 2411.10958, section 3)."""
    _check_name("pv_accum_dtype", pv_accum_dtype, ("fp32+fp32", "fp32"))
    if pv_accum_dtype == "fp32":
        raise NotImplementedError(
            "pv_accum_dtype must be 'fp32+fp32' in sageattn_qk_int8_pv_fp8_cuda_sm90, got 'fp32', which "
            "sageattn_qk_int8_pv_fp8_cuda has"
        )
    recipe = _recipe(_FP8, pv_accum_dtype, qk_quant_gran, smooth_k, False)
    return _attend(recipe, q, k, v, tensor_layout, is_causal, sm_scale, return_lse, attn_mask)


def sageattn3_blackwell(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    per_block_mean: bool = True,
) -> Tensor:
    """NVFP4 attention (SageAttention3, arXiv 2505.11594, section 3) on (batch, heads, seqlen, head_dim)."""
    check_type("per_block_mean", per_block_mean, bool)
    if not per_block_mean:
        raise NotImplementedError(
            "per_block_mean False: recipe sage3 subtracts from Q the mean of each block of queries (smooth_q), "
            "none the mean of all queries"
        )
    return _attend(_SAGE3, q, k, v, "HND", is_causal, None, False, attn_mask)


def _attend(
    recipe: str | Recipe,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensor_layout: str,
    is_causal: bool,
    sm_scale: float | None,
    return_lse: bool,
    attn_mask: Tensor | None,
) -> Tensor | tuple[Tensor, Tensor]:
    _check_name("tensor_layout", tensor_layout, _LAYOUTS)
    layout, seq_dim = _LAYOUTS[tensor_layout]
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_type(name, tensor, Tensor)
    check_type("sm_scale", sm_scale, float, int, type(None))
    check_mask_or_causal(attn_mask, is_causal)
    window_size = (-1, -1)
    if is_causal and q.dim() == k.dim() == v.dim() == 4:
        k, v, is_causal, window_size = top_left_causal(q, k, v, seq_dim)
    return attention(
        q,
        k,
        v,
        attn_mask=attn_mask,
        is_causal=is_causal,
        scale=sm_scale,
        layout=layout,
        window_size=window_size,
        recipe=recipe,
        return_lse=return_lse,
    )


def _keys_from_top_left(cu_seqlens_q: Tensor, cu_seqlens_k: Tensor) -> Tensor | None:
    """How many keys of each sequence exist, so that a mask aligned to the bottom right starts at the top left.

    Wrong shapes and devices pass through: `attention_varlen` says what is wrong with them.
    """
    check_type("cu_seqlens_q", cu_seqlens_q, Tensor)
    check_type("cu_seqlens_k", cu_seqlens_k, Tensor)
    if cu_seqlens_q is cu_seqlens_k:
        return None
    if cu_seqlens_q.dim() != 1 or (cu_seqlens_q.shape, cu_seqlens_q.device) != (
        cu_seqlens_k.shape,
        cu_seqlens_k.device,
    ):
        return None
    lengths_q, lengths_k = cu_seqlens_q.diff(), cu_seqlens_k.diff()
    if (lengths_q > lengths_k).any():
        raise NotImplementedError(
            "is_causal True: the mask starts at the top left, and no kernel serves that for packed sequences of which "
            f"one has more queries than keys, got lengths {lengths_q.tolist()} and {lengths_k.tolist()}"
        )
    return lengths_q


def _auto(device_type: str, device_index: int | None, smooth_k: bool) -> str:
    """What "auto" means for tensors on this device, with or without the smoothing of K."""
    check_type("smooth_k", smooth_k, bool)
    return "auto" if smooth_k else _without_smoothing(choose(device_type, "auto", "auto", device_index)[1])


_auto._dynamo_marked_constant = True  # as `choose`: torch.compile does not trace it


@functools.lru_cache(maxsize=16)
def _without_smoothing(recipe: str) -> str:
    return str(Recipe.parse(recipe).replace(smooth_k=False))


def _recipe(recipes: _Recipes, pv_accum_dtype: str, qk_quant_gran: str, smooth_k: bool, smooth_v: bool) -> Recipe:
    _check_name("pv_accum_dtype", pv_accum_dtype, dict.fromkeys(key[0] for key in recipes))
    _check_name("qk_quant_gran", qk_quant_gran, _GRANULARITIES)
    check_type("smooth_k", smooth_k, bool)
    check_type("smooth_v", smooth_v, bool)
    return recipes[pv_accum_dtype, qk_quant_gran, smooth_k, smooth_v]


def _check_name(name: str, value: str, allowed: Collection[str]) -> None:
    check_type(name, value, str)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
