"""The CUDA kernels in the emulator, on problems that INT8 represents exactly: the programs of tests/emulator/kernel_test.

They are built and found as those of test_emulator.py. With a sanitizer only SANITIZED are, and they run fewer problems.
"""

from __future__ import annotations

import pytest

from test_emulator import run, sanitizer

MODES = ("f16", "bf16", "f16acc", "f16acc_f32", "int8")
INSTANCES = [f"sm80_fwd_{mode}_d{head_dim}" for head_dim in (64, 128, 256) for mode in MODES]
SANITIZED = [
    "sm80_fwd_f16_d64",
    "sm80_fwd_bf16_d64",
    "sm80_fwd_f16acc_f32_d64",
    "sm80_fwd_int8_d64",
    "sm80_fwd_f16_d128",
]
SCHEDULES = ["random:1", "random:2", "priority:1", "priority:2"]


def check(instance: str, *arguments: str, **environment: str) -> None:
    done = run(instance, *arguments, **environment)
    problems = [line for line in done.stdout.splitlines() if "passed" not in line]
    assert done.returncode == 0, "\n".join(problems)[-8000:]
    assert f"{instance}: 0 of" in done.stdout


@pytest.mark.parametrize("instance", SANITIZED if sanitizer() else INSTANCES)
def test_kernels(instance: str) -> None:
    check(instance, *(["--quick"] if sanitizer() == "thread" or instance not in SANITIZED else []))


@pytest.mark.parametrize("instance", ["sm80_fwd_f16_d64", "sm80_fwd_int8_d64"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(instance: str, schedule: str) -> None:
    check(instance, "--quick", SAGE_EMULATOR_SCHEDULE=schedule)


@pytest.mark.parametrize("instance", ["sm80_fwd_f16_d64", "sm80_fwd_int8_d64"])
@pytest.mark.parametrize("timing", ["late", "early", "random"])
def test_async_timing(instance: str, timing: str) -> None:
    check(instance, "--quick", SAGE_EMULATOR_ASYNC=timing, SAGE_EMULATOR_SCHEDULE="priority:3")
