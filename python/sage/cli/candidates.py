"""What a benchmark times on one case: PyTorch's attention and quantized attention, as calls without arguments."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import sage
from sage import _select

from . import machine
from .measure import Case

Qkv = tuple[Tensor, Tensor, Tensor]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

SDPA_BACKENDS = {
    "flash": "FLASH_ATTENTION",
    "cudnn": "CUDNN_ATTENTION",
    "efficient": "EFFICIENT_ATTENTION",
    "math": "MATH",
}
"""PyTorch's own kernels on a GPU, and their names in torch.nn.attention.SDPBackend."""

MAX_MATH_BYTES = 2**34
"""Of all scores in float32, which PyTorch's math kernel holds several times: with more it takes the time of all others
together, and where it just fits it may not a second time."""


@dataclass(frozen=True)
class Candidate:
    """`call` is to be made inside of what `within` makes. `recipe` is None for PyTorch's attention."""

    recipe: str | None
    dtype: str
    kernel: str
    call: Callable[[], Tensor]
    within: Callable[[], AbstractContextManager] = contextlib.nullcontext


def sdpa(case: Case, typed: dict[str, Qkv]) -> dict[str, Candidate]:
    """PyTorch's attention in every dtype, with the kernel that it chooses."""
    return {f"SDPA {dtype}": Candidate(None, dtype, "torch", _sdpa_call(case, qkv)) for dtype, qkv in typed.items()}


def sdpa_backends(case: Case, typed: dict[str, Qkv]) -> tuple[dict[str, Candidate], dict[str, str]]:
    """Each of PyTorch's kernels in each dtype; and those that do not run here, with the reason."""
    candidates, left_out = {}, {}
    for backend, member in SDPA_BACKENDS.items():
        for dtype, qkv in typed.items():

            def within(member: str = member) -> AbstractContextManager:
                return sdpa_kernel(SDPBackend.__members__[member])

            name = f"SDPA {backend} {dtype}"
            candidate = Candidate(None, dtype, f"torch {backend}", _sdpa_call(case, qkv), within)
            score_bytes = 4 * case.batch * case.num_heads * case.seqlen_q * case.seqlen_k
            if backend == "math" and score_bytes > MAX_MATH_BYTES:
                left_out[name] = f"its scores alone take {score_bytes / 2**30:.0f} GiB"
            elif reason := _refusal(candidate):
                left_out[name] = reason
            else:
                candidates[name] = candidate
    return candidates, left_out


def _sdpa_call(case: Case, qkv: Qkv) -> Callable[[], Tensor]:
    return lambda: F.scaled_dot_product_attention(*qkv, is_causal=case.causal)


def _refusal(candidate: Candidate) -> str:
    """Why a call fails; empty if it does not. PyTorch gives the reasons as warnings before its error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with candidate.within():
                candidate.call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return ""
        except RuntimeError as error:  # out of memory is one
            reasons = [str(error), *(str(warning.message) for warning in caught)]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return "; ".join(dict.fromkeys(reason.partition("(Triggered internally")[0].strip() for reason in reasons))


def quantized(case: Case, qkv: Qkv, dtype: str, recipe: str, backend: str, kernel: str) -> Candidate:
    """`sage.attention` as a caller has it."""
    return Candidate(
        recipe, dtype, kernel, lambda: sage.attention(*qkv, is_causal=case.causal, recipe=recipe, backend=backend)
    )


def kernel_only(case: Case, qkv: Qkv, dtype: str, recipe: str, backend: str, kernel: str) -> Candidate:
    """The attention kernel of `quantized`, on operands that are quantized here. Every call returns the same tensor."""
    q, k, v = qkv
    backend, text = _select.choose(q.device.type, recipe, backend, q.device.index)
    plan = machine.plan(text, backend, dtype=dtype, **dataclasses.asdict(case))
    stream = torch.cuda.current_stream().cuda_stream if q.is_cuda else 0
    kv_bytes, q_bytes = (
        q.new_empty(size, dtype=torch.uint8) for size in (plan.quantized_kv_bytes, plan.quantized_q_bytes)
    )
    quantized_kv = plan.quantize_kv(k=_view(k), v=_view(v), buffer=kv_bytes.data_ptr(), stream=stream)
    quantized_q = plan.quantize_q(
        q=_view(q), kv=quantized_kv, softmax_scale=case.head_dim**-0.5, buffer=q_bytes.data_ptr(), stream=stream
    )
    buffers = kv_bytes, q_bytes, v
    run = functools.partial(_run_quantized, plan, quantized_q, quantized_kv, torch.empty_like(q), stream, buffers)
    return Candidate(recipe, dtype, kernel, run)


def _run_quantized(plan: Any, q: Any, kv: Any, out: Tensor, stream: int, buffers: tuple[Tensor, ...]) -> Tensor:
    """`buffers`: what the views q and kv point to, alive as long as somebody may call this."""
    plan.run_quantized(q=q, kv=kv, out=_view(out), stream=stream)
    return out


def _view(t: Tensor) -> tuple[int, int, int, int]:
    return t.data_ptr(), *t.stride()[:3]
