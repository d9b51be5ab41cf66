"""`sage.compat`: SageAttention's signatures, what each argument does, and upstream's bugs.

Numbers of the form #302 are threads of thu-ml/SageAttention.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import sage
from bounds import BOUNDS
from compare import compare
from compat_cases import (
    DEFAULT_RECIPES,
    FIXED,
    FP8,
    FP16,
    NAMED,
    NRMSE,
    QKV,
    SAGE1_TRITON,
    SAGE3,
    TRITON,
    function,
    on,
    packed,
    qkv,
    randn,
    top_left,
)
from distributions import nrmse
from sage import compat
from sage._select import choose, emulated
from sage.cli import machine
from sage.reference import exact

ON_CUDA_KERNELS = [("emulator", "sm89"), pytest.param(("cuda", "auto"), marks=pytest.mark.cuda)]

# What SageAttention 2.2.0 declares; behind "*" what we take in place of **kwargs.
SIGNATURES = {
    "sageattn": "q, k, v, tensor_layout='HND', is_causal=False, sm_scale=None, return_lse=False, "
    "*, attn_mask=None, smooth_k=True, dropout_p=0.0, scale=None, enable_gqa=False",
    "sageattn_varlen": "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, is_causal=False, "
    "sm_scale=None, smooth_k=True",
    "sageattn_qk_int8_pv_fp16_cuda": "q, k, v, tensor_layout='HND', is_causal=False, qk_quant_gran='per_thread', "
    "sm_scale=None, pv_accum_dtype='fp32', smooth_k=True, smooth_v=False, return_lse=False, *, attn_mask=None",
    "sageattn_qk_int8_pv_fp16_triton": "q, k, v, tensor_layout='HND', quantization_backend='triton', is_causal=False, "
    "attn_mask=None, sm_scale=None, smooth_k=True, return_lse=False",
    "sageattn_qk_int8_pv_fp8_cuda": "q, k, v, tensor_layout='HND', is_causal=False, qk_quant_gran='per_thread', "
    "sm_scale=None, pv_accum_dtype='fp32+fp16', smooth_k=True, smooth_v=False, return_lse=False, *, attn_mask=None",
    "sageattn_qk_int8_pv_fp8_cuda_sm90": "q, k, v, tensor_layout='HND', is_causal=False, qk_quant_gran='per_thread', "
    "sm_scale=None, pv_accum_dtype='fp32+fp32', smooth_k=True, return_lse=False, *, attn_mask=None",
    "sageattn3_blackwell": "q, k, v, attn_mask=None, is_causal=False, per_block_mean=True",
}


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every recipe runs, on CPU tensors too."""
    on("reference", monkeypatch)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name: str) -> None:
    signature = inspect.signature(function(name))
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    assert str(inspect.Signature(bare)) == f"({SIGNATURES[name]})"


def test_every_name_is_offered_and_nothing_else() -> None:
    assert sorted(compat.__all__) == sorted(SIGNATURES)


@pytest.mark.parametrize("name", SIGNATURES)
@pytest.mark.parametrize("keyword", ["softmax_scale", "causal", "window_size", "backend"])
def test_unknown_keyword(name: str, keyword: str) -> None:
    arguments = packed((8, 8)) if name == "sageattn_varlen" else dict(zip(QKV, qkv()))
    with pytest.raises(TypeError, match=keyword):
        function(name)(**arguments, **{keyword: None})


CHANGES, NOTHING = "changes the result", "nothing"

