"""`make gpu-check`, as far as a machine without a GPU goes."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from building import REPOSITORY, TOOLS_PATH, configure, run
from fake_gpu import FAKE_GPU, smi  # noqa: F401  (a fixture)

from sage.cli import machine

sys.path.append(str(REPOSITORY / "benchmarks"))
import gpu_check  # noqa: E402
from gpu_check import Check, StepFailed  # noqa: E402

needs_nvcc = pytest.mark.skipif(gpu_check.find_nvcc() is None, reason="there is no nvcc")


@pytest.fixture
def check(tmp_path: Path) -> Check:
    made = Check(tmp_path / "build", tmp_path / "out", facts={"gpu": "NVIDIA H200", "architecture": 90})
    made.build.mkdir()
    made.out.mkdir()
    return made


def test_refusal_lists_everything_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert gpu_check.main(["--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and not (tmp_path / "out").exists()
    expected = ["nvcc: ", "cmake, on PATH", "ninja, on PATH", "c++, on PATH"]
    if not torch.cuda.is_available():
        expected.append("a GPU that torch")
    assert all(words in printed.err for words in expected), printed.err

    find_spec = importlib.util.find_spec
    absent = ("torch", "pybind11", "pytest", "cutlass_library")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in absent else find_spec(name))
    monkeypatch.setattr(gpu_check, "REPOSITORY", tmp_path)
    monkeypatch.setattr(gpu_check.sysconfig, "get_path", lambda name: str(tmp_path / name))
    text = "\n".join(gpu_check.missing())
    for words in ("torch with CUDA", "CUTLASS 4.2.0", "pybind11 >= 3", "package pytest", "include/Python.h"):
        assert words in text


@pytest.mark.parametrize("has_smi", [True, False])
def test_facts(smi: Path, monkeypatch: pytest.MonkeyPatch, has_smi: bool) -> None:
    properties = {"name": "NVIDIA H200", "major": 9, "minor": 0, "multi_processor_count": 132, "total_memory": 2**37}
    gpu = SimpleNamespace(**properties, uuid=FAKE_GPU["uuid"])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    if not has_smi:
        smi.write_text("")
    facts = gpu_check.gather_facts()
    assert (facts["gpu"], facts["architecture"], facts["memory_gib"]) == ("NVIDIA H200", 90, 128)
    assert facts["cmake"].startswith("cmake version 3") or facts["cmake"].startswith("cmake version 4")
    assert (facts["nvidia_smi"].get("max_sm_clock_mhz") == 1980) == has_smi
    assert ("knows no GPU" in facts["nvidia_smi"].get("error", "")) != has_smi
    assert json.loads(json.dumps(facts)) == facts
    of_bench = machine.gpu()
    assert (of_bench["architecture"], of_bench["sm_count"], of_bench["uuid"]) == ("sm_90", 132, FAKE_GPU["uuid"])
    assert bool(of_bench["nvidia_smi"]) == has_smi and bool(of_bench["nvidia_smi_error"]) != has_smi
    assert json.loads(json.dumps(of_bench)) == of_bench
    assert gpu_check.answer("false") == gpu_check.answer("no-such-command") == "unknown"


def test_a_failing_step_is_recorded_and_the_rest_runs(check: Check, capsys: pytest.CaptureFixture) -> None:
    def fails(check: Check) -> dict:
        raise StepFailed("the first line\nthe second\nthe last", failed=["test_a::test_b"], passed=1, skipped=2)

    def breaks(check: Check) -> dict:
        return {}["no such key"]

    steps = {"build": fails, "tests": breaks, "golden": lambda check: {"vectors": 8, "atoms": ["A", "B"]}}
    assert not gpu_check.run_steps(check, steps)
    summary = json.loads((check.out / "summary.json").read_text())
    assert summary["facts"] == check.facts
    assert [step["ok"] for step in summary["steps"].values()] == [False, False, True]
    assert summary["steps"]["build"]["failed"] == ["test_a::test_b"]
    assert "KeyError: 'no such key'" in summary["steps"]["tests"]["error"]
    text = (check.out / "summary.md").read_text()
    for words in ("NVIDIA H200", "the second", "test_a::test_b", "KeyError", "ok: 8 vectors of 2 atoms"):
        assert words in text
    printed = capsys.readouterr().out
    assert (
        "FAILED: 1 passed, 1 failed, 2 skipped" in printed and "FAILED: Traceback" in printed and "KeyError" in printed
    )
    assert gpu_check.run_steps(Check(check.build, check.out), {"golden": steps["golden"]})


def wait_until(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie, within seconds."""

    def state() -> str:
        try:
            return Path(f"/proc/{pid}/stat").read_text().split()[2]
        except (FileNotFoundError, ProcessLookupError):
            return "gone"

    return wait_until(lambda: state() in ("Z", "gone"))


