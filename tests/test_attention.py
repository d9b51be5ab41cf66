"""`sage.attention` on every backend: each feature against float64, the kernels against the reference's steps."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sage
from bounds import BOUNDS, CPU_RECIPES, DTYPE_EPS
from compare import compare
from distributions import nrmse
from kernel_reference import kernel_steps
from sage._select import choose, extension
from sage.recipe import PRESETS, Recipe
from sage.reference import exact

pytestmark = pytest.mark.usefixtures("poisoned")

# The softmax works in base 2, so that is where float32 ends. Rounding of float32 is what is left of an LSE near there.
LSE_LIMIT = torch.finfo(torch.float32).max * math.log(2)
LSE_RTOL = 1e-6


def make(
    dtype: torch.dtype,
    seqlen_q: int,
    seqlen_k: int,
    head_dim: int = 64,
    *,
    batch: int = 1,
    num_heads_q: int = 2,
    num_heads_kv: int = 2,
) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(batch, num_heads_q, seqlen_q, head_dim).to(dtype)
    k, v = (torch.randn(batch, num_heads_kv, seqlen_k, head_dim).to(dtype) for _ in range(2))
    return q, k, v


def check(
    backend: str, recipe: str, q: Tensor, k: Tensor, v: Tensor, *, error: float = 1.0, **rules: Any
) -> tuple[Tensor, Tensor]:
    """Run, and compare with float64 and with the reference of the same recipe. Tensors are bhsd; `error` scales all
    bounds where a case is harder than normal data, as larger scores are."""
    before = [t.clone() for t in (q, k, v)]
    out, lse = sage.attention(q, k, v, recipe=recipe, backend=backend, return_lse=True, **rules)
    for name, t, saved in zip("qkv", (q, k, v), before):
        assert torch.equal(t.nan_to_num(), saved.nan_to_num()), f"{name} was modified"
    assert out.shape == q.shape and out.dtype == q.dtype and out.is_contiguous()
    assert lse.shape == q.shape[:3] and lse.dtype == torch.float32 and lse.is_contiguous()

    bounds, eps = BOUNDS[recipe], DTYPE_EPS[q.dtype]
    expected, expected_lse = exact(q, k, v, **to_reference(q, rules))
    largest = float(v.nan_to_num().abs().max()) if v.numel() else 0.0
    assert out.isfinite().all()
    if expected.norm():
        assert nrmse(out, expected) <= error * bounds.nrmse + eps
    compare(out, expected, atol=(error * bounds.error + eps) * largest, what="out against float64")
    expected_lse = torch.where(expected_lse == -torch.inf, expected_lse, expected_lse.clamp(-LSE_LIMIT, LSE_LIMIT))
    compare(lse, expected_lse, atol=error * bounds.lse, rtol=LSE_RTOL, what="lse against float64")
    if backend != "reference":
        with kernel_steps(backend, recipe, q.shape[-1]) as steps:
            same, same_lse = sage.attention(q, k, v, recipe=steps, backend="reference", return_lse=True, **rules)
        rounding = (error * bounds.difference + eps) * largest
        compare(out, same, atol=rounding, what="out against the reference")
        if same.norm():
            assert nrmse(out, same) <= error * bounds.difference_nrmse + eps
        compare(lse, same_lse, atol=error * bounds.lse_difference, rtol=LSE_RTOL, what="lse against the reference")
        # A kernel may err twice as much as the recipe itself does in float32, and by rounding.
        own = sage.attention(*(t.float() for t in (q, k, v)), recipe=recipe, backend="reference", **rules)
        own_error = float((own - expected).abs().max()) if own.numel() else 0.0
        compare(out, expected, atol=2 * own_error + rounding, what="out against the recipe's own error")
    return out, lse


def to_reference(q: Tensor, rules: dict[str, Any]) -> dict[str, Any]:
    names = {"is_causal": "causal", "window_size": "window"}
    return {"scale": q.shape[-1] ** -0.5} | {names.get(name, name): value for name, value in rules.items()}


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(
    "seqlens",
    [(1, 1), (9, 9), (63, 64), (64, 65), (65, 63), (129, 1), (1, 129), (1001, 503), (503, 1001)],
    ids=lambda s: f"{s[0]}x{s[1]}",
)
def test_lengths(backend: str, recipe: str, seqlens: tuple[int, int], is_causal: bool, dtype: torch.dtype) -> None:
    check(backend, recipe, *make(dtype, *seqlens), is_causal=is_causal)


@pytest.mark.parametrize("head_dim", [1, 7, 32, 64, 80, 96, 128, 192, 256])
def test_head_dims(backend: str, recipe: str, head_dim: int, dtype: torch.dtype) -> None:
    inputs = make(dtype, 65, 130, head_dim)
    try:
        sage.attention(*inputs, recipe=recipe, backend=backend)
    except NotImplementedError as reason:  # on some GPUs, which tests/test_planning.py names
        whys = "bytes of shared memory for a block", "qk nvfp4 serve head_dim up to 128 only"
        if head_dim <= 128 or not any(why in str(reason) for why in whys):
            raise
        pytest.skip(str(reason))
    # With few channels one coarse code of V weighs more than normal data at head_dim 64 and above shows.
    check(backend, recipe, *inputs, is_causal=True, error=2.0 if head_dim < 32 else 1.0)


@pytest.mark.central
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(backend: str, recipe: str, dtype: torch.dtype) -> None:
    q, k, v = make(dtype, 70, 140, batch=2)
    if backend in ("cuda", "emulator") and dtype == torch.float32:
        with pytest.raises(NotImplementedError, match='dtype float16 and bfloat16 only, got float32.*"reference"'):
            sage.attention(q, k, v, recipe=recipe, backend=backend)
    else:
        check(backend, recipe, q, k, v)


@pytest.mark.central
@pytest.mark.parametrize("num_heads", [(8, 2), (6, 1), (3, 3)], ids=["gqa", "mqa", "mha"])
def test_heads(backend: str, recipe: str, num_heads: tuple[int, int], dtype: torch.dtype) -> None:
    q, k, v = make(dtype, 65, 70, batch=2, num_heads_q=num_heads[0], num_heads_kv=num_heads[1])
    out, lse = check(backend, recipe, q, k, v)
    repeated = [t.repeat_interleave(num_heads[0] // num_heads[1], 1) for t in (k, v)]
    out_repeated, lse_repeated = check(backend, recipe, q, *repeated)
    rounding = 1e-5 if backend == "reference" else 0.0  # whose sums follow the shapes
    compare(out, out_repeated, atol=rounding, what="out")
    compare(lse, lse_repeated, atol=rounding, what="lse")


@pytest.mark.parametrize("scale", [0.3, 0.01, 0.0, -0.2])
def test_scale(backend: str, recipe: str, scale: float, dtype: torch.dtype) -> None:
    check(backend, recipe, *make(dtype, 33, 90), scale=scale, error=3.0)


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("window_size", [(0, 0), (5, 0), (-1, 3), (16, -1), (0, -1), (70, 40)], ids=str)
@pytest.mark.parametrize("seqlens", [(65, 140), (140, 65)], ids=["more_keys", "more_queries"])
def test_windows(
    backend: str,
    recipe: str,
    seqlens: tuple[int, int],
    window_size: tuple[int, int],
    is_causal: bool,
    dtype: torch.dtype,
) -> None:
    check(backend, recipe, *make(dtype, *seqlens, head_dim=32), window_size=window_size, is_causal=is_causal)


def test_windows_wider_than_the_sequences(backend: str, recipe: str, dtype: torch.dtype) -> None:
    q, k, v = make(dtype, 70, 60, head_dim=32)
    expected = sage.attention(q, k, v, recipe=recipe, backend=backend)
    for wide in (130, 2**62, 2**63 - 1):
        for window_size in ((wide, -1), (-1, wide), (wide, wide)):
            out = sage.attention(q, k, v, window_size=window_size, recipe=recipe, backend=backend)
            assert torch.equal(out, expected), f"{window_size} hides something"


MASK_SHAPES = [
    (70, 90),
    (1, 90),
    (70, 1),
    (4, 1, 90),
    (1, 1, 70, 90),
    (2, 1, 1, 90),
    (1, 4, 70, 1),
    (2, 4, 1, 1),
    (2, 4, 70, 90),
]


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", MASK_SHAPES, ids=str)
def test_masks(backend: str, recipe: str, shape: tuple[int, ...], mask_dtype: torch.dtype, dtype: torch.dtype) -> None:
    """Every dimension broadcast or not; a third of the entries hide their key, which can be all keys of a query."""
    hidden = torch.rand(shape) < 0.3
    mask = ~hidden if mask_dtype == torch.bool else torch.randn(shape).masked_fill(hidden, -torch.inf).to(mask_dtype)
    check(backend, recipe, *make(dtype, 70, 90, 32, batch=2, num_heads_q=4), attn_mask=mask)


@pytest.mark.central
def test_mask_with_other_rules(backend: str, recipe: str, dtype: torch.dtype) -> None:
    """A query sees a key that the mask, the causal rule, the window and the length all let it see."""
    mask = torch.rand(2, 1, 70, 90) < 0.7
    seqused_k = torch.tensor([90, 75], dtype=torch.int32)
    check(
        backend,
        recipe,
        *make(dtype, 70, 90, batch=2),
        attn_mask=mask,
        is_causal=True,
        window_size=(40, 5),
        seqused_k=seqused_k,
    )


def test_mask_strides(backend: str, recipe: str, dtype: torch.dtype) -> None:
    q, k, v = make(dtype, 70, 90)
    mask = torch.randn(90, 70).T
    strided, _ = check(backend, recipe, q, k, v, attn_mask=mask)
    contiguous, _ = check(backend, recipe, q, k, v, attn_mask=mask.contiguous())
    assert torch.equal(strided, contiguous)


@pytest.mark.central
def test_fully_masked_rows(backend: str, recipe: str, dtype: torch.dtype) -> None:
    q, k, v = make(dtype, 70, 200)
    mask = torch.ones(70, 200, dtype=torch.bool)
    mask[3] = mask[64:68] = False
    for form in (mask, torch.zeros(70, 200).masked_fill(~mask, -torch.inf)):
        out, lse = check(backend, recipe, q, k, v, attn_mask=form)
        assert (out[:, :, ~mask.any(1)] == 0).all() and (lse[:, :, ~mask.any(1)] == -torch.inf).all()


@pytest.mark.central
@pytest.mark.parametrize("mask_dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_finite_mask_values_hide_nothing(
    backend: str, recipe: str, mask_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    """finfo.min is -inf for a query that sees other keys, and the same for all keys where it is everywhere."""
    q, k, v = make(dtype, 40, 150)
    lowest = torch.finfo(mask_dtype).min
    mask = torch.zeros(40, 150, dtype=mask_dtype)
    mask[:, 100:] = lowest
    mask[7] = lowest
    out, lse = check(backend, recipe, q, k, v, attn_mask=mask)
    assert lse.isfinite().all()
    if (
        mask_dtype != torch.float16
    ):  # where scores of order 1 vanish beside the mask; beside float16's -65504 they do not
        rounding = 2e-3 + BOUNDS[recipe].value / 10  # of which 150 keys average out most
        compare(out[:, :, 7], v.double().mean(2), atol=rounding * float(v.abs().max()), what="the mean of v")


@pytest.mark.central
def test_infinite_mask_values(backend: str, recipe: str, dtype: torch.dtype) -> None:
    """+inf leaves the keys that have it; with -inf elsewhere nothing changes."""
    q, k, v = make(dtype, 40, 150)
    mask = torch.zeros(40, 150)
    mask[:, 20] = mask[5, 140] = torch.inf
    mask[:, 60:] += torch.where(mask[:, 60:] == 0, -torch.inf, 0.0)
    out, lse = check(backend, recipe, q, k, v, attn_mask=mask)
    rounding = BOUNDS[recipe].value * float(v.abs().max())
    compare(out[:, :, 0], v[:, :, 20], atol=rounding, what="the only key with +inf")
    compare(out[:, :, 5], (v[:, :, 20] + v[:, :, 140]) / 2, atol=rounding, what="two keys with +inf")


@pytest.mark.central
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_seqused_k(backend: str, recipe: str, is_causal: bool, dtype: torch.dtype) -> None:
    """Keys past the length do not exist: whatever they hold, and for the diagonal too."""
    q, k, v = make(dtype, 70, 150, batch=4)
    seqused_k = torch.tensor([150, 0, 1, 131], dtype=torch.int32)
    out, lse = check(backend, recipe, q, k, v, seqused_k=seqused_k, is_causal=is_causal)
    assert (out[1] == 0).all() and (lse[1] == -torch.inf).all()
    for b, used in enumerate(seqused_k.tolist()):
        alone = sage.attention(
            q[b : b + 1],
            k[b : b + 1, :, :used],
            v[b : b + 1, :, :used],
            is_causal=is_causal,
            recipe=recipe,
            backend=backend,
            return_lse=True,
        )
        compare(out[b : b + 1], alone[0], atol=1e-6, what=f"sequence {b} alone")
        compare(lse[b : b + 1], alone[1], atol=1e-5, what=f"lse of sequence {b} alone")
        k[b, :, used:] = v[b, :, used:] = torch.nan
    poisoned_out, poisoned_lse = check_finite(backend, recipe, q, k, v, seqused_k=seqused_k, is_causal=is_causal)
    assert torch.equal(out, poisoned_out) and torch.equal(lse, poisoned_lse)


def check_finite(backend: str, recipe: str, q: Tensor, k: Tensor, v: Tensor, **rules: Any) -> tuple[Tensor, Tensor]:
    out, lse = sage.attention(q, k, v, recipe=recipe, backend=backend, return_lse=True, **rules)
    assert out.isfinite().all() and not lse.isnan().any()
    return out, lse


@pytest.mark.parametrize(
    "shape",
    [(1, 2, 0, 5), (1, 2, 5, 0), (1, 2, 0, 0), (0, 2, 5, 5)],
    ids=["no_queries", "no_keys", "neither", "no_batch"],
)
def test_empty(backend: str, recipe: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    batch, heads, seqlen_q, seqlen_k = shape
    q, k, v = make(dtype, seqlen_q, seqlen_k, batch=batch, num_heads_q=heads)
    for rules in ({}, {"is_causal": True}, {"attn_mask": torch.ones(seqlen_q, seqlen_k, dtype=torch.bool)}):
        out, lse = sage.attention(q, k, v, recipe=recipe, backend=backend, return_lse=True, **rules)
        assert out.shape == q.shape and (out == 0).all()
        assert lse.shape == q.shape[:3] and (lse == -torch.inf).all()


BATCH, SEQLEN, HEADS, HEAD_DIM = 2, 70, 3, 48
VIEWS = {
    "fused_bshd": ((BATCH, SEQLEN, 3, HEADS, HEAD_DIM), lambda x: x.unbind(2)),
    "fused_bhsd": ((BATCH, SEQLEN, 3, HEADS, HEAD_DIM), lambda x: x.transpose(1, 3).unbind(2)),
    "sequence_first": ((3, SEQLEN, BATCH, HEADS, HEAD_DIM), lambda x: x.permute(0, 2, 3, 1, 4)),
    "every_other_row": ((3, BATCH, HEADS, 2 * SEQLEN, HEAD_DIM), lambda x: x[..., ::2, :]),
    "odd_offset": ((3, BATCH, HEADS, SEQLEN, HEAD_DIM + 1), lambda x: x[..., 1:]),  # rows are aligned to nothing
    "expanded": ((3, 1, 1, SEQLEN, HEAD_DIM), lambda x: x.expand(3, BATCH, HEADS, SEQLEN, HEAD_DIM)),  # stride 0
}
"""The shape of a tensor and how q, k and v are views of it."""


@pytest.mark.parametrize("is_bfloat16", [False, True], ids=["default", "bfloat16"])
@pytest.mark.parametrize("name", VIEWS)
def test_strides_and_layouts(backend: str, recipe: str, name: str, is_bfloat16: bool, dtype: torch.dtype) -> None:
    """Any view gives what a contiguous bhsd tensor gives, in the view's layout: from kernels, bit for bit."""
    shape, view = VIEWS[name]
    dtype = torch.bfloat16 if is_bfloat16 else dtype
    q, k, v = view(torch.randn(shape).to(dtype))
    layout = "bshd" if name == "fused_bshd" else "bhsd"
    out, lse = sage.attention(q, k, v, layout=layout, recipe=recipe, backend=backend, return_lse=True, is_causal=True)
    assert out.shape == q.shape and out.is_contiguous()
    q, k, v, out = ((t.transpose(1, 2) if layout == "bshd" else t).contiguous() for t in (q, k, v, out))
    contiguous, contiguous_lse = check(backend, recipe, q, k, v, is_causal=True)
    if backend == "reference":  # whose sums follow the strides
        compare(out, contiguous, atol=(BOUNDS[recipe].difference + DTYPE_EPS[dtype]) * float(v.abs().max()), what="out")
        compare(lse, contiguous_lse, atol=BOUNDS[recipe].lse_difference, what="lse")
    else:
        assert torch.equal(out, contiguous) and torch.equal(lse, contiguous_lse)