MASK = torch.arange(8) != 3
# By argument: a value other than the default, and its effect. An entry by (function, argument) goes first.
EFFECTS: dict[Any, tuple[Any, Any]] = {
    "tensor_layout": ("NHD", CHANGES),
    "is_causal": (True, CHANGES),
    "attn_mask": (MASK.expand(8, 8), CHANGES),
    "sm_scale": (0.5, CHANGES),
    "scale": (0.5, CHANGES),
    "smooth_k": (False, CHANGES),
    "smooth_v": (True, CHANGES),
    "return_lse": (True, CHANGES),
    "qk_quant_gran": ("per_warp", CHANGES),
    (FP16, "pv_accum_dtype"): ("fp16", CHANGES),
    (FP8, "pv_accum_dtype"): ("fp32+fp32", CHANGES),
    (FP8 + "_sm90", "pv_accum_dtype"): ("fp32", NotImplementedError),
    "quantization_backend": ("cuda", NOTHING),
    "per_block_mean": (False, NotImplementedError),
    "dropout_p": (0.1, NotImplementedError),
    "enable_gqa": (True, NOTHING),
    "cu_seqlens_q": (torch.tensor([0, 5, 16], dtype=torch.int32), CHANGES),
    "cu_seqlens_k": (torch.tensor([0, 5, 16], dtype=torch.int32), CHANGES),
    "max_seqlen_q": (7, ValueError),
    "max_seqlen_k": (7, ValueError),
}
ARGUMENTS = [
    (name, argument)
    for name in SIGNATURES
    for argument in inspect.signature(function(name)).parameters
    if argument not in QKV
]


@pytest.mark.parametrize("name, argument", ARGUMENTS)
def test_effect(name: str, argument: str, reference: None) -> None:
    """Every argument of every function: it changes the result, is documented as without effect, or raises."""
    value, effect = EFFECTS.get((name, argument)) or EFFECTS[argument]
    # As many heads as tokens, so that both layouts read the tensors.
    arguments: dict[str, Any] = {n: randn(2, 8, 8, 64) + 1 for n in QKV}
    if name == "sageattn_varlen":
        arguments = {**packed((8, 8)), "max_seqlen_q": 11, "max_seqlen_k": 11}
    plain = function(name)(**arguments)
    arguments[argument] = value
    if isinstance(effect, type):
        with pytest.raises(effect, match=argument):
            function(name)(**arguments)
        return
    out = function(name)(**arguments)
    same = isinstance(out, Tensor) and torch.equal(out, plain)
    assert same == (effect is NOTHING)


def test_every_argument_is_documented() -> None:
    """In the module's tables; what has no effect says so."""
    rows = [line.split("|")[1:3] for line in compat.__doc__.splitlines() if line.startswith("|")]
    effects = {name.strip(): effect.strip() for names, effect in rows for name in names.split(",")}
    packed_ones = {"cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"}  # beside cu_seqlens_q
    assert {argument for _, argument in ARGUMENTS} | set(SIGNATURES) <= set(effects) | packed_ones
    without = {argument for argument, effect in effects.items() if effect.startswith("none")}
    assert without == {argument for argument, (_, effect) in EFFECTS.items() if effect is NOTHING}


RECIPES = [
    (FP16, {"pv_accum_dtype": "fp16"}, "sage1(pv_accum=fp16)"),
    (FP16, {"pv_accum_dtype": "fp16+fp32"}, "sage1(pv_accum=fp16+fp32)"),
    (FP16, {"qk_quant_gran": "per_warp", "smooth_k": False}, "sage1(qk_granularity=warp, smooth_k=False)"),
    (FP16, {"pv_accum_dtype": "fp16", "smooth_v": True}, "sage1(pv_accum=fp16, smooth_v=True)"),
    (FP16, {"smooth_v": True}, "sage1(smooth_v=True)"),
    (FP8, {"pv_accum_dtype": "fp32+fp16"}, "sage2pp"),
    (FP8, {"pv_accum_dtype": "fp32+fp32"}, "sage2"),
    (FP8, {"pv_accum_dtype": "fp32"}, "sage2"),
    (FP8, {"pv_accum_dtype": "fp32", "smooth_v": True}, "sage2(smooth_v=True)"),
    (FP8, {"qk_quant_gran": "per_warp", "smooth_v": True}, "sage2pp(qk_granularity=warp, smooth_v=True)"),
    (FP8, {"smooth_k": False}, "sage2pp(smooth_k=False)"),
    (FP8 + "_sm90", {"qk_quant_gran": "per_warp"}, "sage2(qk_granularity=warp)"),
    (FP8 + "_sm90", {"smooth_k": False}, "sage2(smooth_k=False)"),
    (TRITON, {"smooth_k": False}, SAGE1_TRITON[:-1] + ", smooth_k=False)"),
    ("sageattn", {"smooth_k": False}, "sage1(smooth_k=False)"),
    *((name, {}, recipe) for name, recipe in DEFAULT_RECIPES.items()),
]


