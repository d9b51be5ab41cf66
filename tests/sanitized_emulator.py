"""Builds the emulator's self-tests and the tests of the kernels with sanitizers, and runs them: none may report anything.

    python tests/sanitized_emulator.py [address] [thread]

`address` has undefined behaviour in it. The builds stay in build/emulator-address and build/emulator-thread. Takes about
ten minutes for each the first time.
"""

from __future__ import annotations

import os
import subprocess
import sys

from building import REPOSITORY, configure, run
from test_emulated_kernels import SANITIZED
from test_emulator import NAMES

TESTS = ["tests/test_emulator.py", "tests/test_emulated_kernels.py"]


def check(sanitizer: str) -> bool:
    """Whether everything passes."""
    build_dir = REPOSITORY / "build" / f"emulator-{sanitizer}"
    parts = ["SAGE_EMULATOR=ON", "SAGE_CUDA=OFF", "SAGE_CPU=OFF", "SAGE_PYTHON=OFF"]
    configure(build_dir, *parts, f"SAGE_SANITIZE={sanitizer}")
    programs = [f"emulator_{name}" for name in NAMES + SANITIZED]
    run("cmake", "--build", build_dir, "--parallel", "2", "--target", *programs)
    environment = os.environ | {"SAGE_EMULATOR_BUILD_DIR": str(build_dir)}
    command = [sys.executable, "-m", "pytest", "-q", *TESTS]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, check=False).returncode == 0


def main(sanitizers: list[str]) -> int:
    allowed = ["address", "thread"]
    if unknown := [name for name in sanitizers if name not in allowed]:
        sys.exit(f"a sanitizer must be one of {', '.join(allowed)}, got {unknown[0]!r}")
    failed = []
    for sanitizer in sanitizers or allowed:
        print(f"{sanitizer} sanitizer", flush=True)
        if not check(sanitizer):
            failed.append(sanitizer)
    print(f"failed: {', '.join(failed)}" if failed else "passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