def test_command_output_failure_and_time_limit(check: Check) -> None:
    assert check.run("one", "echo", "hello", seconds=10) == "hello\n"
    with pytest.raises(StepFailed, match=r"sh -c .* ended with 3:\n(\d+\n)+oops") as failure:
        check.run("one", "sh", "-c", "seq 1 100; echo oops >&2; exit 3", seconds=10)
    assert "\n100\n" in str(failure.value) and "\n12\n" not in str(failure.value)  # its end alone
    assert (check.build / "one.log").read_text().startswith("hello\n1\n")
    pid_file = check.build / "pid"
    with pytest.raises(StepFailed, match="was stopped after 1 s:\nstarted"):
        check.run("two", "sh", "-c", f"echo started; sleep 60 & echo $! > {pid_file}; wait", seconds=1)
    assert ended(int(pid_file.read_text()))


STOPPED = """
import sys
sys.path[:0] = [{benchmarks!r}]
import gpu_check
from pathlib import Path
gpu_check.REPOSITORY = Path({folder!r})
gpu_check.missing = lambda: []
gpu_check.gather_facts = lambda: dict(gpu="a GPU", architecture=90, torch="", cores=1)
command = "sh", "-c", "echo $$ > {folder}/started; mv {folder}/started {folder}/pid; exec sleep 60"
gpu_check.STEPS = dict(build=lambda check: check.run("build", *command, seconds=60))
sys.exit(gpu_check.main(["--out", {folder!r}]))
"""


def test_what_it_started_ends_with_it(tmp_path: Path) -> None:
    """A command that goes on would keep the GPU busy."""
    code = STOPPED.format(benchmarks=str(REPOSITORY / "benchmarks"), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code])
    wait_until((tmp_path / "pid").exists)
    process.terminate()
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert ended(int((tmp_path / "pid").read_text()))


def test_nvidia_smi_is_ours(tmp_path: Path) -> None:
    """nvidia-ml-py3 installs a module of that name."""
    (tmp_path / "nvidia_smi.py").write_text("raise ImportError('the wrong module')")
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY / "benchmarks")])
    run(sys.executable, "-c", "import gpu_check; gpu_check.nvidia_smi.query", PYTHONPATH=path)


def make_site(check: Check, **files: str) -> None:
    """A package `sage` in the place of the one that the step build makes."""
    package = check.site / "sage"
    package.mkdir(parents=True)
    for name, text in {"_C": "", "__init__": "", **files}.items():
        (package / f"{name}.py").write_text(text)


PROJECT = """
import pytest, sage
@pytest.mark.cuda
def test_passes(record_property):
    record_property("clocks", 16.5)
    assert sage.MADE_FOR_THIS
@pytest.mark.cuda
@pytest.mark.skipif({skip}, reason="there is one GPU")
def test_other(): assert not {fail}
def test_without_the_mark(): assert False
"""


@pytest.mark.parametrize(("skip", "fail"), [(True, False), (False, False), (False, True)])
def test_tests_step(check: Check, monkeypatch: pytest.MonkeyPatch, skip: bool, fail: bool) -> None:
    project = check.build / "project"
    project.mkdir()
    (project / "pytest.ini").write_text("[pytest]\nmarkers = cuda")
    (project / "test_it.py").write_text(PROJECT.format(skip=skip, fail=fail))
    monkeypatch.setattr(gpu_check, "REPOSITORY", project)
    with pytest.raises(StepFailed, match="the step build makes it"):
        gpu_check.tests(check)
    make_site(check, __init__="MADE_FOR_THIS = True")
    if fail:
        with pytest.raises(StepFailed, match="ended with 1") as failure:
            gpu_check.tests(check)
        assert failure.value.details["failed"] == ["test_it::test_other"] and failure.value.details["passed"] == 1
        assert failure.value.details["measured"] == {"clocks": "16.5"}
        return
    found = gpu_check.tests(check)
    assert (found["passed"], found["failed"], found["skipped"]) == (1 if skip else 2, [], 1 if skip else 0)
    assert (found["skipped_because"] == ["there is one GPU"]) == skip
    assert gpu_check.run_steps(check, {"tests": lambda check: found})
    assert "| clocks | 16.5 |" in (check.out / "summary.md").read_text()


