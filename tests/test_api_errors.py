"""Bad input: each error has the documented type and names the field, what it got and what is allowed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import sage
from sage import _select

Q = torch.randn(2, 4, 10, 32)
K = torch.randn(2, 2, 12, 32)


def nested() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.randn(4, 10, 32), torch.randn(4, 8, 32)])


def ints(*values: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


# Changed arguments of attention(Q, K, K), the error, and words that its message has.
ATTENTION = {
    "rank of q": ({"q": Q[0]}, ValueError, ["q ", "4 dimensions", "bhsd", "(4, 10, 32)"]),
    "rank of k": ({"k": K[None]}, ValueError, ["k ", "4 dimensions", "(1, 2, 2, 12, 32)"]),
    "dtype": ({"q": Q.double()}, ValueError, ["q ", "float64", "float32, float16, bfloat16"]),
    "integer dtype": ({"v": K.int()}, ValueError, ["v ", "int32", "float32, float16, bfloat16"]),
    "dtype mix": ({"k": K.half()}, ValueError, ["k ", "float16", "float32"]),
    "device mix": ({"v": K.to("meta")}, ValueError, ["v ", "meta", "cpu"]),
    "batch": ({"k": K[:1], "v": K[:1]}, ValueError, ["k ", "batch", "2", "1"]),
    "heads do not divide": ({"q": torch.randn(2, 3, 10, 32)}, ValueError, ["heads", "multiple", "2", "3"]),
    "no heads": ({"q": Q[:, :0], "k": K[:, :0], "v": K[:, :0]}, ValueError, ["heads", "at least 1", "0"]),
    "shape of v": ({"v": K[:, :, :5]}, ValueError, ["v ", "(2, 2, 12, 32)", "(2, 2, 5, 32)"]),
    "head_dim of k": ({"k": torch.randn(2, 2, 12, 16)}, ValueError, ["k ", "head_dim", "32", "16"]),
    "head_dim of v": ({"v": torch.randn(2, 2, 12, 16)}, NotImplementedError, ["v ", "head_dim", "32", "16"]),
    "head_dim 257": ({n: torch.randn(1, 1, 3, 257) for n in "qkv"}, ValueError, ["head_dim", "[1, 256]", "257"]),
    "head_dim 0": ({n: torch.randn(1, 1, 3, 0) for n in "qkv"}, ValueError, ["head_dim", "[1, 256]", "0"]),
    "strided head_dim": (
        {"k": K.transpose(2, 3).contiguous().transpose(2, 3)},
        ValueError,
        ["k ", "contiguous", "stride 12"],
    ),
    "sparse": ({"q": Q.to_sparse()}, NotImplementedError, ["q ", "dense", "sparse_coo"]),
    "nested": ({"q": nested()}, NotImplementedError, ["q ", "dense", "nested"]),
    "layout": ({"layout": "sbhd"}, ValueError, ["layout", "bhsd, bshd", "'sbhd'"]),
    "type of layout": ({"layout": 3}, TypeError, ["layout", "str", "int"]),
    "type of q": ({"q": [[1.0]]}, TypeError, ["q ", "torch.Tensor", "list"]),
    "scale nan": ({"scale": float("nan")}, ValueError, ["scale", "finite", "nan"]),
    "scale inf": ({"scale": float("inf")}, ValueError, ["scale", "finite", "inf"]),
    "type of scale": ({"scale": "1"}, TypeError, ["scale", "float", "str"]),
    "bool as scale": ({"scale": True}, TypeError, ["scale", "float", "bool"]),
    "type of is_causal": ({"is_causal": 1}, TypeError, ["is_causal", "bool", "int"]),
    "type of return_lse": ({"return_lse": None}, TypeError, ["return_lse", "bool", "NoneType"]),
    "window": ({"window_size": (-2, 3)}, ValueError, ["window_size", "left", ">= -1", "-2"]),
    "right window": ({"window_size": (0, -5)}, ValueError, ["window_size", "right", ">= -1", "-5"]),
    "length of window": ({"window_size": (1, 2, 3)}, TypeError, ["window_size", "pair", "(1, 2, 3)"]),
    "number as window": ({"window_size": 5}, TypeError, ["window_size", "pair", "5"]),
    "floats in window": ({"window_size": (1.0, 2)}, TypeError, ["window_size", "int", "float"]),
    "mask dtype": (
        {"attn_mask": torch.zeros(10, 12, dtype=torch.float64)},
        ValueError,
        ["attn_mask", "bool, float32", "float64"],
    ),
    "mask of integers": (
        {"attn_mask": torch.ones(10, 12, dtype=torch.int64)},
        ValueError,
        ["attn_mask", "bool", "int64"],
    ),
    "mask shape": ({"attn_mask": torch.zeros(10, 11)}, ValueError, ["attn_mask", "(2, 4, 10, 12)", "(10, 11)"]),
    "mask of kv heads": (
        {"attn_mask": torch.zeros(2, 2, 10, 12)},
        ValueError,
        ["attn_mask", "(2, 4, 10, 12)", "(2, 2, 10, 12)"],
    ),
    "mask rank 1": ({"attn_mask": torch.zeros(12)}, ValueError, ["attn_mask", "2 to 4", "(12,)"]),
    "mask rank 5": (
        {"attn_mask": torch.zeros(1, 1, 1, 10, 12)},
        ValueError,
        ["attn_mask", "2 to 4", "(1, 1, 1, 10, 12)"],
    ),
    "mask device": ({"attn_mask": torch.zeros(10, 12, device="meta")}, ValueError, ["attn_mask", "cpu", "meta"]),
    "type of mask": ({"attn_mask": True}, TypeError, ["attn_mask", "torch.Tensor", "bool"]),
    "mask gradient": (
        {"attn_mask": torch.zeros(10, 12, requires_grad=True)},
        NotImplementedError,
        ["attn_mask", "gradient"],
    ),
    "seqused_k dtype": ({"seqused_k": ints(1, 2, dtype=torch.int64)}, ValueError, ["seqused_k", "int32", "int64"]),
    "seqused_k shape": ({"seqused_k": ints(1, 2, 3)}, ValueError, ["seqused_k", "(2,)", "(3,)"]),
    "seqused_k above": ({"seqused_k": ints(12, 13)}, ValueError, ["seqused_k[1]", "[0, 12]", "13"]),
    "seqused_k below": ({"seqused_k": ints(-1, 3)}, ValueError, ["seqused_k[0]", "[0, 12]", "-1"]),
    "seqused_k device": ({"seqused_k": ints(1, 2).to("meta")}, ValueError, ["seqused_k", "cpu", "meta"]),
    "seqused_k strides": ({"seqused_k": ints(1, 2, 3, 4)[::2]}, ValueError, ["seqused_k", "contiguous", "2"]),
    "recipe": ({"recipe": "sage9"}, ValueError, ["recipe", "sage1", "int16", "'sage9'"]),
    "field of recipe": ({"recipe": "sage1(colour=3)"}, ValueError, ["recipe", "colour"]),
    "value of recipe": ({"recipe": "sage1(smooth_k=maybe)"}, ValueError, ["recipe", "smooth_k", "maybe"]),
    "approximate_exp of 16 bits": (
        {"recipe": "sage1(approximate_exp=True)"},
        ValueError,
        ["recipe", "approximate_exp", "fp8_e4m3"],
    ),
    "type of recipe": ({"recipe": 3}, TypeError, ["recipe", "str or sage.Recipe", "int"]),
    "backend": ({"backend": "opencl"}, ValueError, ["backend", "auto, cuda, cpu, reference, emulator", "'opencl'"]),
    "type of backend": ({"backend": None}, TypeError, ["backend", "str", "NoneType"]),
    "backend of another device": ({"backend": "cuda"}, ValueError, ["backend 'cuda'", "cuda", "cpu"]),
    "no kernel": ({"recipe": "sage2"}, NotImplementedError, ["fp8_e4m3", 'backend="reference"', "sage2"]),
    "NVFP4 on a CPU": ({"recipe": "sage3"}, NotImplementedError, ["qk nvfp4 with pv nvfp4", 'backend="reference"']),
    "NVFP4 scores on a CPU": (
        {"recipe": "sage3_fp8"},
        NotImplementedError,
        ["qk nvfp4 with pv fp8_e4m3", 'backend="reference"', "sage3_fp8"],
    ),
    "no kernel for a field": (
        {"recipe": "sage1(smooth_q=True)"},
        NotImplementedError,
        ["smooth_q", 'backend="reference"'],
    ),
    "keyword": ({"causal": True}, TypeError, ["causal"]),
}


def _message(error: pytest.ExceptionInfo, words: list[str]) -> None:
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("case", ATTENTION)
def test_attention(case: str) -> None:
    changed, error, words = ATTENTION[case]
    with pytest.raises(error) as raised:
        sage.attention(**{"q": Q, "k": K, "v": K, **changed})
    assert raised.type is error
    _message(raised, words)


CU = ints(0, 4, 10)

# Changed arguments of attention_varlen on q (10, 4, 32), k and v (12, 2, 32) in two sequences.
VARLEN = {
    "rank": ({"q": Q}, ValueError, ["q ", "3 dimensions", "(2, 4, 10, 32)"]),
    "cu_seqlens dtype": ({"cu_seqlens_q": CU.long()}, ValueError, ["cu_seqlens_q", "int32", "int64"]),
    "cu_seqlens rank": ({"cu_seqlens_k": CU[None]}, ValueError, ["cu_seqlens_k", "(batch + 1,)", "(1, 3)"]),
    "no cu_seqlens": ({"cu_seqlens_q": CU[:0]}, ValueError, ["cu_seqlens_q", "(batch + 1,)", "(0,)"]),
    "other batch": ({"cu_seqlens_k": ints(0, 12)}, ValueError, ["cu_seqlens_k", "(3,)", "(2,)"]),
    "cu_seqlens strides": (
        {"cu_seqlens_q": ints(0, 9, 4, 9, 10)[::2]},
        ValueError,
        ["cu_seqlens_q", "contiguous", "2"],
    ),
    "cu_seqlens device": ({"cu_seqlens_q": CU.to("meta")}, ValueError, ["cu_seqlens_q", "cpu", "meta"]),
    "start": ({"cu_seqlens_q": ints(1, 4, 10)}, ValueError, ["cu_seqlens_q", "start at 0", "1"]),
    "end of q": ({"cu_seqlens_q": ints(0, 4, 9)}, ValueError, ["cu_seqlens_q", "10", "9"]),
    "end of k": ({"cu_seqlens_k": ints(0, 6, 13)}, ValueError, ["cu_seqlens_k", "12", "13"]),
    "descending": (
        {"cu_seqlens_q": ints(0, 11, 10), "max_seqlen_q": 11},
        ValueError,
        ["cu_seqlens_q", "ascend", "[11, 10]"],
    ),
    "max_seqlen_q": ({"max_seqlen_q": 5}, ValueError, ["max_seqlen_q", "6", "5"]),
    "max_seqlen_k": ({"max_seqlen_k": 7}, ValueError, ["max_seqlen_k", "8", "7"]),
    "negative max_seqlen": ({"max_seqlen_q": -1}, ValueError, ["max_seqlen_q", ">= 0", "-1"]),
    "type of max_seqlen": ({"max_seqlen_k": 8.0}, TypeError, ["max_seqlen_k", "int", "float"]),
    "type of cu_seqlens": ({"cu_seqlens_q": [0, 4, 10]}, TypeError, ["cu_seqlens_q", "torch.Tensor", "list"]),
    "seqused_k": ({"seqused_k": ints(4, 9)}, ValueError, ["seqused_k[1]", "[0, 8]", "9"]),
    "heads": ({"q": torch.randn(10, 3, 32)}, ValueError, ["heads", "multiple", "2", "3"]),
    "recipe": ({"recipe": "sage9"}, ValueError, ["recipe", "'sage9'"]),
    "window": ({"window_size": (-3, 0)}, ValueError, ["window_size", "left", "-3"]),
    "mask": ({"attn_mask": torch.zeros(10, 12)}, TypeError, ["attn_mask"]),
}


@pytest.mark.parametrize("case", VARLEN)
def test_varlen(case: str) -> None:
    changed, error, words = VARLEN[case]
    good: dict[str, Any] = {
        "q": torch.randn(10, 4, 32),
        "k": torch.randn(12, 2, 32),
        "v": torch.randn(12, 2, 32),
        "cu_seqlens_q": CU,
        "cu_seqlens_k": ints(0, 4, 12),
        "max_seqlen_q": 6,
        "max_seqlen_k": 8,
    }
    sage.attention_varlen(**good)
    with pytest.raises(error) as raised:
        sage.attention_varlen(**{**good, **changed})
    assert raised.type is error
    _message(raised, words)


def test_same_checks_on_the_reference() -> None:
    """Whether a kernel runs or the reference, the same input is bad."""
    for changed, error, words in ATTENTION.values():
        if error is NotImplementedError and "backend" in " ".join(words) or "backend" in changed:
            continue
        with pytest.raises(error) as raised:
            sage.attention(**{"q": Q, "k": K, "v": K, "backend": "reference", **changed})
        _message(raised, words)


def test_operator_checks_too() -> None:
    with pytest.raises(ValueError, match="head_dim"):
        torch.ops.sage.attention(Q, K[..., :16], K, None, None, False, None, -1, -1, "bhsd", "sage1@cpu", "cpu", False)


def test_instruction_set_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_select.CPU_ISA_VARIABLE, "mmx")
    with pytest.raises(ValueError, match="SAGE_CPU_ISA must be one of auto, avx512_vnni, .*, got 'mmx'"):
        sage.attention(Q, K, K)


def test_devices_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_select, "_C", NoCuda)
    _select._choose.cache_clear()
    with pytest.raises(NotImplementedError, match=r'cuda.*this build has no CUDA.*backend="reference"'):
        _select.choose("cuda", "auto", "auto")
    assert "nothing" in _select.explain_auto("cuda") and "this build has no CUDA" in _select.explain_auto("cuda")
    with pytest.raises(NotImplementedError, match=r'meta.*backend="reference"'):
        sage.attention(*(t.to("meta") for t in (Q, K, K)))
    assert _select.choose("cuda", "auto", "reference") == ("reference", "sage1")
    assert "sage1@cpu" in _select.explain_auto("cpu")


class NoCuda:
    @staticmethod
    def build_info() -> dict[str, str]:
        return {"cuda": "off"}


class NoDevice:
    @staticmethod
    def build_info() -> dict[str, str]:
        return {"cuda": "13.0.88"}

    @staticmethod
    def cuda_devices() -> list:
        raise RuntimeError("cudaGetDeviceCount: no CUDA-capable device is detected")

    @staticmethod
    def cuda_architecture(index: int) -> int:
        raise RuntimeError("cudaDeviceGetAttribute: no CUDA-capable device is detected")


def test_cuda_build_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_select, "_C", NoDevice)
    _select._choose.cache_clear()
    assert _select.choose("cuda", "auto", "auto") == ("cuda", "sage1")
    assert _select.choose("cuda", "sage1_int8", "cuda") == ("cuda", "sage1_int8")
    assert _select.explain_auto("cuda") == "nothing: cudaGetDeviceCount: no CUDA-capable device is detected"


def test_emulator_that_was_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sage._emulator", None)
    _select._choose.cache_clear()
    with pytest.raises(NotImplementedError, match="-DSAGE_EMULATOR=ON"):
        sage.attention(Q, K, K, backend="emulator")
    with pytest.raises(ValueError, match="backend 'emulator' needs tensors on cpu, got meta"):
        sage.attention(*(t.to("meta") for t in (Q, K, K)), backend="emulator")


@pytest.fixture(autouse=True)
def _forget_choices() -> Iterator[None]:
    """Choices are remembered: those made with a planted extension module must not be."""
    yield
    _select._choose.cache_clear()


def test_errors_are_not_remembered() -> None:
    """After a refused request the next good one is served."""
    with pytest.raises(NotImplementedError):
        sage.attention(Q, K, K, recipe="sage3")
    assert sage.attention(Q, K, K).isfinite().all()
