"""`make gpu-check` and the benchmark of GPUs, as far as a machine without one goes: the emulator stands for the GPU, a
script for nvidia-smi, and made-up reports for measured ones."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from building import REPOSITORY, TOOLS_PATH, configure, run
from needs import needs_emulator

import sage
from sage import _select
from sage.cli import bench, candidates, machine, main, measure, nvidia_smi, plot
from sage.cli.measure import Case

sys.path.append(str(REPOSITORY / "benchmarks"))
import gpu_check  # noqa: E402
from gpu_check import Check, StepFailed  # noqa: E402

needs_nvcc = pytest.mark.skipif(gpu_check.find_nvcc() is None, reason="there is no nvcc")

H200 = "GPU-0f5c3d6e-1111-2222-3333-444455556666, NVIDIA H200, 580.159.04, 1755, 1980, 412.33, 700.00, 47"
OLD = "GPU-77777777-1111-2222-3333-444455556666, Tesla T4, 535.54.03, 300, 1590, [N/A], 70.00, [Not Supported]"


@pytest.fixture
def check(tmp_path: Path) -> Check:
    made = Check(tmp_path / "build", tmp_path / "out", facts={"gpu": "NVIDIA H200", "architecture": 90})
    made.build.mkdir()
    made.out.mkdir()
    return made


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The answer of an nvidia-smi that knows two GPUs, in a file; what it was asked is in `asked` beside it."""
    folder = tmp_path / "smi"
    folder.mkdir()
    answer, program = folder / "answer", folder / "nvidia-smi"
    answer.write_text(f"{OLD}\n{H200}\n")
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\ncat {answer}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return answer


# ---- nvidia-smi


def test_nvidia_smi_parse() -> None:
    old, h200 = nvidia_smi.parse(f"{OLD}\n{H200}\n")
    assert (h200["name"], h200["driver"], h200["uuid"][:12]) == ("NVIDIA H200", "580.159.04", "GPU-0f5c3d6e")
    assert (h200["sm_clock_mhz"], h200["max_sm_clock_mhz"]) == (1755, 1980)
    assert (h200["power_w"], h200["power_limit_w"], h200["temperature_c"]) == (412.33, 700, 47)
    assert old["power_w"] is None and old["temperature_c"] is None and old["sm_clock_mhz"] == 300
    with pytest.raises(RuntimeError, match="expected 8 values, got 'a, b'"):
        nvidia_smi.parse("a, b\n")
    with pytest.raises(RuntimeError, match="expected a number, got 'fast'"):
        nvidia_smi.parse(H200.replace("1755", "fast"))