def test_tests_step_without_a_test_fails(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    project = check.build / "project"
    project.mkdir()
    (project / "pytest.ini").write_text("[pytest]\nmarkers = cuda")
    test = "import pytest\n@pytest.mark.cuda\n@pytest.mark.skip(reason='no driver')\ndef test_a(): pass\n"
    (project / "test_it.py").write_text(test)
    monkeypatch.setattr(gpu_check, "REPOSITORY", project)
    make_site(check)
    with pytest.raises(StepFailed, match="no test ran: no driver"):
        gpu_check.tests(check)


def test_a_call_of_ten_minutes_is_enough(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """For all steps before bench, if each takes what it may, and for bench."""
    limits: dict[str, float] = {}

    def take(self: Check, step: str, *command: object, seconds: float, **rest: object) -> str:
        limits[step] = limits.get(step, 0) + seconds
        check.start -= seconds
        if step in ("tests", "golden", "bench"):
            raise StepFailed("it was too slow")
        if "--install" in command:
            make_site(check)
        return ""

    monkeypatch.setattr(Check, "run", take)
    gpu_check.run_steps(check, {name: step for name, step in gpu_check.STEPS.items() if name != "bench"})
    assert limits["tests"] > 120
    assert sum(limits.values()) + gpu_check.GOLDEN_SECONDS["run"] == pytest.approx(gpu_check.CALL_SECONDS, abs=5)
    gpu_check.run_steps(check, {"bench": gpu_check.bench})
    assert limits["bench"] == gpu_check.CALL_SECONDS < 600 - 20


BENCH = """
import json, sys
arguments = sys.argv[1:]
report = arguments[arguments.index("--json") + 1]
print(*arguments)
results = [{{"name": "SDPA", "recipe": None}}, {{"name": "sage1", "recipe": "sage1", "nrmse": {nrmse}, "kernel_only": {alone}}}]
json.dump({{"cases": [{{"case": "(1, 2)", "results": results}}]}}, open(report, "w"))
"""


@pytest.mark.parametrize(
    ("nrmse", "alone", "ok"),
    [("0.01", "{'ms': 1}", True), ("0.01", "None", False), ("float('nan')", "{'ms': 1}", False)],
)
def test_bench_step(check: Check, nrmse: str, alone: str, ok: bool) -> None:
    make_site(check, __main__=BENCH.format(nrmse=nrmse, alone=alone))
    check.quick = True
    (check.out / "bench.png").write_text("of an earlier run")
    if not ok:
        with pytest.raises(StepFailed, match=r"sage1 on \(1, 2\)"):
            gpu_check.bench(check)
        return
    result = gpu_check.bench(check)
    words = result["text"].split()
    assert words[:3] == ["bench", "--backend", "cuda"] and words.count("--shape") == len(gpu_check.QUICK_SHAPES)
    assert (result["file"], result["picture"]) == ("bench.json", "none: no matplotlib")


@needs_nvcc
@pytest.mark.parametrize("architecture", [90, 120])
def test_golden_step(check: Check, architecture: int) -> None:
    """The atoms compile; without a GPU the step then says so and leaves no file."""
    check.facts["architecture"] = architecture
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        if 10 * major + minor != architecture:
            pytest.skip(f"this GPU is not sm_{architecture}")
        assert gpu_check.golden(check)["vectors"] > 20
        return
    with pytest.raises(StepFailed, match="dump_atoms ended with 1: cudaGetDeviceProperties: "):
        gpu_check.golden(check)
    assert not list(check.out.rglob("*.txt"))


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        (86, ["SAGE_CUDA_ARCHS=86"]),
        (90, ["SAGE_CUDA_ARCHS=90", "SAGE_CUDA_EXTRA_ARCH=90"]),  # sm89's kernels run there, too
        (100, ["SAGE_CUDA_ARCHS=", "SAGE_CUDA_EXTRA_ARCH=100"]),
        (120, ["SAGE_CUDA_ARCHS=120"]),  # sm90's do not run there
    ],
)
def test_architecture_options(architecture: int, options: list[str]) -> None:
    assert gpu_check.architecture_options(architecture) == [f"-D{option}" for option in options]
    assert 1 <= gpu_check.build_jobs() <= os.cpu_count()


@needs_nvcc
@pytest.mark.parametrize(("architecture", "own"), [(90, "sm90_fwd_wgmma_d128"), (100, None)])
def test_build_is_for_the_gpu_alone(tmp_path: Path, architecture: int, own: str | None) -> None:
    """Each kernel that runs there would be compiled once."""
    options = [option.removeprefix("-D") for option in gpu_check.architecture_options(architecture)]
    path = os.pathsep.join([TOOLS_PATH, str(Path(gpu_check.find_nvcc()).parent)])
    configure(tmp_path, *options, "SAGE_CUDA=ON", f"CMAKE_CUDA_COMPILER={gpu_check.find_nvcc()}", path=path)
    commands = json.loads((tmp_path / "compile_commands.json").read_text())
    kernels = {Path(x["file"]).stem: x["command"] for x in commands if "/instances/" in x["file"]}
    assert {"sm80_fwd_f16_d128", "sm89_fwd_fp8_d128", *filter(None, [own])} <= kernels.keys()
    for name, command in kernels.items():
        code = f"code=[sm_{architecture}{'a' if name == own else ''}"
        assert command.count("--generate-code=") == 1 and code in command


def test_make_target() -> None:
    if not shutil.which("make"):
        pytest.skip("there is no make")
    output = run(
        "make", "-C", REPOSITORY, "-n", "--no-print-directory", "gpu-check", "PYTHON=some-python", "ARGS=--quick"
    )
    assert output == "some-python benchmarks/gpu_check.py --quick"
