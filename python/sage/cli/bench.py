"""Times quantized attention next to PyTorch's scaled_dot_product_attention in float32, bfloat16 and float16.

All candidates run interleaved in one process. A time includes quantization; it is the median over the repeats.
"x SDPA" compares with the fastest of the three SDPA dtypes: the median of the ratios within a repeat. NRMSE
(|out - truth| / |truth|) and the largest error are against float64 attention of the same N(0, 1) inputs. GOPS counts
4 * batch * heads * seqlen_q * seqlen_k * head_dim operations, half of that with a causal mask.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F

import sage

from . import machine, plot
from .measure import Case, Timing, Truth, interleaved
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

SDPA_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

UNSTEADY = 1.5
"""A median this many times the fastest sample gets a note: on a quiet machine they nearly agree."""

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
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--backend", choices=("auto", "cpu", "reference"), default="auto")
    add(
        "--recipe",
        action="append",
        type=argument(_recipe),
        metavar="NAME",
        help=f"repeatable; fields may follow: 'sage1(smooth_k=False)' (default: {describe_recipes()})",
    )
    shapes = parser.add_mutually_exclusive_group()
    shapes.add_argument(
        "--shape",
        action="append",
        type=argument(_case),
        metavar="B,H,S,D",
        help="batch, heads, seqlen, head_dim, or B,H,SQ,SK,D; repeatable",
    )
    shapes.add_argument("--preset", choices=PRESETS, default="default", help="a set of shapes (default: %(default)s)")
    add("--causal", action="store_true", help="every shape with a causal mask")
    add("--dtype", choices=SDPA_DTYPES, default="bfloat16", help="in and out of the recipes (default: %(default)s)")
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


def describe_recipes() -> str:
    return ", ".join(f"{recipe} ({purpose})" for recipe, purpose in RECIPES.items())


def run(arguments: argparse.Namespace) -> None:
    if arguments.plot and not is_installed("matplotlib"):
        raise Refused(f"--plot needs matplotlib: {install_line('bench')}", 1)
    cases = tuple(dict.fromkeys(arguments.shape or PRESETS[arguments.preset]))
    if arguments.causal:
        cases = tuple(dict.fromkeys(dataclasses.replace(case, causal=True) for case in cases))
    unequal = next((case for case in cases if case.causal and case.seqlen_q != case.seqlen_k), None)
    if unequal:
        raise Refused(
            f"--causal needs equal lengths, got {unequal}: SDPA aligns its causal mask top-left, sage bottom-right", 2
        )
    recipes = tuple(dict.fromkeys(arguments.recipe or RECIPES))
    with _threads(arguments.threads):
        report = measure(cases, recipes, backend=arguments.backend, dtype=arguments.dtype, repeats=arguments.repeats)
    print(render(report))
    if arguments.json:
        write_json(arguments.json, report)
        print(f"\nwrote {arguments.json}")
    if arguments.plot:
        plot.save(report, arguments.plot)
        print(f"\nwrote {arguments.plot}")


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


def measure(cases: Sequence[Case], recipes: Sequence[str], *, backend: str, dtype: str, repeats: int) -> dict:
    """The report of a benchmark: what `--json` writes, `render` and `plot.save` show.

    Raises Refused, before anything is timed, where no kernel serves a recipe.
    """
    kernels = kernel_names(cases, recipes, backend=backend, dtype=dtype)
    settings = {"backend": backend, "dtype": dtype, "repeats": repeats}
    with progress(len(cases) * (len(SDPA_DTYPES) + len(recipes)) * repeats) as step, torch.inference_mode():
        results = [_measure_case(case, recipes, kernels, settings, step) for case in cases]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.cpu(),
        "versions": machine.versions(),
        "settings": settings,
        "cases": results,
    }


def _measure_case(
    case: Case,
    recipes: Sequence[str],
    kernels: dict[tuple[Case, str], str],
    settings: dict,
    step: Callable[[str], None],
) -> dict:
    inputs, dtype = case.inputs(), settings["dtype"]
    typed = {name: tuple(x.to(sdpa_dtype) for x in inputs) for name, sdpa_dtype in SDPA_DTYPES.items()}
    functions: dict[str, Callable[[], torch.Tensor]] = {}
    about: dict[str, dict] = {}
    for name, qkv in typed.items():
        functions[f"SDPA {name}"] = lambda qkv=qkv: F.scaled_dot_product_attention(*qkv, is_causal=case.causal)
        about[f"SDPA {name}"] = {"recipe": None, "dtype": name, "kernel": "torch"}
    for recipe in recipes:
        functions[recipe] = lambda recipe=recipe: sage.attention(
            *typed[dtype], is_causal=case.causal, recipe=recipe, backend=settings["backend"]
        )
        about[recipe] = {"recipe": recipe, "dtype": dtype, "kernel": kernels[case, recipe]}
    truth = Truth(case, *inputs)
    errors = {name: truth.errors(function()) for name, function in functions.items()}
    timings = interleaved(functions, settings["repeats"], step=lambda name: step(f"{case} {name}"))
    fastest = min((f"SDPA {name}" for name in SDPA_DTYPES), key=lambda name: timings[name].median)
    results = [
        {"name": name, **about[name], **_speed(case, timings[name], timings[fastest]), **errors[name]}
        for name in functions
    ]
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
    settings = report["settings"]
    head = (
        f"{machine.summary(report['machine'])}, torch {report['versions']['torch']}\n"
        f"recipes: {settings['dtype']} in and out, backend {settings['backend']}, quantization included; "
        f"medians of {settings['repeats']} interleaved repeats\n"
        "x SDPA: against the fastest SDPA dtype; NRMSE and max error: against float64 attention of the same inputs"
    )
    return "\n\n".join([head, *map(render_case, report["cases"])])


def render_case(case: dict) -> str:
    rows = [("", "ms", "GOPS", "x SDPA", "NRMSE", "max error", "kernel")]
    rows += [
        (
            r["name"],
            f"{r['ms']['median']:.3f}",
            f"{r['gops']:.0f}",
            f"{r['speedup']:.2f}",
            f"{r['nrmse']:.2g}",
            f"{r['max_error']:.2g}",
            r["kernel"],
        )
        for r in case["results"]
    ]
    checked, heads = case["heads_checked"], case["batch"] * case["num_heads"]
    note = "" if checked == heads else f", errors of {checked} of {heads} heads"
    spread = max(r["ms"]["median"] / r["ms"]["min"] for r in case["results"])
    warning = (
        f"\n  Unsteady: medians up to {spread:.1f} times the fastest sample. Something else may be running; "
        "--threads 1 suffers least from it."
        if spread > UNSTEADY
        else ""
    )
    return f"{case['case']}{note}\n{table(rows, align='<>>>>><')}{warning}"


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
