"""The memory that plans ask for, on GPUs that are not here: what each operand takes, and nothing else of its size."""

from __future__ import annotations

from typing import Any

import pytest

from sage import Recipe
from test_planning import (
    CPU,
    PROBLEM,
    an_architecture,
    changed,
    compiled_for,
    each_module,
    family,
    family_runs_on,
    plan,
    served_on,
)


@pytest.mark.parametrize("device", [CPU, {"architecture": 80}], ids=["cpu", "cuda"])
@pytest.mark.parametrize(
    "operand, sizes",
    [
        ("q", {"seqlen_q": 2**62}),
        ("q", {"seqlen_q": 2**63 - 1}),
        ("q", {"seqlen_q": 0, "batch": 2**31 - 1, "num_heads_q": 2**30}),
        ("q", {"varlen": True, "total_q": 2**62}),
        ("q", {"varlen": True, "seqlen_q": 2**62}),
        ("k", {"seqlen_k": 2**62}),
        ("k", {"varlen": True, "total_k": 2**62}),
    ],
)
def test_sizes_that_no_machine_has(device: dict[str, Any], operand: str, sizes: dict[str, Any]) -> None:
    """They are refused before a number of bytes wraps around and a small workspace looks sufficient."""
    with pytest.raises(ValueError, match=rf"^{operand} must have at most 2\^46 values, got about \d\.\d+e\+\d+$"):
        plan(**PROBLEM | device | sizes)


@each_module
def test_largest_sizes(module: Any) -> None:
    """What is just allowed is counted in 64 bits."""
    fields = {"architecture": compiled_for(module)[0], "batch": 1, "num_heads_q": 1, "num_heads_kv": 1}
    made = plan(module, **fields, seqlen_q=2**40)
    assert made.quantized_q_bytes == 2**40 * (64 + 1 + 4)  # a scale for 4 rows, and what corrects lse
    made = plan(module, **fields, seqlen_q=1, seqlen_k=2**28)
    assert made.quantized_kv_bytes == 2**28 // 64 * (64 * 64 + 16) + 16 * 64 * 4 + 64


