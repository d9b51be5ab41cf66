"""The operators `sage::attention` and `sage::attention_varlen`: checks, outputs, dispatch to a backend, derivatives.

`backend` and `recipe` are what `_select.choose` returned. Outputs are allocated here and inputs are never written.
The schemas below give the types of every function that is registered for them. `torch.library.Library` is used directly
because a call through it costs a fraction of one through `torch.library.custom_op`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ._checks import (
    DTYPES,
    LAYOUTS,
    MASK_DTYPES,
    Shape,
    check_attention,
    check_cu_seqlens_values,
    check_seqused_values,
    check_varlen,
)
from ._select import cpu_isa, emulated, extension, is_differentiable
from .recipe import Recipe

_RULES = "bool is_causal, float? scale, SymInt window_left, SymInt window_right"
_FIXED = f"Tensor? attn_mask, Tensor? seqused_k, {_RULES}, str layout, str recipe"
_PACKED = (
    "Tensor cu_seqlens_q, Tensor cu_seqlens_k, Tensor? seqused_k, SymInt max_seqlen_q, SymInt max_seqlen_k, "
    f"{_RULES}, str recipe"
)
_FORWARD = "Tensor q, Tensor k, Tensor v, {}, str backend, bool return_lse) -> (Tensor out, Tensor lse)"
_BACKWARD = (
    "Tensor dout, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, {}) -> (Tensor dq, Tensor dk, Tensor dv)"
)

_lib = torch.library.Library("sage", "DEF")
_lib.define("attention(" + _FORWARD.format(_FIXED))
_lib.define("attention_varlen(" + _FORWARD.format(_PACKED))
_lib.define("attention_backward(" + _BACKWARD.format(_FIXED))
_lib.define("attention_varlen_backward(" + _BACKWARD.format(_PACKED))


def _attention(
    q, k, v, attn_mask, seqused_k, is_causal, scale, window_left, window_right, layout, recipe, backend, return_lse
):
    window = (window_left, window_right)
    shape = check_attention(q, k, v, attn_mask, seqused_k, scale=scale, window=window, layout=layout)
    if seqused_k is not None and (seqused_k.device.type == "cpu" or backend == "reference"):
        check_seqused_values(seqused_k, [shape.seqlen_k] * shape.batch)
    scale = _scale(q, scale)
    if backend == "reference":
        from .reference import forward

        out, lse = forward(
            *(_bhsd(t, layout) for t in (q, k, v)),
            Recipe.parse(recipe),
            scale=scale,
            causal=is_causal,
            window=window,
            attn_mask=attn_mask,
            seqused_k=seqused_k,
        )
        return _bhsd(out, layout).contiguous(), lse if return_lse else _no_lse(q)
    out, lse = _outputs(q, (shape.batch, shape.num_heads_q, shape.seqlen_q), return_lse)
    mask = None
    if attn_mask is not None:
        full = attn_mask.expand(shape.batch, shape.num_heads_q, shape.seqlen_q, shape.seqlen_k)
        mask = (full.data_ptr(), MASK_DTYPES[full.dtype], *full.stride())
    dims = LAYOUTS[layout]
    _run(
        _plan_for(backend, q, v, recipe, shape, None, is_causal, window),
        q,
        q=_view(q, *dims),
        k=_view(k, *dims),
        v=_view(v, *dims),
        out=_view(out, *dims),
        lse=lse.data_ptr(),
        softmax_scale=scale,
        mask=mask,
        seqused_k=_pointer(seqused_k),
    )
    return out, lse


def _attention_fake(
    q, k, v, attn_mask, seqused_k, is_causal, scale, window_left, window_right, layout, recipe, backend, return_lse
):
    shape = check_attention(
        q, k, v, attn_mask, seqused_k, scale=scale, window=(window_left, window_right), layout=layout
    )
    return _outputs(q, (shape.batch, shape.num_heads_q, shape.seqlen_q), return_lse)


def _attention_backward(
    dout, out, lse, q, k, v, attn_mask, seqused_k, is_causal, scale, window_left, window_right, layout, recipe
):
    _check_differentiable(recipe, q, lse)
    from .reference import backward

    grads = backward(
        *(_bhsd(t, layout) for t in (dout, q, k, v, out)),
        lse,
        Recipe.parse(recipe),
        scale=_scale(q, scale),
        causal=is_causal,
        window=(window_left, window_right),
        attn_mask=attn_mask,
        seqused_k=seqused_k,
    )
    return tuple(_bhsd(grad, layout).contiguous() for grad in grads)


def _attention_varlen(
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
    window_left,
    window_right,
    recipe,
    backend,
    return_lse,
):
    window = (window_left, window_right)
    shape = check_varlen(
        q, k, v, cu_seqlens_q, cu_seqlens_k, seqused_k, max_seqlen_q, max_seqlen_k, scale=scale, window=window
    )
    if q.device.type == "cpu" or backend == "reference":
        check_cu_seqlens_values("q", cu_seqlens_q, q.shape[0], max_seqlen_q)
        lengths = check_cu_seqlens_values("k", cu_seqlens_k, k.shape[0], max_seqlen_k)
        if seqused_k is not None:
            check_seqused_values(seqused_k, lengths)
    scale = _scale(q, scale)
    out, lse = _outputs(q, (shape.num_heads_q, q.shape[0]), return_lse)
    if backend == "reference":
        from .reference import forward

        for of_q, of_k, used in _sequences(cu_seqlens_q, cu_seqlens_k, seqused_k):
            out_i, lse_i = forward(
                _unpack(q, of_q),
                _unpack(k, of_k),
                _unpack(v, of_k),
                Recipe.parse(recipe),
                scale=scale,
                causal=is_causal,
                window=window,
                seqused_k=used,
            )
            _unpack(out, of_q).copy_(out_i)
            if return_lse:
                lse[:, of_q] = lse_i[0]
        return out, lse
    totals = q.shape[0], k.shape[0]
    _run(
        _plan_for(backend, q, v, recipe, shape, totals, is_causal, window),
        q,
        q=_packed_view(q),
        k=_packed_view(k),
        v=_packed_view(v),
        out=_packed_view(out),
        lse=lse.data_ptr(),
        softmax_scale=scale,
        cu_seqlens_q=_pointer(cu_seqlens_q),
        cu_seqlens_k=_pointer(cu_seqlens_k),
        seqused_k=_pointer(seqused_k),
    )
    return out, lse


def _attention_varlen_fake(
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
    window_left,
    window_right,
    recipe,
    backend,
    return_lse,
):
    shape = check_varlen(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        seqused_k,
        max_seqlen_q,
        max_seqlen_k,
        scale=scale,
        window=(window_left, window_right),
    )
    return _outputs(q, (shape.num_heads_q, q.shape[0]), return_lse)


def _attention_varlen_backward(
    dout,
    out,
    lse,
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
    window_left,
    window_right,
    recipe,
):
    _check_differentiable(recipe, q, lse)
    from .reference import backward

    packed_grads = tuple(t.new_empty(t.shape) for t in (q, k, v))
    for of_q, of_k, used in _sequences(cu_seqlens_q, cu_seqlens_k, seqused_k):
        grads = backward(
            _unpack(dout, of_q),
            _unpack(q, of_q),
            _unpack(k, of_k),
            _unpack(v, of_k),
            _unpack(out, of_q),
            lse[None, :, of_q],
            Recipe.parse(recipe),
            scale=_scale(q, scale),
            causal=is_causal,
            window=(window_left, window_right),
            attn_mask=None,
            seqused_k=used,
        )
        for packed, rows, grad in zip(packed_grads, (of_q, of_k, of_k), grads):
            _unpack(packed, rows).copy_(grad)
    return packed_grads


def _backward_fake(dout, out, lse, q, k, v, *settings):
    return tuple(t.new_empty(t.shape) for t in (q, k, v))


def _plan_for(
    backend: str,
    q: Tensor,
    v: Tensor,
    recipe: str,
    shape: Shape,
    totals: tuple[int, int] | None,
    causal: bool,
    window: tuple[int, int],
) -> Any:
    """`totals` of q and k where sequences are packed."""
    problem = q.dtype, recipe, shape, totals, causal, window
    if backend == "cpu":
        return _plan(backend, 0, torch.get_num_threads(), cpu_isa(), True, *problem)
    return _plan(backend, q.device.index or 0, 1, emulated() if backend == "emulator" else "", _is_aligned(v), *problem)


@functools.lru_cache(maxsize=1024)
def _plan(
    backend: str,
    device_index: int,
    num_threads: int,
    architecture: str,
    v_aligned: bool,
    dtype: torch.dtype,
    recipe: str,
    shape: Shape,
    totals: tuple[int, int] | None,
    causal: bool,
    window: tuple[int, int],
) -> Any:
    """An `AttnPlan` of the backend's extension module. `architecture`: what the environment says for this backend."""
    total_q, total_k = totals or (0, 0)
    try:
        return extension(backend).AttnPlan(
            device="cpu" if backend == "cpu" else "cuda",
            device_index=device_index,
            dtype=DTYPES[dtype],
            recipe=Recipe.parse(recipe),
            **shape._asdict(),
            varlen=totals is not None,
            total_q=total_q,
            total_k=total_k,
            causal=causal,
            window_left=window[0],
            window_right=window[1],
            v_aligned=v_aligned,
            num_threads=num_threads,
            cpu_isa=architecture if backend == "cpu" else "auto",
        )
    except NotImplementedError as reason:
        raise NotImplementedError(f'{reason}; backend="reference" runs recipe {recipe} on every device') from None


