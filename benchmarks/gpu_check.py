"""make gpu-check: builds sage for the GPU of this machine, runs every test that needs one, records golden vectors,
measures, and leaves everything in one folder. No network, nothing installed, no virtual environment: the Python that
runs this must have torch (with CUDA), pybind11 >= 3, pytest and the headers of CUTLASS 4.2.0 (nvidia-cutlass, on
PYTHONPATH or in third_party/cutlass); matplotlib for the picture. PATH must have nvcc, cmake, ninja and a C++ compiler.

The steps are build, tests, golden and bench. One that fails is recorded and the others still run; the exit status is
then 1. It is 2 where the machine lacks something that is needed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "python" / "sage" / "cli"))
import nvidia_smi  # noqa: E402  (there are packages with a module of that name)

del sys.path[0]

BYTES_PER_JOB = 1.5e9
"""Memory that the compiler takes for one kernel."""

CALL_SECONDS = 570
"""Of all steps before bench, and of bench: a GPU that is lent for calls of ten minutes takes two."""

GOLDEN_SECONDS = {"compile": 90, "run": 15}

QUICK_SHAPES = ("2,32,1024,64", "2,32,4096,128")
TAIL_LINES = 40


class StepFailed(Exception):
    """A step that did not do its work; `details` is what it found out all the same."""

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.details = details


@dataclass
class Check:
    """One run: where it builds, where its results go, and what it found."""

    build: Path
    out: Path
    quick: bool = False
    facts: dict = field(default_factory=dict)
    steps: dict[str, dict] = field(default_factory=dict)
    start: float = field(default_factory=time.monotonic)

    @property
    def site(self) -> Path:
        """The package that is tested: not the checkout's, nor one that is installed."""
        return self.build / "site"

    def run(self, step: str, *command: str | Path, seconds: float, environment: dict[str, str] | None = None) -> str:
        """The output of a command, which is also kept in `<step>.log`; at its end the command and all it started are
        ended after `seconds`."""
        name = " ".join(Path(str(word)).name if i == 0 else str(word) for i, word in enumerate(command[:4]))
        log = self.build / f"{step}.log"
        with log.open("a+") as file:
            start = file.tell()
            process = subprocess.Popen(
                list(map(str, command)),
                cwd=REPOSITORY,
                env=os.environ | (environment or {}),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                process.wait(timeout=seconds)
                ending = f"ended with {process.returncode}" if process.returncode else ""
            except subprocess.TimeoutExpired:
                ending = f"was stopped after {seconds:.0f} s"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            file.seek(start)
            output = file.read()
        if ending:
            raise StepFailed(f"{name} ... {ending}:\n{tail(output)}")
        return output

    def packages(self) -> dict[str, str]:
        """The environment in which Python finds the package under test first."""
        if not list((self.site / "sage").glob("_C*")):
            raise StepFailed(f"there is no module in {self.site / 'sage'}: the step build makes it")
        return {"PYTHONPATH": os.pathsep.join(filter(None, [str(self.site), os.environ.get("PYTHONPATH", "")]))}


def tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-TAIL_LINES:])


# ---- what there is


def missing() -> list[str]:
    """What this machine lacks, each with what is needed."""
    lacks = []
    if not importlib.util.find_spec("torch"):
        lacks.append(f"torch with CUDA, for {sys.executable}")
    else:
        import torch

        if not torch.cuda.is_available():
            lacks.append(f"a GPU that torch {torch.__version__} sees")
    if not find_nvcc():
        lacks.append("nvcc: CUDACXX, CUDA_HOME/bin/nvcc or one on PATH")
    lacks += [f"{tool}, on PATH" for tool in ("cmake", "ninja", "c++") if not shutil.which(tool)]
    if not find_cutlass():
        lacks.append(
            "the headers of CUTLASS 4.2.0: third_party/cutlass/include, or the package nvidia-cutlass==4.2.0.0"
        )
    if not importlib.util.find_spec("pybind11") or int(importlib.metadata.version("pybind11").split(".")[0]) < 3:
        lacks.append("the Python package pybind11 >= 3")
    if not importlib.util.find_spec("pytest"):
        lacks.append("the Python package pytest")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        lacks.append(f"the headers of {sys.executable}: {sysconfig.get_path('include')}/Python.h")
    return lacks


