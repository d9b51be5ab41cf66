"""backend="emulator": what it stands for, what its plans refuse, and that schedules do not change its results."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import sage
from bounds import BOUNDS, CUDA_CASES, CUDA_VARIANTS, INT4_PP
from compare import compare
from distributions import make as make_distribution
from distributions import nrmse
from kernel_reference import kernel_steps
from sage import _select
from sage.recipe import Recipe
from sage.reference import exact, forward

emulator = pytest.importorskip("sage._emulator", reason="sage._emulator was not built: -DSAGE_EMULATOR=ON")


def make(seqlen_q: int = 70, seqlen_k: int = 150, head_dim: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(1, 2, seqlen, head_dim, dtype=torch.float16) for seqlen in (seqlen_q, seqlen_k, seqlen_k))
    return q, k, v


def plan(**fields: Any) -> Any:
    problem = {"batch": 1, "num_heads_q": 1, "num_heads_kv": 1, "head_dim": 64, "seqlen_q": 64, "seqlen_k": 64}
    recipe = Recipe.parse(fields.pop("recipe", "sage1"))
    return emulator.AttnPlan(**{"device": "cuda", "dtype": "float16", **problem, **fields, "recipe": recipe})


@pytest.mark.parametrize(
    "gpu, recipe, dtype, head_dim, kernel",
    [
        ("sm80", "sage1", "float16", 64, "sm80_fwd_f16_d64"),
        ("sm80", "sage1", "bfloat16", 65, "sm80_fwd_bf16_d128"),
        ("sm80", "sage1(pv_accum=fp16)", "float16", 129, "sm80_fwd_f16acc_d256"),
        ("sm80", "sage1(pv_accum=fp16)", "bfloat16", 1, "sm80_fwd_f16acc_d64"),
        ("sm80", "sage1(pv_accum=fp16+fp32)", "bfloat16", 128, "sm80_fwd_f16acc_f32_d128"),
        ("sm80", "sage1_int8", "float16", 128, "sm80_fwd_int8_d128"),
        ("sm80", "sage1_int8", "bfloat16", 256, "sm80_fwd_int8_d256"),
        ("sm80", "sage1(qk=int4)", "float16", 64, "sm80_fwd_int4_f16_d64"),
        ("sm89", "sage1(qk=int4, smooth_q=True)", "bfloat16", 64, "sm80_fwd_int4_bf16_d64"),
        ("sm89", "sage1", "float16", 64, "sm80_fwd_f16_d64"),
        ("sm89", "sage2", "float16", 64, "sm89_fwd_fp8_d64"),
        ("sm89", "sage2", "bfloat16", 200, "sm89_fwd_fp8_d256"),
        ("sm89", "sage2pp", "bfloat16", 128, "sm89_fwd_fp8_f16acc_d128"),
        ("sm89", "sage2_int4", "float16", 128, "sm89_fwd_int4_fp8_d128"),
        ("sm89", INT4_PP, "bfloat16", 64, "sm89_fwd_int4_fp8_f16acc_d64"),
        ("sm90", "sage1", "float16", 256, "sm80_fwd_f16_d256"),
        ("sm90", "sage2", "bfloat16", 64, "sm90_fwd_wgmma_d64"),
        ("sm90", "sage2(smooth_v=True, hadamard=True)", "float16", 80, "sm90_fwd_wgmma_d128"),
        ("sm90", "sage2(fold_every=2)", "float16", 256, "sm90_fwd_wgmma_d256"),
        ("sm90", "sage2(approximate_exp=True)", "float16", 128, "sm90_fwd_wgmma_approx_d128"),
        ("sm120", "sage1", "float16", 64, "sm80_fwd_f16_d64"),
        ("sm120", "sage2", "float16", 64, "sm120_fwd_mxfp8_d64"),
        ("sm120", "sage2(pv_accum=fp32, fold_every=1)", "bfloat16", 128, "sm120_fwd_mxfp8_d128"),
        ("sm120", "sage2pp", "float16", 64, "sm89_fwd_fp8_f16acc_d64"),
        ("sm120", "sage3", "float16", 128, "sm120_fp4_fwd_nvfp4_d128"),
        ("sm120", "sage3(smooth_q=False, hadamard=True)", "bfloat16", 7, "sm120_fp4_fwd_nvfp4_d64"),
        ("sm120", "sage3_fp8", "bfloat16", 80, "sm120_fp4_fwd_fp8_d128"),
        ("sm120", "sage3_fp8(p_max=16, v_max=1)", "float16", 64, "sm120_fp4_fwd_fp8_d64"),
    ],
)
def test_kernel_of_a_problem(
    monkeypatch: pytest.MonkeyPatch, gpu: str, recipe: str, dtype: str, head_dim: int, kernel: str
) -> None:
    monkeypatch.setenv(_select.EMULATED_VARIABLE, gpu)
    assert plan(recipe=recipe, dtype=dtype, head_dim=head_dim).kernel_name == kernel


@pytest.mark.parametrize("gpu, recipe", [("sm80", "sage1"), ("sm89", "sage2pp"), ("sm90", "sage2"), ("sm120", "sage2")])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_default_recipe_of_a_gpu(monkeypatch: pytest.MonkeyPatch, gpu: str, recipe: str, compiled: bool) -> None:
    """torch.compile asks when it traces."""
    monkeypatch.setenv(_select.EMULATED_VARIABLE, gpu)
    q, k, v = make()

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sage.attention(q, k, v, backend="emulator")

    if compiled:
        torch._dynamo.reset()
        call = torch.compile(call, backend="eager", fullgraph=True)
    assert torch.equal(call(q, k, v), sage.attention(q, k, v, backend="emulator", recipe=recipe))
    assert sage._select.choose("cpu", "auto", "emulator") == ("emulator", recipe)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"dtype": "float32"}, "dtype float16 and bfloat16 only, got float32"),
        ({"recipe": "sage1_int8(qk=int4)"}, "recipe field qk int8 only, got int4"),
        ({"recipe": "sage1(qk_granularity=token)"}, "qk_granularity thread, warp or block only, got token"),
        ({"recipe": "sage1(block_q=64)"}, "block_q 128 only, got 64"),
        ({"recipe": "sage1(block_k=128)"}, "block_k 64 only, got 128"),
        ({"recipe": "sage1(smooth_q=True)"}, "smooth Q for qk int4 and nvfp4 only, got smooth_q with qk int8"),
        (
            {"recipe": "sage1(smooth_v=True)"},
            "smooth V for pv int8, fp8_e4m3 and nvfp4 only, got smooth_v with pv fp16",
        ),
        ({"recipe": "sage1(p_max=448)"}, "p_max 1, v_max 0 only, got 448, 0"),
        ({"recipe": "sage1_int8(v_max=100)"}, "p_max 255, v_max 127 only, got 255, 100"),
        ({"recipe": "sage1_int8(v_granularity=block)"}, "v_granularity channel only, got block"),
        ({"recipe": "sage1(pv_accum=fp16+fp32, fold_every=2)"}, "fold_every .* got 2"),
        ({"recipe": "sage2"}, "FP8 tensor cores .*sm_89"),
        ({"recipe": "sage1@cpu"}, "pv fp16, int8, fp8_e4m3 or nvfp4 only, got int16"),
        ({"seqlen_k": 2**28 + 1}, "seqlen_k up to 268435456, got 268435457"),
    ],
)
def test_refusals(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        plan(**fields)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"recipe": "sage2(p_max=449)"}, "p_max must be in .1, 448.*got 449"),
        ({"recipe": "sage2(pv_accum=fp32, fold_every=1)"}, "block-scaled FP8 tensor cores .sm_120"),
        ({"recipe": "sage2(smooth_q=True)"}, "smooth Q for qk int4 and nvfp4 only, got smooth_q with qk int8"),
        ({"recipe": "sage2(v_granularity=block, fold_every=1)"}, "v_granularity channel only, got block"),
    ],
)
def test_refusals_of_fp8(monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], message: str) -> None:
    monkeypatch.setenv(_select.EMULATED_VARIABLE, "sm89")
    with pytest.raises(NotImplementedError, match=message):
        plan(**fields)


def test_int4_needs_its_tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_select.EMULATED_VARIABLE, "sm120")
    for recipe in ("sage1(qk=int4)", "sage2_int4"):
        with pytest.raises(NotImplementedError, match="got sm_120: they need INT4"):
            plan(recipe=recipe)


@pytest.mark.parametrize(
    "gpu, recipe, message",
    [
        ("sm90", "sage2(fold_every=1)", "recipe field fold_every >= 2 only, got 1"),
        ("sm90", "sage2pp", "got sm_90: they need FP8 tensor cores with mma.sync"),
        ("sm90", "sage2_int4", "got sm_90: they need INT4"),
        ("sm90", "sage1_int8", "got sm_90: they need code that is not made for sm_90"),
        ("sm90", "sage2(pv_accum=fp32, fold_every=1)", "got sm_90: they need block-scaled FP8 tensor cores"),
        ("sm89", "sage2(approximate_exp=True)", "got sm_89: they need .*wgmma .sm_90"),
        ("sm90", "sage2pp(approximate_exp=True)", "serve recipe field approximate_exp false only, got true"),
    ],
)
def test_refusals_around_sm90(monkeypatch: pytest.MonkeyPatch, gpu: str, recipe: str, message: str) -> None:
    monkeypatch.setenv(_select.EMULATED_VARIABLE, gpu)
    with pytest.raises(NotImplementedError, match=message):
        plan(recipe=recipe)


@pytest.mark.parametrize(
    "gpu, recipe, head_dim, message",
    [
        ("sm90", "sage3", 64, "got sm_90: they need NVFP4 tensor cores"),
        ("sm89", "sage3_fp8", 64, "got sm_89: they need NVFP4 tensor cores"),
        ("sm120", "sage3", 129, "qk nvfp4 serve head_dim up to 128 only, got 129"),
        ("sm120", "sage3(block_k=128)", 64, "block_k 64 only, got 128"),
        ("sm120", "sage3(p_max=1000)", 64, r"p_max a power of two in \[16, 2048\] only, got 1000"),
        ("sm120", "sage3(p_two_level=False)", 64, "p_two_level true only, got false"),
        ("sm120", "sage3_fp8(p_max=448)", 64, r"p_max a power of two in \[16, 256\] only, got 448"),
        ("sm120", "sage3_fp8(p_max=8)", 64, r"p_max a power of two in \[16, 256\] only, got 8"),
        ("sm120", "sage3_fp8(approximate_exp=True)", 64, "approximate_exp false only, got true"),
    ],
)
def test_refusals_of_nvfp4(monkeypatch: pytest.MonkeyPatch, gpu: str, recipe: str, head_dim: int, message: str) -> None:
    monkeypatch.setenv(_select.EMULATED_VARIABLE, gpu)
    with pytest.raises(NotImplementedError, match=message):
        plan(recipe=recipe, head_dim=head_dim)


def test_smaller_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """sm_89 runs the same kernels, but for those that need more shared memory than it has."""
    q, k, v = make()
    expected = sage.attention(q, k, v, recipe="sage1", backend="emulator")
    monkeypatch.setenv(_select.EMULATED_VARIABLE, "sm89")
    assert torch.equal(sage.attention(q, k, v, recipe="sage1", backend="emulator"), expected)
    with pytest.raises(NotImplementedError, match="head_dim 256 with pv fp16 needs .* bytes of shared memory .*sm_89"):
        plan(head_dim=256)


def test_unknown_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_select.EMULATED_VARIABLE, "sm70")
    with pytest.raises(ValueError, match="SAGE_EMULATOR_ARCH must be sm80, sm89, sm90 or sm120, got 'sm70'"):
        sage.attention(*make(), backend="emulator")
    with pytest.raises(ValueError, match="CUDA device 0 only, got 1"):
        plan(device_index=1)


def test_cpu_plans_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="no CPU kernels"):
        plan(device="cpu", recipe="sage1@cpu")


def run(made: Any, q: Tensor, k: Tensor, v: Tensor, **changed: Any) -> Tensor:
    out = torch.empty_like(q)
    view = {name: (t.data_ptr(), *t.stride()[:3]) for name, t in {"q": q, "k": k, "v": v, "out": out}.items()}
    workspace = torch.empty(made.workspace_bytes, dtype=torch.uint8)
    made.run(**{**view, "softmax_scale": 0.125, "workspace": workspace.data_ptr(), **changed})
    return out


def test_arguments_of_a_plan() -> None:
    q, k, v = (t[:, :1, :64] for t in make())
    made = plan()
    expected = run(made, q, k, v)
    storage = torch.empty(v.numel() + 1, dtype=v.dtype)
    unaligned = storage[1:].view(64, 64)[None, None].copy_(v)
    with pytest.raises(ValueError, match="v must have data and strides that are multiples of 16 bytes .* v_aligned"):
        run(made, q, k, unaligned)
    assert torch.equal(run(plan(v_aligned=False), q, k, unaligned), expected)
    assert plan(v_aligned=False).workspace_bytes == made.workspace_bytes + 2 * v.numel()  # V is copied
    with pytest.raises(ValueError, match="workspace must be aligned to 64 bytes"):
        run(made, q, k, v, workspace=8)
    with pytest.raises(ValueError, match="cu_seqlens_q must be given with varlen"):
        run(plan(varlen=True, total_q=64, total_k=64), q, k, v)


def test_too_many_blocks() -> None:
    made = plan(recipe="sage1(smooth_k=False)", num_heads_q=2**20, num_heads_kv=2**20, seqlen_q=2**18, batch=2)
    with pytest.raises(ValueError, match="would need .* thread blocks, and CUDA takes at most 2147483647"):
        made.run(q=(64, 0, 0, 0), k=(64, 0, 0, 0), v=(64, 0, 0, 0), out=(64, 0, 0, 0), softmax_scale=1.0, workspace=64)


@pytest.fixture
def configured() -> Iterator[None]:
    yield
    emulator.configure(schedule="round_robin", async_timing="late", accumulate="exact")


@pytest.mark.parametrize("gpu, recipe", CUDA_CASES + CUDA_VARIANTS)
def test_schedules_change_nothing(monkeypatch: pytest.MonkeyPatch, gpu: str, recipe: str, configured: None) -> None:
    monkeypatch.setenv(_select.EMULATED_VARIABLE, gpu)
    q, k, v = make(140, 300)
    expected = None
    for schedule in ("round_robin", "random:1", "priority:1", "priority:2"):
        for async_timing in ("late", "early", "random"):
            emulator.configure(schedule=schedule, async_timing=async_timing)
            result = sage.attention(q, k, v, is_causal=True, recipe=recipe, backend="emulator", return_lse=True)
            expected = expected or result
            assert all(torch.equal(a, b) for a, b in zip(result, expected)), f"{schedule}, {async_timing}"


@pytest.mark.parametrize(
    "gpu, recipe",
    [
        ("sm89", "sage2"),
        ("sm89", "sage2(fold_every=1)"),
        ("sm89", "sage2(fold_every=3)"),
        ("sm89", "sage2_int4(smooth_v=True)"),
        ("sm90", "sage2"),
        ("sm90", "sage2(fold_every=2)"),
        ("sm90", "sage2(fold_every=4, approximate_exp=True)"),
    ],
)
def test_accumulators_that_keep_13_fraction_bits(
    monkeypatch: pytest.MonkeyPatch, gpu: str, recipe: str, configured: None
) -> None:
    """Kernel and reference cut at the same places, in their own ways, and lose as much by it: the row sum, of positive
    numbers, shows how many steps pass between folds."""
    monkeypatch.setenv(_select.EMULATED_VARIABLE, gpu)
    q, k, v = make(140, 1000)
    v = v.abs()
    exact_out, exact_lse = sage.attention(q, k, v, recipe=recipe, backend="emulator", return_lse=True)
    emulator.configure(accumulate="reduced")
    out, lse = sage.attention(q, k, v, recipe=recipe, backend="emulator", return_lse=True)
    with kernel_steps("emulator", recipe, 64) as steps:
        expected, expected_lse = forward(q, k, v, steps, scale=0.125, fp22=True)
        cut = (expected_lse - forward(q, k, v, steps, scale=0.125)[1]).mean().item()
    assert not torch.equal(out, exact_out)
    bounds, largest = BOUNDS[recipe.partition("(")[0]], float(v.max())
    compare(out, expected, atol=bounds.difference * largest, what="out")
    compare(lse, expected_lse, atol=bounds.lse_difference, what="lse")
    assert nrmse(out, exact_out) < 2e-3
    assert cut < 0 and (lse - exact_lse).mean().item() == pytest.approx(cut, rel=0.1)


@pytest.mark.parametrize(
    "gpu, recipe",
    [("sm89", "sage2"), ("sm89", "sage2pp"), ("sm89", INT4_PP), ("sm90", "sage2"), ("sm120", "sage2")],
)
@pytest.mark.parametrize("seqlen_k", [64 * 32, 64 * 32 + 1, 64 * 70 + 9])
def test_folds_of_a_long_sequence(monkeypatch: pytest.MonkeyPatch, gpu: str, recipe: str, seqlen_k: int) -> None:
    """At the presets' fold_every, 32 steps: none, a fold and one more step, several."""
    monkeypatch.setenv(_select.EMULATED_VARIABLE, gpu)
    q, k, v = (torch.randn(1, 1, n, 64, dtype=torch.float16) for n in (17, seqlen_k, seqlen_k))
    k[:, :, 5] *= 8  # moves the maximum in the last step of all, the first in the order of the keys
    out, lse = sage.attention(q, k, v, recipe=recipe, backend="emulator", return_lse=True)
    with kernel_steps("emulator", recipe, 64) as steps:
        expected, expected_lse = sage.attention(q, k, v, recipe=steps, backend="reference", return_lse=True)
    bounds = BOUNDS[recipe]
    assert nrmse(out, expected) < bounds.difference_nrmse
    compare(out, expected, atol=bounds.difference * float(v.abs().max()), what="out")
    compare(lse, expected_lse, atol=bounds.lse_difference, what="lse")


