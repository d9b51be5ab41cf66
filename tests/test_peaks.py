"""What the benchmark of GPUs takes for the speed of their tensor cores."""

from __future__ import annotations

import json

import pytest
from building import REPOSITORY

import sage
from sage.cli import peaks


@pytest.mark.parametrize(
    ("name", "recipe", "kernel", "tops"),
    [
        ("NVIDIA H200", None, "torch flash", 989.4),
        ("NVIDIA H100 80GB HBM3", "sage2", "sm90_fwd_wgmma_d128", 1978.9),
        ("NVIDIA H200", "sage2(approximate_exp=True)", "sm90_fwd_wgmma_approx_d128", 1978.9),
        ("NVIDIA H200", "sage1", "sm80_fwd_bf16_d128", 2 / (1 / 1978.9 + 1 / 989.4)),
        ("NVIDIA H200", "sage2_int4", "sm89_fwd_int4_fp8_d128", None),  # it has no such tensor cores
        ("NVIDIA A100-SXM4-80GB", "sage1_int8", "sm80_fwd_int8_d128", 624),
        (
            "NVIDIA A100-SXM4-80GB",
            "sage2_int4(pv=fp16, pv_accum=fp32, fold_every=1)",
            "sm80_fwd_int4_f16_d128",
            2 / (1 / 1248 + 1 / 312),
        ),
        ("NVIDIA GeForce RTX 4090", "sage2pp", "sm89_fwd_fp8_f16acc_d128", 660.6),
        ("NVIDIA GeForce RTX 4090", "sage2", "sm89_fwd_fp8_d128", 2 / (1 / 660.6 + 1 / 330.3)),
        ("NVIDIA GeForce RTX 5090", "sage2", "sm120_fwd_mxfp8_d128", 838),
        ("NVIDIA H20", "sage2", "sm90_fwd_wgmma_d128", None),  # Hopper, with fewer tensor cores than an H200
    ],
)
def test_peak(name: str, recipe: str | None, kernel: str, tops: float | None) -> None:
    """The figures of NVIDIA's whitepapers, at their clocks; of mixed formats half of the operations in each."""
    sm_count, clock = next(
        known
        for word, known in {"A100": (108, 1410), "4090": (128, 2520), "5090": (170, 2407), "": (132, 1830)}.items()
        if word in name
    )
    gpu = {"name": name, "sm_count": sm_count}
    parsed = sage.Recipe.parse(recipe) if recipe else None
    found = peaks.peak_gops(gpu, clock, parsed, kernel)
    assert found == (tops and pytest.approx(1e3 * tops, rel=2e-3))
    assert peaks.peak_gops(gpu, None, parsed, kernel) is None


def test_peaks_are_those_of_the_model() -> None:
    """tools/facts.json has the same rates, by the names of instructions."""
    facts = json.loads((REPOSITORY / "tools" / "facts.json").read_text())["gpus"]
    for name, gpu in facts.items():
        if name != "source":
            names = {"16bit": "f16", "16bit_f16acc": "f16acc"}
            (rates,) = (rates for gpu_name, rates in peaks._RATES.items() if gpu_name.startswith(name))
            ours = {names.get(x, x): rate for x, rate in rates.items()}
            assert all(ours[kind] == rate for kind, rate in gpu["tensor"].items()), name
