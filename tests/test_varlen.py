"""`sage.attention_varlen`: packed sequences give what each sequence gives alone, whatever surrounds it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sage
from compare import compare

pytestmark = pytest.mark.usefixtures("poisoned")

LENGTHS_Q = (65, 0, 1, 130, 7)
LENGTHS_K = (70, 33, 0, 200, 7)


def pack(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def make(dtype: torch.dtype, num_heads_q: int = 4, num_heads_kv: int = 2, head_dim: int = 64) -> tuple[Tensor, ...]:
    """q, k, v; every sequence has its own magnitude, so that a mean or scale across sequences would show."""
    size_q, size_k = (
        torch.repeat_interleave(torch.tensor([1.0, 3.0, 1.0, 0.1, 30.0]), torch.tensor(n))
        for n in (LENGTHS_Q, LENGTHS_K)
    )
    q = torch.randn(sum(LENGTHS_Q), num_heads_q, head_dim)
    k = torch.randn(sum(LENGTHS_K), num_heads_kv, head_dim) + size_k[:, None, None]
    v = torch.randn(sum(LENGTHS_K), num_heads_kv, head_dim) * size_k[:, None, None]
    return tuple(t.to(dtype) for t in (q / size_q[:, None, None], k, v))


def run(q: Tensor, k: Tensor, v: Tensor, **rules: Any) -> tuple[Tensor, Tensor]:
    out, lse = sage.attention_varlen(
        q, k, v, pack(LENGTHS_Q), pack(LENGTHS_K), max(LENGTHS_Q), max(LENGTHS_K), return_lse=True, **rules
    )
    assert out.shape == q.shape and out.dtype == q.dtype and out.is_contiguous()
    assert lse.shape == (q.shape[1], q.shape[0]) and lse.dtype == torch.float32
    return out, lse


def alone(q: Tensor, k: Tensor, v: Tensor, **rules: Any) -> tuple[Tensor, Tensor]:
    """Each sequence as its own batch."""
    outs, lses = [], []
    seqused_k = rules.pop("seqused_k", None)
    sequences = zip(q.split(LENGTHS_Q), k.split(LENGTHS_K), v.split(LENGTHS_K))
    for b, (q_b, k_b, v_b) in enumerate(sequences):
        used = None if seqused_k is None else seqused_k[b : b + 1]
        out, lse = sage.attention(
            *(t.transpose(0, 1)[None] for t in (q_b, k_b, v_b)), seqused_k=used, return_lse=True, **rules
        )
        outs.append(out[0].transpose(0, 1))
        lses.append(lse[0])
    return torch.cat(outs), torch.cat(lses, 1)


@pytest.mark.central
@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"is_causal": True},
        {"window_size": (20, 3)},
        {"is_causal": True, "window_size": (9, -1), "scale": 0.2},
        {"seqused_k": (70, 0, 0, 131, 3), "is_causal": True},
    ],
    ids=["full", "causal", "window", "causal_window_scale", "seqused_k"],
)
def test_equals_each_sequence_alone(backend: str, recipe: str, rules: dict[str, Any], dtype: torch.dtype) -> None:
    q, k, v = make(dtype)
    if "seqused_k" in rules:
        rules = {**rules, "seqused_k": torch.tensor(rules["seqused_k"], dtype=torch.int32)}
    before = [t.clone() for t in (q, k, v)]
    out, lse = run(q, k, v, recipe=recipe, backend=backend, **rules)
    expected, expected_lse = alone(q, k, v, recipe=recipe, backend=backend, **rules)
    assert all(torch.equal(t, saved) for t, saved in zip((q, k, v), before)), "an input was modified"
    compare(out, expected, atol=1e-5 * 30, what="out")  # the largest v is of the order of 30
    compare(lse, expected_lse, atol=1e-4, what="lse")
    blind = slice(65, 66)  # the sequence without keys
    assert (out[blind] == 0).all() and (lse[:, blind] == -torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_dim", [1, 40, 128])
def test_dtypes_and_head_dims(backend: str, recipe: str, head_dim: int, dtype: torch.dtype) -> None:
    q, k, v = make(dtype, num_heads_q=6, num_heads_kv=1, head_dim=head_dim)
    out, lse = run(q, k, v, recipe=recipe, backend=backend, is_causal=True)
    expected, expected_lse = alone(q, k, v, recipe=recipe, backend=backend, is_causal=True)
    compare(out, expected, atol=1e-5, rtol=2 * torch.finfo(dtype).eps, what="out")
    compare(lse, expected_lse, atol=1e-4, what="lse")


def test_views(backend: str, recipe: str, dtype: torch.dtype) -> None:
    """One fused (total, 3, heads, head_dim) tensor is read in place."""
    qkv = torch.randn(sum(LENGTHS_Q), 3, 2, 32).to(dtype)
    lengths = pack(LENGTHS_Q)
    views, copies = (
        sage.attention_varlen(*inputs, lengths, lengths, 130, 130, recipe=recipe, backend=backend)
        for inputs in (qkv.unbind(1), [t.contiguous() for t in qkv.unbind(1)])
    )
    compare(views, copies, atol=0.0 if backend != "reference" else 1e-3, what="views against copies")


def test_longer_maximum_changes_nothing(backend: str, recipe: str, dtype: torch.dtype) -> None:
    q, k, v = make(dtype)
    out, _ = run(q, k, v, recipe=recipe, backend=backend)
    loose = sage.attention_varlen(q, k, v, pack(LENGTHS_Q), pack(LENGTHS_K), 500, 1000, recipe=recipe, backend=backend)
    assert torch.equal(out, loose)


def test_one_sequence_is_attention(backend: str, recipe: str, dtype: torch.dtype) -> None:
    q, k, v = make(dtype)
    whole_q, whole_k = pack((len(q),)), pack((len(k),))
    out = sage.attention_varlen(
        q, k, v, whole_q, whole_k, len(q), len(k), recipe=recipe, backend=backend, is_causal=True
    )
    expected = sage.attention(q[None], k[None], v[None], layout="bshd", recipe=recipe, backend=backend, is_causal=True)
    compare(out, expected[0], atol=1e-5, what="out")


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0, 0)], ids=str)
def test_nothing_to_do(backend: str, recipe: str, lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    empty = torch.empty(0, 2, 32, dtype=dtype)
    out, lse = sage.attention_varlen(
        empty, empty, empty, pack(lengths), pack(lengths), 0, 0, recipe=recipe, backend=backend, return_lse=True
    )
    assert out.shape == (0, 2, 32) and lse.shape == (2, 0)


def test_no_keys_at_all(backend: str, recipe: str, dtype: torch.dtype) -> None:
    q, empty = torch.randn(10, 2, 32).to(dtype), torch.empty(0, 2, 32, dtype=dtype)
    out, lse = sage.attention_varlen(
        q, empty, empty, pack((4, 6)), pack((0, 0)), 6, 0, recipe=recipe, backend=backend, return_lse=True
    )
    assert (out == 0).all() and (lse == -torch.inf).all()
