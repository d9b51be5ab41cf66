"""The command line: what it prints and writes agrees with what the library does; what it refuses, it says why."""

from __future__ import annotations

import contextlib
import io
import json
import math
import struct
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch

import sage
from sage import _C
from sage.cli import info, machine, main, measure
from sage.cli.bench import render_case
from sage.cli.candidates import DTYPES
from sage.cli.measure import Case, Timing, Truth, interleaved

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(*argv: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(argv)
        except SystemExit as exit:
            code = exit.code
    return code, out.getvalue(), err.getvalue()


def bench(tmp_path: Path, *argv: str) -> dict:
    """The JSON report of a short benchmark."""
    file = tmp_path / "report.json"
    code, _, err = run("bench", "--repeats", "3", "--json", str(file), *argv)
    assert code == 0, err
    return json.loads(file.read_text())


def float64_attention(q, k, v, causal):
    scores = q.double() @ k.double().mT / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    return scores.softmax(-1) @ v.double()


# ---- info


def test_info_text_says_everything_that_the_json_has():
    code, text, _ = run("info")
    assert code == 0
    facts = json.loads(run("info", "--json")[1])
    assert facts["versions"]["sage"] == sage.__version__
    for value in (
        *facts["versions"].values(),
        *filter(None, facts["build"].values()),
        *facts["auto"].values(),
        facts["cpu"]["model"],
        facts["gpus"]["reason"],
    ):
        assert value in text
    for recipe, backends in facts["recipes"].items():
        assert recipe in text
        for availability in backends.values():
            assert bool(availability["kernel"]) != bool(availability["reason"])
            assert availability["reason"] in text


def test_info_agrees_with_the_extension():
    facts = json.loads(run("info", "--json")[1])
    for isa, reason in facts["cpu"]["instruction_sets"].items():
        assert _C.cpu_isa_available(isa) == (not reason)
    served = {recipe for recipe, backends in facts["recipes"].items() if backends["cpu"]["kernel"]}
    assert served == {"sage1", "sage1_int8", "int16"}
    assert all(backends["reference"]["kernel"] for backends in facts["recipes"].values())


def test_info_follows_the_forced_instruction_set(monkeypatch):
    monkeypatch.setenv("SAGE_CPU_ISA", "portable")
    facts = json.loads(run("info", "--json")[1])
    assert facts["cpu"]["isa"] == "portable"
    assert facts["recipes"]["sage1"]["cpu"]["kernel"].endswith("portable")
    monkeypatch.setenv("SAGE_CPU_ISA", "sse9")
    code, _, err = run("info")
    assert code == 2 and "SAGE_CPU_ISA" in err and "sse9" in err


def test_info_says_what_runs_on_each_gpu(monkeypatch):
    gpu = {"sm_count": 108, "memory_bytes": 80 * 2**30}
    devices = [
        {"index": 0, "name": "GPU A", "compute_capability": "8.0", "architecture": 80, **gpu},
        {"index": 1, "name": "GPU B", "compute_capability": "10.0", "architecture": 100, **gpu},
        {"index": 2, "name": "GPU C", "compute_capability": "9.0", "architecture": 90, **gpu},
    ]
    fake = types.SimpleNamespace(cuda_devices=lambda: devices, build_info=_C.build_info)
    kernel_name = machine.kernel_name

    def on_three_gpus(recipe: str, backend: str, device_index: int = 0) -> str:
        if device_index == 1:
            raise NotImplementedError("no kernel of this build runs on sm_100")
        return ("sm80_fwd", "", "sm90_fwd")[device_index] if backend == "cuda" else kernel_name(recipe, backend)

    monkeypatch.setattr(info, "_C", fake)
    monkeypatch.setattr(machine, "kernel_name", on_three_gpus)
    lines = run("info")[1].splitlines()
    of_a, of_b, of_c = (next(line for line in lines if f"GPU {name}" in line) for name in "ABC")
    assert "compute capability 8.0, 108 SMs, 80 GiB; auto is sage1 (sm80_fwd): it has INT8" in of_a
    assert of_b.endswith("80 GiB; not served: no kernel of this build runs on sm_100")
    assert "80 GiB; auto is sage2 (sm90_fwd): its FP8 tensor cores have FP32 accumulators at the full rate" in of_c


# ---- bench


@pytest.mark.parametrize(
    ("backend", "recipe", "dtype"),
    [
        ("cpu", "int16", "bfloat16"),
        ("cpu", "sage1(smooth_k=False)", "float32"),
        ("reference", "sage2", "float16"),
    ],
)
@pytest.mark.parametrize("case", [Case(2, 3, 40, 40, 32), Case(1, 2, 5, 70, 16), Case(1, 2, 65, 65, 64, causal=True)])
def test_bench_report_is_consistent(tmp_path, case, backend, recipe, dtype):
    shape = f"{case.batch},{case.num_heads},{case.seqlen_q},{case.seqlen_k},{case.head_dim}"
    report = bench(
        tmp_path,
        "--shape",
        shape,
        *["--causal"] * case.causal,
        "--backend",
        backend,
        "--recipe",
        recipe,
        "--dtype",
        dtype,
    )
    (measured,) = report["cases"]
    assert report["settings"] == {"backend": backend, "dtype": dtype, "repeats": 3}
    assert [r["name"] for r in measured["results"]] == [*(f"SDPA {name}" for name in DTYPES), recipe]
    operations = 4 * case.batch * case.num_heads * case.seqlen_q * case.seqlen_k * case.head_dim / (1 + case.causal)
    for result in measured["results"]:
        ms = result["ms"]
        assert 0 < ms["min"] <= ms["median"] <= ms["max"]
        assert result["gops"] == pytest.approx(operations / ms["median"] / 1e6)
        assert result["speedup"] > 0
    sdpa = {r["name"]: r for r in measured["results"] if r["recipe"] is None}
    fastest = sdpa[measured["fastest_sdpa"]]
    assert fastest["ms"]["median"] == min(r["ms"]["median"] for r in sdpa.values())
    assert fastest["speedup"] == 1

    inputs = case.inputs()
    truth = float64_attention(*inputs, case.causal)
    q, k, v = (x.to(DTYPES[dtype]) for x in inputs)
    error = sage.attention(q, k, v, is_causal=case.causal, recipe=recipe, backend=backend).double() - truth
    ours = measured["results"][-1]
    assert ours["nrmse"] == pytest.approx((error.norm() / truth.norm()).item(), rel=1e-4)
    assert ours["max_error"] == pytest.approx(error.abs().max().item(), rel=1e-4)
    assert sdpa["SDPA float32"]["nrmse"] < 1e-5
    assert 1e-4 < sdpa["SDPA bfloat16"]["nrmse"] < 1e-2


def test_bench_table_shows_the_report(tmp_path):
    file = tmp_path / "new" / "folders" / "report.json"
    code, text, _ = run("bench", "--shape", "1,2,33,32", "--repeats", "1", "--json", str(file))
    assert code == 0
    (measured,) = json.loads(file.read_text())["cases"]
    for result in measured["results"]:
        (line,) = (line for line in text.splitlines() if line.strip().startswith(f"{result['name']} "))
        assert f"{result['ms']['median']:.3f}" in line and f"{result['nrmse']:.2g}" in line and result["kernel"] in line


def test_bench_keeps_what_it_measured(tmp_path, monkeypatch):
    attention = sage.attention

    def broken(q, *inputs, **settings):
        if q.shape[2] == 9:
            raise RuntimeError("the second case")
        return attention(q, *inputs, **settings)

    monkeypatch.setattr(sage, "attention", broken)
    file = tmp_path / "report.json"
    shapes = ["--shape", "1,1,8,16", "--shape", "1,1,9,16"]
    with pytest.raises(RuntimeError, match="the second case"):
        run("bench", *shapes, "--repeats", "1", "--recipe", "int16", "--json", str(file))
    (kept,) = json.loads(file.read_text())["cases"]
    assert kept["case"] == "(1, 1, 8, 16)"


def test_bench_table_says_when_times_are_unsteady(tmp_path):
    (case,) = bench(tmp_path, "--shape", "1,1,16,16")["cases"]
    for result in case["results"]:
        result["ms"] = {"min": 1.0, "median": 1.4, "max": 9.0}
    assert "Unsteady" not in render_case(case)
    case["results"][-1]["ms"]["median"] = 3.25
    assert "Unsteady: medians up to 3.2 times" in render_case(case)


def test_bench_machine_and_threads(tmp_path):
    before = torch.get_num_threads()
    report = bench(tmp_path, "--shape", "1,1,16,16", "--threads", "1", "--recipe", "int16")
    assert report["machine"]["threads"] == 1
    assert torch.get_num_threads() == before
    assert report["cases"][0]["results"][-1]["kernel"].endswith(report["machine"]["isa"])
    assert report["versions"]["torch"] == torch.__version__


def test_bench_plot_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib (extra bench)")
    file = tmp_path / "pictures" / "bench.png"
    code, _, err = run("bench", "--shape", "1,1,32,32", "--shape", "1,2,32,32", "--repeats", "1", "--plot", str(file))
    assert code == 0, err
    content = file.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width > 1000 and height > 500

    from matplotlib import image

    pixels = image.imread(file)[..., :3].reshape(-1, 3)
    colours = {tuple(round(255 * c) for c in pixel) for pixel in pixels[::7].tolist()}
    assert {(0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00), (0x00, 0x9E, 0x73), (0x8C, 0x8C, 0x8C)} <= colours  # a bar each


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--shape", "1,2,3"], ["shape", "'1,2,3'", "batch,heads,seqlen,head_dim"]),
        (["--shape", "1,2,x,4"], ["shape", "'x'", ">= 1"]),
        (["--shape", "1,0,8,4"], ["shape", "'0'", ">= 1"]),
        (["--shape", "1,1,8,300"], ["head_dim", "300", "256"]),
        (["--shape", "1,1,4,8,16", "--causal"], ["--causal", "equal lengths", "(1, 1, 4, 8, 16)"]),
        (["--shape", "1,1,4,8", "--preset", "small"], ["--preset", "--shape"]),
        (["--recipe", "sage9"], ["sage9", "sage1_int8"]),
        (["--recipe", "sage1(colour=2)"], ["colour=2"]),
        (["--recipe", "sage3", "--backend", "cpu"], ["sage3", "nvfp4"]),
        (["--dtype", "float64"], ["--dtype", "float64", "bfloat16"]),
        (["--repeats", "0"], ["--repeats", "'0'", ">= 1"]),
        (["--threads", "two"], ["--threads", "'two'"]),
        (["--json", "."], ["--json", "folder"]),
        (["--json", f"{__file__}/report.json"], ["--json", "cannot make the folder"]),
        (["--colour"], ["--colour"]),
    ],
)
def test_bench_refuses_with_a_reason(argv, words):
    code, out, err = run("bench", *argv)
    assert code == 2
    assert out == ""
    assert all(word in err for word in words), err


