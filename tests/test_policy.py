"""MixedRecipe: its fields and text, and calls of which some tiles of queries have another recipe."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

import sage
from bounds import DTYPES
from compare import compare
from distributions import nrmse
from needs import needs_emulator
from sage import PRESETS, MixedRecipe, Recipe, _select
from sage.reference import exact

RECIPES = {
    "reference": ("sage1", "sage1(qk=int4)"),
    "cpu": ("int16", "sage1@cpu"),
    "emulator": ("sage1", "sage1(pv_accum=fp16)"),
    "cuda": ("sage1", "sage1(pv_accum=fp16)"),
}


def make(backend: str, seqlen_q: int, seqlen_k: int, **changed: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, head_dim = changed.get("batch", 1), changed.get("heads", 2), 64
    shapes = (batch, heads, seqlen_q, head_dim), (batch, 2, seqlen_k, head_dim), (batch, 2, seqlen_k, head_dim)
    return tuple(torch.randn(shape).to(DTYPES[backend]) for shape in shapes)


def picked(policy: MixedRecipe, *inputs: Tensor, **rules: Any) -> tuple[Tensor, Tensor]:
    """Both recipes on everything, and of each its rows. Tensors are bhsd."""
    is_fine = torch.zeros(inputs[0].shape[2], dtype=torch.bool)
    for first, end in policy.fine_tiles:
        is_fine[128 * first : 128 * end] = True
    (base, base_lse), (fine, fine_lse) = (
        sage.attention(*inputs, recipe=recipe, return_lse=True, **rules) for recipe in (policy.base, policy.fine)
    )
    return torch.where(is_fine[:, None], fine, base), torch.where(is_fine, fine_lse, base_lse)


TILES = [((0, 1),), ((1, 2),), ((2, 99),), ((0, 1), (2, 3)), ((1, 2), (2, 3)), ((0, 99),), ((7, 9),)]


@pytest.mark.parametrize("tiles", TILES, ids=str)
def test_is_what_the_two_recipes_give(backend: str, tiles: tuple[tuple[int, int], ...]) -> None:
    """All keys are seen, so that every call has all of them, and smoothing and the scales of V are the same, too."""
    policy = MixedRecipe(*RECIPES[backend], fine_tiles=tiles)
    inputs = make(backend, 300, 200)
    out, lse = sage.attention(*inputs, recipe=policy, backend=backend, return_lse=True)
    expected, expected_lse = picked(policy, *inputs, backend=backend)
    assert out.shape == expected.shape and out.dtype == expected.dtype and out.is_contiguous()
    rounding = 1e-5 if backend == "reference" else 0.0  # whose sums follow the shapes
    compare(out, expected, atol=rounding, what="out")
    compare(lse, expected_lse, atol=rounding, what="lse")
    assert torch.equal(sage.attention(*inputs, recipe=policy, backend=backend), out)


RULES = {
    "causal": {"is_causal": True},
    "window": {"window_size": (100, 30)},
    "wide_right": {"window_size": (20, 150)},
    "open_right": {"window_size": (50, -1)},
    "open_left": {"window_size": (-1, 10)},
    "causal_window": {"is_causal": True, "window_size": (90, 5)},
    "mask": {"attn_mask": "full", "is_causal": True},
    "mask_rows": {"attn_mask": "rows", "window_size": (-1, 40)},
    "mask_keys": {"attn_mask": "keys", "is_causal": True},
    "widest": {"window_size": (2**63 - 1, 2**63 - 1)},
    "widest_left": {"window_size": (2**63 - 1, 3)},
    "seqused": {"seqused_k": True, "is_causal": True},
    "seqused_window": {"seqused_k": True, "window_size": (60, 30)},
}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("seqlens", [(384, 384), (400, 464), (520, 200), (300, 1)], ids=str)
def test_rules_hold_for_every_run(seqlens: tuple[int, int], rules: dict[str, Any]) -> None:
    """int16 is fine enough that one wrong key at the edge of a mask shows, and its rows are unlike those of INT8."""
    seqlen_q, seqlen_k = seqlens
    q, k, v = make("reference", seqlen_q, seqlen_k, batch=2, heads=4)
    rules = dict(rules)
    if "seqused_k" in rules:
        rules["seqused_k"] = torch.tensor([seqlen_k, seqlen_k // 2], dtype=torch.int32)
    if "attn_mask" in rules:
        shape = {"full": (4, seqlen_q, seqlen_k), "rows": (seqlen_q, 1), "keys": (2, 1, 1, seqlen_k)}
        rules["attn_mask"] = torch.rand(shape[rules["attn_mask"]]) < 0.8
    policy = MixedRecipe("int16", "sage1@cpu", fine_tiles=((1, 2), (3, 4)))
    out, lse = sage.attention(q, k, v, recipe=policy, backend="cpu", return_lse=True, **rules)
    names = {"is_causal": "causal", "window_size": "window"}
    expected, expected_lse = exact(
        q, k, v, scale=0.125, **{names.get(name, name): rule for name, rule in rules.items()}
    )
    bound = torch.full((seqlen_q, 1), 3e-3)
    bound[128:256] = bound[384:512] = 0.05
    assert ((out - expected).abs() <= bound * v.abs().max()).all()
    assert torch.equal(lse.isneginf(), expected_lse.isneginf())
    seen = ~lse.isneginf()
    assert ((lse - expected_lse)[seen].abs() <= (2 * bound[:, 0]).expand_as(lse)[seen]).all()
    of_fine = seen & (bound[:, 0] > 0.01)
    if of_fine.any() and seqlen_k > 1:
        other = sage.attention(q, k, v, recipe="int16", backend="cpu", **rules)
        assert not torch.equal(out[of_fine], other[of_fine])


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_causal_rows_where_only_their_keys_matter(backend: str, layout: str) -> None:
    """Without smoothing of K, and with P and V in 16 bits, nothing of a result depends on keys that no query sees."""
    plain = (Recipe.parse(recipe).replace(smooth_k=False) for recipe in RECIPES[backend])
    policy = MixedRecipe(*plain, fine_tiles=((0, 1), (2, 3)))
    inputs = make(backend, 384, 384)
    expected, expected_lse = picked(policy, *inputs, backend=backend, is_causal=True)
    if layout == "bshd":
        inputs = tuple(t.transpose(1, 2).contiguous() for t in inputs)
        expected = expected.transpose(1, 2)
    out, lse = sage.attention(*inputs, layout=layout, recipe=policy, backend=backend, is_causal=True, return_lse=True)
    # The INT16 V of CPUs has a scale per channel, which unseen keys do enter.
    tolerance = 2e-2 if backend == "cpu" else 1e-5
    compare(out, expected, atol=tolerance, what="out")
    compare(lse, expected_lse, atol=tolerance, what="lse")


def test_errors_lie_between_those_of_the_recipes() -> None:
    q, k, v = make("reference", 512, 512)
    expected = exact(q, k, v, scale=0.125)[0]
    errors = [
        nrmse(sage.attention(q, k, v, recipe=MixedRecipe(fine_tiles=tiles), backend="reference"), expected)
        for tiles in ((), ((0, 1),), ((0, 1), (2, 3)), ((0, 4),))
    ]
    assert errors[0] > 1.1 * errors[1] > 1.2 * errors[2] > 2 * errors[3]
    assert errors[3] == nrmse(sage.attention(q, k, v, recipe="sage2pp", backend="reference"), expected)


@needs_emulator
def test_kernels_of_sm120(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default policy, with the kernels of both recipes."""
    monkeypatch.setenv(_select.EMULATED_VARIABLE, "sm120")
    policy = MixedRecipe(fine_tiles=((1, 2),))
    inputs = make("emulator", 300, 200)
    out, lse = sage.attention(*inputs, recipe=policy, backend="emulator", return_lse=True)
    expected, expected_lse = picked(policy, *inputs, backend="emulator")
    assert torch.equal(out, expected) and torch.equal(lse, expected_lse)