@pytest.mark.parametrize("name, fields, recipe", RECIPES, ids=[f"{n}-{r}" for n, _, r in RECIPES])
def test_recipe(name: str, fields: dict[str, Any], recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe that was asked for, told apart by its text where results agree, and its result."""
    on("reference", monkeypatch)
    asked = []
    run = compat.attention
    monkeypatch.setattr(compat, "attention", lambda *args, **kw: asked.append(kw["recipe"]) or run(*args, **kw))
    q, k, v = qkv()
    out = function(name)(q, k, v, **fields)
    assert str(asked[0]) == ("auto" if name == "sageattn" and not fields else recipe)
    assert torch.equal(out, sage.attention(q, k, v, recipe=recipe, backend="reference"))


def test_auto_on_the_cpu() -> None:
    """What `sage.attention` does there; smooth_k=False is honoured, which upstream swallows and ComfyUI passes."""
    q, k, v = qkv()
    k = k + 8
    plain, smoothed_not = compat.sageattn(q, k, v), compat.sageattn(q, k, v, smooth_k=False)
    assert torch.equal(plain, sage.attention(q, k, v))
    assert torch.equal(smoothed_not, sage.attention(q, k, v, recipe="sage1(smooth_k=False)"))
    expected, _ = exact(q, k, v, scale=64**-0.5)
    assert nrmse(smoothed_not, expected) > 2 * nrmse(plain, expected)


RULES = ["plain", "causal", "causal, more keys", "causal, more queries", "bool mask", "float mask", "gqa", "scale"]
CALLS = [(name, layout, rule) for name in FIXED if name != SAGE3 for layout in ("HND", "NHD") for rule in RULES]
CALLS += [(SAGE3, "HND", rule) for rule in RULES if rule != "scale"]  # it has neither sm_scale nor tensor_layout


@pytest.mark.parametrize("name, layout, rule", CALLS)
def test_value(name: str, layout: str, rule: str, reference: None) -> None:
    """Causal: query i sees keys j <= i, as upstream's kernels do, whatever the lengths (#131, #372)."""
    seqlen_q, seqlen_k = {"causal, more keys": (40, 70), "causal, more queries": (70, 40)}.get(rule, (50, 50))
    q, k, v = qkv(seqlen_q, seqlen_k, heads_kv=2 if rule == "gqa" else 4)
    arguments: dict[str, Any] = {}
    rules: dict[str, Any] = {"scale": 64**-0.5}
    if rule.startswith("causal"):
        arguments["is_causal"], rules["attn_mask"] = True, top_left(seqlen_q, seqlen_k)
    elif rule.endswith("mask"):
        mask = torch.rand(2, 1, seqlen_q, seqlen_k) < 0.5 if rule == "bool mask" else torch.randn(seqlen_q, seqlen_k)
        arguments["attn_mask"] = rules["attn_mask"] = mask
    elif rule == "scale":
        arguments["sm_scale"] = rules["scale"] = 0.07
    expected, _ = exact(q, k, v, **rules)
    if layout == "NHD":
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        arguments["tensor_layout"] = "NHD"
    out = function(name)(q, k, v, **arguments)
    assert out.shape == q.shape and out.dtype == q.dtype and out.is_contiguous()
    out = out.transpose(1, 2) if layout == "NHD" else out
    assert nrmse(out, expected) < NRMSE[DEFAULT_RECIPES[name]]


@pytest.mark.parametrize("layout", ["HND", "NHD"])
@pytest.mark.parametrize("smooth_k", [True, False])
@pytest.mark.parametrize("name", [name for name in FIXED if name != SAGE3])
def test_lse(name: str, smooth_k: bool, layout: str, reference: None) -> None:
    """(batch, heads, seqlen_q), float32, natural logarithm, whatever the layout. Upstream multiplies Q by the mean of K
    in the inputs' dtype, which in bfloat16 is off by 0.1 and more here, so that parts of a ring do not fit (#120)."""
    q, k, v = (t.bfloat16() for t in qkv())
    q, k = q + 1, k + (12 if smooth_k else 0)
    _, expected = exact(q, k, v, scale=64**-0.5)
    upstream = ((q @ k.mean(2, keepdim=True).mT) * 64**-0.5).squeeze(-1)
    exact_shift = ((q.double() @ k.double().mean(2, keepdim=True).mT) * 64**-0.5).squeeze(-1)
    assert not smooth_k or (upstream - exact_shift).abs().max() > 0.1
    if layout == "NHD":
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out, lse = function(name)(q, k, v, tensor_layout=layout, smooth_k=smooth_k, return_lse=True)
    assert lse.shape == (2, 4, 40) and lse.dtype == torch.float32 and lse.is_contiguous()
    compare(lse, expected, atol=0.05, what=f"lse of {name}")
    assert torch.equal(out, function(name)(q, k, v, tensor_layout=layout, smooth_k=smooth_k))


@pytest.mark.parametrize("name", FIXED)
def test_rows_that_see_no_key_are_zero(name: str, reference: None) -> None:
    """Upstream adds -1e6 instead of hiding a key, and returns mean(V)."""
    q, k, v = qkv()
    mask = torch.ones(40, 40, dtype=torch.bool)
    mask[7] = False
    out = function(name)(q, k, v, attn_mask=mask)
    assert (out[:, :, 7] == 0).all() and (out[:, :, 6] != 0).any()
    if name != SAGE3:
        _, lse = function(name)(q, k, v, attn_mask=mask, return_lse=True)
        assert (lse[:, :, 7] == -torch.inf).all() and lse[:, :, 6].isfinite().all()


@pytest.mark.parametrize("name", FIXED)
def test_biases_have_natural_units(name: str, reference: None) -> None:
    """Upstream adds them to scores for exp2: a bias of log(w) must weigh a key w times as much, not w ** log(2)."""
    v = torch.zeros(1, 1, 128, 64, dtype=torch.float16)
    v[:, :, 0] = 1
    q = k = torch.zeros_like(v)
    bias = torch.zeros(128)
    bias[0] = torch.tensor(127.0).log()
    out = function(name)(q, k, v, attn_mask=bias[None])
    compare(out, torch.full_like(out, 0.5), atol=0.05, what="out")


@pytest.mark.parametrize("name", FIXED)
def test_inputs_are_not_written(name: str, reference: None) -> None:
    """sageattn3_blackwell subtracts the mean of K in place."""
    tensors = qkv(heads_kv=2)
    before = [t.clone() for t in tensors]
    function(name)(*tensors, is_causal=True)
    assert all(map(torch.equal, tensors, before))


@pytest.mark.parametrize("head_dim", [16, 72, 160, 256])
@pytest.mark.parametrize("name", FIXED)
def test_head_dims(name: str, head_dim: int, reference: None) -> None:
    """Upstream pads, returns a view of the padded result, and stops at 128 (#119, #134)."""
    q, k, v = qkv(head_dim=head_dim)
    out = function(name)(q, k, v)
    expected, _ = exact(q, k, v, scale=head_dim**-0.5)
    assert out.is_contiguous() and nrmse(out, expected) < 1.3 * NRMSE[DEFAULT_RECIPES[name]]


@pytest.mark.parametrize("name", FIXED)
def test_constant_zero_channel(name: str, reference: None) -> None:
    """#164: 0 * inf in the scale of V."""
    q, k, v = qkv()
    v[..., 5] = 0
    out = function(name)(q, k, v)
    assert out.isfinite().all() and (out[..., 5] == 0).all()


@pytest.mark.parametrize("seqlen", [1, 9, 63, 65])
@pytest.mark.parametrize("name", FIXED)
def test_short_sequences(name: str, seqlen: int, reference: None) -> None:
    """#376: stale memory behind the last key."""
    q, k, v = qkv(seqlen, seqlen)
    assert nrmse(function(name)(q, k, v), exact(q, k, v, scale=0.125)[0]) < 1.2 * NRMSE[DEFAULT_RECIPES[name]]


def alone(arguments: dict[str, Any], **rules: Any) -> Tensor:
    """Each sequence in a call of its own."""
    of_q, of_k = (arguments[f"cu_seqlens_{n}"].tolist() for n in "qk")
    outs = []
    for i in range(len(of_q) - 1):
        q, (k, v) = arguments["q"][of_q[i] : of_q[i + 1]], (arguments[n][of_k[i] : of_k[i + 1]] for n in "kv")
        outs.append(compat.sageattn(q[None], k[None], v[None], tensor_layout="NHD", **rules)[0])
    return torch.cat(outs)


@pytest.mark.parametrize("lengths", [((30, 1, 50), None), ((30, 1, 50), (30, 1, 50)), ((30, 1, 50), (40, 1, 66))])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("smooth_k", [True, False])
@pytest.mark.parametrize("backend", [("cpu", "auto"), *ON_CUDA_KERNELS], indirect=True, ids=["cpu", "emulator", "cuda"])
def test_varlen(
    backend: str, lengths: tuple[Any, Any], is_causal: bool, smooth_k: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sequence is what it is alone, top left causal mask included. Upstream takes one mean of K over all."""
    on(backend, monkeypatch)
    arguments = packed(*lengths)
    arguments["k"][-20:] += 20
    rules = {"is_causal": is_causal, "sm_scale": 0.1, "smooth_k": smooth_k}
    out = compat.sageattn_varlen(**arguments, **rules)
    assert out.shape == arguments["q"].shape and out.is_contiguous()
    compare(out, alone(arguments, **rules), atol=1e-3, what="out")


def test_varlen_without_causal_takes_any_lengths() -> None:
    arguments = packed((30, 20), (10, 40))
    compare(compat.sageattn_varlen(**arguments), alone(arguments), atol=1e-3, what="out")


def test_varlen_causal_with_more_queries_than_keys() -> None:
    with pytest.raises(NotImplementedError, match=r"is_causal.*top left.*\[30, 20\].*\[40, 10\]"):
        compat.sageattn_varlen(**packed((30, 20), (40, 10)), is_causal=True)


@pytest.mark.parametrize("name", NAMED)
def test_cpu_tensors_for_a_cuda_recipe(name: str) -> None:
    """Not the CPU's twin of the recipe: its granularity and accumulator are others."""
    with pytest.raises(NotImplementedError, match=f"CPU.*{re.escape(DEFAULT_RECIPES[name])}"):
        function(name)(*qkv())


def has_kernel(recipe: str, backend: str) -> bool:
    try:
        return bool(machine.kernel_name(recipe, backend))
    except NotImplementedError:
        return False


@pytest.mark.parametrize(
    "backend", [("emulator", "sm90"), *ON_CUDA_KERNELS], indirect=True, ids=["sm90", "emulator", "cuda"]
)
@pytest.mark.parametrize("name, fields, recipe", RECIPES, ids=[f"{n}-{r}" for n, _, r in RECIPES])
def test_cuda_kernels(
    name: str, fields: dict[str, Any], recipe: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They serve sage1 without smooth_v and, where the GPU has FP8, sage2 and sage2pp; of the rest they say what they
    lack."""
    on(backend, monkeypatch)
    q, k, v = qkv(20, 24)
    of_fp8 = {"sm89": {"sage2", "sage2pp"}, "sm90": {"sage2"}}.get(emulated() if backend == "emulator" else "", set())
    assert all(has_kernel(preset, backend) for preset in of_fp8)
    if name == "sageattn":
        auto = choose("cuda" if backend == "cuda" else "cpu", "auto", backend)[1]
        recipe = recipe.replace("sage1", auto)
    preset = recipe.partition("(")[0]
    if preset in ("sage2", "sage2pp") and has_kernel(preset, backend) or preset == "sage1" and "smooth_v" not in recipe:
        out = function(name)(q, k, v, is_causal=True, **fields)
        k, v = k[:, :, :20], v[:, :, :20]
        expected = sage.attention(q, k, v, is_causal=True, recipe=recipe, backend="reference")
        bound = BOUNDS["sage1(pv_accum=fp16)" if preset == "sage1" else preset].difference * v.abs().max().item()
        compare(out, expected, atol=bound, what=recipe)
        return
    with pytest.raises(NotImplementedError, match=re.escape(recipe)):
        function(name)(q, k, v, **fields)


Q = torch.zeros(1, 8, 8, 64, dtype=torch.float16)
LENGTHS = {"cu_seqlens_q": torch.tensor([0, 8], dtype=torch.int32), "max_seqlen_q": 8, "max_seqlen_k": 8}
ERRORS = {
    "layout": ("sageattn", {"tensor_layout": "BHSD"}, ValueError, ["tensor_layout", "HND, NHD", "BHSD"]),
    "granularity": (FP16, {"qk_quant_gran": "per_block"}, ValueError, ["per_thread, per_warp", "per_block"]),
    "fp16 accumulator": (FP16, {"pv_accum_dtype": "fp32+fp32"}, ValueError, ["fp32, fp16, fp16+fp32", "fp32+fp32"]),
    "fp8 accumulator": (FP8, {"pv_accum_dtype": "fp16"}, ValueError, ["fp32, fp32+fp32, fp32+fp16", "'fp16'"]),
    "sm90 accumulator": (FP8 + "_sm90", {"pv_accum_dtype": "fp16"}, ValueError, ["fp32+fp32", "'fp16'"]),
    "sm90 fp32": (FP8 + "_sm90", {"pv_accum_dtype": "fp32"}, NotImplementedError, ["fp32+fp32", FP8]),
    "quantization backend": (
        TRITON,
        {"quantization_backend": "numpy"},
        ValueError,
        ["quantization_backend", "triton, cuda", "numpy"],
    ),
    "two scales": ("sageattn", {"scale": 0.1, "sm_scale": 0.1}, ValueError, ["scale", "sm_scale", "0.1"]),
    "mask and causal": ("sageattn", {"attn_mask": MASK[None], "is_causal": True}, ValueError, ["attn_mask", "causal"]),
    "dropout": ("sageattn", {"dropout_p": 2}, ValueError, ["dropout_p", "[0, 1]", "2"]),
    "mean of all queries": (SAGE3, {"per_block_mean": False}, NotImplementedError, ["smooth_q"]),
    "type of tensor_layout": ("sageattn", {"tensor_layout": MASK}, TypeError, ["tensor_layout", "str", "Tensor"]),
    "type of pv_accum_dtype": (FP8, {"pv_accum_dtype": None}, TypeError, ["pv_accum_dtype", "str", "NoneType"]),
    "type of qk_quant_gran": (FP8, {"qk_quant_gran": []}, TypeError, ["qk_quant_gran", "str", "list"]),
    "type of sm_scale": ("sageattn", {"sm_scale": "1"}, TypeError, ["sm_scale", "float", "str"]),
    "type of scale": ("sageattn", {"scale": "1"}, TypeError, ["scale", "float", "str"]),
    "type of smooth_k": ("sageattn", {"smooth_k": 1}, TypeError, ["smooth_k", "bool", "int"]),
    "type of smooth_k, triton": (TRITON, {"smooth_k": 1}, TypeError, ["smooth_k", "bool"]),
    "type of smooth_v": (FP8, {"smooth_v": 1}, TypeError, ["smooth_v", "bool", "int"]),
    "type of is_causal": ("sageattn", {"is_causal": 1}, TypeError, ["is_causal", "bool", "int"]),
    "type of return_lse": ("sageattn", {"return_lse": 1}, TypeError, ["return_lse", "bool", "int"]),
    "type of attn_mask": ("sageattn", {"attn_mask": True}, TypeError, ["attn_mask", "torch.Tensor", "bool"]),
    "type of dropout_p": ("sageattn", {"dropout_p": None}, TypeError, ["dropout_p", "float", "NoneType"]),
    "type of enable_gqa": ("sageattn", {"enable_gqa": 1}, TypeError, ["enable_gqa", "bool", "int"]),
    "type of per_block_mean": (SAGE3, {"per_block_mean": 1}, TypeError, ["per_block_mean", "bool"]),
    "q": ("sageattn", {"q": None}, TypeError, ["q must be torch.Tensor", "NoneType"]),
    "k, causal": ("sageattn", {"k": None, "is_causal": True}, TypeError, ["k must be torch.Tensor", "NoneType"]),
    "rank": ("sageattn", {"q": Q[0], "is_causal": True}, ValueError, ["q", "4 dimensions", "(8, 8, 64)"]),
    "causal and v": ("sageattn", {"q": Q[:, :, :2], "v": Q[:, :, :4], "is_causal": True}, ValueError, ["v", "shape"]),
    "head_dim": ("sageattn", {n: torch.zeros(1, 1, 4, 264) for n in QKV}, ValueError, ["head_dim", "256", "264"]),
    "dtype": ("sageattn", {n: Q.double() for n in QKV}, ValueError, ["float16", "float64"]),
    "stride": ("sageattn", {n: Q.mT for n in QKV}, ValueError, ["contiguous", "stride"]),
    "heads": ("sageattn", {"k": Q[:, :3], "v": Q[:, :3]}, ValueError, ["heads", "3", "8"]),
    "cu_seqlens": ("sageattn_varlen", {"cu_seqlens_k": None}, TypeError, ["cu_seqlens_k", "Tensor"]),
    "cu_seqlens, causal": (
        "sageattn_varlen",
        {"cu_seqlens_k": None, "is_causal": True},
        TypeError,
        ["cu_seqlens_k", "Tensor"],
    ),
    "cu_seqlens shape": (
        "sageattn_varlen",
        {"cu_seqlens_k": torch.tensor([0, 4, 8], dtype=torch.int32), "is_causal": True},
        ValueError,
        ["cu_seqlens_k", "(2,)", "(3,)"],
    ),
    "cu_seqlens dtype": (
        "sageattn_varlen",
        {"cu_seqlens_k": torch.tensor([0, 8]), "is_causal": True},
        ValueError,
        ["cu_seqlens_k", "int32", "int64"],
    ),
    "type of varlen is_causal": ("sageattn_varlen", {"is_causal": 1}, TypeError, ["is_causal", "bool", "int"]),
    "type of varlen sm_scale": ("sageattn_varlen", {"sm_scale": "1"}, TypeError, ["sm_scale", "float", "str"]),
    "type of max_seqlen": ("sageattn_varlen", {"max_seqlen_q": 8.0}, TypeError, ["max_seqlen_q", "int", "float"]),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case: str, reference: None) -> None:
    name, changed, error, words = ERRORS[case]
    arguments: dict[str, Any] = dict.fromkeys(QKV, Q)
    if name == "sageattn_varlen":
        arguments = {**dict.fromkeys(QKV, Q[0]), **LENGTHS, "cu_seqlens_k": LENGTHS["cu_seqlens_q"]}
    with pytest.raises(error) as raised:
        function(name)(**{**arguments, **changed})
    assert raised.type is error
    for word in words:
        assert word in str(raised.value)
