"""Inputs and backends for the tests of `sage.compat`."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import sage
from sage import compat
from sage._select import choose

QKV = ("q", "k", "v")
FP16, FP8 = "sageattn_qk_int8_pv_fp16_cuda", "sageattn_qk_int8_pv_fp8_cuda"
TRITON, SAGE3 = "sageattn_qk_int8_pv_fp16_triton", "sageattn3_blackwell"
NAMED = [FP16, TRITON, FP8, FP8 + "_sm90", SAGE3]  # whose name says which recipe
FIXED = ["sageattn", *NAMED]  # on 4-D tensors

SAGE1_TRITON = "sage1(qk_granularity=block, pv_accum=fp16+fp32)"
DEFAULT_RECIPES = {
    "sageattn": "sage1",
    "sageattn_qk_int8_pv_fp16_cuda": "sage1",
    "sageattn_qk_int8_pv_fp16_triton": SAGE1_TRITON,
    "sageattn_qk_int8_pv_fp8_cuda": "sage2pp",
    "sageattn_qk_int8_pv_fp8_cuda_sm90": "sage2",
    "sageattn3_blackwell": "sage3",
}
# Against exact attention at head_dim 64: the project's figure for the recipe, with room for so few keys.
NRMSE = {"sage1": 0.015, SAGE1_TRITON: 0.015, "sage2": 0.04, "sage2pp": 0.04, "sage3": 0.21}


def function(name: str) -> Any:
    return getattr(compat, name)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape).half()


def qkv(seqlen_q: int = 40, seqlen_k: int = 40, *, heads_kv: int = 4, head_dim: int = 64) -> tuple[Tensor, ...]:
    """bhsd; K and V have means, which smoothing takes out."""
    k, v = (randn(2, heads_kv, seqlen_k, head_dim) + mean for mean in (1.0, 0.5))
    return randn(2, 4, seqlen_q, head_dim), k, v


def packed(lengths_q: tuple[int, ...], lengths_k: tuple[int, ...] | None = None) -> dict[str, Any]:
    """The arguments of sageattn_varlen; cu_seqlens_k is cu_seqlens_q without lengths_k."""
    same, lengths_k = lengths_k is None, lengths_k or lengths_q
    q, k, v = randn(sum(lengths_q), 4, 64), randn(sum(lengths_k), 2, 64), randn(sum(lengths_k), 2, 64)
    of_q, of_k = (torch.tensor([0, *n], dtype=torch.int32).cumsum(0, dtype=torch.int32) for n in (lengths_q, lengths_k))
    of = {"cu_seqlens_q": of_q, "cu_seqlens_k": of_q if same else of_k}
    return {"q": q, "k": k, "v": v, **of, "max_seqlen_q": max(lengths_q), "max_seqlen_k": max(lengths_k)}


def on(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What "auto" means, too."""
    monkeypatch.setattr(compat, "attention", functools.partial(sage.attention, backend=backend))
    monkeypatch.setattr(compat, "attention_varlen", functools.partial(sage.attention_varlen, backend=backend))
    monkeypatch.setattr(
        compat, "choose", lambda device_type, recipe, _, index: choose(device_type, recipe, backend, index)
    )


def top_left(seqlen_q: int, seqlen_k: int) -> Tensor:
    return torch.ones(seqlen_q, seqlen_k, dtype=torch.bool).tril()
