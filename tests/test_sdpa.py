"""`sage.sdpa` and `sage.patch_sdpa` against PyTorch's scaled_dot_product_attention: results, and what is refused."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sage
from compare import compare

torch_sdpa = F.scaled_dot_product_attention

# The most accurate recipe: what is compared here is the meaning of arguments, which no rounding hides.
ATOL = 6e-3


def randn(*shape: int) -> Tensor:
    return torch.randn(shape)


def agree(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> Tensor:
    out = sage.sdpa(query, key, value, **arguments, recipe="int16")
    expected = torch_sdpa(query, key, value, **arguments)
    assert out.dtype == expected.dtype and out.is_contiguous()
    compare(out, expected, atol=ATOL, what="sdpa")
    return out


def test_signature() -> None:
    """PyTorch's, followed by what only sage has. PyTorch's is a builtin, whose documentation starts with it."""
    documented = torch_sdpa.__doc__.split(") ->")[0].split("(", 1)[1]
    names = [part.split("=")[0].strip() for part in documented.split(",")]
    parameters = inspect.signature(sage.sdpa).parameters
    assert [name for name in names if name != "*"] == list(parameters)[: len(names) - names.count("*")]
    assert [p.default for p in parameters.values()][3:8] == [None, 0.0, False, None, False]
    assert list(parameters)[8:] == ["recipe", "backend", "fallback"]


SHAPES = {
    "4d": ((2, 4, 9, 32), (2, 4, 12, 32)),
    "3d": ((4, 9, 32), (4, 12, 32)),
    "2d": ((9, 32), (12, 32)),
    "5d": ((2, 3, 4, 9, 32), (2, 3, 4, 12, 32)),
    "one batch of keys": ((2, 4, 9, 32), (1, 4, 12, 32)),
    "one head of keys": ((2, 4, 9, 32), (2, 1, 12, 32)),
    "one batch of queries": ((1, 4, 9, 32), (2, 4, 12, 32)),
    "one head of queries": ((2, 1, 9, 32), (2, 4, 12, 32)),
    "queries without batch": ((4, 9, 32), (2, 4, 12, 32)),
    "queries without heads": ((9, 32), (2, 4, 12, 32)),
    "outer and inner batch": ((2, 1, 4, 9, 32), (3, 4, 12, 32)),
    "empty batch": ((0, 4, 9, 32), (0, 4, 12, 32)),
    "no queries": ((2, 4, 0, 32), (2, 4, 12, 32)),
    "no keys": ((2, 4, 9, 32), (2, 4, 0, 32)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str) -> None:
    shape_q, shape_k = SHAPES[name]
    agree(randn(*shape_q), randn(*shape_k), randn(*shape_k))


def test_value_broadcasts_on_its_own() -> None:
    agree(randn(2, 4, 9, 32), randn(2, 1, 12, 32), randn(1, 4, 12, 32))


@pytest.mark.parametrize("seqlens", [(40, 40), (40, 70), (70, 40), (1, 70), (70, 1)], ids=str)
def test_causal_is_top_left(seqlens: tuple[int, int]) -> None:
    seqlen_q, seqlen_k = seqlens
    query, key, value = randn(2, 4, seqlen_q, 32), randn(2, 4, seqlen_k, 32), randn(2, 4, seqlen_k, 32)
    agree(query, key, value, is_causal=True)


@pytest.mark.parametrize("num_heads", [(8, 2), (8, 1), (8, 8)], ids=str)
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)], ids=str)
def test_gqa(lead: tuple[int, ...], num_heads: tuple[int, int]) -> None:
    heads_q, heads_kv = num_heads
    agree(randn(*lead, heads_q, 9, 32), randn(*lead, heads_kv, 12, 32), randn(*lead, heads_kv, 12, 32), enable_gqa=True)


MASK_SHAPES = [(9, 12), (1, 12), (9, 1), (4, 1, 12), (1, 1, 9, 12), (2, 1, 1, 12), (2, 4, 9, 12)]


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32], ids=str)
@pytest.mark.parametrize("shape", MASK_SHAPES, ids=str)
def test_masks(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Rows that see no key included: PyTorch gives 0 there too."""
    hidden = torch.rand(shape) < 0.4
    hidden[..., 0, :] = True
    mask = ~hidden if dtype == torch.bool else torch.randn(shape).masked_fill(hidden, -torch.inf)
    out = agree(randn(2, 4, 9, 32), randn(2, 4, 12, 32), randn(2, 4, 12, 32), attn_mask=mask)
    assert (out[:, :, 0] == 0).all()


