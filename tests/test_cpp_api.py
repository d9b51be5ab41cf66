"""The C++ API on the emulator: the programs of tests/emulator/api_test, built and found as those of test_emulator.py."""

from __future__ import annotations

import pytest

from test_emulator import run


@pytest.mark.parametrize("name", ["api_steps", "api_once_per_device"])
def test_program(name: str) -> None:
    done = run(name)
    problems = [line for line in done.stdout.splitlines() if "FAILED" in line] or done.stdout.splitlines()[-3:]
    assert done.returncode == 0, "\n".join(problems)
    assert done.stdout.endswith("\n0 failed\n")
