"""The CUDA kernels in the emulator: the programs of tests/emulator/kernel_test, on problems that the kernels' formats hold
exactly or, with NVFP4 operands, on such operands made without the quantizers, and of tests/emulator/quantizer_test.

They are built and found as those of test_emulator.py. With a sanitizer only SANITIZED are, and they run fewer problems.
"""

from __future__ import annotations

import functools

import pytest

from test_emulator import run, sanitizer

MODES = {
    "sm80": ("f16", "bf16", "f16acc", "f16acc_f32", "int8", "int4_f16", "int4_bf16"),
    "sm89": ("fp8", "fp8_f16acc", "int4_fp8", "int4_fp8_f16acc"),
    "sm90": ("wgmma", "wgmma_approx"),
    "sm120": ("mxfp8",),
}
PROGRAMS = (
    ["quantizers", "nvfp4_quantizers"]
    + [f"{family}_fwd_{mode}_d{head_dim}" for head_dim in (64, 128, 256) for family in MODES for mode in MODES[family]]
    + [f"sm120_fp4_fwd_{mode}_d{head_dim}" for head_dim in (64, 128) for mode in ("nvfp4", "fp8")]
)
SANITIZED = [
    "quantizers",
    "nvfp4_quantizers",
    "sm80_fwd_f16_d64",
    "sm80_fwd_bf16_d64",
    "sm80_fwd_f16acc_f32_d64",
    "sm80_fwd_int8_d64",
    "sm80_fwd_int4_f16_d64",
    "sm80_fwd_f16_d128",
    "sm89_fwd_fp8_d64",
    "sm89_fwd_int4_fp8_f16acc_d64",
    "sm90_fwd_wgmma_d64",
    "sm90_fwd_wgmma_approx_d128",
    "sm90_fwd_wgmma_d256",
    "sm120_fp4_fwd_nvfp4_d64",
    "sm120_fp4_fwd_fp8_d64",
]
SCHEDULED = [
    "quantizers",
    "nvfp4_quantizers",
    "sm80_fwd_f16_d64",
    "sm80_fwd_int8_d64",
    "sm89_fwd_fp8_d64",
    "sm89_fwd_int4_fp8_f16acc_d64",
    "sm90_fwd_wgmma_d64",
    "sm90_fwd_wgmma_approx_d128",
    "sm120_fp4_fwd_nvfp4_d64",
    "sm120_fp4_fwd_fp8_d64",
]
SCHEDULES = ["random:1", "random:2", "priority:1", "priority:2"]


def check(program: str, *arguments: str, **environment: str) -> str:
    """Runs a program, which must succeed; its output, with a hash of the results of each problem."""
    done = run(program, *arguments, **environment)
    problems = [line for line in done.stdout.splitlines() if "passed" not in line]
    assert done.returncode == 0, "\n".join(problems)[-8000:]
    assert f"{program}: 0 of" in done.stdout
    return done.stdout


@functools.cache
def results(program: str) -> str:
    """What a program prints under the default schedule and timing, which no other one may change."""
    return check(program, "--quick")


@pytest.mark.parametrize("program", SANITIZED if sanitizer() else PROGRAMS)
def test_kernels(program: str) -> None:
    check(program, *(["--quick"] if sanitizer() == "thread" or program not in SANITIZED else []))


@pytest.mark.parametrize("program", SCHEDULED)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(program: str, schedule: str) -> None:
    assert check(program, "--quick", SAGE_EMULATOR_SCHEDULE=schedule) == results(program)


@pytest.mark.parametrize("program", SCHEDULED)
@pytest.mark.parametrize("timing", ["late", "early", "random"])
def test_async_timing(program: str, timing: str) -> None:
    output = check(program, "--quick", SAGE_EMULATOR_ASYNC=timing, SAGE_EMULATOR_SCHEDULE="priority:3")
    assert output == results(program)


@pytest.mark.parametrize("program", ["sm89_fwd_fp8_d64", "sm89_fwd_int4_fp8_f16acc_d64", "sm90_fwd_wgmma_d64"])
def test_reduced_accumulators(program: str) -> None:
    check(program, SAGE_EMULATOR_ACCUMULATE="reduced")