@pytest.mark.parametrize("shape", [(9, 12), (4, 9, 12), (3, 1, 9, 12), (2, 1, 1, 1, 12), (2, 3, 4, 9, 12)], ids=str)
def test_masks_of_five_dimensions(shape: tuple[int, ...]) -> None:
    agree(randn(2, 3, 4, 9, 32), randn(2, 3, 4, 12, 32), randn(2, 3, 4, 12, 32), attn_mask=torch.rand(shape) < 0.7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes_and_scale(dtype: torch.dtype) -> None:
    query, key, value = (randn(2, 4, 20, 32).to(dtype) for _ in range(3))
    out = sage.sdpa(query, key, value, recipe="int16", scale=0.3)
    expected = torch_sdpa(query.double(), key.double(), value.double(), scale=0.3)
    assert out.dtype == dtype
    compare(out, expected, atol=ATOL, rtol=torch.finfo(dtype).eps, what="sdpa")


def test_result_lies_in_memory_as_the_query() -> None:
    """So that the model's `transpose(1, 2).reshape(...)` behind the call is free, as it is with PyTorch."""
    q, k, v = torch.randn(3, 2, 50, 4, 32).transpose(2, 3)
    for query in (q, q.contiguous()):
        out, expected = sage.sdpa(query, k, v), F.scaled_dot_product_attention(query, k, v)
        assert out.stride() == expected.stride() == query.stride()
        compare(out, expected, atol=0.02, what="out")


def test_head_dim_need_not_be_contiguous() -> None:
    query, key, value = (randn(2, 4, 32, 20).transpose(2, 3) for _ in range(3))
    agree(query, key, value)


def test_autocast() -> None:
    query, key, value = randn(2, 4, 20, 32), randn(2, 4, 20, 32).bfloat16(), randn(2, 4, 20, 32)
    with torch.autocast("cpu", torch.bfloat16):
        out = sage.sdpa(query, key, value, recipe="int16")
        expected = torch_sdpa(query, key, value)
    assert out.dtype == expected.dtype == torch.bfloat16
    compare(out, expected, atol=0.03, what="sdpa under autocast")


def test_recipe_and_backend_reach_the_kernel() -> None:
    query, key, value = (randn(2, 4, 20, 32) for _ in range(3))
    for recipe, backend in (("int16", "cpu"), ("sage1_int8", "cpu"), ("sage3", "reference")):
        out = sage.sdpa(query, key, value, recipe=recipe, backend=backend)
        assert torch.equal(out, sage.attention(query, key, value, recipe=recipe, backend=backend))


def square(**changed: Any) -> dict[str, Any]:
    return {"query": randn(1, 2, 5, 8), "key": randn(1, 2, 5, 8), "value": randn(1, 2, 5, 8), **changed}


# A valid call of PyTorch that no recipe serves, and words of the reason.
NOT_SERVED = {
    "dropout": (square(dropout_p=0.5), ["dropout_p", "0.5"]),
    "float64": ({n: t.double() for n, t in square().items()}, ["float64"]),
    "head_dim": ({n: randn(1, 1, 4, 300) for n in ("query", "key", "value")}, ["head_dim", "300"]),
    "head_dim 0": ({n: randn(1, 1, 4, 0) for n in ("query", "key", "value")}, ["head_dim", "0"]),
    "head_dim of value": (square(value=randn(1, 2, 5, 16)), ["head_dim", "16"]),
    "gradient": (square(query=randn(1, 2, 5, 8).requires_grad_()), ["sage1@cpu", "gradient", "sagebwd"]),
    "gradient of value": (square(value=randn(1, 2, 5, 8).requires_grad_()), ["sage1@cpu", "gradient", "sagebwd"]),
    "gradient of the mask": (square(attn_mask=torch.zeros(5, 5, requires_grad=True)), ["attn_mask", "gradient"]),
    "heads of value": (square(query=randn(1, 4, 5, 8), value=randn(1, 4, 5, 8), enable_gqa=True), ["heads", "2", "4"]),
}


@pytest.mark.parametrize("case", NOT_SERVED)
def test_not_served(case: str) -> None:
    arguments, words = NOT_SERVED[case]
    with pytest.raises(NotImplementedError) as reason:
        sage.sdpa(**arguments)
    for word in words:
        assert word in str(reason.value)
    torch.manual_seed(7)
    out = sage.sdpa(**arguments, fallback=True)
    torch.manual_seed(7)
    expected = torch_sdpa(**arguments)
    assert torch.equal(out, expected) and out.requires_grad == expected.requires_grad


BAD = {
    "mask and causal": (
        square(attn_mask=torch.ones(5, 5, dtype=torch.bool), is_causal=True),
        ValueError,
        ["attn_mask", "is_causal"],
    ),
    "heads without gqa": (square(query=randn(1, 4, 5, 8)), ValueError, ["heads", "enable_gqa", "4", "2"]),
    "heads that do not divide": (
        square(query=randn(1, 3, 5, 8), enable_gqa=True),
        ValueError,
        ["heads", "multiple", "3", "2"],
    ),
    "rank 1": (square(query=randn(8)), ValueError, ["query", "2 dimensions", "(8,)"]),
    "batches": (square(query=randn(3, 2, 5, 8), key=randn(2, 2, 5, 8)), ValueError, ["batch", "(3,)", "(2,)"]),
    "dtype mix": (square(key=randn(1, 2, 5, 8).half()), ValueError, ["float16", "float32"]),
    "head_dim of key": (square(key=randn(1, 2, 5, 16)), ValueError, ["head_dim", "8", "16"]),
    "seqlen of value": (square(value=randn(1, 2, 6, 8)), ValueError, ["5", "6"]),
    "seqlen of value beyond a causal mask": (
        square(query=randn(1, 2, 4, 8), value=randn(1, 2, 6, 8), is_causal=True),
        ValueError,
        ["5", "6"],
    ),
    "dropout": (square(dropout_p=1.5), ValueError, ["dropout_p", "[0, 1]", "1.5"]),
    "mask shape": (square(attn_mask=torch.zeros(5, 6)), ValueError, ["attn_mask", "(5, 6)"]),
    "batch of mask": (square(attn_mask=torch.zeros(3, 1, 5, 5)), ValueError, ["attn_mask", "(3, 1, 5, 5)"]),
    "mask dtype": (square(attn_mask=torch.zeros(5, 5, dtype=torch.int32)), ValueError, ["attn_mask", "int32"]),
    "recipe": (square(recipe="sage9"), ValueError, ["recipe", "sage9"]),
    "tensor": (square(key=None), TypeError, ["key", "torch.Tensor", "NoneType"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_never_falls_back(case: str) -> None:
    arguments, error, words = BAD[case]
    for fallback in (False, True):
        with pytest.raises(error) as raised:
            sage.sdpa(**arguments, fallback=fallback)
        assert raised.type is error
        for word in words:
            assert word in str(raised.value)


def test_no_gradient_needed_under_no_grad() -> None:
    arguments = square(query=randn(1, 2, 5, 8).requires_grad_())
    with torch.no_grad():
        assert not sage.sdpa(**arguments).requires_grad


def test_patch_runs_and_counts() -> None:
    x = square()
    with sage.patch_sdpa(recipe="int16", fallback=True) as calls:
        assert F.scaled_dot_product_attention is not torch_sdpa
        served = F.scaled_dot_product_attention(x["query"], x["key"], x["value"], None, 0.0, True, scale=0.5)
        torch.nn.functional.scaled_dot_product_attention(**x)
        F.scaled_dot_product_attention(**x, dropout_p=0.5)
        F.scaled_dot_product_attention(**x, dropout_p=0.5)
        F.scaled_dot_product_attention(**{n: t.double() for n, t in x.items()})
    assert F.scaled_dot_product_attention is torch_sdpa
    assert torch.equal(served, sage.sdpa(**x, is_causal=True, scale=0.5, recipe="int16"))
    assert calls.served == 2
    assert sorted(calls.fell_back.values()) == [1, 2] and any("dropout_p" in reason for reason in calls.fell_back)


def test_patch_refuses_without_fallback() -> None:
    with sage.patch_sdpa() as calls, pytest.raises(NotImplementedError, match="dropout_p"):
        F.scaled_dot_product_attention(**square(), dropout_p=0.5)
    assert calls.served == 0 and not calls.fell_back


def test_patch_is_restored_after_an_exception() -> None:
    with pytest.raises(RuntimeError, match="inside"), sage.patch_sdpa():
        raise RuntimeError("inside")
    assert F.scaled_dot_product_attention is torch_sdpa


def test_patches_nest() -> None:
    x = square()
    with sage.patch_sdpa(recipe="int16") as outer:
        with sage.patch_sdpa(recipe="sage1_int8") as inner:
            out = F.scaled_dot_product_attention(**x)
        assert torch.equal(out, sage.sdpa(**x, recipe="sage1_int8"))
        assert torch.equal(F.scaled_dot_product_attention(**x), sage.sdpa(**x, recipe="int16"))
    assert (outer.served, inner.served) == (1, 1)
    assert F.scaled_dot_product_attention is torch_sdpa


def test_patched_module() -> None:
    """A module of PyTorch's own, which looks the function up in torch.nn.functional."""
    attention = torch.nn.MultiheadAttention(64, 4, batch_first=True)
    x = randn(2, 30, 64)
    expected, _ = attention(x, x, x, need_weights=False)
    with torch.no_grad(), sage.patch_sdpa(recipe="int16") as calls:
        out, _ = attention.train()(x, x, x, need_weights=False)
    assert calls.served == 1
    compare(out, expected, atol=ATOL, what="MultiheadAttention")