@pytest.mark.parametrize("seqlens", [(0, 5), (5, 0), (200, 0)], ids=str)
def test_empty(seqlens: tuple[int, int]) -> None:
    q, k, v = make("reference", *seqlens)
    out, lse = sage.attention(q, k, v, recipe=MixedRecipe(fine_tiles=((1, 2),)), backend="reference", return_lse=True)
    assert out.shape == q.shape and (out == 0).all() and lse.shape == q.shape[:3] and lse.isneginf().all()


def test_gradients() -> None:
    policy = MixedRecipe("sagebwd", "sagebwd(dp=int8)", fine_tiles=((1, 2),))
    inputs = [t.requires_grad_() for t in make("reference", 256, 256)]
    dout = torch.randn(1, 2, 256, 64)
    grads = torch.autograd.grad(sage.attention(*inputs, recipe=policy, backend="reference"), inputs, dout)
    plain = torch.autograd.grad(sage.attention(*inputs, recipe="sagebwd", backend="reference"), inputs, dout)
    assert all(nrmse(grad, expected) < 0.05 for grad, expected in zip(grads, plain))
    assert not torch.equal(grads[0][:, :, 128:], plain[0][:, :, 128:])
    assert torch.equal(grads[0][:, :, :128], plain[0][:, :, :128])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_compiles_to_one_graph(backend: str) -> None:
    policy = MixedRecipe(*RECIPES[backend], fine_layers=(3,), fine_tiles=((1, 2),))

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for layer in (2, 3):
            q = sage.attention(q, k, v, recipe=policy.at(layer), backend=backend, is_causal=True)
        return q

    torch._dynamo.reset()
    inputs = make(backend, 300, 320)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(*inputs), model(*inputs))