@pytest.mark.parametrize(
    "shape, strides",
    [((2, 2, 40, 32), (2**31 + 64, 40 * 32, 32)), ((1, 1, 10, 32), (0, 0, 2**28 + 64))],
    ids=["batches", "rows"],
)
def test_offsets_beyond_32_bits(
    kernels: str, recipe: str, shape: tuple[int, int, int, int], strides: tuple[int, int, int]
) -> None:
    """Batches, or rows, whose last is 2^31 elements away from the first: views of memory that is never touched in
    between."""
    size = shape[1] * 40 * 32
    clean = [torch.randn(shape, dtype=torch.bfloat16) for _ in range(3)]
    last = sum((n - 1) * stride for n, stride in zip(shape, strides))
    assert last > 2**31
    memory = torch.UntypedStorage(2 * (last + 3 * size), device=clean[0].device)
    storage = torch.tensor([], dtype=torch.bfloat16).set_(memory)
    views = [storage.as_strided(shape, (*strides, 1), i * size if shape[0] > 1 else i * 32) for i in range(3)]
    for view, tensor in zip(views, clean, strict=True):
        view.copy_(tensor)
    run = functools.partial(sage.attention, recipe=recipe, backend=kernels)
    assert torch.equal(run(*views), run(*clean))


@pytest.mark.central
def test_every_argument_matters(backend: str, recipe: str, dtype: torch.dtype) -> None:
    q, k, v = make(dtype, 40, 60, batch=2)
    base = {"recipe": recipe, "backend": backend}
    out = sage.attention(q, k, v, **base)
    changes = {
        "attn_mask": torch.rand(40, 60) < 0.9,
        "is_causal": True,
        "scale": 0.11,
        "window_size": (30, 30),
        "seqused_k": torch.tensor([59, 60], dtype=torch.int32),
        "recipe": Recipe.parse(recipe).replace(smooth_k=False),
    }
    for name, value in changes.items():
        changed = sage.attention(q, k, v, **{**base, name: value})
        assert not torch.equal(out, changed), f"{name} changed nothing"
    for index, name in enumerate("qkv"):
        inputs = [q, k, v]
        inputs[index] = inputs[index] * 1.01 + 0.01 * torch.randn_like(inputs[index])
        assert not torch.equal(out, sage.attention(*inputs, **base)), f"{name} changed nothing"
    square = q, k[:, :, :40], v[:, :, :40]
    assert not torch.equal(
        sage.attention(*(t[:, :, :2] for t in square), **base, layout="bshd"),
        sage.attention(*(t[:, :, :2] for t in square), **base),
    )
    assert isinstance(sage.attention(q, k, v, **base, return_lse=True), tuple)