@pytest.mark.parametrize("recipe", ["sage2", "sage2(approximate_exp=True)"])
def test_many_keys_in_the_accumulators_of_sm90(monkeypatch: pytest.MonkeyPatch, recipe: str, configured: None) -> None:
    """The recipe's error, whether accumulators keep 13 fraction bits or all."""
    monkeypatch.setenv(_select.EMULATED_VARIABLE, "sm90")
    q, k, v = (torch.randn(1, 1, n, 128, dtype=torch.float16) for n in (64, 16384, 16384))
    expected = exact(q, k, v, scale=128**-0.5)[0]
    stated = nrmse(sage.attention(q, k, v, recipe=recipe, backend="reference"), expected)
    assert stated < BOUNDS[recipe].nrmse
    for accumulate in ("exact", "reduced"):
        emulator.configure(accumulate=accumulate)
        out = sage.attention(q, k, v, recipe=recipe, backend="emulator")
        assert nrmse(out, expected) < 1.03 * stated, accumulate


@pytest.mark.parametrize("gpu, recipe", CUDA_CASES + CUDA_VARIANTS)
def test_steps_of_the_reference_are_those_of_the_kernel(monkeypatch: pytest.MonkeyPatch, gpu: str, recipe: str) -> None:
    """Not those of the GPU: builds for an H200 may have kernels of older architectures, too."""
    monkeypatch.setenv(_select.EMULATED_VARIABLE, gpu)
    monkeypatch.setattr(emulator, "cuda_architecture", lambda device_index: 90)
    expected = Recipe.parse(recipe)
    for head_dim in (64, 128, 256):
        with kernel_steps("emulator", recipe, head_dim) as steps:
            assert steps.block_k == (128 if gpu == "sm90" and head_dim <= 128 else 64)
            assert steps.fold_every * steps.block_k == expected.fold_every * expected.block_k


