"""No emulated kernel uses a PTX wrapper of CUTLASS that the emulator does not replace: it would do nothing, silently."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from building import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tests" / "emulator"))
from unhooked_ptx import unhooked_functions

BUILD_DIR = Path(os.environ.get("SAGE_EMULATOR_BUILD_DIR", REPOSITORY / "build" / "emulator"))
OBJECTS = sorted(BUILD_DIR.rglob("*.o"))

pytestmark = pytest.mark.skipif(not OBJECTS, reason=f"there are no object files of the emulator in {BUILD_DIR}")

# A function that is hooked, one that nothing replaces and that has no body on the host, and an atom without a hook.
PLANTED = """
#include <cute/tensor.hpp>
#include <cutlass/arch/barrier.h>
void use(uint64_t* barrier) {
  cutlass::arch::fence_view_async_shared();
  cutlass::arch::cpasync_barrier_arrive(barrier);
  cute::SM90_U32x1_STSM_N::copy(0, *reinterpret_cast<cute::uint128_t*>(barrier));
}
"""


# A self-test that wants to see the error of an operation without a hook.
ON_PURPOSE = {"warp_copy.cpp.o": ["cute::SM75_U32x1_MOVM_T::copy(unsigned int, unsigned int&)"]}


def test_no_unhooked_ptx() -> None:
    found = unhooked_functions(OBJECTS)
    assert {path: names for path, names in found.items() if names != ON_PURPOSE.get(Path(path).name)} == {}


def _compile_command(needle: str) -> list[str]:
    """How the build compiles a self-test with hooks, up to what names its source and its output."""
    text = (BUILD_DIR / "build.ninja").read_text()
    edge = re.search(rf"^build \S*{needle}\S*\.o: .*\n((?:  .*\n)+)", text, re.MULTILINE)
    assert edge, f"build.ninja has no object of {needle}"
    variables = dict(line.strip().split(" = ", 1) for line in edge.group(1).splitlines() if " = " in line)
    words = " ".join(variables.get(name, "") for name in ("DEFINES", "INCLUDES", "FLAGS"))
    return [os.environ.get("CXX", "c++"), *shlex.split(words)]


def test_planted_unhooked_ptx_is_found(tmp_path: Path) -> None:
    source, planted = tmp_path / "planted.cpp", tmp_path / "planted.o"
    source.write_text(PLANTED)
    subprocess.run([*_compile_command("sm90_descriptors"), "-c", source, "-o", planted], check=True, cwd=BUILD_DIR)
    names = unhooked_functions([planted])[str(planted)]
    assert len(names) == 2
    assert any("cpasync_barrier_arrive" in name for name in names)
    assert any("SM90_U32x1_STSM_N::copy" in name for name in names)
