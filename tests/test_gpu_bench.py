"""The benchmark of GPUs, as far as a machine without one goes: the emulator stands for the GPU, a script for nvidia-smi,
and made-up reports for measured ones."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_gpu import FAKE_GPU, H200, OLD, smi  # noqa: F401  (a fixture)
from needs import needs_emulator

import sage
from sage import _select
from sage.cli import bench, candidates, machine, main, measure, nvidia_smi, peaks, plot
from sage.cli.measure import Case


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


@pytest.fixture
def emulated_report(smi: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """A benchmark in which the emulator stands for the GPU, which is asked who it is once."""
    gpus = iter([FAKE_GPU])
    monkeypatch.setattr(machine, "gpu", lambda: next(gpus))
    run_briefly(monkeypatch)
    recipes = ["sage1", "sage1_int8"]
    return bench.measure([EMULATED], recipes, backend="emulator", dtype="float16", repeats=2)


def run_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(bench, "SUSTAINED_SECONDS", 0.01)


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
    per_clock = {"sage1": 2 / (1 / 8192 + 1 / 4096), "sage1_int8": 8192, case["fastest_sdpa"]: 4096}
    for name, rate in per_clock.items():
        result = results[name]
        assert result["peak_gops"] == pytest.approx(rate * 132 * 1.755) and result["sustained"]["sm_clock_mhz"] == 1755
        assert result["share_of_peak"] == pytest.approx(result["sustained"]["gops"] / result["peak_gops"])
    assert all(result["sustained"] is None for name, result in results.items() if name not in per_clock)
    state = {"sm_clock_mhz": [1755, 1755], "power_w": [412.33, 412.33], "temperature_c": [47, 47]}
    assert case["gpu_state"] == state

    text = bench.render(emulated_report)
    assert "NVIDIA H200, sm_90, CUDA 13.0, driver 580.159.04" in text and "SM clock 1755 to 1755 MHz" in text
    (line,) = (line for line in text.splitlines() if line.strip().startswith("sage1_int8 "))
    assert f"{results['sage1_int8']['kernel_only']['ms']['median']:.3f}" in line
    results["sage1_int8"]["share_of_peak"] = 0.543
    case["results"] = list(results.values())
    (line,) = (x for x in bench.render_case(case).splitlines() if x.strip().startswith("sage1_int8 "))
    assert " 54%  1755 " in line
    assert all(name in text.partition("left out: ")[2] for name in case["left_out"])


@needs_emulator
def test_gpu_report_without_nvidia_smi(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi.write_text("")
    monkeypatch.setattr(machine, "gpu", lambda: FAKE_GPU | {"nvidia_smi": {}})
    report = bench.measure([Case(1, 1, 16, 16, 16)], ["sage1"], backend="emulator", dtype="float16", repeats=1)
    unknown = dict.fromkeys(("sm_clock_mhz", "power_w", "temperature_c"))
    assert report["cases"][0]["gpu_state"] == unknown
    assert all(result["share_of_peak"] is None for result in report["cases"][0]["results"])
    assert "driver unknown" in bench.render(report)


@needs_emulator
def test_each_kernel_has_the_clock_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that clocks down for INT8 P V, slowly."""
    monkeypatch.setattr(machine, "gpu", lambda: FAKE_GPU)
    run_briefly(monkeypatch)
    monkeypatch.setattr(bench, "SETTLE_SECONDS", 0.05)
    ran: list[tuple[float, float]] = []  # when, and the clock that it leads to

    def clocked(make: Callable[..., candidates.Candidate]) -> Callable[..., candidates.Candidate]:
        def remade(case: Case, qkv: candidates.Qkv, dtype: str, recipe: str, *rest: str) -> candidates.Candidate:
            made = make(case, qkv, dtype, recipe, *rest)

            def call() -> torch.Tensor:
                if not ran or ran[-1][1] != CLOCKS[recipe]:
                    ran.append((time.monotonic(), CLOCKS[recipe]))
                return made.call()

            return replace(made, call=call)

        return remade

    def query(uuid: str) -> dict:
        now = time.monotonic()
        reached = [clock for when, clock in ran if when < now - 0.04]
        return {"sm_clock_mhz": reached[-1] if reached else 210.0}

    monkeypatch.setattr(candidates, "quantized", clocked(candidates.quantized))
    monkeypatch.setattr(candidates, "kernel_only", clocked(candidates.kernel_only))
    monkeypatch.setattr(nvidia_smi, "query", query)
    report = bench.measure([EMULATED], list(CLOCKS), backend="emulator", dtype="float16", repeats=1)
    results = {result["name"]: result for result in report["cases"][0]["results"]}
    assert {name: results[name]["sustained"]["sm_clock_mhz"] for name in CLOCKS} == CLOCKS


CLOCKS = {"sage1": 1900.0, "sage1_int8": 1200.0}