@pytest.mark.central
def test_smooth_k(backend: str, recipe: str, dtype: torch.dtype) -> None:
    """K smoothing undoes a bias per channel that would drown K's codes, and the LSE still has it."""
    q, k, v = make(dtype, 65, 300)
    biased = (k + 20 * torch.randn(1, 2, 1, 64)).to(dtype)
    smooth, _ = check(backend, recipe, q, biased, v, error=2.0)
    expected, _ = exact(q, biased, v, scale=64**-0.5)
    rough = sage.attention(q, biased, v, recipe=Recipe.parse(recipe).replace(smooth_k=False), backend=backend)
    assert nrmse(rough, expected) > 3 * nrmse(smooth, expected)


def test_lse_with_channel_bias(backend: str, recipe: str) -> None:
    """Where q . mean(K) is in the tens, the LSE is still that of float64 to 1e-3, for bf16 inputs too.

    `spread` is the standard deviation of the scores beside that term. With INT8 Q and K it has to be small: rounding
    alone moves the LSE by 3e-3 where it is 1.
    """
    spread = 1.0 if recipe == "int16" else 0.25
    q, k, v = make(torch.float32, 65, 500, 128)
    q, k, v = (spread * q).bfloat16(), (k + 50 * torch.randn(1, 2, 1, 128)).bfloat16(), v.bfloat16()
    _, lse = sage.attention(q, k, v, recipe=recipe, backend=backend, return_lse=True)
    _, expected = exact(q, k, v, scale=128**-0.5)
    assert expected.abs().max() > 100 * spread
    # FP8 and NVFP4 P V with float32 accumulators sum the rounded P. INT4 and NVFP4 round the scores.
    fields = Recipe.parse(recipe)
    atol = {"int4": 0.06, "nvfp4": 0.04 if fields.pv == "nvfp4" else 0.01}.get(fields.qk)
    atol = atol or (5e-3 if fields.pv_accum.startswith("fp32+") else 1e-3)
    compare(lse, expected, atol=atol, what="lse")


