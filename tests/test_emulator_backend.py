"""backend="emulator": what it stands for, what its plans refuse, and that schedules do not change its results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import sage
from bounds import CUDA_RECIPES
from sage import _select
from sage.recipe import Recipe

emulator = pytest.importorskip("sage._emulator", reason="sage._emulator was not built: -DSAGE_EMULATOR=ON")


def make(seqlen_q: int = 70, seqlen_k: int = 150, head_dim: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(1, 2, seqlen, head_dim, dtype=torch.float16) for seqlen in (seqlen_q, seqlen_k, seqlen_k))
    return q, k, v


def plan(**fields: Any) -> Any:
    problem = {"batch": 1, "num_heads_q": 1, "num_heads_kv": 1, "head_dim": 64, "seqlen_q": 64, "seqlen_k": 64}
    recipe = Recipe.parse(fields.pop("recipe", "sage1"))
    return emulator.AttnPlan(**{"device": "cuda", "dtype": "float16", **problem, **fields, "recipe": recipe})


@pytest.mark.parametrize(
    "recipe, dtype, head_dim, kernel",
    [
        ("sage1", "float16", 64, "sm80_fwd_f16_d64"),
        ("sage1", "bfloat16", 65, "sm80_fwd_bf16_d128"),
        ("sage1(pv_accum=fp16)", "float16", 129, "sm80_fwd_f16acc_d256"),
        ("sage1(pv_accum=fp16)", "bfloat16", 1, "sm80_fwd_f16acc_d64"),
        ("sage1(pv_accum=fp16+fp32)", "bfloat16", 128, "sm80_fwd_f16acc_f32_d128"),
        ("sage1_int8", "float16", 128, "sm80_fwd_int8_d128"),
        ("sage1_int8", "bfloat16", 256, "sm80_fwd_int8_d256"),
    ],
)
def test_kernel_of_a_problem(recipe: str, dtype: str, head_dim: int, kernel: str) -> None:
    assert plan(recipe=recipe, dtype=dtype, head_dim=head_dim).kernel_name == kernel


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"dtype": "float32"}, "dtype float16 and bfloat16 only, got float32"),
        ({"recipe": "sage1(qk=int4)"}, "recipe field qk int8 only, got int4"),
        ({"recipe": "sage1(qk_granularity=token)"}, "qk_granularity thread, warp or block only, got token"),
        ({"recipe": "sage1(block_q=64)"}, "block_q 128 only, got 64"),
        ({"recipe": "sage1(block_k=128)"}, "block_k 64 only, got 128"),
        ({"recipe": "sage1(smooth_q=True)"}, "smooth K only, got smooth_q 1, smooth_v 0"),
        ({"recipe": "sage1(smooth_v=True)"}, "smooth K only, got smooth_q 0, smooth_v 1"),
        ({"recipe": "sage1(p_max=448)"}, "p_max 1, v_max 0 only, got 448, 0"),
        ({"recipe": "sage1_int8(v_max=100)"}, "p_max 255, v_max 127 only, got 255, 100"),
        ({"recipe": "sage1_int8(v_granularity=block)"}, "v_granularity channel only, got block"),
        ({"recipe": "sage2"}, "pv fp8_e4m3 with pv_accum fp32[+]fp32; there are fp16 with fp32, fp16 or"),
        ({"recipe": "sage1@cpu"}, "pv int16 with pv_accum int32"),
        ({"seqlen_k": 2**28 + 1}, "seqlen_k up to 268435456, got 268435457"),
    ],
)
def test_refusals(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        plan(**fields)


@pytest.mark.parametrize("arch", ["sm90", "sm120"])
def test_gpus_without_kernels(monkeypatch: pytest.MonkeyPatch, arch: str) -> None:
    monkeypatch.setenv(_select.EMULATED_VARIABLE, arch)
    name = f"sm_{arch[2:]}"
    with pytest.raises(NotImplementedError, match=f"runs on {name}: its code is for sm_80, which"):
        sage.attention(*make(), backend="emulator")
    monkeypatch.delenv(_select.EMULATED_VARIABLE)
    assert sage.attention(*make(), backend="emulator").isfinite().all()


def test_smaller_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """sm_89 runs the same kernels, but for those that need more shared memory than it has."""
    q, k, v = make()
    expected = sage.attention(q, k, v, backend="emulator")
    monkeypatch.setenv(_select.EMULATED_VARIABLE, "sm89")
    assert torch.equal(sage.attention(q, k, v, backend="emulator"), expected)
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
    emulator.configure(schedule="round_robin", async_timing="late")


@pytest.mark.parametrize("recipe", CUDA_RECIPES)
def test_schedules_change_nothing(recipe: str, configured: None) -> None:
    q, k, v = make(140, 300)
    expected = None
    for schedule in ("round_robin", "random:1", "priority:1", "priority:2"):
        for async_timing in ("late", "early", "random"):
            emulator.configure(schedule=schedule, async_timing=async_timing)
            result = sage.attention(q, k, v, is_causal=True, recipe=recipe, backend="emulator", return_lse=True)
            expected = expected or result
            assert all(torch.equal(a, b) for a, b in zip(result, expected)), f"{schedule}, {async_timing}"


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