def test_sustained_ends_without_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    run_briefly(monkeypatch)
    monkeypatch.setattr(bench, "MAX_SUSTAINED_SECONDS", 0.05)

    def read() -> dict:  # of an nvidia-smi that answers when the GPU has nothing to do any more
        time.sleep(0.5)
        return {"sm_clock_mhz": 210.0}

    candidate = candidates.Candidate(None, "float16", "", lambda: time.sleep(0.02))
    seconds, clock = bench._sustained(candidate, 1, read, "emulator")
    assert 0.02 <= seconds < 0.2 and clock is None


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
    special = {"approximate_exp": "sm90", "sage3": "sm120"}  # sm89 has kernels for all others
    architecture = next((x for word, x in special.items() if word in recipe), "sm89")
    monkeypatch.setenv(_select.EMULATED_VARIABLE, architecture)
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


@pytest.mark.parametrize(
    ("architecture", "left_out"),
    [
        (80, {"sage3", "sage3_fp8"}),
        (89, {"sage3", "sage3_fp8"}),
        (90, {"sage2pp", "sage2_int4", "sage3", "sage3_fp8"}),
        (100, {"sage2_int4", "sage3", "sage3_fp8"}),
        (120, {"sage2_int4"}),
    ],
)
def test_default_recipes_are_those_without_emulated_instructions(
    monkeypatch: pytest.MonkeyPatch, architecture: int, left_out: set[str]
) -> None:
    """On a GPU with all kernels: builds for it may have those of older architectures, too, but not of later ones."""
    kernels = {"sage2pp": "sm89_fwd_fp8_f16acc_d64", "sage2_int4": "sm89_fwd_int4_fp8_d64"}

    def kernel_name(recipe: str, backend: str) -> str:
        if recipe.startswith("sage3") and architecture < 120:
            raise NotImplementedError(f"qk nvfp4 needs sm_120, this GPU is sm_{architecture}")
        return kernels.get(recipe, "sm80_fwd_bf16_d64")

    monkeypatch.setattr(machine, "kernel_name", kernel_name)
    module = SimpleNamespace(cuda_architecture=lambda device_index: architecture)
    monkeypatch.setattr(_select, "extension", lambda backend: module)
    served, not_run = bench._served_by_the_gpu()
    assert served == tuple(recipe for recipe in bench.CUDA_RECIPES if recipe not in left_out)
    assert not_run.keys() == left_out and all(f"sm_{architecture}" in reason for reason in not_run.values())


def test_what_is_not_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    report = made_up_report() | {"not_run": {"sage3": "qk nvfp4 needs sm_120"}}
    monkeypatch.setattr(bench, "render_case", lambda case: "")
    report["versions"] = {"torch": "2"}
    assert "\nnot run: sage3: qk nvfp4 needs sm_120" in bench.render(report)
    assert "not run" not in bench.render(report | {"not_run": {}})


@pytest.mark.parametrize(
    ("gpu", "recipe", "kernel", "per_clock"),
    [
        ("NVIDIA GeForce RTX 5090", "sage3", "sm120_fp4_fwd_nvfp4_d128", 4096),
        ("NVIDIA GeForce RTX 5090", "sage3_fp8", "sm120_fp4_fwd_fp8_d128", 2 / (1 / 4096 + 1 / 2048)),
        ("NVIDIA GeForce RTX 5090", "sage2", "sm120_fwd_mxfp8_d128", 2048),
        ("NVIDIA GeForce RTX 5090", None, "", 512),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "sage3", "sm120_fp4_fwd_nvfp4_d128", 4096),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", None, "", 1024),
        ("NVIDIA GeForce RTX 5080", "sage3", "sm120_fp4_fwd_nvfp4_d128", None),
    ],
)
def test_peaks_of_sm_120(gpu: str, recipe: str | None, kernel: str, per_clock: float | None) -> None:
    """At 2 GHz on a multiprocessor; none where the GPU is not known."""
    parsed = recipe and sage.Recipe.parse(recipe)
    found = peaks.peak_gops({"name": gpu, "sm_count": 1}, 2000.0, parsed, kernel)
    assert found == (per_clock and pytest.approx(per_clock * 2))


def test_bench_on_a_machine_without_gpu_refuses(capsys: pytest.CaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["bench", "--backend", "cuda"]) == 1
    assert f"--backend cuda needs a GPU; PyTorch {torch.__version__} sees none" in capsys.readouterr().err


def test_preset_for_gpus() -> None:
    """What the tables of the project compare: 1k to 32k keys, two head_dims, with and without a mask. First what matters
    most, should time run out."""
    assert [case.head_dim for case in bench.PRESETS["gpu"]] == 12 * [128] + 12 * [64]
    cases = {(case.seqlen_k, case.head_dim, case.causal) for case in bench.PRESETS["gpu"]}
    assert cases == {(1024 << i, d, causal) for i in range(6) for d in (64, 128) for causal in (False, True)}
    assert {"flash", "cudnn"} <= candidates.SDPA_BACKENDS.keys() and "bfloat16" in bench.GPU_DTYPES
    assert {"sage2", "sage2(approximate_exp=True)"} <= bench.CUDA_RECIPES.keys()


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