@pytest.mark.central
def test_peaked_and_negative_scores(backend: str, recipe: str, dtype: torch.dtype) -> None:
    """One key takes all, or every score is far below 0 (a maximum that starts at 0 would lose the row)."""
    q, k, v = make(dtype, 64, 128)
    out, _ = check(backend, recipe, 8 * k[:, :, :64], 8 * k, v, error=64.0)  # so much larger are the scores
    rounding = (0.003 + BOUNDS[recipe].value) * float(v.abs().max())
    compare(out, v[:, :, :64], atol=rounding, what="the matching key's v")
    q = (torch.rand(1, 2, 64, 64) + 1).to(dtype)
    k = (-30 * torch.ones(1, 2, 128, 64) + 0.1 * torch.randn(1, 2, 128, 64)).to(dtype)
    _, lse = check(backend, recipe, q, k, v, error=2.0)
    assert lse.max() < -300


@pytest.mark.central
def test_constant_and_zero_inputs(backend: str, recipe: str, dtype: torch.dtype) -> None:
    q, k, v = make(dtype, 65, 200)
    zero_channels = torch.ones(64, dtype=dtype)
    zero_channels[[0, 5, 63]] = 0
    zero_rows = torch.ones(200, 1, dtype=dtype)
    zero_rows[[0, 64, 199]] = 0
    check(backend, recipe, q * zero_channels, k * zero_channels, v * zero_channels)
    check(backend, recipe, q * zero_rows[:65], k * zero_rows, v * zero_rows)
    out, lse = check(backend, recipe, torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v))
    assert (out == 0).all()
    is_nvfp4 = Recipe.parse(recipe).pv == "nvfp4"  # which takes 1 for 6 * 88 / 512, and so for V of 1
    compare(lse, torch.full_like(lse, 200.0).log(), atol=0.031 if is_nvfp4 else 1e-4, what="log of the number of keys")
    check(backend, recipe, q, torch.full_like(k, 3.0), v)
    for constant in (1.0, -7.5):  # the largest sum of integer products: it must not wrap, and it must be exact
        out, _ = check(backend, recipe, torch.ones_like(q), torch.ones_like(k), torch.full_like(v, constant))
        rounding = 0.04 if is_nvfp4 else 1e-5
        compare(out, torch.full_like(out, constant), atol=rounding * abs(constant), what="constant v")