def test_plot_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # Python's own way to make an import fail
    code, _, err = run("bench", "--shape", "1,1,8,8", "--plot", str(tmp_path / "x.png"))
    assert code == 1 and 'pip install "sage-attn[bench]"' in err


def test_bench_runs_without_a_progress_bar(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    code, out, err = run("bench", "--shape", "1,1,8,8", "--repeats", "1")
    assert code == 0 and "int16" in out and 'pip install "sage-attn[bench]"' in err


# ---- the way of measuring


def test_interleaved_takes_turns_and_repeats_short_calls():
    order: list[str] = []

    def slow():
        order.append("slow")
        time.sleep(1.5 * measure.MIN_SAMPLE_SECONDS)

    def short():
        order.append("short")
        time.sleep(measure.MIN_SAMPLE_SECONDS / 8)

    timings = interleaved({"slow": slow, "short": short}, repeats=3)
    assert timings["slow"].calls_per_sample == 1
    calls = timings["short"].calls_per_sample
    assert 1 < calls <= 8
    assert order == ["slow"] * 2 + ["short"] * 2 + (["slow"] + ["short"] * calls) * 3
    assert timings["slow"].median >= 1.5 * measure.MIN_SAMPLE_SECONDS
    assert timings["short"].median >= measure.MIN_SAMPLE_SECONDS / 8


def test_interleaved_enters_contexts_outside_of_what_is_timed():
    events: list[str] = []

    @contextlib.contextmanager
    def context():
        events.append("enter")
        yield
        events.append("exit")

    def seconds(function, calls):
        events.append(f"time {calls}")
        for _ in range(calls):
            function()
        return 0.25

    functions = {"a": lambda: events.append("a"), "b": lambda: events.append("b")}
    timings = interleaved(functions, 1, seconds=seconds, sample_seconds=0.5, within={"b": context})
    in_context = ["enter", "time 1", "b", "exit"]
    assert events == ["time 1", "a"] * 2 + in_context * 2 + ["time 2", "a", "a", "enter", "time 2", "b", "b", "exit"]
    assert timings["a"].samples == (0.25,) and timings["b"].calls_per_sample == 2


def test_ratio_is_the_median_of_the_ratios():
    # The ratio of the medians would be 4 / 2.
    baseline, ours = Timing((6.0, 4.0, 2.0), 1), Timing((2.0, 1.0, 4.0), 1)
    assert baseline.ratio_to(ours) == 3.0


def test_truth_of_some_heads(monkeypatch):
    case = Case(2, 2, 8, 8, 4)
    q, k, v = case.inputs()
    monkeypatch.setattr(measure, "MAX_EXACT_SCORES", 3 * 8 * 8)
    truth = Truth(case, q, k, v)
    assert truth.num_heads == 3
    out = float64_attention(q, k, v, causal=False)
    assert truth.errors(out)["nrmse"] < 1e-12
    out[1, 1] += 1  # the fourth head
    assert truth.errors(out)["max_error"] < 1e-12
    out[1, 0, 7, 3] += 1
    assert truth.errors(out)["max_error"] == pytest.approx(1)
    out[1, 0, 7, 3] = torch.nan
    assert math.isnan(truth.errors(out)["nrmse"]) and math.isnan(truth.errors(out)["max_error"])


# ---- as a person runs it


def test_module_without_a_command_shows_the_commands():
    process = subprocess.run([sys.executable, "-m", "sage"], capture_output=True, text=True)
    assert process.returncode == 2
    assert all(command in process.stdout for command in ("info", "demo", "bench"))


def test_module_exit_codes():
    good = subprocess.run([sys.executable, "-m", "sage", "info"], capture_output=True, text=True)
    assert good.returncode == 0 and good.stderr == "" and "sage1_int8" in good.stdout
    bad = subprocess.run([sys.executable, "-m", "sage", "bench", "--recipe", "sage9"], capture_output=True, text=True)
    assert bad.returncode == 2 and "sage9" in bad.stderr and "Traceback" not in bad.stderr


@pytest.mark.parametrize(
    ("example", "line", "most"),
    [
        ("attention.py", "relative error", 0.015),
        ("patch_model.py", "relative difference of the output", 0.002),
    ],
)
def test_example(example, line, most):
    process = subprocess.run([sys.executable, str(EXAMPLES / example)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    (value,) = (float(text.split()[-1]) for text in process.stdout.splitlines() if text.startswith(line))
    assert 0 < value < most