def _run(plan: Any, on: Tensor, **args: Any) -> None:
    """Runs a plan on the device of a tensor: on CUDA in PyTorch's current stream, whose allocator orders the reuse of
    the workspace after it."""
    workspace = on.new_empty((plan.workspace_bytes,), dtype=torch.uint8)
    if on.is_cuda:
        with torch.cuda.device(on.device):
            stream = torch.cuda.current_stream().cuda_stream
            plan.run(**args, workspace=workspace.data_ptr(), stream=stream)
    else:
        plan.run(**args, workspace=workspace.data_ptr())


def _is_aligned(t: Tensor) -> bool:
    """Whether every row starts at a multiple of 16 bytes."""
    return not any(offset % 16 for offset in (t.data_ptr(), *(n * t.element_size() for n in t.stride()[:-1])))


def _scale(q: Tensor, scale: float | None) -> float:
    return q.shape[-1] ** -0.5 if scale is None else scale


def _outputs(q: Tensor, lse_shape: tuple[int, ...], return_lse: bool) -> tuple[Tensor, Tensor]:
    """Contiguous in the caller's layout."""
    return q.new_empty(q.shape), q.new_empty(lse_shape, dtype=torch.float32) if return_lse else _no_lse(q)


def _no_lse(q: Tensor) -> Tensor:
    """Stands for an LSE that nobody asked for. Its pointer is null."""
    return q.new_empty((0,), dtype=torch.float32)


