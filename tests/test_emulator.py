"""The emulator's own tests: programs of tests/emulator/self_test, built beside it, which exit with 0 if all is well.

SAGE_EMULATOR_BUILD_DIR names another build than build/emulator. In one with -DSAGE_SANITIZE=address or thread the
sanitizer must be silent about the same programs, and find the faults that they plant on demand.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest
from building import REPOSITORY

SELF_TESTS = REPOSITORY / "tests" / "emulator" / "self_test"
BUILD_DIR = Path(os.environ.get("SAGE_EMULATOR_BUILD_DIR", REPOSITORY / "build" / "emulator"))
NAMES = sorted(path.stem for path in SELF_TESTS.glob("*.cpp"))

# What a build with the sanitizer reports of faults: program, argument, part of the report.
PLANTED = {
    "address": [
        ("planted", "no_wait", "use-after-poison"),
        ("planted", "out_of_range", "use-after-poison"),
        ("planted", "below", "use-after-poison"),
        ("planted", "misaligned", "misaligned address"),
        ("planted", "global", "global-buffer-overflow"),
    ],
    "thread": [
        ("planted", "no_barrier", "data race"),
        ("planted", "no_second_barrier", "data race"),
        ("planted", "no_syncwarp", "data race"),
        ("planted", "after_error", "data race"),
        ("sm90_pipeline", "early_release", "data race"),
    ],
}


def sanitizer() -> str:
    cache = BUILD_DIR / "CMakeCache.txt"
    found = re.search(r"^SAGE_SANITIZE:\w+=(\w*)$", cache.read_text(), re.MULTILINE) if cache.exists() else None
    return found[1] if found else ""


def run(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = BUILD_DIR / "tests" / "emulator" / f"emulator_{name}"
    if not program.exists():
        if importlib.util.find_spec("sage._emulator") is None and "SAGE_EMULATOR_BUILD_DIR" not in os.environ:
            pytest.skip(f"the emulator is not built: there is no sage._emulator and no {program}")
        pytest.fail(f"there is no {program}, although the emulator was built")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SAGE_EMULATOR_")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(
        [program, *arguments], env=inherited | environment, text=True, check=False, timeout=600, **pipes
    )


@pytest.mark.parametrize("name", NAMES)
def test_self_test(name: str) -> None:
    done = run(name)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "passed" in done.stdout


def test_sanitizer_finds_planted_faults() -> None:
    faults = PLANTED.get(sanitizer())
    if faults is None:
        pytest.skip(f"{BUILD_DIR} is built without a sanitizer; SAGE_EMULATOR_BUILD_DIR names another build")
    for program, fault, expected in faults:
        done = run(program, fault)
        assert done.returncode != 0, fault
        assert expected in done.stdout, fault


@pytest.mark.parametrize(
    "variable, value, expected",
    [
        ("SCHEDULE", "priority:17", "17"),
        ("SCHEDULE", "", "0"),
        ("SCHEDULE", "random", "SAGE_EMULATOR_SCHEDULE must be round_robin, random:SEED or priority:SEED"),
        ("ASYNC", "soon", "SAGE_EMULATOR_ASYNC must be late, early or random, got 'soon'"),
        ("ACCUMULATE", "1", "SAGE_EMULATOR_ACCUMULATE must be exact or reduced, got '1'"),
    ],
)
def test_environment(variable: str, value: str, expected: str) -> None:
    done = run("schedules", "--configuration", **{f"SAGE_EMULATOR_{variable}": value})
    assert done.stdout.startswith(expected)
    assert (done.returncode == 0) == expected.isdigit()