def find_nvcc() -> str | None:
    """As cmake/SageCuda.cmake looks for it."""
    named = [os.environ.get("CUDACXX"), f"{os.environ.get('CUDA_HOME', '')}/bin/nvcc"]
    return next((nvcc for nvcc in named if nvcc and Path(nvcc).exists()), None) or shutil.which("nvcc")


def find_cutlass() -> Path | None:
    """As third_party/cutlass/resolve.cmake looks for it."""
    package = importlib.util.find_spec("cutlass_library")
    folders = [REPOSITORY / "third_party" / "cutlass" / "include"]
    folders += [
        Path(folder) / "source" / "include" for folder in (package and package.submodule_search_locations) or []
    ]
    return next((folder for folder in folders if (folder / "cutlass" / "version.h").exists()), None)


def gather_facts() -> dict:
    import torch

    gpu = torch.cuda.get_device_properties(0)
    try:
        state = nvidia_smi.query(str(gpu.uuid))
    except RuntimeError as error:
        state = {"error": str(error)}
    return {
        "gpu": gpu.name,
        "architecture": 10 * gpu.major + gpu.minor,
        "sm_count": gpu.multi_processor_count,
        "memory_gib": round(gpu.total_memory / 2**30, 1),
        "nvidia_smi": state,
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "nvcc": answer(find_nvcc(), "--version"),
        "cmake": answer("cmake", "--version", line=0),
        "cxx": answer("c++", "-dumpfullversion"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "commit": answer("git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=40"),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def answer(*command: str, line: int = -1) -> str:
    """A line of what a command says; "unknown" where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip().splitlines()[line]


# ---- steps


def build(check: Check) -> dict:
    """The extension module for this GPU and the Python files, in `check.site`."""
    shutil.rmtree(check.site, ignore_errors=True)
    folder, jobs = check.build / "cmake", build_jobs()
    options = [
        "-DSAGE_PYTHON=ON",
        "-DSAGE_CUDA=ON",
        *architecture_options(check.facts["architecture"]),
        f"-DCMAKE_CUDA_COMPILER={find_nvcc()}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    check.run("build", "cmake", "-S", REPOSITORY, "-B", folder, "-G", "Ninja", *options, seconds=30)
    check.run("build", "cmake", "--build", folder, "--parallel", str(jobs), seconds=290)
    check.run("build", "cmake", "--install", folder, "--component", "python", "--prefix", check.site, seconds=15)
    source = REPOSITORY / "python" / "sage"
    unwanted = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(source, check.site / "sage", ignore=unwanted, dirs_exist_ok=True)
    return {"jobs": jobs, "options": options}


def architecture_options(architecture: int) -> list[str]:
    """All kernels that run there: those that are meant for it, and those of earlier architectures, compiled once more."""
    listed = (REPOSITORY / "csrc" / "kernels" / "attention" / "instances.cmake").read_text()
    families = dict(re.findall(r"^set\(SAGE_ARCHITECTURES_(sm\d+) (.+)\)$", listed, re.MULTILINE))
    specific = re.search(r"^set\(SAGE_SPECIFIC_FAMILIES (.+)\)$", listed, re.MULTILINE)[1].split()
    meant = {name for name, architectures in families.items() if str(architecture) in architectures.split()}
    runs = {name for name in families if int(name[2:]) <= architecture and name not in specific}
    extra = [f"-DSAGE_CUDA_EXTRA_ARCH={architecture}"] if runs - meant else []
    return [f"-DSAGE_CUDA_ARCHS={architecture if meant else ''}", *extra]


def build_jobs() -> int:
    """As many compilers as there are cores and memory for."""
    memory = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return max(1, min(os.cpu_count() or 1, int(int(memory[1]) * 1024 / BYTES_PER_JOB)))


def tests(check: Check) -> dict:
    """Every test with the mark `cuda`, in the time that build and golden leave. Where none ran, nothing was tested, which
    is a failure too."""
    environment, report = check.packages(), check.out / "tests.xml"
    seconds = check.start + CALL_SECONDS - sum(GOLDEN_SECONDS.values()) - time.monotonic()
    report.unlink(missing_ok=True)
    failure = None
    try:
        options = [
            "-m",
            "cuda",
            "-q",
            "--continue-on-collection-errors",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
        ]
        check.run("tests", sys.executable, "-m", "pytest", *options, seconds=seconds, environment=environment)
    except StepFailed as error:
        failure = error
    if not report.exists():
        raise failure or StepFailed("pytest wrote no report")
    found = read_junit(report)
    if failure:
        raise StepFailed(str(failure), **found)
    if not found["passed"]:
        raise StepFailed(f"no test ran: {'; '.join(found['skipped_because']) or 'none has the mark cuda'}", **found)
    return found


def read_junit(report: Path) -> dict:
    """Numbers of tests, names of those that failed, why others were skipped, what they measured (record_property)."""
    failed, reasons, measured, passed, skipped = [], {}, {}, 0, 0
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        measured |= {found.get("name"): found.get("value") for found in case.iter("property")}
        skip = case.find("skipped")
        if skip is not None:
            skipped += 1
            reasons[skip.get("message", "")] = None
        elif case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        else:
            passed += 1
    counts = {"passed": passed, "failed": failed, "skipped": skipped}
    return counts | {"skipped_because": list(reasons), "measured": measured}


def golden_command(source: str, architecture: int, program: Path) -> list[str | Path]:
    """What compiles a program of tests/golden."""
    target = f"{architecture}a" if architecture >= 90 else f"{architecture}"
    includes = ["-I", REPOSITORY / "tests", "-I", REPOSITORY / "csrc" / "kernels", "-I", find_cutlass()]
    code = f"arch=compute_{target},code=sm_{target}"  # -arch=sm_120a would make code of compute_120, too
    options = ["-gencode", code, "-std=c++17", *includes, "-o", program]
    return [find_nvcc(), *options, REPOSITORY / "tests" / "golden" / source]


def golden(check: Check) -> dict:
    """What the instructions of this GPU make of pseudo-random registers (tests/golden/README.md)."""
    program = check.build / "dump_atoms"
    command = golden_command("dump_atoms.cu", check.facts["architecture"], program)
    check.run("golden", *command, seconds=GOLDEN_SECONDS["compile"])
    file = check.out / "golden" / (re.sub(r"[^a-z0-9]+", "-", check.facts["gpu"].lower()).strip("-") + ".txt")
    file.parent.mkdir(exist_ok=True)
    with file.open("w") as vectors:
        seconds = GOLDEN_SECONDS["run"]
        done = subprocess.run([program], stdout=vectors, stderr=subprocess.PIPE, text=True, timeout=seconds)
    if done.returncode:
        file.unlink()
        raise StepFailed(f"{program.name} ended with {done.returncode}: {done.stderr}")
    atoms = [line.split()[1] for line in file.read_text().splitlines() if line.startswith("atom ")]
    if not atoms:
        raise StepFailed(f"{program.name} wrote no vectors")
    return {"file": f"golden/{file.name}", "vectors": len(atoms), "atoms": sorted(set(atoms)), "says": done.stderr}


def bench(check: Check) -> dict:
    """Speed and error beside PyTorch's kernels. All of ours must have been measured."""
    report, picture = check.out / "bench.json", check.out / "bench.png"
    report.unlink(missing_ok=True)
    picture.unlink(missing_ok=True)
    options = ["--backend", "cuda", "--json", report]
    if importlib.util.find_spec("matplotlib"):
        options += ["--plot", picture]
    if check.quick:
        options += ["--repeats", "3", *(word for shape in QUICK_SHAPES for word in ("--shape", shape))]
    command = [sys.executable, "-m", "sage", "bench", *options]
    text = check.run("bench", *command, seconds=CALL_SECONDS, environment=check.packages())
    details = {
        "file": report.name,
        "picture": picture.name if picture.exists() else "none: no matplotlib",
        "text": text,
    }
    for case in json.loads(report.read_text())["cases"]:
        for result in case["results"]:
            if result["recipe"] and not (result["kernel_only"] and math.isfinite(result["nrmse"])):
                raise StepFailed(f"{result['name']} on {case['case']}: see its table in summary.md", **details)
    return details


STEPS: dict[str, Callable[[Check], dict]] = {"build": build, "tests": tests, "golden": golden, "bench": bench}


def run_steps(check: Check, steps: dict[str, Callable[[Check], dict]]) -> bool:
    """Runs each step whatever became of those before it, and writes the summary after each. Whether all went well."""
    for name, step in steps.items():
        print(f"{name:8}", end=" ", flush=True)
        start = time.monotonic()
        (check.build / f"{name}.log").unlink(missing_ok=True)
        try:
            result = {"ok": True, "error": "", **step(check)}
        except StepFailed as failure:
            result = {"ok": False, "error": str(failure), **failure.details}
        except Exception:  # a fault of the step itself shall not cost the others' results
            result = {"ok": False, "error": traceback.format_exc()}
        check.steps[name] = {"seconds": round(time.monotonic() - start, 1), **result}
        print(f"{check.steps[name]['seconds']:6.1f} s  {outcome(check.steps[name])}", flush=True)
        write_summary(check)
    return all(step["ok"] for step in check.steps.values())


# ---- results


def outcome(step: dict) -> str:
    """A step's result in a line."""
    counts = ""
    if "passed" in step:
        counts = f"{step['passed']} passed, {len(step['failed'])} failed, {step['skipped']} skipped"
    elif "vectors" in step:
        counts = f"{step['vectors']} vectors of {len(step['atoms'])} atoms"
    error = step["error"].strip().splitlines()
    return ": ".join(
        filter(None, ["ok" if step["ok"] else "FAILED", counts or " ".join(dict.fromkeys(error[:1] + error[-1:]))])
    )


def write_summary(check: Check) -> None:
    (check.out / "summary.json").write_text(json.dumps({"facts": check.facts, "steps": check.steps}, indent=1) + "\n")
    facts = {name: value for name, value in check.facts.items() if name != "nvidia_smi"}
    facts |= check.facts.get("nvidia_smi", {})
    lines = ["# GPU check", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items()), ""]
    lines += ["| step | seconds | |", "|---|---|---|"]
    lines += [f"| {name} | {step['seconds']} | {outcome(step)} |" for name, step in check.steps.items()]
    for name, step in check.steps.items():
        if step["error"]:
            lines += ["", f"## {name} failed", "", *(f"* {test}" for test in step.get("failed", ()))]
            lines += ["", "```", step["error"], "```"]
        for reason in step.get("skipped_because", ()):
            lines.append(f"\nskipped: {reason}")
        if step.get("measured"):
            lines += ["", f"## Measured by {name}", "", "| | |", "|---|---|"]
            lines += [f"| {what} | {value} |" for what, value in step["measured"].items()]
        if step.get("text"):
            lines += ["", "## Speed and error", "", "```", step["text"].strip(), "```"]
    (check.out / "summary.md").write_text("\n".join(lines) + "\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=REPOSITORY / "build" / "gpu" / "results", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--only", action="append", choices=STEPS, metavar="STEP", help=f"of {', '.join(STEPS)}; repeatable"
    )
    parser.add_argument("--quick", action="store_true", help="measure few shapes, few times")
    arguments = parser.parse_args(argv)
    if lacks := missing():
        print("make gpu-check needs, and this machine lacks:", *lacks, sep="\n  ", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as an exception: `run` ends its command
    check = Check(REPOSITORY / "build" / "gpu", arguments.out.resolve(), arguments.quick, gather_facts())
    check.build.mkdir(parents=True, exist_ok=True)
    check.out.mkdir(parents=True, exist_ok=True)
    facts = check.facts
    print(f"{facts['gpu']}, sm_{facts['architecture']}, torch {facts['torch']}, {facts['cores']} cores")
    ok = run_steps(check, {name: STEPS[name] for name in arguments.only or STEPS})
    print(f"{'all is well' if ok else 'something failed'}: {check.out / 'summary.md'}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
