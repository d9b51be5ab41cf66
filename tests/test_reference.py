"""The reference backend: `exact` against a loop over scalars, every recipe against `exact` with every feature."""

from __future__ import annotations

import importlib
import itertools
import math

import pytest
import torch
from compare import compare
from distributions import make, nrmse
from sage.recipe import PRESETS
from sage.reference import exact, forward
from torch import Tensor

# About 1.5 times each recipe's NRMSE on 1024 normal keys (test_recipe_accuracy.py).
BOUNDS = {
    "int16": 0.0015,
    "sage1@cpu": 0.014,
    "sage1": 0.017,
    "sage1_int8@cpu": 0.023,
    "sage1_int8": 0.023,
    "sagebwd": 0.03,
    "sage2": 0.055,
    "sage2pp": 0.055,
    "sage2_int4": 0.31,
    "sage3": 0.29,
    "sage3_fp8": 0.22,
}
APPROXIMATE = PRESETS["sage2"].replace(approximate_exp=True)
RECIPES = [pytest.param(recipe, id=str(recipe)) for recipe in (*PRESETS.values(), APPROXIMATE)]
INF = math.inf


def inputs(
    batch: int,
    heads_q: int,
    heads_kv: int,
    seqlen_q: int,
    seqlen_k: int,
    head_dim: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, heads_q, seqlen_q, head_dim)] + 2 * [(batch, heads_kv, seqlen_k, head_dim)]
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def brute_force(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    attn_mask: Tensor | None = None,
    seqused_k: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention one query at a time in Python floats, from the contract's words alone."""
    (batch, heads, seqlen_q, _), (_, heads_kv, seqlen_k, _) = q.shape, k.shape
    out, lse = torch.zeros(q.shape, dtype=torch.float64), torch.full(q.shape[:3], -INF, dtype=torch.float64)
    mask = None if attn_mask is None else attn_mask.expand(batch, heads, seqlen_q, seqlen_k)
    for b, h, i in itertools.product(range(batch), range(heads), range(seqlen_q)):
        length = seqlen_k if seqused_k is None else int(seqused_k[b])
        offset = length - seqlen_q
        weights = {}
        for j in range(length):
            if (
                causal
                and j > i + offset
                or window[0] >= 0
                and j < i + offset - window[0]
                or window[1] >= 0
                and j > i + offset + window[1]
            ):
                continue
            score = scale * sum(x * y for x, y in zip(q[b, h, i].tolist(), k[b, h // (heads // heads_kv), j].tolist()))
            if mask is not None and mask.dtype == torch.bool:
                if not mask[b, h, i, j]:
                    continue
            elif mask is not None:
                score += float(mask[b, h, i, j])
            if score != -INF:
                weights[j] = score
        if weights:
            largest = max(weights.values())
            total = sum(math.exp(score - largest) for score in weights.values())
            lse[b, h, i] = largest + math.log(total)
            for j, score in weights.items():
                out[b, h, i] += math.exp(score - largest) / total * v[b, h // (heads // heads_kv), j].double()
    return out, lse


def additive_mask(*shape: int) -> Tensor:
    mask = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    mask[..., ::3] = -INF
    return mask


FEATURES = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window": (3, 2)},
    "window left": {"window": (4, -1)},
    "window right": {"window": (-1, 0)},
    "causal window": {"causal": True, "window": (5, 1)},
    "bool mask": {"attn_mask": torch.rand(2, 4, 11, 17, generator=torch.Generator().manual_seed(5)) > 0.4},
    "key padding mask": {"attn_mask": torch.arange(17) < torch.tensor([9, 17])[:, None, None, None]},
    "additive mask": {"attn_mask": additive_mask(2, 4, 11, 17)},
    "mask 2-D": {"attn_mask": additive_mask(11, 17)},
    "mask per head, causal": {"attn_mask": additive_mask(4, 1, 17), "causal": True},
    "mask per query": {"attn_mask": torch.randn(2, 1, 11, 1, generator=torch.Generator().manual_seed(6))},
    "lengths": {"seqused_k": torch.tensor([5, 17], dtype=torch.int32)},
    "lengths, causal, window": {
        "seqused_k": torch.tensor([13, 0], dtype=torch.int32),
        "causal": True,
        "window": (6, -1),
    },
}


@pytest.mark.parametrize(
    "feature, seqlen_q",
    [
        (name, seqlen_q)
        for name, options in FEATURES.items()
        for seqlen_q in (11, 24)
        if seqlen_q == 11 or "attn_mask" not in options or options["attn_mask"].shape[-2] == 1
    ],
)
def test_exact_against_scalar_loop(feature, seqlen_q):
    options = FEATURES[feature]
    q, k, v = inputs(2, 4, 2, seqlen_q, 17, 5)
    out, lse = exact(q, k, v, scale=0.4, **options)
    expected_out, expected_lse = brute_force(q, k, v, 0.4, **options)
    compare(out, expected_out, atol=1e-12, what="out")
    compare(lse, expected_lse, atol=1e-12, what="lse")


def test_exact_in_row_chunks(monkeypatch):
    q, k, v = inputs(1, 4, 2, 50, 40, 8)
    options = {"scale": 0.3, "causal": True, "attn_mask": additive_mask(50, 40)}
    out, lse = exact(q, k, v, **options)
    monkeypatch.setattr(importlib.import_module("sage.reference.exact"), "_SCORES_AT_ONCE", 4 * 40 * 7)
    chunked_out, chunked_lse = exact(q, k, v, **options)
    compare(chunked_out, out, atol=1e-13, what="out")
    compare(chunked_lse, lse, atol=1e-13, what="lse")


def check(recipe, q: Tensor, k: Tensor, v: Tensor, **options) -> None:
    """forward lands within the recipe's bound of exact, and agrees with it about rows that see no key."""
    scale = q.shape[-1] ** -0.5
    before = [x.clone() for x in (q, k, v)]
    out, lse = forward(q, k, v, recipe, scale=scale, **options)
    expected, expected_lse = exact(q, k, v, scale=scale, **options)
    assert all(torch.equal(x, y) for x, y in zip((q, k, v), before)), "an input was changed"
    assert out.dtype == q.dtype and out.shape == q.shape and lse.dtype == torch.float32 and lse.shape == q.shape[:-1]
    assert torch.equal(lse.isneginf(), expected_lse.isneginf())
    assert (out[lse.isneginf()] == 0).all()
    if expected.any():
        # 2^-9: the rounding of a bfloat16 output; the recipes' own errors add to it in quadrature.
        assert nrmse(out, expected) <= math.hypot(BOUNDS[recipe.name], 2**-9 if q.dtype == torch.bfloat16 else 2**-12)
    finite = ~lse.isneginf()
    # Scores are off by about the recipe's relative error of Q K^T; their weighted mean by much less.
    assert ((lse - expected_lse)[finite].abs() <= 6 * BOUNDS[recipe.name]).all()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("seqlen_q, seqlen_k", [(1, 1), (63, 65), (65, 63), (1, 200), (200, 70), (70, 300)])
def test_lengths(recipe, seqlen_q, seqlen_k, causal):
    check(recipe, *inputs(1, 2, 1, seqlen_q, seqlen_k, 64), causal=causal)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("seqlen_q, seqlen_k, batch", [(0, 7, 2), (7, 0, 2), (0, 0, 2), (7, 9, 0)])
def test_empty(recipe, seqlen_q, seqlen_k, batch):
    out, lse = forward(*inputs(batch, 4, 2, seqlen_q, seqlen_k, 16), recipe, scale=0.25, causal=True)
    assert out.shape == (batch, 4, seqlen_q, 16) and lse.shape == (batch, 4, seqlen_q)
    if seqlen_k == 0:
        assert (out == 0).all() and lse.isneginf().all()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("head_dim", [1, 33, 64, 256])
def test_head_dims(recipe, head_dim):
    check(recipe, *inputs(1, 2, 2, 100, 150, head_dim))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("heads_q, heads_kv", [(6, 2), (4, 1)])
def test_gqa_is_the_same_as_repeated_heads(recipe, heads_q, heads_kv):
    q, k, v = inputs(2, heads_q, heads_kv, 40, 90, 32)
    out, lse = forward(q, k, v, recipe, scale=0.2)
    expanded = [x.repeat_interleave(heads_q // heads_kv, 1) for x in (k, v)]
    expected_out, expected_lse = forward(q, *expanded, recipe, scale=0.2)
    compare(out, expected_out, atol=1e-5, what="out")
    compare(lse, expected_lse, atol=1e-5, what="lse")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16bit_inputs(recipe, dtype):
    check(recipe, *inputs(1, 2, 2, 100, 150, 64, dtype=dtype))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("window", [(20, 10), (0, 0), (-1, 5), (100, -1)])
@pytest.mark.parametrize("causal", [False, True])
def test_windows(recipe, window, causal):
    check(recipe, *inputs(1, 2, 1, 90, 130, 32), window=window, causal=causal)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("shape", [(2, 4, 70, 130), (2, 1, 1, 130), (4, 70, 1), (70, 130), (1, 130)])
def test_masks_broadcast(recipe, shape):
    generator = torch.Generator().manual_seed(3)
    q, k, v = inputs(2, 4, 2, 70, 130, 32)
    seen = torch.rand(shape, generator=generator) > 0.3
    if seen.dim() > 1 and seen.shape[-2] > 1:
        seen[..., 5, :] = False
    additive = torch.randn(shape, generator=generator).masked_fill(~seen, -INF)
    check(recipe, q, k, v, attn_mask=seen)
    check(recipe, q, k, v, attn_mask=additive)
    check(recipe, q, k, v, attn_mask=additive.bfloat16(), causal=True)
    only_hides = torch.zeros(shape).masked_fill(~seen, -INF)
    for x, y in zip(
        forward(q, k, v, recipe, scale=0.2, attn_mask=seen), forward(q, k, v, recipe, scale=0.2, attn_mask=only_hides)
    ):
        assert torch.equal(x, y)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_finite_masks_do_not_hide(recipe, dtype):
    q, k, v = inputs(1, 2, 2, 20, 130, 32)
    mask = torch.zeros(20, 130, dtype=dtype)
    mask[3] = torch.finfo(dtype).min  # every key the same: they all count
    mask[4, :100] = torch.finfo(dtype).min  # next to keys of weight 1 they vanish
    mask[5, 40] = INF  # counts as the largest finite value: this key takes all
    mask[6] = -INF
    out, lse = forward(q, k, v, recipe, scale=0.2, attn_mask=mask)
    bound = 2.5 * BOUNDS[recipe.name]
    assert nrmse(out[:, :, 3], v.mean(-2)) <= bound
    assert nrmse(out[:, :, 4], exact(q[:, :, 4:5], k[:, :, 100:], v[:, :, 100:], scale=0.2)[0][:, :, 0]) <= bound
    # V itself is rounded: e2m1 values are up to 1 / 4 apart relative to the largest of a block.
    assert nrmse(out[:, :, 5], v[:, :, 40]) <= (0.15 if recipe.pv == "nvfp4" else 0.05)
    assert (out[:, :, 6] == 0).all() and lse[:, :, 6].isneginf().all()
    assert torch.isfinite(out).all() and torch.isfinite(lse[:, :, :6]).all()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("causal", [False, True])
def test_seqused_k_is_the_shorter_sequence_whatever_the_padding_holds(recipe, causal):
    q, k, v = inputs(3, 4, 2, 50, 200, 32)
    k, v = k + 5, v + 1
    lengths = [0, 77, 200]
    for b, length in enumerate(lengths):
        k[b, :, length:], v[b, :, length:] = torch.nan, INF
    out, lse = forward(q, k, v, recipe, scale=0.2, causal=causal, seqused_k=torch.tensor(lengths, dtype=torch.int32))
    for b, length in enumerate(lengths):
        shorter = forward(
            q[b : b + 1], k[b : b + 1, :, :length], v[b : b + 1, :, :length], recipe, scale=0.2, causal=causal
        )
        compare(out[b : b + 1], shorter[0], atol=1e-5, what=f"out, {length} keys")
        compare(lse[b : b + 1], shorter[1], atol=1e-5, what=f"lse, {length} keys")


@pytest.mark.parametrize("feature", FEATURES)
def test_masking_rules_key_by_key(feature):
    """int16 is fine enough that one wrong key at the edge of a mask shows."""
    out, lse = forward(
        *inputs(2, 4, 2, 11, 17, 5), PRESETS["int16"].replace(block_k=16), scale=0.4, **FEATURES[feature]
    )
    expected_out, expected_lse = brute_force(*inputs(2, 4, 2, 11, 17, 5), 0.4, **FEATURES[feature])
    compare(out, expected_out, atol=3e-3, what="out")
    compare(lse, expected_lse, atol=3e-3, what="lse")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("octaves", [-1400, 1400])
def test_scores_of_any_size(recipe, octaves):
    """Very negative (or positive) scores in every row: the maximum starts at -inf, not at 0."""
    shift = octaves * math.log(2)
    q, k, v = inputs(1, 2, 2, 40, 150, 32)
    shifted = forward(q, k, v, recipe, scale=0.2, attn_mask=torch.full((1, 1), shift))
    plain = forward(q, k, v, recipe, scale=0.2)
    # Float32 scores near 1400 are 2^-13 apart. A format's rounding may turn that into one step, which the LSE sees where
    # it is that of the rounded P.
    assert nrmse(shifted[0], plain[0]) <= 0.2 * BOUNDS[recipe.name]
    rounded = {"fp8_e4m3": 2e-3, "nvfp4": 1e-2}.get(recipe.pv) if "fp16" not in recipe.pv_accum else None
    compare(shifted[1] - shift, plain[1], atol=rounded or 5e-4, what="lse")


@pytest.mark.parametrize("recipe", RECIPES)
def test_zero_channels_rows_and_constants(recipe):
    q, k, v = inputs(1, 2, 2, 40, 150, 32)
    v[..., 3], k[..., 5], q[..., 7], q[:, :, 9] = 0, 0, 0, 0
    check(recipe, q, k, v)
    assert (forward(q, k, v, recipe, scale=0.2)[0][..., 3] == 0).all()
    zero = torch.zeros_like(k)
    assert (forward(q, k, zero, recipe, scale=0.2)[0] == 0).all()
    # Without a difference between keys every one has the same weight, and smoothing leaves nothing of K.
    for keys in (zero, torch.full_like(k, 3.0)):
        out, lse = forward(q, keys, v, recipe, scale=0.2)
        expected = exact(q, keys, v, scale=0.2)
        assert nrmse(out, expected[0]) <= 2.5 * BOUNDS[recipe.name]
        # NVFP4 takes 1 for 6 * 88 / 512.
        compare(lse, expected[1], atol=0.0309 if recipe.pv == "nvfp4" else 1e-4, what="lse")


@pytest.mark.parametrize("recipe", RECIPES)
def test_constant_v_comes_back(recipe):
    """The row sum is that of the P which meets V, and every format holds 0.75: nothing is left of P's rounding.

    For FP8 P V with fp16 accumulators it is that of the unrounded P, so that P's rounding is left: of few keys, most.
    """
    q, k, v = inputs(1, 2, 2, 70, 300, 64)
    v = torch.full_like(v, 0.75)
    out = forward(q, k, v, recipe, scale=0.3, causal=True)[0]
    compare(out, v[:, :, :70], atol=0, rtol=0.02 if recipe.pv_accum == "fp16+fp32" else 1e-5, what="out")


@pytest.mark.parametrize("name", ["sage2", "sage2pp"])
def test_folds_change_nothing_but_rounding(name):
    q, k, v = make("normal", seqlen=600, num_heads=2)
    out, lse = forward(q, k, v, PRESETS[name].replace(fold_every=1), scale=0.1)
    for fold_every in (2, 3, 10, 64):  # of 10 steps: a fold at the end, steps after the last one, no fold
        folded, folded_lse = forward(q, k, v, PRESETS[name].replace(fold_every=fold_every), scale=0.1)
        assert nrmse(folded, out) < (2e-3 if name == "sage2pp" else 1e-6)
        compare(folded_lse, lse, atol=1e-5, what="lse")


def test_fp16_accumulators_hold_their_largest_sums():
    """Every P is p_max and every V v_max: the sum of a step and that of 64 steps stay finite, and are right.

    What a step adds, 64512 / 128 = 504, is a multiple of fp16's spacing up to 32 steps, and of half of it up to 64.
    """
    q, k, v = torch.zeros(1, 1, 4, 64), torch.zeros(1, 1, 70 * 64, 64), torch.full((1, 1, 70 * 64, 64), 3.0)
    for fields, rtol in (({}, 1e-6), ({"p_max": 448, "v_max": 2.25}, 1e-6), ({"fold_every": 64}, 0.01)):
        out = forward(q, k, v, PRESETS["sage2pp"].replace(**fields), scale=1.0)[0]
        compare(out, torch.full_like(out, 3.0), atol=0, rtol=rtol, what="out")


def test_key_order_is_that_of_the_keys_turned_round():
    """Whole tiles: the last key first is what the first key first is to the turned-round tensors."""
    q, k, v = make("sink", seqlen=512, num_heads=2)
    recipe = PRESETS["sage2"].replace(qk_granularity="token")
    out, lse = forward(q, k, v, recipe, scale=0.1)
    other, other_lse = forward(q, k.flip(2), v.flip(2), recipe.replace(key_order="forward"), scale=0.1)
    compare(other, out, atol=1e-5, what="out")
    compare(other_lse, lse, atol=1e-5, what="lse")
    assert nrmse(forward(q, k, v, recipe.replace(key_order="forward"), scale=0.1)[0], out) > 1e-3


def test_approximate_exp_element_by_element():
    """V is the unit matrix and Q is 0, so that a row of the output is P over its sum, and the mask is the scores."""
    rows, keys, p_max = 40, 200, 448.0
    generator = torch.Generator().manual_seed(6)
    # Fractions of an octave for which no code or e4m3 value is a tie. The first key is the largest.
    log2_p = -torch.randint(0, 256 * 20, (rows, keys), generator=generator) / 256 - 1 / 512
    log2_p[:, 0] = 0
    log2_p[3::7, 5::11] = -INF
    recipe = APPROXIMATE.replace(key_order="forward", block_k=48)
    q, k, v = torch.zeros(1, 1, rows, 256), torch.zeros(1, 1, keys, 256), torch.eye(keys, 256)[None, None]
    out, lse = forward(q, k, v, recipe, scale=1.0, attn_mask=log2_p * math.log(2))
    e4m3 = [fraction * 2.0**-9 for fraction in range(8)]
    e4m3 += [(1 + fraction / 8) * 2.0**exponent for exponent in range(-6, 9) for fraction in range(8)][:-1]
    expected = torch.zeros(rows, keys)
    for row, key in itertools.product(range(rows), range(keys)):
        x = log2_p[row, key].item()
        if x == -INF:
            continue
        of_first_rows = key % 64 in range(16, 32) and row % 16 < 8
        of_last_rows = key % 64 in range(48, 64) and row % 16 >= 8
        if of_first_rows or of_last_rows:
            expected[row, key] = e4m3[max(0, round(8 * (x + math.log2(p_max) + 7 - 0.0573)))]
        else:
            expected[row, key] = min(e4m3, key=lambda value: abs(value - p_max * 2**x))
    p = out[0, 0, :, :keys] * p_max * lse[0, 0].exp()[:, None]
    compare(p, expected, atol=0, rtol=1e-5, what="p")
    assert (out[..., keys:] == 0).all()


@pytest.mark.parametrize("name", ["sage3", "sage3_fp8"])
@pytest.mark.parametrize("key_order", ["forward", "reverse"])
def test_p_of_nvfp4_recipes_element_by_element(name, key_order):
    """V is a multiple of the unit matrix that NVFP4 holds and Q is 0; the mask is the scores, with maxima anywhere within
    an octave. Whole octaves: it does not matter in which step the maximum comes."""
    rows, keys = 30, 200
    generator = torch.Generator().manual_seed(6)
    log2_p = 10 * torch.rand(rows, keys, generator=generator) + torch.rand(rows, 1, generator=generator) - 300
    log2_p[3::7, 5::11] = -INF
    log2_p[4, 32:64] = -INF
    recipe = PRESETS[name].replace(key_order=key_order, block_k=48)
    q, k, v = torch.zeros(1, 1, rows, 256), torch.zeros(1, 1, keys, 256), 0.75 * torch.eye(keys, 256)[None, None]
    out, lse = forward(q, k, v, recipe, scale=1.0, attn_mask=log2_p * math.log(2))
    e4m3 = [fraction * 2.0**-9 for fraction in range(8)]
    e4m3 += [(1 + fraction / 8) * 2.0**exponent for exponent in range(-6, 9) for fraction in range(8)][:-1]
    expected, expected_lse = torch.zeros(rows, keys, dtype=torch.float64), []
    for row, scores in enumerate(log2_p.double()):
        reference = math.ceil(scores.max())
        p = recipe.p_max * torch.exp2(scores - reference)
        for first in range(0, keys, 16):
            block = p[first : first + 16]
            if name == "sage3":
                scale = e4m3[math.floor(8 * math.log2(block.max()) + 35)] if block.any() else 1.0
                values = [scale * value for value in (0, 0.5, 1, 1.5, 2, 3, 4, 6)]
            else:
                values = e4m3
            nearest = (torch.tensor(values, dtype=torch.float64) - block[:, None]).abs().argmin(1)
            expected[row, first : first + 16] = torch.tensor(values, dtype=torch.float64)[nearest]
        expected_lse.append((reference + math.log2(expected[row].sum() / recipe.p_max)) * math.log(2))
    row_sum = expected.sum(1, keepdim=True)
    p = (out[0, 0, :, :keys].double() / 0.75) * row_sum
    # Scores near -300 are 2^-15 apart in float32, so that a few P near a tie round the other way.
    assert ((p - expected).abs() > 1e-4 * expected).double().mean() < 2e-3
    assert nrmse(p, expected) < 5e-3
    compare(lse[0, 0], torch.tensor(expected_lse), atol=2e-3, what="lse")
    assert (out[..., keys:] == 0).all()


@pytest.mark.parametrize("name", ["sage1", "sage2_int4", "sage3", "int16"])
@pytest.mark.parametrize("head_dim", [40, 128])
def test_rotation_is_invisible_but_for_rounding(name, head_dim):
    inputs_ = inputs(1, 4, 2, 70, 150, head_dim)
    check(PRESETS[name].replace(hadamard=True, smooth_q=True), *inputs_, causal=True)
    plain, rotated = (
        forward(*inputs_, PRESETS[name].replace(hadamard=hadamard), scale=0.1) for hadamard in (False, True)
    )
    assert not torch.equal(plain[0], rotated[0])


@pytest.mark.parametrize("name", ["sage1", "sage2_int4", "sage3", "int16"])
def test_query_smoothing_is_invisible_but_for_rounding(name):
    """A constant added to Q adds its product with K to the scores, which no rounding of Q touches."""
    q, k, v = inputs(1, 2, 2, 300, 200, 64)
    offset = 8 * torch.randn(1, 2, 1, 64, generator=torch.Generator().manual_seed(9))
    recipe = PRESETS[name].replace(smooth_q=True)
    mask = 0.05 * offset @ k.mT
    out, lse = forward(q + offset, k, v, recipe, scale=0.05)
    expected, expected_lse = forward(q, k, v, recipe, scale=0.05, attn_mask=mask.expand(1, 2, 300, 200))
    # The offset meets K as K is held for it: with 8 bits at least, or two NVFP4 planes.
    assert nrmse(out, expected) < (0.08 if recipe.qk == "nvfp4" else 0.04)
    compare(lse, expected_lse, atol=0.1 if recipe.qk == "nvfp4" else 0.05, what="lse")


@pytest.mark.parametrize("changes", [{"p_max": 224.0}, {"v_max": 224.0}, {"p_max": 224.0, "v_max": 224.0}])
def test_p_and_v_scales_are_undone(changes):
    """Powers of two change nothing but e4m3's smallest values."""
    q, k, v = make("normal", seqlen=300, num_heads=2)
    out = [forward(q, k, v, recipe, scale=0.1)[0] for recipe in (PRESETS["sage2"], PRESETS["sage2"].replace(**changes))]
    assert nrmse(out[1], out[0]) < 1e-3


@pytest.mark.parametrize("recipe", RECIPES)
def test_smooth_v_is_undone(recipe):
    """The constant in V goes around the rounding: as if it had been added to the output."""
    q, k, v = inputs(1, 2, 1, 70, 150, 32)
    recipe = recipe.replace(smooth_v=True)
    out, lse = forward(q, k, v, recipe, scale=0.2, causal=True)
    moved, moved_lse = forward(q, k, v + 5, recipe, scale=0.2, causal=True)
    # V + 5 in float32 loses up to 2^-22; a rounded V may differ by one step here and there.
    assert nrmse(moved - 5, out) <= 0.1 * BOUNDS[recipe.name]
    assert torch.equal(moved_lse, lse)
    out, lse = forward(q, k, v, recipe, scale=0.2, seqused_k=torch.tensor([0], dtype=torch.int32))
    assert (out == 0).all() and lse.isneginf().all()


@pytest.mark.parametrize("name", ["sage2", "sage3"])
def test_smooth_v_helps_where_v_has_a_bias(name):
    q, k, v = make("vbias", seqlen=300, num_heads=2)
    expected = exact(q, k, v, scale=0.1)[0]
    errors = [
        nrmse(forward(q, k, v, PRESETS[name].replace(smooth_v=smooth), scale=0.1)[0], expected)
        for smooth in (False, True)
    ]
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("name", ["sage1", "sage2", "sage3", "int16"])
def test_key_smoothing_is_invisible_but_for_rounding(name):
    """A constant added to K changes neither output nor, by more than q . constant, the LSE."""
    q, k, v = inputs(1, 2, 2, 64, 200, 64)
    offset = torch.randn(1, 2, 1, 64, generator=torch.Generator().manual_seed(9))
    out, lse = forward(q, k, v, PRESETS[name], scale=0.125)
    moved_out, moved_lse = forward(q, k + 8 * offset, v, PRESETS[name], scale=0.125)
    # K + 8 N(0, 1) in float32 loses up to 2^-20; a rounded K may differ by one step here and there.
    assert nrmse(moved_out, out) < 0.1 * BOUNDS[name]
    compare(moved_lse - (0.125 * q.double() * 8 * offset.double()).sum(-1), lse, atol=1e-3, what="lse")


@pytest.mark.parametrize(
    "name, spread, atol",
    [
        ("int16", 1.0, 1e-3),
        ("sage1@cpu", 0.25, 1e-3),
        ("sage1", 0.25, 1e-3),
        ("sage1_int8", 0.25, 1e-3),
        ("sage2", 0.25, 5e-3),  # of the rounded P
        ("sage2pp", 0.25, 1e-3),
        ("sagebwd", 0.25, 1e-3),
    ],
)
def test_lse_of_bf16_inputs_with_a_channel_bias_of_50(name, spread, atol):
    """Scores of standard deviation `spread` next to the bias's share of tens of units."""
    generator = torch.Generator().manual_seed(4)
    q, k, v = make("normal")
    k = k + 50 * torch.randn(1, 4, 1, 128, generator=generator)
    q, k, v = (spread * q).bfloat16(), k.bfloat16(), v.bfloat16()
    lse = forward(q, k, v, PRESETS[name], scale=128**-0.5)[1]
    expected = exact(q, k, v, scale=128**-0.5)[1]
    assert expected.abs().max() > 40
    compare(lse, expected, atol=atol, what="lse")


@pytest.mark.parametrize("recipe", RECIPES)
def test_nan_reaches_its_outputs(recipe):
    q, k, v = inputs(1, 2, 2, 40, 150, 32)
    q_nan, k_nan, v_nan = q.clone(), k.clone(), v.clone()
    q_nan[0, 1, 7, 3], k_nan[0, 1, 20, 3], v_nan[0, 1, 20, 3] = torch.nan, torch.nan, torch.nan
    out = forward(q_nan, k, v, recipe, scale=0.2)[0]
    assert out[0, 1, 7].isnan().all() and torch.isfinite(out[0, 0]).all()
    out = forward(q, k_nan, v, recipe, scale=0.2)[0]
    assert out[0, 1].isnan().all() and torch.isfinite(out[0, 0]).all()
    out = forward(q, k, v_nan, recipe, scale=0.2)[0]
    assert out[0, 1, :, 3].isnan().all() and torch.isfinite(out[0, 0]).all()


def test_what_no_recipe_means_is_refused():
    q, k, v = inputs(1, 2, 2, 8, 8, 16)
    with pytest.raises(ValueError, match="fp22 must be False"):
        forward(q, k, v, PRESETS["sage1"], scale=1.0, fp22=True)
    with pytest.raises(ValueError, match="fp22 must be False"):
        forward(q, k, v, PRESETS["sage2pp"], scale=1.0, fp22=True)
    for changes in ({"pv_accum": "fp32", "fold_every": 1}, {"fold_every": 2}):
        with pytest.raises(NotImplementedError, match="v_granularity 'block'"):
            forward(q, k, v, PRESETS["sage2"].replace(v_granularity="block", **changes), scale=1.0)
    with pytest.raises(ValueError, match="num_heads_q must be a multiple of num_heads_kv 2, got 3"):
        forward(torch.randn(1, 3, 8, 16), k, v, PRESETS["sage1"], scale=1.0)
