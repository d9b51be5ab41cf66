"""`sage.compat` under the calls of the programs that use SageAttention and torch.compile."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sage
from compare import compare
from compat_cases import FP8, FP16, NAMED, NRMSE, QKV, TRITON, function, on, packed, qkv, top_left
from distributions import nrmse
from sage import compat
from sage.reference import exact


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every recipe runs, on CPU tensors too."""
    on("reference", monkeypatch)


@pytest.fixture
def switched(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the module's documentation says a program may do."""
    for package in ("sageattention", "sageattn3"):
        monkeypatch.setitem(sys.modules, package, compat)


def test_switch(switched: None) -> None:
    import sageattention
    from sageattention import sageattn
    from sageattn3 import sageattn3_blackwell

    assert sageattn is compat.sageattn and sageattn3_blackwell is compat.sageattn3_blackwell
    assert sageattention.__version__ == "2.2.0"
    assert importlib.util.find_spec("sageattention") is not None
    assert 'sys.modules["sageattention"] = sys.modules["sageattn3"] = sage.compat' in compat.__doc__


def test_import_sage_does_not_import_it() -> None:
    assert "compat" not in Path(sage.__file__).read_text()


def test_diffusers(switched: None, reference: None) -> None:
    """models/attention_dispatch.py: one import of all six names; lse goes into a ring."""
    from sageattention import (
        sageattn,
        sageattn_qk_int8_pv_fp8_cuda,
        sageattn_qk_int8_pv_fp8_cuda_sm90,
        sageattn_qk_int8_pv_fp16_cuda,
        sageattn_qk_int8_pv_fp16_triton,
        sageattn_varlen,
    )

    q, k, v = (t.transpose(1, 2).contiguous() for t in qkv())
    expected, expected_lse = exact(*(t.transpose(1, 2) for t in (q, k, v)), scale=0.125)
    for fn in (
        sageattn,
        sageattn_qk_int8_pv_fp8_cuda,
        sageattn_qk_int8_pv_fp8_cuda_sm90,
        sageattn_qk_int8_pv_fp16_cuda,
        sageattn_qk_int8_pv_fp16_triton,
    ):
        call = functools.partial(fn, q=q, k=k, v=v, tensor_layout="NHD", is_causal=False, sm_scale=None)
        out, lse, *_ = call(return_lse=True)
        assert out.shape == q.shape and lse.permute(0, 2, 1).shape == q.shape[:3]
        assert nrmse(out.transpose(1, 2), expected) < 0.04 and torch.equal(call(return_lse=False), out)
        compare(lse, expected_lse, atol=0.03, what="lse")
    lengths = torch.tensor([0, 40, 80], dtype=torch.int32)
    of = {"cu_seqlens_q": lengths, "cu_seqlens_k": lengths.clone(), "max_seqlen_q": 40, "max_seqlen_k": 40}
    rows = {n: t.flatten(0, 1) for n, t in zip(QKV, (q, k, v))}
    out = sageattn_varlen(**rows, **of, is_causal=False, sm_scale=None)
    assert nrmse(out.unflatten(0, (2, -1)).transpose(1, 2), expected) < 0.015


def test_ring() -> None:
    """xDiT and yunchang: halves of the keys, merged by their lse, are the whole."""
    q, k, v = qkv(40, 80)
    fn = functools.partial(compat.sageattn, return_lse=True)
    (out, lse), (out_2, lse_2) = (fn(q, k[:, :, part], v[:, :, part]) for part in (slice(0, 40), slice(40, 80)))
    merged = out - torch.sigmoid(lse_2 - lse)[..., None] * (out - out_2)
    assert nrmse(merged, exact(q, k, v, scale=0.125)[0]) < NRMSE["sage1"]


@pytest.mark.parametrize("shape", [(40, 50), (2, 40, 50), (2, 1, 1, 50)], ids=str)
@pytest.mark.parametrize("is_bool", [True, False])
def test_comfyui(shape: tuple[int, ...], is_bool: bool) -> None:
    """Passes masks where `attn_mask` is a parameter, made 4-D, and smooth_k=False always."""
    assert "attn_mask" in inspect.signature(compat.sageattn).parameters
    mask = torch.rand(shape) < 0.6 if is_bool else torch.randn(shape, dtype=torch.float16)
    mask = mask[None, None] if mask.ndim == 2 else mask[:, None] if mask.ndim == 3 else mask
    q, k, v = qkv(40, 50)
    rules = {"is_causal": False, "sm_scale": None, "smooth_k": False, "attn_mask": mask}
    out = compat.sageattn(q, k, v, tensor_layout="HND", **rules)
    assert nrmse(out, exact(q, k, v, scale=0.125, attn_mask=mask)[0]) < 0.03
    other = compat.sageattn(*(t.transpose(1, 2) for t in (q, k, v)), tensor_layout="NHD", **rules)
    assert torch.equal(other.transpose(1, 2), out)


KJNODES = [
    ("sageattn", {}),
    (FP16, {"pv_accum_dtype": "fp32"}),
    (TRITON, {}),
    (FP8, {"pv_accum_dtype": "fp32+fp32"}),
    (FP8, {"pv_accum_dtype": "fp32+fp16"}),
]


@pytest.mark.parametrize("name, fields", KJNODES)
@pytest.mark.parametrize("mask", [None, torch.arange(50)[None] < 30], ids=["no mask", "mask"])
def test_kjnodes(name: str, fields: dict[str, str], mask: Tensor | None, reference: None) -> None:
    q, k, v = qkv(40, 50)
    call = functools.partial(function(name), is_causal=False, attn_mask=mask, **fields)
    out = call(*(t.transpose(1, 2) for t in (q, k, v)), tensor_layout="NHD").transpose(1, 2)
    assert nrmse(out, exact(q, k, v, scale=0.125, attn_mask=mask)[0]) < 0.04


def test_sageattn3_callers(reference: None) -> None:
    """KJNodes, SGLang, FastVideo: contiguous (batch, heads, seqlen, head_dim)."""
    q, k, v = qkv(heads_kv=2)
    expected = exact(q, k, v, scale=0.125, attn_mask=top_left(40, 40))[0]
    for out in (
        compat.sageattn3_blackwell(q, k, v, is_causal=True),
        compat.sageattn3_blackwell(q=q, k=k, v=v, is_causal=False, attn_mask=top_left(40, 40), per_block_mean=True),
    ):
        assert nrmse(out, expected) < NRMSE["sage3"]


def test_positional_query_key_value() -> None:
    """xDiT (HND), SGLang, FastVideo, vLLM-omni (NHD, sm_scale), WanVideoWrapper (attn_mask, dropout_p)."""
    q, k, v = qkv()
    out, lse = compat.sageattn(q, k, v, is_causal=False, return_lse=True)
    assert lse.shape == (2, 4, 40)
    nhd = [t.transpose(1, 2) for t in (q, k, v)]
    assert torch.equal(compat.sageattn(*nhd, tensor_layout="NHD", is_causal=False, sm_scale=0.125).transpose(1, 2), out)
    assert torch.equal(compat.sageattn(q, k, v, attn_mask=None, dropout_p=0, is_causal=False), out)


def test_in_place_of_pytorchs_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """upstream's README. There attn_mask and scale got lost (#302)."""
    torch_sdpa = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", compat.sageattn)
    q, k, v = qkv(heads_kv=2)
    calls = [{"is_causal": True, "scale": 0.3}, {"attn_mask": torch.rand(40, 40) < 0.5, "dropout_p": 0.0}]
    for rules in calls:
        out = F.scaled_dot_product_attention(q, k, v, **rules, enable_gqa=True)
        expected = torch_sdpa(*(t.double() for t in (q, k, v)), **rules, enable_gqa=True)
        assert nrmse(out, expected) < 0.015
    with pytest.raises(TypeError, match="tensor_layout must be str, got Tensor"):
        F.scaled_dot_product_attention(q, k, v, calls[1]["attn_mask"])
    with pytest.raises(TypeError, match="query"):
        F.scaled_dot_product_attention(query=q, key=k, value=v)


@pytest.mark.parametrize("smooth_k", [True, False])
def test_compile(smooth_k: bool) -> None:
    """#73, #162. One graph for all lengths."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, lse = compat.sageattn(q, k, v, is_causal=True, return_lse=True, smooth_k=smooth_k)
        return compat.sageattn(out, k, v, attn_mask=k[0, :, :, :1].mT, scale=0.1) + lse[..., None]

    graphs = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=graphs)
    for seqlen in (20, 33, 57):
        tensors = qkv(seqlen, seqlen + 2)
        assert torch.equal(compiled(*tensors), model(*tensors))
    assert graphs.frame_count == 1


@pytest.mark.parametrize("name", NAMED)
def test_compile_named(name: str, reference: None) -> None:
    torch._dynamo.reset()
    tensors = qkv()
    compiled = torch.compile(lambda *qkv: function(name)(*qkv, is_causal=True), fullgraph=True, backend="eager")
    assert torch.equal(compiled(*tensors), function(name)(*tensors, is_causal=True))


def test_compile_varlen() -> None:
    """With one cu_seqlens no value is read."""
    torch._dynamo.reset()
    arguments = packed((30, 1, 50))
    compiled = torch.compile(compat.sageattn_varlen, fullgraph=True, backend="eager")
    assert torch.equal(
        compiled(**arguments, is_causal=True, smooth_k=False),
        compat.sageattn_varlen(**arguments, is_causal=True, smooth_k=False),
    )