def test_layers() -> None:
    policy = MixedRecipe(fine_layers=(27, 0, 0), fine_tiles=((0, 2),))
    assert policy.fine_layers == (0, 27)
    assert policy.at(0) == policy.at(27) == PRESETS["sage2pp"]
    assert policy.at(1) == MixedRecipe(fine_tiles=((0, 2),))
    assert MixedRecipe(fine_layers=(0,)).at(5) is PRESETS["sage3"]
    q, k, v = make("reference", 130, 20)
    for call in (sage.attention, varlen):
        with pytest.raises(
            ValueError, match=r"must be what MixedRecipe.at\(layer\) returns, got .*fine_layers \(0, 27\)"
        ):
            call(q, k, v, recipe=policy, backend="reference")
    out = sage.attention(q, k, v, recipe=MixedRecipe(fine_tiles=((0, 2),)), backend="reference")
    assert torch.equal(out, sage.attention(q, k, v, recipe="sage2pp", backend="reference"))
    for bad in (-1, True, "1", 1.0):
        with pytest.raises(ValueError, match="layer must be an integer >= 0, got"):
            policy.at(bad)


def varlen(q: Tensor, k: Tensor, v: Tensor, **rules: Any) -> Tensor:
    packed = [t[0].transpose(0, 1) for t in (q, k, v)]
    lengths = [torch.tensor([0, t.shape[0]], dtype=torch.int32) for t in packed[:2]]
    return sage.attention_varlen(*packed, *lengths, len(packed[0]), len(packed[1]), **rules)


def test_varlen_has_no_tiles() -> None:
    q, k, v = make("reference", 130, 20)
    with pytest.raises(
        NotImplementedError, match=r"fine_tiles \(\(0, 1\),\): packed sequences have tiles of their own"
    ):
        varlen(q, k, v, recipe=MixedRecipe(fine_tiles=((0, 1),)), backend="reference")
    plain = varlen(q, k, v, recipe="sage3", backend="reference")
    assert torch.equal(varlen(q, k, v, recipe=MixedRecipe(), backend="reference"), plain)