@pytest.mark.parametrize("factor", [1e-20, 1e15])
def test_magnitudes(backend: str, recipe: str, factor: float, dtype: torch.dtype) -> None:
    """Scales are relative: v of any magnitude, and q, k whose product is moderate."""
    dtype = torch.bfloat16 if dtype == torch.float16 else dtype  # which holds such magnitudes
    q, k, v = make(torch.float32, 65, 200)
    check(backend, recipe, (q * factor).to(dtype), (k / factor).to(dtype), (v * factor).to(dtype))


@pytest.mark.central
@pytest.mark.parametrize("scale", [1e3, 1e5, 1e7, -1e7, 1e30])
def test_large_scores(backend: str, recipe: str, scale: float, dtype: torch.dtype) -> None:
    """Scores whose last codes are worth any power of two: the nearest key takes all, in whichever tile it is."""
    _, _, v = make(dtype, 200, 200)
    k = torch.randn(1, 2, 200, 64).sign().to(dtype)
    nearest = torch.randperm(200)
    q = k[:, :, nearest] * (1 if scale > 0 else -1)
    out, lse = sage.attention(q, k, v, scale=scale, recipe=recipe, backend=backend, return_lse=True)
    rounding = BOUNDS[recipe].value * float(v.abs().max())
    compare(out, v[:, :, nearest], atol=rounding, what="the nearest key's v")
    fields = Recipe.parse(recipe)
    # Unless it is rotated, INT4 holds K. NVFP4 makes 1 larger by a 32nd, and K has a mean.
    rtol = 0.25 if fields.qk == "int4" and fields.hadamard else 0.15 if fields.qk == "nvfp4" else 0.03
    compare(lse, torch.full_like(lse, 64 * abs(scale)), atol=0.0, rtol=rtol, what="lse")