def test_nvidia_smi_query(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nvidia_smi.query("0f5c3d6e-1111-2222-3333-444455556666")["name"] == "NVIDIA H200"
    fields = smi.with_name("asked").read_text().split()[0]
    assert fields.startswith("--query-gpu=uuid,name,driver_version,clocks.sm,")
    with pytest.raises(RuntimeError, match="knows no GPU 1234, only GPU-77777777"):
        nvidia_smi.query("1234")
    smi.with_name("nvidia-smi").write_text("#!/bin/sh\necho no devices were found; exit 6\n")
    with pytest.raises(RuntimeError, match="ended with 6: no devices were found"):
        nvidia_smi.query("1234")
    monkeypatch.setenv("PATH", str(smi.parent / "nowhere"))
    with pytest.raises(RuntimeError, match="nvidia-smi: .*No such file"):
        nvidia_smi.query("1234")


def test_sampled() -> None:
    answers = iter([{"sm_clock_mhz": 300.0, "power_w": None}, {"sm_clock_mhz": 1980.0, "power_w": None}])

    def read() -> dict:
        try:
            return next(answers)
        except StopIteration:
            raise RuntimeError("the GPU is gone") from None

    with nvidia_smi.sampled(read, 0.001) as samples:
        deadline = time.monotonic() + 10
        while len(samples) < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
    assert nvidia_smi.ranges(samples) == {"sm_clock_mhz": [300, 1980], "power_w": None, "temperature_c": None}


def test_sampled_has_a_sample_of_the_shortest_block() -> None:
    def read() -> dict:
        time.sleep(0.05)
        return {}

    start = time.monotonic()
    with nvidia_smi.sampled(read, 3600) as samples:
        pass
    assert len(samples) == 1 and time.monotonic() < start + 60


# ---- measuring


def test_cuda_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            happened.append("record")

        def synchronize(self) -> None:
            happened.append("synchronize")

        def elapsed_time(self, end: Event) -> float:
            return 12.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert measure.cuda_seconds(lambda: happened.append("call"), 4) == pytest.approx(0.003)
    assert happened == ["record", *["call"] * 4, "record", "synchronize"]


EMULATED = Case(1, 2, 70, 70, 40)
FAKE_GPU = {
    "name": "NVIDIA H200",
    "architecture": "sm_90",
    "uuid": "0f5c3d6e-1111-2222-3333-444455556666",
    "cuda": "13.0",
    "nvidia_smi": {"driver": "580.159.04"},
}


@pytest.fixture
def emulated_report(smi: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """A benchmark in which the emulator stands for the GPU."""
    monkeypatch.setattr(machine, "gpu", lambda: FAKE_GPU)
    recipes = ["sage1", "sage1_int8"]
    return bench.measure([EMULATED], recipes, backend="emulator", dtype="float16", repeats=2)


@needs_emulator
def test_gpu_report(emulated_report: dict) -> None:
    assert emulated_report["gpu"] == FAKE_GPU
    (case,) = json.loads(json.dumps(emulated_report))["cases"]
    results = {result["name"]: result for result in case["results"]}
    sdpa = [f"SDPA {backend} {dtype}" for backend in candidates.SDPA_BACKENDS for dtype in bench.GPU_DTYPES]
    assert {*results, *case["left_out"]} == {*sdpa, "sage1", "sage1_int8"}
    assert "SDPA math bfloat16" in results
    for name in case["left_out"]:  # on CPUs
        assert "cudnn" in name or "efficient" in name or "flash" in name
    assert case["fastest_sdpa"] == min(sdpa, key=lambda s: results[s]["ms"]["median"] if s in results else 1e9)
    for name in ("sage1", "sage1_int8"):
        ours = results[name]
        assert ours["kernel"].startswith("sm80_fwd_") and ours["nrmse"] < 0.05
        alone = ours["kernel_only"]
        assert alone["gops"] == pytest.approx(EMULATED.operations / alone["ms"]["median"] / 1e6)
        assert alone["ms"] != ours["ms"] and alone["speedup"] > 0 and alone["calls_per_sample"] >= 1
    assert case["gpu_state"] == {"sm_clock_mhz": [1755, 1755], "power_w": [412.33, 412.33], "temperature_c": [47, 47]}

    text = bench.render(emulated_report)
    assert "NVIDIA H200, sm_90, CUDA 13.0, driver 580.159.04" in text and "SM clock 1755 to 1755 MHz" in text
    (line,) = (line for line in text.splitlines() if line.strip().startswith("sage1_int8 "))
    assert f"{results['sage1_int8']['kernel_only']['ms']['median']:.3f}" in line
    assert all(name in text.partition("left out: ")[2] for name in case["left_out"])


@needs_emulator
def test_gpu_report_without_nvidia_smi(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi.write_text("")
    monkeypatch.setattr(machine, "gpu", lambda: FAKE_GPU | {"nvidia_smi": {}})
    report = bench.measure([Case(1, 1, 16, 16, 16)], ["sage1"], backend="emulator", dtype="float16", repeats=1)
    assert report["cases"][0]["gpu_state"] == {"sm_clock_mhz": None, "power_w": None, "temperature_c": None}
    assert "driver unknown" in bench.render(report)


@needs_emulator
@pytest.mark.parametrize("recipe", bench.CUDA_RECIPES)
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (EMULATED, "float16"),
        (Case(2, 1, 30, 90, 64), "bfloat16"),
        (Case(1, 1, 65, 65, 16, causal=True), "bfloat16"),
    ],
)
def test_kernel_only_is_the_whole_call(monkeypatch: pytest.MonkeyPatch, case: Case, dtype: str, recipe: str) -> None:
    monkeypatch.setenv(_select.EMULATED_VARIABLE, "sm89")  # which has kernels for all of them
    qkv = tuple(x.to(candidates.DTYPES[dtype]) for x in case.inputs())
    call = candidates.kernel_only(case, qkv, dtype, recipe, "emulator", "").call
    expected = sage.attention(*qkv, is_causal=case.causal, recipe=recipe, backend="emulator")
    assert torch.equal(call(), expected)
    call().fill_(torch.nan)
    assert torch.equal(call(), expected)  # again, on the same quantized operands


@needs_emulator
def test_kernel_only_that_differs_is_left_out(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpu", lambda: FAKE_GPU)
    right = candidates.kernel_only
    monkeypatch.setattr(candidates, "kernel_only", lambda case, qkv, *rest: right(case, (qkv[0], *qkv[:0:-1]), *rest))
    report = bench.measure([Case(1, 1, 16, 16, 16)], ["sage1"], backend="emulator", dtype="float16", repeats=1)
    (case,) = report["cases"]
    assert case["left_out"]["sage1, kernel only"] == "its output is not that of sage.attention"
    assert case["results"][-1]["kernel_only"] is None
    assert "left out: sage1, kernel only: its output is not that of sage.attention" in bench.render(report)


def test_math_is_left_out_where_its_scores_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "_refusal", lambda candidate: "")
    for seqlen, refused in ((8192, False), (16384, True)):
        sdpa, left_out = candidates.sdpa_backends(Case(2, 32, seqlen, seqlen, 128), {"float16": ()})
        assert len(sdpa) == (3 if refused else 4)
        assert left_out == ({"SDPA math float16": "its scores alone take 64 GiB"} if refused else {})


def test_bench_on_a_machine_without_gpu_refuses(capsys: pytest.CaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["bench", "--backend", "cuda"]) == 1
    assert f"--backend cuda needs a GPU; PyTorch {torch.__version__} sees none" in capsys.readouterr().err


# ---- the picture


def made_up_report() -> dict:
    """Two panels; PyTorch's math kernel runs out of memory at the longest."""
    cases = []
    for causal in (False, True):
        for seqlen in (1024, 2048, 4096):
            results = []
            for i, name in enumerate(
                ("SDPA flash float16", "SDPA math float16", "SDPA flash bfloat16", *bench.CUDA_RECIPES)
            ):
                if name == "SDPA math float16" and seqlen == 4096:
                    continue
                recipe = None if name.startswith("SDPA") else name
                gops = 1e5 * (i + seqlen / 4096)
                result = {"name": name, "recipe": recipe, "dtype": name.split()[-1] if not recipe else "float16"}
                results.append(result | {"gops": gops} | ({"kernel_only": {"gops": 1.2 * gops}} if recipe else {}))
            cases.append({**vars(Case(2, 32, seqlen, seqlen, 128, causal)), "results": results})
    settings = {"backend": "cuda", "dtype": "float16", "repeats": 3}
    return {"gpu": FAKE_GPU, "settings": settings, "cases": cases}


def colours(file: Path) -> set[tuple[int, ...]]:
    from matplotlib import image

    levels = torch.from_numpy(image.imread(file)[..., :3].copy()).mul(255).round().int().flatten(0, 1)
    codes = (levels[:, 0] << 16 | levels[:, 1] << 8 | levels[:, 2]).unique().tolist()
    return {(code >> 16, code >> 8 & 255, code & 255) for code in codes}


def test_plot_of_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib (extra bench)")
    file, report = tmp_path / "gpu.png", made_up_report()
    plot.save(report, file)
    width, height = struct.unpack(">II", file.read_bytes()[16:24])
    assert width > 1000 and height > 500
    ours = [tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in plot._COLORS[: len(bench.CUDA_RECIPES)]]
    assert {*ours, (0x8C, 0x8C, 0x8C)} <= colours(file)
    for case in report["cases"]:
        case["results"] = [result for result in case["results"] if result["name"] != "sage1"]
    plot.save(report, file)
    assert ours[-1] not in colours(file)  # one curve less


def test_speeds_are_where_something_ran() -> None:
    cases = made_up_report()["cases"][:3]
    assert plot._speeds(cases, "SDPA math float16", lambda result: result) == ([1024, 2048], [125, 150])
    cases[1]["results"][-1]["kernel_only"] = None
    name = cases[1]["results"][-1]["name"]
    assert plot._speeds(cases[::-1], name, lambda result: result["kernel_only"])[0] == [1024, 4096]


# ---- gpu_check


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
def test_passes(): assert sage.MADE_FOR_THIS
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
        return
    found = gpu_check.tests(check)
    assert (found["passed"], found["failed"], found["skipped"]) == (1 if skip else 2, [], 1 if skip else 0)
    assert (found["skipped_because"] == ["there is one GPU"]) == skip


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
def test_golden_step(check: Check) -> None:
    """The atoms compile; without a GPU the step then says so and leaves no file."""
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        check.facts["architecture"] = 10 * major + minor
        assert gpu_check.golden(check)["vectors"] > 20
        return
    with pytest.raises(StepFailed, match="dump_atoms ended with 1: cudaGetDeviceProperties: "):
        gpu_check.golden(check)
    assert not list(check.out.rglob("*.txt"))


@pytest.mark.parametrize(
    ("architecture", "options"), [(86, ["SAGE_CUDA_ARCHS=86"]), (90, ["SAGE_CUDA_ARCHS=", "SAGE_CUDA_EXTRA_ARCH=90"])]
)
def test_architecture_options(architecture: int, options: list[str]) -> None:
    assert gpu_check.architecture_options(architecture) == [f"-D{option}" for option in options]
    assert 1 <= gpu_check.build_jobs() <= os.cpu_count()


@needs_nvcc
def test_build_is_for_the_gpu_alone(tmp_path: Path) -> None:
    """Each kernel would be compiled once, for an architecture that has none of its own."""
    options = [option.removeprefix("-D") for option in gpu_check.architecture_options(90)]
    path = os.pathsep.join([TOOLS_PATH, str(Path(gpu_check.find_nvcc()).parent)])
    configure(tmp_path, *options, "SAGE_CUDA=ON", f"CMAKE_CUDA_COMPILER={gpu_check.find_nvcc()}", path=path)
    commands = json.loads((tmp_path / "compile_commands.json").read_text())
    kernels = [entry["command"] for entry in commands if "/instances/" in entry["file"]]
    assert len(kernels) > 10
    assert all(command.count("--generate-code=") == 1 and "code=[sm_90]" in command for command in kernels)


def test_make_target() -> None:
    if not shutil.which("make"):
        pytest.skip("there is no make")
    output = run(
        "make", "-C", REPOSITORY, "-n", "--no-print-directory", "gpu-check", "PYTHON=some-python", "ARGS=--quick"
    )
    assert output == "some-python benchmarks/gpu_check.py --quick"