def test_arguments_are_those_of_the_whole_call() -> None:
    """A run has fewer rows than the call, and must not make a mask fit that does not."""
    q, k, v = make("reference", 300, 50)
    policy = MixedRecipe(fine_tiles=((1, 2),))
    with pytest.raises(ValueError, match=r"attn_mask must .* = \(1, 2, 300, 50\), got shape \(400, 50\)"):
        sage.attention(q, k, v, attn_mask=torch.ones(400, 50, dtype=torch.bool), recipe=policy, backend="reference")
    with pytest.raises(ValueError, match=r"seqused_k\[0\] must be within \[0, 50\].* got 51"):
        used = torch.tensor([51], dtype=torch.int32)
        sage.attention(q, k, v, seqused_k=used, is_causal=True, recipe=policy, backend="reference")
    with pytest.raises(ValueError, match=r"seqused_k\[0\] must be within \[0, 50\].* got -1"):
        used = torch.tensor([-1], dtype=torch.int32)
        sage.attention(q, k, v, seqused_k=used, is_causal=True, recipe=policy, backend="reference")
    with pytest.raises(NotImplementedError, match="nvfp4"):
        sage.attention(q, k, v, recipe=policy, backend="cpu")


@pytest.mark.parametrize(
    "policy",
    [
        MixedRecipe(),
        MixedRecipe("sage3(hadamard=True)", Recipe.parse("sage2"), fine_layers=[5, 1], fine_tiles=[[0, 1], [4, 9]]),
    ],
    ids=["default", "changed"],
)
def test_json_round_trip(policy: MixedRecipe) -> None:
    again = MixedRecipe.from_dict(json.loads(json.dumps(policy.to_dict())))
    assert again == policy and hash(again) == hash(policy)
    assert MixedRecipe.from_dict({}) == MixedRecipe()
    assert policy.to_dict()["base"] == str(policy.base)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"base": "auto"}, "policy field base must be a sage.Recipe or the text of one, got 'auto'"),
        ({"fine": 3}, "policy field fine must be a sage.Recipe or the text of one, got 3"),
        ({"fine": "sage9"}, "sage9"),
        ({"fine": "sage2(block_q=64)"}, "policy field fine must have the block_q of base, 128, got 64"),
        ({"fine_layers": (1, -2)}, "policy field fine_layers must hold integers >= 0, got -2"),
        ({"fine_layers": (True,)}, "policy field fine_layers must hold integers >= 0, got True"),
        ({"fine_layers": 3}, "policy field fine_layers must be a sequence, got 3"),
        ({"fine_layers": "12"}, "policy field fine_layers must be a sequence, got '12'"),
        ({"fine_tiles": (1, 2)}, "policy field fine_tiles must be a sequence, got 1"),
        ({"fine_tiles": ((1, 1),)}, r"fine_tiles must hold ranges \(first, end\), 0 <= first < end, got \(1, 1\)"),
        ({"fine_tiles": ((-1, 1),)}, r"fine_tiles must hold ranges .* got \(-1, 1\)"),
        ({"fine_tiles": ((0, 1, 2),)}, r"fine_tiles must hold ranges .* got \(0, 1, 2\)"),
        ({"fine_tiles": ((0, 1.5),)}, r"fine_tiles must hold ranges .* got \(0, 1.5\)"),
        ({"fine_tiles": ((4, 6), (5, 7))}, r"fine_tiles must ascend and not overlap, got \(5, 7\) behind 6"),
        ({"fine_tiles": ((4, 6), (0, 2))}, r"fine_tiles must ascend and not overlap, got \(0, 2\) behind 6"),
        ({"layers": (1,)}, "a policy has the fields base, fine, fine_layers, fine_tiles, got 'layers'"),
    ],
)
def test_bad_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixedRecipe.from_dict(fields)