@pytest.mark.central
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_non_finite_inputs(backend: str, recipe: str, bad: float, dtype: torch.dtype) -> None:
    """A value of q spoils the rows that share its scale or its mean, of v its channel, of k its head; nothing else, and
    nothing silently. The rows of a GPU's warp choose together when to look for a maximum, which is rounding to the
    others."""
    clean = make(dtype, 70, 150, 32)
    row = torch.arange(70)
    fields = Recipe.parse(recipe)
    shares = (row % 8 == 1) & (row // 32 == 1) if fields.qk_granularity == "thread" else row == 33
    shares |= fields.smooth_q | (fields.qk == "nvfp4")  # the mean of all rows, or their power of two
    for index, name in enumerate("qkv"):
        inputs = [t.clone() for t in clean]
        inputs[index][0, 1, 33, 5] = bad
        out = sage.attention(*inputs, recipe=recipe, backend=backend)
        spoiled = torch.zeros(out.shape, dtype=torch.bool)
        spoiled[{"q": (0, 1, shares), "k": (0, 1), "v": (0, 1, slice(None), 5)}[name]] = True
        assert not out[spoiled].isfinite().any(), f"{name}: a finite result where there can be none"
        expected = sage.attention(*clean, recipe=recipe, backend=backend)
        rounding = BOUNDS[recipe].difference * float(clean[2].abs().max()) if backend in ("cuda", "emulator") else 0.0
        compare(out[~spoiled], expected[~spoiled], atol=rounding, what=f"{name}: out elsewhere")


@pytest.mark.parametrize("recipe", CPU_RECIPES)
def test_threads(recipe: str) -> None:
    q, k, v = make(torch.float32, 500, 700, batch=1, num_heads_q=4)
    before = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            results.append(sage.attention(q, k, v, is_causal=True, recipe=recipe, backend="cpu", return_lse=True))
    finally:
        torch.set_num_threads(before)
    for out, lse in results[1:]:
        assert torch.equal(out, results[0][0]) and torch.equal(lse, results[0][1])


def test_default_recipe(backend: str, dtype: torch.dtype) -> None:
    """What "auto" means, and that a plain name means its twin to the CPU kernels and a Recipe object itself."""
    q, k, v = make(dtype, 40, 60)
    means = {"cpu": "sage1@cpu", "reference": "sage1"}.get(backend) or choose(q.device.type, "auto", backend)[1]
    assert torch.equal(
        sage.attention(q, k, v, backend=backend), sage.attention(q, k, v, backend=backend, recipe=PRESETS[means])
    )
    if backend == "cpu":
        assert torch.equal(sage.attention(q, k, v), sage.attention(q, k, v, recipe="sage1@cpu"))
        assert torch.equal(
            sage.attention(q, k, v, recipe="sage1_int8(smooth_k=False)"),
            sage.attention(q, k, v, recipe=PRESETS["sage1_int8@cpu"].replace(smooth_k=False)),
        )
        with pytest.raises(NotImplementedError, match='backend="reference"'):
            sage.attention(q, k, v, recipe=PRESETS["sage1"])


def test_workspace_grows_linearly(kernels: str, recipe: str) -> None:
    def bytes_for(seqlen: int) -> int:
        return (
            extension(kernels)
            .AttnPlan(
                device="cpu" if kernels == "cpu" else "cuda",
                recipe=Recipe.parse(recipe),
                batch=1,
                num_heads_q=8,
                num_heads_kv=8,
                head_dim=64,
                seqlen_q=seqlen,
                seqlen_k=seqlen,
            )
            .workspace_bytes
        )

    assert bytes_for(2**15) <= 2.1 * bytes_for(2**14)
    # Of the order of k and v: less than 8 bytes for each of their elements.
    assert bytes_for(2**15) < 8 * 2**15 * 64 * 8