ROTATED = "sage2_int4(hadamard=True)"


@pytest.mark.parametrize(
    "gpu, recipe, distribution, bound",
    [
        *(
            (gpu, recipe, distribution, 0.042)
            for gpu, recipe in (
                ("sm89", "sage2"),
                ("sm89", "sage2pp"),
                ("sm90", "sage2"),
                ("sm90", "sage2(approximate_exp=True)"),
                ("sm120", "sage2"),
            )
            for distribution in ("normal", "kbias", "sink")
        ),
        *(("sm120", "sage3", distribution, 0.20) for distribution in ("normal", "kbias")),
        *(("sm120", "sage3_fp8", distribution, 0.15) for distribution in ("normal", "kbias", "sink")),
        ("sm120", "sage3", "qbias", 0.20),
        ("sm120", "sage3(hadamard=True)", "outlier", 0.23),
        ("sm120", "sage3_fp8", "qbias", 0.10),
        ("sm89", "sage2_int4", "kbias", 0.22),
        ("sm89", "sage2_int4", "qbias", 0.22),
        ("sm89", INT4_PP, "kbias", 0.22),
        ("sm89", ROTATED, "outlier", 0.22),
        ("sm89", ROTATED, "qbias", 0.22),
        ("sm80", "sage1(qk=int4, smooth_q=True)", "qbias", 0.22),
    ],
)
def test_kernels_err_as_the_reference(
    monkeypatch: pytest.MonkeyPatch, gpu: str, recipe: str, distribution: str, bound: float
) -> None:
    """On the inputs of tests/test_recipe_accuracy.py, 128 queries of one head and all of its keys."""
    monkeypatch.setenv(_select.EMULATED_VARIABLE, gpu)
    q, k, v = make_distribution(distribution, num_heads=1, dtype=torch.float16)
    q = q[:, :, 128:256]
    expected = exact(q, k, v, scale=128**-0.5)[0]
    error, stated = (
        nrmse(sage.attention(q, k, v, recipe=recipe, backend=backend), expected)
        for backend in ("emulator", "reference")
    )
    assert error <= bound
    assert error == pytest.approx(stated, rel=0.03)


