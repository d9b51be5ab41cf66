"""Plants bugs (tests/bugs) in the kernels and in what launches them, one at a time: the tests must catch each of them.

    python tests/planted_bugs.py [NAME ...]

Works on a copy of the sources. Those in the CPU kernels must be caught by the shared test suite, those in the CUDA
kernels by the programs of tests/emulator/kernel_test, those on the way to these by the programs of
tests/emulator/api_test. A bug that survives means that a test is missing. Takes about half a minute per bug.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bugs import CPU_BUGS, CUDA_BUGS
from building import TOOLS_PATH

ROOT = Path(__file__).resolve().parent.parent
KERNELS = "csrc/kernels/"
UNWANTED = shutil.ignore_patterns(".git", ".venv", "build", "dist", "_C*.so", "_emulator*.so", "__pycache__")
TESTS = ["tests/test_attention.py", "tests/test_varlen.py"]
LIMIT = 300  # seconds for a program of the emulator, which may hang
CONFIGURATIONS = [("round_robin", "late"), ("priority:1", "late"), ("priority:1", "early"), ("priority:1", "random")]


def run(
    tree: Path, *command: str | Path, timeout: float | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command in `tree`, with the package of that tree before an installed one."""
    env = os.environ | {"PATH": TOOLS_PATH, "PYTHONPATH": str(tree / "python")} | environment
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(command, cwd=tree, env=env, text=True, check=False, timeout=timeout, **pipes)


def build(tree: Path, folder: str, options: list[str], *targets: str) -> None:
    """Builds in a folder of `tree`, which is configured if it is new."""
    options = [*options, f"-DPython_EXECUTABLE={sys.executable}"]
    steps = [["cmake", "--build", folder, "--parallel", "2", *(["--target", *targets] if targets else [])]]
    if not (tree / folder).exists():
        steps.insert(0, ["cmake", "-G", "Ninja", "-S", ".", "-B", folder, *options])
    for step in steps:
        done = run(tree, *step)
        if done.returncode:
            sys.exit(done.stdout)


def failure_on_cpu(tree: Path) -> str:
    """How the shared suite fails with the extension built from `tree`; empty if it passes."""
    build(tree, "build", ["-DSAGE_PYTHON=ON", "-DSAGE_CUDA=OFF"])
    (module,) = (tree / "build/csrc").glob("_C*.so")
    shutil.copy(module, tree / "python/sage")
    done = run(tree, sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS)
    if done.returncode == 0:
        return ""
    if done.returncode > 1:  # not a test that failed, nor a signal
        sys.exit(done.stdout)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return failed[0][7:100] if failed else f"exit {done.returncode}"


def failure_in_emulator(tree: Path, program: str) -> str:
    """How a program of the emulator fails; empty if it passes."""
    build(tree, "build-emulator", ["-DSAGE_EMULATOR=ON", "-DSAGE_CUDA=OFF", "-DSAGE_CPU=OFF"], f"emulator_{program}")
    path = tree / "build-emulator" / "tests" / "emulator" / f"emulator_{program}"
    for schedule, timing in CONFIGURATIONS:
        try:
            done = run(tree, path, timeout=LIMIT, SAGE_EMULATOR_SCHEDULE=schedule, SAGE_EMULATOR_ASYNC=timing)
        except subprocess.TimeoutExpired:
            return f"{schedule}, {timing}: does not end in {LIMIT} seconds"
        if done.returncode == 0:
            continue
        failed = [line for line in done.stdout.splitlines() if "FAILED" in line]
        how = failed[0] if failed else f"{done.stdout.splitlines()[-1]}exit {done.returncode}"
        return f"{schedule}, {timing}: {len(failed)} cases: {how.removeprefix(f'{program}, ')}"[:150]
    return ""


def check_clean(tree: Path, names: list[str]) -> None:
    """Without a bug nothing may fail."""
    results = {}
    if any(name in CPU_BUGS for name in names):
        results["the CPU kernels"] = failure_on_cpu(tree)
    for program in sorted({CUDA_BUGS[name].program for name in names if name in CUDA_BUGS}):
        results[program] = failure_in_emulator(tree, program)
    for what, how in results.items():
        if how:
            sys.exit(f"{what}: the tests fail without any bug: {how}")


def main(names: list[str]) -> int:
    everything = CPU_BUGS | CUDA_BUGS
    unknown = [name for name in names if name not in everything]
    if unknown:
        sys.exit(f"unknown bug {unknown[0]!r}; there are:\n  " + "\n  ".join(everything))
    chosen = {name: everything[name] for name in names or everything}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "sage"
        shutil.copytree(ROOT, tree, ignore=UNWANTED)
        check_clean(tree, list(chosen))
        survivors = 0
        for name, bug in chosen.items():
            path = tree / (bug.file if bug.file.startswith("csrc/") else KERNELS + bug.file)
            text = path.read_text()
            if text.count(bug.right) != 1:
                sys.exit(f"{name}: {bug.right!r} occurs {text.count(bug.right)} times in {bug.file}, not once")
            path.write_text(text.replace(bug.right, bug.wrong))
            how = failure_on_cpu(tree) if name in CPU_BUGS else failure_in_emulator(tree, bug.program)
            path.write_text(text)
            print(f"{'caught' if how else 'SURVIVED':<9} {name}: {how or 'nothing fails'}", flush=True)
            survivors += not how
    print(f"{len(chosen) - survivors} passed, {survivors} failed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