def aligned(size: int) -> int:
    return -(-size // 64) * 64


@each_module
@pytest.mark.parametrize("smooth_k", [False, True])
@pytest.mark.parametrize(
    "name, accum, dtype, v_aligned, v_bytes",
    [
        ("sage1", "fp32", "float16", True, 0),
        ("sage1", "fp32", "bfloat16", False, 2),
        ("sage1", "fp16", "float16", True, 0),
        ("sage1", "fp16+fp32", "bfloat16", True, 2),
        ("sage1_int8", "int32", "float16", True, 1),
    ],
)
def test_memory(module: Any, name: str, accum: str, dtype: str, v_aligned: bool, v_bytes: int, smooth_k: bool) -> None:
    """Q and K take a byte, V what its format takes, each tile has its scales; the rest is statistics."""
    made = plan(
        module,
        architecture=compiled_for(module)[0],
        recipe=f"{name}(pv_accum={accum}, smooth_k={smooth_k})",
        dtype=dtype,
        v_aligned=v_aligned,
        head_dim=104,
    )
    q_tiles, k_tiles, heads_kv, channels = 2 * 4 * 1, 2 * 2 * 3, 2 * 2, 128
    scales_v = v_bytes == 1 or (v_bytes == 2 and v_aligned)
    q = q_tiles * 128 * channels + q_tiles * 32 * 4 + smooth_k * aligned(2 * 4 * 70 * 4)
    kv = k_tiles * 64 * channels * (1 + v_bytes) + aligned(k_tiles * 4 * 4)
    kv += smooth_k * (heads_kv * channels * 4 + aligned(2 * 4)) + scales_v * 2 * heads_kv * channels * 4
    assert made.quantized_q_bytes == q
    assert made.quantized_kv_bytes == kv
    assert made.workspace_bytes == q + kv


@each_module
@pytest.mark.parametrize("smooth_v", [False, True])
@pytest.mark.parametrize("smooth_q", [False, True])
def test_memory_of_int4_and_fp8(module: Any, smooth_q: bool, smooth_v: bool) -> None:
    """Q takes half a byte, K a whole one for its finer digits; then the means of the tiles of Q and of V."""
    recipe = f"sage2_int4(smooth_q={smooth_q}, smooth_v={smooth_v})"
    made = plan(module, architecture=an_architecture(module, recipe.partition("(")[0]), recipe=recipe, head_dim=104)
    q_tiles, k_tiles, heads_kv, channels = 2 * 4 * 1, 2 * 2 * 3, 2 * 2, 128
    q = q_tiles * 128 * channels // 2 + q_tiles * 32 * 4 + aligned(2 * 4 * 70 * 4)
    q += smooth_q * (q_tiles * 2 * channels + aligned(q_tiles * 4))
    kv = k_tiles * 64 * channels * 2 + aligned(k_tiles * 4 * 4) + aligned(2 * 4)
    kv += (3 + 3 * smooth_v) * heads_kv * channels * 4
    assert (made.quantized_q_bytes, made.quantized_kv_bytes) == (q, kv)


@each_module
@pytest.mark.parametrize("smooth_v", [False, True])
@pytest.mark.parametrize("smooth_k", [False, True])
@pytest.mark.parametrize("smooth_q", [False, True])
@pytest.mark.parametrize("preset", ["sage3", "sage3_fp8"])
def test_memory_of_nvfp4(module: Any, preset: str, smooth_q: bool, smooth_k: bool, smooth_v: bool) -> None:
    """4.5 bits a value: of Q, of K twice if its rest is needed, of V unless that is e4m3; and what smoothing adds."""
    recipe = f"{preset}(smooth_q={smooth_q}, smooth_k={smooth_k}, smooth_v={smooth_v})"
    made = plan(module, architecture=an_architecture(module, preset), recipe=recipe, head_dim=104)
    q_tiles, k_tiles, heads_kv, channels = 2 * 4 * 1, 2 * 2 * 3, 2 * 2, 128
    q = q_tiles * 128 * channels * 9 // 16 + q_tiles * 32 * 4 + smooth_k * aligned(2 * 4 * 70 * 4)
    q += smooth_q * aligned(q_tiles * 4 * channels * 9 // 16)
    sixteenths = 9 * (1 + smooth_q) + (9 if preset == "sage3" else 16)
    kv = k_tiles * 64 * channels * sixteenths // 16 + aligned(k_tiles * 4 * 4) + smooth_k * aligned(2 * 4)
    kv += (2 + smooth_k + 3 * smooth_v) * heads_kv * channels * 4
    assert (made.quantized_q_bytes, made.quantized_kv_bytes) == (q, kv)
    assert made.workspace_bytes == q + kv


@each_module
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    "recipe", ["sage3", "sage3(smooth_q=False)", "sage3_fp8", "sage3(smooth_v=True, hadamard=True)"]
)
def test_nvfp4_needs_no_other_copies(module: Any, recipe: str, head_dim: int) -> None:
    """Nothing of the size of a tensor but the packed operands: statistics are some bytes a row or a channel."""
    r, seqlen, heads = Recipe.parse(recipe), 32768, 8
    sizes = {"batch": 1, "num_heads_q": heads, "num_heads_kv": heads, "seqlen_q": seqlen, "seqlen_k": seqlen}
    made = plan(module, architecture=an_architecture(module, "sage3"), recipe=recipe, head_dim=head_dim, **sizes)
    values = heads * seqlen * head_dim
    packed = values * (0.5625 + 0.5625 * (1 + r.smooth_q) + (0.5625 if r.pv == "nvfp4" else 1.0))
    of_rows = heads * seqlen * (4 + 4 + 0.25)  # lse; scales and mean of a tile of Q; scales of a tile of K
    of_channels = heads * head_dim * 4 * (4 * 16 + 3)  # 16 partial sums of each of four kinds; scales, means
    assert packed < made.workspace_bytes <= packed + of_rows + of_channels
    assert of_rows + of_channels < values * 0.5  # less than one operand in 4 bits more would take


@each_module
@pytest.mark.parametrize("recipe", ["sage2", "sage2pp"])
def test_memory_of_folding(module: Any, recipe: str) -> None:
    """A slot per block, 512 at most, where a row may see more than fold_every tiles of keys."""
    architecture = 89 if 89 in served_on(module, recipe) else an_architecture(module, recipe)
    if recipe == "sage2" and architecture in (90, 120):
        pytest.skip(f"sm_{architecture} folds nothing of sage2 in global memory")
    fields = {"architecture": architecture, "head_dim": 128}
    slot = (128 * (128 + 8) + 1) * 4
    for seqlen_q, seqlen_k, heads, fold_every, slots in (
        (129, 4 * 64, 4, 4, 0),
        (129, 4 * 64 + 1, 4, 4, 2 * 4 * 2),
        (129, 4 * 64, 4, 3, 2 * 4 * 2),
        (1, 10**6, 4, 64, 2 * 4),
        (128 * 63, 65, 4, 1, 2 * 4 * 63),
        (128 * 65, 65, 4, 1, 512),
        (0, 65, 4, 1, 0),
    ):
        sizes = {"seqlen_q": seqlen_q, "num_heads_q": heads}
        with_fold = changed(recipe, fold_every=fold_every)
        made = plan(module, **fields, **sizes, seqlen_k=seqlen_k, recipe=with_fold)
        without = plan(module, **fields, **sizes, seqlen_k=1, recipe=with_fold)
        extra = made.quantized_q_bytes - without.quantized_q_bytes
        assert extra == aligned(slots * 4) + slots * (slot - 4), (seqlen_q, seqlen_k, fold_every)


@each_module
@pytest.mark.parametrize(
    "architecture, recipe, kernel",
    [
        (120, "sage2(fold_every=1)", "sm120_fwd_mxfp8"),
        (120, "sage3", "sm120_fp4_fwd_nvfp4"),
        (120, "sage3_fp8(pv_accum=fp32+fp32, fold_every=1)", "sm120_fp4_fwd_fp8"),
        (90, "sage2(fold_every=2)", "sm90_fwd_wgmma"),
        (90, "sage2(fold_every=2, approximate_exp=True)", "sm90_fwd_wgmma_approx"),
    ],
)
def test_kernels_that_fold_nothing_in_global_memory(module: Any, architecture: int, recipe: str, kernel: str) -> None:
    """True float32 accumulators have no need of it, and wgmma's are folded in shared memory."""
    if not family_runs_on(family(kernel), architecture, module):
        pytest.skip(f"this build has no code for sm_{architecture}a")
    made = [plan(module, architecture=architecture, recipe=recipe, seqlen_k=x) for x in (1, 10**6)]
    assert made[0].kernel_name == f"{kernel}_d64"
    assert made[0].quantized_q_bytes == made[1].quantized_q_bytes