@pytest.mark.parametrize(
    "gpu, recipe, launches",
    [
        ("sm90", "sage2", 3),
        ("sm90", "sage2(smooth_k=False)", 3),
        ("sm90", "sage2(smooth_v=True, hadamard=True, fold_every=2)", 3),
        ("sm120", "sage3", 3),
        ("sm120", "sage3(smooth_v=True, hadamard=True)", 3),
        ("sm120", "sage3_fp8", 3),
    ],
)
def test_launches(monkeypatch: pytest.MonkeyPatch, gpu: str, recipe: str, launches: int) -> None:
    """The statistics of K and V, the quantizer, attention: for any number of folds."""
    monkeypatch.setenv(_select.EMULATED_VARIABLE, gpu)
    emulator.reset_stats()
    sage.attention(*make(70, 600), recipe=recipe, backend="emulator", return_lse=True)
    assert emulator.stats()["launches"] == launches


@pytest.mark.parametrize("recipe", ["sage3", "sage3_fp8"])
@pytest.mark.parametrize("key_order", ["forward", "reverse"])
def test_references_of_nvfp4_that_move(monkeypatch: pytest.MonkeyPatch, recipe: str, key_order: str) -> None:
    """Scores that grow by 40 octaves from the first key to the last. The kernel moves its reference when it has to, the
    reference implementation with every key: by whole octaves, so that P rounds alike."""
    monkeypatch.setenv(_select.EMULATED_VARIABLE, "sm120")
    q, k, v = make(140, 700)
    mask = torch.linspace(0, 40 * math.log(2), 700)[None].expand(140, 700)
    changed = Recipe.parse(recipe).replace(key_order=key_order)
    (out, lse), (expected, expected_lse) = (
        sage.attention(q, k, v, attn_mask=mask, recipe=changed, backend=backend, return_lse=True)
        for backend in ("emulator", "reference")
    )
    assert nrmse(out, expected) < BOUNDS[recipe].difference_nrmse
    compare(lse, expected_lse, atol=BOUNDS[recipe].lse_difference, what="lse")


def test_counters() -> None:
    """Two heads of 64 x 64, head_dim 64: 2 k-steps and 8 n-tiles of Q K^T, 8 channel tiles and 4 k-steps of P V for the
    4 tiles of 16 rows that exist, and as many for the 4 that do not; no shared-memory bank conflict."""
    emulator.reset_stats()
    sage.attention(*make(64, 64), backend="emulator")
    stats = emulator.stats()
    assert stats["mma"] == 2 * 8 * (2 * 8 + 8 * 4)
    assert stats["ldsm_phases"] > 0 and stats["ldsm_conflicts"] == 0
    emulator.reset_stats()
    assert emulator.stats()["mma"] == 0
