"""Times quantized attention next to PyTorch's scaled_dot_product_attention: on the CPU in float32, bfloat16 and float16,
with --backend cuda each of its kernels (flash, cuDNN, efficient, math) in bfloat16 and float16.

All candidates run interleaved in one process. A time includes quantization; it is the median over the repeats.
"x SDPA" compares with the fastest SDPA: the median of the ratios within a repeat. NRMSE (|out - truth| / |truth|) and
the largest error are against float64 attention of the same N(0, 1) inputs. GOPS (on a GPU TOPS) counts
4 * batch * heads * seqlen_q * seqlen_k * head_dim operations, half of that with a causal mask. On a GPU "kernel ms" and
"kernel TOPS" are those of the attention kernel alone, on operands that were quantized before. Each of these, and the
fastest SDPA, then runs by itself for a while: "of peak" is its share, there, of what the tensor cores could do with its
formats at the clock that it has there.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch

import sage
from sage import _select

from . import candidates, machine, nvidia_smi, peaks, plot
from .candidates import Candidate
from .measure import (
    MIN_CUDA_SAMPLE_SECONDS,
    MIN_SAMPLE_SECONDS,
    Case,
    Timing,
    Truth,
    cuda_seconds,
    interleaved,
    wall_seconds,
)
from .terminal import (
    Refused,
    argument,
    install_line,
    is_installed,
    output_file,
    positive_int,
    progress,
    table,
    write_json,
)

RECIPES = {"sage1_int8": "fast", "sage1": "default", "int16": "accurate"}
"""What the CPU kernels serve, and what each is for."""

CUDA_RECIPES = {
    "sage1": "default",
    "sage1(pv_accum=fp16+fp32)": "fp16 accumulators, folded into fp32",
    "sage1(pv_accum=fp16)": "fp16 accumulators",
    "sage1_int8": "integers only",
    "sage2": "FP8 with fp32 accumulators",
    "sage2(approximate_exp=True)": "FP8 with a quarter of P interpolated",
    "sage2pp": "FP8 with fp16 accumulators",
    "sage2_int4": "INT4 and FP8",
    "sage3": "NVFP4",
    "sage3_fp8": "NVFP4 and FP8",
}
"""Likewise of the CUDA kernels: by default those that this GPU has, and has the instructions for."""

GPU_BACKENDS = ("cuda", "emulator")
"""Whose kernels are those of GPUs. The emulator is no choice of the command: it is how the tests measure with these."""

GPU_DTYPES = ("bfloat16", "float16")

UNSTEADY = 1.5
"""A median this many times the fastest sample gets a note: on a quiet machine they nearly agree."""

STATE_SECONDS = 0.3
"""How often a GPU is asked for its clock while it is measured."""

SETTLE_SECONDS = 0.25
"""Until the clock is that of what runs, and no longer of what ran before."""
SUSTAINED_SECONDS = 0.35
MAX_SUSTAINED_SECONDS = 2.0
"""How long something then runs by itself: until there is a clock, but no longer than the latter."""

PRESETS: dict[str, tuple[Case, ...]] = {
    "default": (
        Case(1, 8, 2048, 2048, 128),
        Case(1, 8, 1024, 1024, 64),
        Case(2, 12, 512, 512, 64),
        Case(1, 8, 2048, 2048, 128, causal=True),
    ),
    "small": tuple(Case(1, 8, seqlen, seqlen, 64) for seqlen in (64, 128, 197, 256)),
    "long": tuple(Case(1, 2, seqlen, seqlen, 128) for seqlen in (2048, 4096, 8192, 16384)),
    "decode": tuple(Case(1, 8, seqlen_q, 2048, 128) for seqlen_q in (1, 6, 16, 64)),
    "gpu": tuple(
        Case(2, 32, seqlen, seqlen, head_dim, causal)
        for head_dim in (128, 64)
        for causal in (False, True)
        for seqlen in (1024, 2048, 4096, 8192, 16384, 32768)
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--backend", choices=("auto", "cpu", "cuda", "reference"), default="auto")
    add(
        "--recipe",
        action="append",
        type=argument(_recipe),
        metavar="NAME",
        help=f"repeatable; fields may follow: 'sage1(smooth_k=False)' (default: {describe_recipes()}; "
        f"cuda: {describe_recipes(CUDA_RECIPES)})",
    )
    shapes = parser.add_mutually_exclusive_group()
    shapes.add_argument(
        "--shape",
        action="append",
        type=argument(_case),
        metavar="B,H,S,D",
        help="batch, heads, seqlen, head_dim, or B,H,SQ,SK,D; repeatable",
    )
    shapes.add_argument(
        "--preset", choices=PRESETS, help="a set of shapes (default: default; with --backend cuda: gpu)"
    )
    add("--causal", action="store_true", help="every shape with a causal mask")
    add(
        "--dtype",
        choices=candidates.DTYPES,
        default="bfloat16",
        help="in and out of the recipes (default: %(default)s)",
    )
    add("--threads", type=argument(positive_int), metavar="N", help="(default: torch.get_num_threads())")
    add(
        "--repeats",
        type=argument(positive_int),
        default=15,
        metavar="N",
        help="samples per candidate (default: %(default)s)",
    )
    add("--json", type=argument(output_file), metavar="FILE", help="write everything that was measured")
    add("--plot", type=argument(output_file), metavar="FILE", help="write a picture (PNG)")


def describe_recipes(recipes: dict[str, str] = RECIPES) -> str:
    return ", ".join(f"{recipe} ({purpose})" for recipe, purpose in recipes.items())


def run(arguments: argparse.Namespace) -> None:
    if arguments.plot and not is_installed("matplotlib"):
        raise Refused(f"--plot needs matplotlib: {install_line('bench')}", 1)
    on_cuda = arguments.backend == "cuda"
    if on_cuda and not torch.cuda.is_available():
        raise Refused(f"--backend cuda needs a GPU; PyTorch {torch.__version__} sees none", 1)
    preset = arguments.preset or ("gpu" if on_cuda else "default")
    cases = tuple(dict.fromkeys(arguments.shape or PRESETS[preset]))
    if arguments.causal:
        cases = tuple(dict.fromkeys(dataclasses.replace(case, causal=True) for case in cases))
    unequal = next((case for case in cases if case.causal and case.seqlen_q != case.seqlen_k), None)
    if unequal:
        raise Refused(
            f"--causal needs equal lengths, got {unequal}: SDPA aligns its causal mask top-left, sage bottom-right", 2
        )
    not_run: dict[str, str] = {}
    if on_cuda and not arguments.recipe:
        recipes, not_run = _served_by_the_gpu()
    else:
        recipes = tuple(dict.fromkeys(arguments.recipe or RECIPES))

    def keep(report: dict) -> None:
        report["not_run"] = not_run
        if arguments.json:
            write_json(arguments.json, report)

    settings = {"backend": arguments.backend, "dtype": arguments.dtype, "repeats": arguments.repeats}
    with _threads(arguments.threads):
        report = measure(cases, recipes, **settings, keep=keep)
    print(render(report))
    if arguments.json:
        print(f"\nwrote {arguments.json}")
    if arguments.plot:
        plot.save(report, arguments.plot)
        print(f"\nwrote {arguments.plot}")


def _served_by_the_gpu() -> tuple[tuple[str, ...], dict[str, str]]:
    """Those of CUDA_RECIPES that have a kernel here whose instructions the GPU has, and why the others have none; if none
    has, the first is among both."""
    architecture = _select.extension("cuda").cuda_architecture(0)
    not_run = {}
    for recipe in CUDA_RECIPES:
        try:
            if _is_emulated(machine.kernel_name(recipe, "cuda"), architecture):
                not_run[recipe] = f"sm_{architecture} has not the tensor instructions of its kernel"
        except NotImplementedError as error:
            not_run[recipe] = str(error)
    served = tuple(recipe for recipe in CUDA_RECIPES if recipe not in not_run)
    return served or (next(iter(CUDA_RECIPES)),), not_run


def _is_emulated(kernel: str, architecture: int) -> bool:
    """Whether the compiler has put others in the place of its tensor instructions, several for one: mma.sync with INT4
    from sm_90 on, with FP8 on sm_90."""
    return "_int4_" in kernel and architecture >= 90 or kernel.startswith("sm89_") and architecture == 90


def kernel_names(
    cases: Sequence[Case], recipes: Sequence[str], *, backend: str, dtype: str
) -> dict[tuple[Case, str], str]:
    """The kernel of every case and recipe. Raises Refused where none serves one of them."""
    names = {}
    for case, recipe in itertools.product(cases, recipes):
        try:
            names[case, recipe] = machine.kernel_name(recipe, backend, dtype=dtype, **dataclasses.asdict(case))
        except (ValueError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
            raise Refused(f"{recipe} on {case}: {error}", 2) from None
    return names


def measure(
    cases: Sequence[Case],
    recipes: Sequence[str],
    *,
    backend: str,
    dtype: str,
    repeats: int,
    keep: Callable[[dict], None] = lambda report: None,
) -> dict:
    """The report of a benchmark: what `--json` writes, `render` and `plot.save` show. `keep` is given the report after
    every case: what was measured survives a later case that fails.

    Raises Refused, before anything is timed, where no kernel serves a recipe.
    """
    kernels = kernel_names(cases, recipes, backend=backend, dtype=dtype)
    on_gpu = backend in GPU_BACKENDS
    settings = {"backend": backend, "dtype": dtype, "repeats": repeats}
    gpu = machine.gpu() if on_gpu else {}
    report = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.cpu(),
        **({"gpu": gpu} if on_gpu else {}),
        "versions": machine.versions(),
        "settings": settings,
        "cases": [],
    }
    measure_case = functools.partial(_measure_on_gpu, gpu=gpu) if on_gpu else _measure_on_cpu
    samples = len(candidates.DTYPES) + len(recipes)
    if on_gpu:
        samples = len(candidates.SDPA_BACKENDS) * len(GPU_DTYPES) + 2 * len(recipes)
    with progress(len(cases) * samples * repeats) as step, torch.inference_mode():
        for case in cases:
            report["cases"].append(measure_case(case, recipes, kernels, settings, step))
            keep(report)
    return report


def _measure_on_cpu(
    case: Case,
    recipes: Sequence[str],
    kernels: dict[tuple[Case, str], str],
    settings: dict,
    step: Callable[[str], None],
) -> dict:
    inputs = case.inputs()
    typed = {name: tuple(x.to(dtype) for x in inputs) for name, dtype in candidates.DTYPES.items()}
    sdpa = candidates.sdpa(case, typed)
    ours = _ours(candidates.quantized, case, typed[settings["dtype"]], recipes, kernels, settings)
    timings = _time(case, sdpa | ours, settings, step)
    return _results(case, sdpa, ours, timings, Truth(case, *inputs))


def _measure_on_gpu(
    case: Case,
    recipes: Sequence[str],
    kernels: dict[tuple[Case, str], str],
    settings: dict,
    step: Callable[[str], None],
    *,
    gpu: dict,
) -> dict:
    """Likewise, with the attention kernels alone, the state of the GPU meanwhile, and what did not run."""
    backend = settings["backend"]
    inputs = case.inputs("cuda" if backend == "cuda" else "cpu")
    truth = Truth(case, *inputs)
    typed = {name: tuple(x.to(candidates.DTYPES[name]) for x in inputs) for name in GPU_DTYPES}
    del inputs
    sdpa, left_out = candidates.sdpa_backends(case, typed)
    if not sdpa:
        raise Refused(f"no SDPA kernel runs {case}: {left_out}", 2)
    qkv = typed[settings["dtype"]]
    ours = _ours(candidates.quantized, case, qkv, recipes, kernels, settings)
    alone = _ours(candidates.kernel_only, case, qkv, recipes, kernels, settings)
    timed = sdpa | ours
    for recipe in recipes:
        if torch.equal(alone[recipe].call(), ours[recipe].call()):
            timed[_alone(recipe)] = alone[recipe]
        else:
            left_out[_alone(recipe)] = "its output is not that of sage.attention"
    read = functools.partial(nvidia_smi.query, gpu["uuid"])
    with nvidia_smi.sampled(read, STATE_SECONDS) as states:
        timings = _time(case, timed, settings, step)
    report = _results(case, sdpa, ours, timings, truth)
    fastest = report["fastest_sdpa"]
    for result in report["results"]:
        name = result["name"]
        if result["recipe"]:
            name = _alone(name)
            result["kernel_only"] = _speed(case, timings[name], timings[fastest]) if name in timed else None
        result |= {"sustained": None, "peak_gops": None, "share_of_peak": None}
        if name in timed and (result["recipe"] or name == fastest) and _mean_clock(states):
            seconds, clock = _sustained(timed[name], timings[name].calls_per_sample, read, backend)
            sustained = {"gops": case.operations / seconds / 1e9, "sm_clock_mhz": clock}
            peak = _peak_gops(result, backend, gpu, clock)
            result |= {"sustained": sustained, "peak_gops": peak}
            result["share_of_peak"] = sustained["gops"] / peak if peak else None
    return report | {"gpu_state": nvidia_smi.ranges(states), "left_out": left_out}


def _sustained(candidate: Candidate, calls: int, read: Callable[[], dict], backend: str) -> tuple[float, float | None]:
    """Seconds per call where nothing else runs for a while, and the mean clock meanwhile, None where there was none."""
    seconds = cuda_seconds if backend == "cuda" else wall_seconds
    samples: list[float] = []
    known: list[dict] = []
    with candidate.within():
        start = time.monotonic()
        while time.monotonic() < start + SETTLE_SECONDS:
            seconds(candidate.call, calls)
        start = time.monotonic()
        with nvidia_smi.sampled(read, 0) as states:
            while not samples or time.monotonic() < start + (SUSTAINED_SECONDS if known else MAX_SUSTAINED_SECONDS):
                samples.append(seconds(candidate.call, calls))
                known = list(states)  # what comes when the GPU has nothing more to do does not count
    return statistics.median(samples), _mean_clock(known)


def _mean_clock(states: list[dict]) -> float | None:
    clocks = [state["sm_clock_mhz"] for state in states if state.get("sm_clock_mhz")]
    return sum(clocks) / len(clocks) if clocks else None


def _peak_gops(result: dict, backend: str, gpu: dict, clock_mhz: float | None) -> float | None:
    recipe = result["recipe"]
    if recipe:
        device = "cuda" if backend == "cuda" else "cpu"
        recipe = sage.Recipe.parse(_select.choose(device, recipe, backend, 0)[1])
    return peaks.peak_gops(gpu, clock_mhz, recipe, result["kernel"])


def _alone(recipe: str) -> str:
    return f"{recipe}, kernel only"


def _ours(
    make: Callable[..., Candidate],
    case: Case,
    qkv: candidates.Qkv,
    recipes: Sequence[str],
    kernels: dict[tuple[Case, str], str],
    settings: dict,
) -> dict[str, Candidate]:
    """What `make` makes of every recipe."""
    dtype, backend = settings["dtype"], settings["backend"]
    return {recipe: make(case, qkv, dtype, recipe, backend, kernels[case, recipe]) for recipe in recipes}


def _time(case: Case, timed: dict[str, Candidate], settings: dict, step: Callable[[str], None]) -> dict[str, Timing]:
    on_cuda = settings["backend"] == "cuda"
    return interleaved(
        {name: candidate.call for name, candidate in timed.items()},
        settings["repeats"],
        seconds=cuda_seconds if on_cuda else wall_seconds,
        sample_seconds=MIN_CUDA_SAMPLE_SECONDS if on_cuda else MIN_SAMPLE_SECONDS,
        within={name: candidate.within for name, candidate in timed.items()},
        step=lambda name: step(f"{case} {name}"),
    )


def _results(
    case: Case, sdpa: dict[str, Candidate], ours: dict[str, Candidate], timings: dict[str, Timing], truth: Truth
) -> dict:
    fastest = min(sdpa, key=lambda name: timings[name].median)
    results = []
    for name, candidate in (sdpa | ours).items():
        with candidate.within():
            errors = truth.errors(candidate.call())
        about = {"name": name, "recipe": candidate.recipe, "dtype": candidate.dtype, "kernel": candidate.kernel}
        results.append({**about, **_speed(case, timings[name], timings[fastest]), **errors})
    return {
        "case": str(case),
        **dataclasses.asdict(case),
        "fastest_sdpa": fastest,
        "heads_checked": truth.num_heads,
        "results": results,
    }


def _speed(case: Case, timing: Timing, baseline: Timing) -> dict:
    return {
        "ms": timing.milliseconds(),
        "calls_per_sample": timing.calls_per_sample,
        "gops": case.operations / timing.median / 1e9,
        "speedup": baseline.ratio_to(timing),
    }


def render(report: dict) -> str:
    """The tables of a report."""
    settings, on_gpu = report["settings"], "gpu" in report
    head = (
        f"{machine.describe(report)}, torch {report['versions']['torch']}\n"
        f"recipes: {settings['dtype']} in and out, backend {settings['backend']}, quantization included; "
        f"medians of {settings['repeats']} interleaved repeats\n"
        f"x SDPA: against the fastest SDPA {'kernel and ' if on_gpu else ''}dtype; NRMSE and max error: against float64 "
        "attention of the same inputs"
    )
    if on_gpu:
        head += (
            "\nkernel ms and kernel TOPS: the attention kernel alone, on operands quantized before"
            "\nof peak: of the tensor cores' in these formats, at the clock that the kernel, or the SDPA call, has by itself"
        )
    head += "".join(f"\nnot run: {recipe}: {reason}" for recipe, reason in report.get("not_run", {}).items())
    return "\n\n".join([head, *map(render_case, report["cases"])])


def render_case(case: dict) -> str:
    on_gpu = "gpu_state" in case
    rows = [("", "ms", "GOPS", "x SDPA", "NRMSE", "max error", "kernel")]
    if on_gpu:
        rows = [
            ("", "ms", "TOPS", "x SDPA", "kernel ms", "kernel TOPS", "of peak", "MHz", "NRMSE", "max error", "kernel")
        ]
    for r in case["results"]:
        speed = [f"{r['ms']['median']:.3f}", f"{r['gops'] / 1e3 if on_gpu else r['gops']:.0f}", f"{r['speedup']:.2f}"]
        if on_gpu:
            alone = r.get("kernel_only")
            speed += [f"{alone['ms']['median']:.3f}", f"{alone['gops'] / 1e3:.0f}"] if alone else ["", ""]
            speed.append(f"{r['share_of_peak']:.0%}" if r["share_of_peak"] else "")
            clock = r["sustained"] and r["sustained"]["sm_clock_mhz"]
            speed.append(f"{clock:.0f}" if clock else "")
        rows.append((r["name"], *speed, f"{r['nrmse']:.2g}", f"{r['max_error']:.2g}", r["kernel"]))
    text = f"{case['case']}{_render_facts(case)}\n{table(rows, align='<' + '>' * (len(rows[0]) - 2) + '<')}"
    reasons: dict[str, list[str]] = {}
    for name, reason in case.get("left_out", {}).items():
        reasons.setdefault(reason, []).append(name)
    text += "".join(f"\n  left out: {', '.join(names)}: {reason}" for reason, names in reasons.items())
    spread = max(r["ms"]["median"] / r["ms"]["min"] for r in case["results"])
    if spread > UNSTEADY:
        text += f"\n  Unsteady: medians up to {spread:.1f} times the fastest sample. Something else may be running"
        text += "." if on_gpu else "; --threads 1 suffers least from it."
    return text


def _render_facts(case: dict) -> str:
    """What goes beside a case's name."""
    checked, heads = case["heads_checked"], case["batch"] * case["num_heads"]
    text = "" if checked == heads else f", errors of {checked} of {heads} heads"
    if clock := case.get("gpu_state", {}).get("sm_clock_mhz"):
        text += f", SM clock {clock[0]:.0f} to {clock[1]:.0f} MHz"
    return text


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _recipe(text: str) -> str:
    if text != "auto":
        sage.Recipe.parse(text)
    return text


def _case(text: str) -> Case:
    try:
        sizes = [positive_int(size.strip()) for size in text.split(",")]
    except ValueError as error:
        raise ValueError(f"shape {text!r}: every size {error}") from None
    if len(sizes) == 4:
        sizes.insert(3, sizes[2])
    if len(sizes) != 5:
        raise ValueError(
            f"shape must be batch,heads,seqlen,head_dim or batch,heads,seqlen_q,seqlen_k,head_dim, got {text!r}"
        )
    return Case(*sizes)