def _bhsd(t: Tensor, layout: str) -> Tensor:
    """To (batch, num_heads, seqlen, head_dim), or back: its own inverse."""
    return t.transpose(1, 2) if layout == "bshd" else t


def _unpack(t: Tensor, rows: slice) -> Tensor:
    """One packed sequence as a view (1, num_heads, seqlen, head_dim)."""
    return t[rows].transpose(0, 1)[None]


def _sequences(
    cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, seqused_k: Tensor | None
) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Of each sequence: its rows of q, its rows of k and v, and how many of these exist."""
    of_q, of_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for i in range(len(of_q) - 1):
        used = None if seqused_k is None else seqused_k[i : i + 1]
        yield slice(of_q[i], of_q[i + 1]), slice(of_k[i], of_k[i + 1]), used


def _view(t: Tensor, batch: int, head: int, seq: int) -> tuple[int, int, int, int]:
    stride = t.stride()
    return t.data_ptr(), stride[batch], stride[head], stride[seq]


def _packed_view(t: Tensor) -> tuple[int, int, int, int]:
    return t.data_ptr(), 0, t.stride(1), t.stride(0)


def _pointer(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _check_differentiable(recipe: str, q: Tensor, lse: Tensor) -> None:
    if not is_differentiable(recipe):
        raise NotImplementedError(f'recipe {recipe} has no backward pass; sagebwd has one, with backend="reference"')
    if q.numel() and not lse.numel():
        raise ValueError("return_lse must be True where the output is to be differentiated, got False")


def _save_fixed(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    if ctx.needs_input_grad[3]:
        raise NotImplementedError("attn_mask must not require a gradient, which no recipe computes: detach it")
    _save(ctx, inputs, output, num_tensors=5)


def _save_packed(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _save(ctx, inputs, output, num_tensors=6)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor], *, num_tensors: int) -> None:
    """For any recipe: one without a backward pass says so when that runs, not in a forward pass that may be all."""
    ctx.save_for_backward(*output, *inputs[:num_tensors])
    ctx.settings = inputs[num_tensors:-2]
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, dout: Tensor, _: Tensor | None, *, backward: Any) -> tuple[Tensor | None, ...]:
    grads = backward(dout, *ctx.saved_tensors, *ctx.settings)
    return *grads, *[None] * (len(ctx.needs_input_grad) - len(grads))


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("the backward pass of sagebwd cannot itself be differentiated")


for _name, _forward, _fake, _backward, _setup in (
    ("attention", _attention, _attention_fake, _attention_backward, _save_fixed),
    ("attention_varlen", _attention_varlen, _attention_varlen_fake, _attention_varlen_backward, _save_packed),
):
    _lib.impl(_name, _forward, "CompositeExplicitAutograd")
    _lib.impl(f"{_name}_backward", _backward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"sage::{_name}", _fake, lib=_lib)
    torch.library.register_fake(f"sage::{_name}_backward", _backward_fake, lib=_lib)
    torch.library.register_autograd(f"sage::{_name}_backward", _no_second_derivative, lib=_lib)
    _backward_op = getattr(torch.ops.sage, f"{_name}_backward").default
    torch.library.register_autograd(
        f"sage::{_name}", functools.partial(_differentiate, backward=_backward_op), setup_context=_setup, lib=_lib
    )

attention = torch.ops.sage.attention.default
attention_varlen = torch.ops.sage.attention_varlen.default
