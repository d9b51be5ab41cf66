"""The picture of a benchmark: on a CPU speed-up over PyTorch's attention and the error beside it, as bars; on a GPU speed
by sequence length, as curves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from . import machine

# Okabe and Ito's palette and Paul Tol's wine, olive and indigo, which colour-blind readers can tell apart; grey is for PyTorch.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#882255", "#999933", "#332288")
_GREY = "#8C8C8C"


def save(report: dict, path: Path) -> None:
    """Writes a PNG of a `bench` report."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = (_curves if "gpu" in report else _bar_chart)(pyplot, report)
    settings = report["settings"]
    figure.suptitle(f"{machine.describe(report)}, {settings['dtype']}, backend {settings['backend']}", fontsize=10)
    figure.savefig(path, format="png", dpi=150)
    pyplot.close(figure)


def _bar_chart(pyplot, report: dict):
    """One group of bars per case."""
    cases = report["cases"]
    recipes = [result["name"] for result in cases[0]["results"] if result["recipe"]]
    colors = {name: _COLORS[i % len(_COLORS)] for i, name in enumerate(recipes)} | {"SDPA bfloat16": _GREY}
    figure, (speed, error) = pyplot.subplots(1, 2, figsize=(max(10, 3 + 2.6 * len(cases)), 4.8), layout="constrained")
    _bars(speed, cases, {name: colors[name] for name in recipes}, "speedup", 1, "{:.1f}")
    parity = speed.axhline(1, color=_GREY, linestyle="--", linewidth=1)
    speed.set_title("speed, times the fastest SDPA dtype")
    _bars(error, cases, colors, "nrmse", 100, "{:.2g}")
    error.set_title("error, NRMSE against float64 in %")
    for axes in (speed, error):
        axes.margins(y=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = error.get_legend_handles_labels()
    figure.legend(
        [*handles, parity],
        [*labels, "fastest SDPA dtype"],
        loc="outside lower center",
        ncols=len(labels) + 1,
        frameon=False,
    )
    return figure


def _bars(axes, cases: list[dict], colors: dict[str, str], key: str, unit: float, label: str) -> None:
    width = 0.8 / len(colors)
    for i, (name, color) in enumerate(colors.items()):
        values = [unit * next(r[key] for r in case["results"] if r["name"] == name) for case in cases]
        x = [group + (i - (len(colors) - 1) / 2) * width for group in range(len(cases))]
        bars = axes.bar(x, values, width * 0.92, color=color, label=name)
        axes.bar_label(bars, [label.format(value) for value in values], fontsize=7, padding=1)
    axes.set_xticks(range(len(cases)), [case["case"].replace(" causal", "\ncausal") for case in cases], fontsize=8)


def _curves(pyplot, report: dict):
    """One panel for all cases that differ in their length alone: TOPS of every recipe, of its kernel alone (dashed) and
    of PyTorch's kernels in the recipes' dtype."""
    panels: dict[str, list[dict]] = {}
    for case in report["cases"]:
        mask = "causal" if case["causal"] else "no mask"
        shape = f"batch {case['batch']}, {case['num_heads']} heads, head_dim {case['head_dim']}, {mask}"
        panels.setdefault(shape, []).append(case)
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(6 * columns, 0.8 + 3.6 * rows), layout="constrained", squeeze=False
    )
    dtype = report["settings"]["dtype"]
    results = [result for case in report["cases"] for result in case["results"]]
    recipes = dict.fromkeys(result["name"] for result in results if result["recipe"])
    sdpa = dict.fromkeys(result["name"] for result in results if not result["recipe"] and result["dtype"] == dtype)
    styles = {name: {"color": _COLORS[i % len(_COLORS)], "marker": "o"} for i, name in enumerate(recipes)}
    styles |= {name: {"color": _GREY, "marker": "sDvx^+"[i % 6], "linewidth": 1} for i, name in enumerate(sdpa)}
    for panel, (shape, cases) in zip(axes.flat, panels.items()):
        for name, style in styles.items():
            panel.plot(*_speeds(cases, name, lambda result: result), markersize=4, label=name, **style)
            if name in recipes:
                alone = _speeds(cases, name, lambda result: result["kernel_only"])
                panel.plot(*alone, "--", color=style["color"], linewidth=1)
        seqlens = sorted({case["seqlen_q"] for case in cases})
        panel.set_xscale("log", base=2)
        panel.set_xticks(seqlens, [str(seqlen) for seqlen in seqlens])
        panel.set_ylim(bottom=0)
        panel.set_title(shape, fontsize=10)
        panel.set_xlabel("seqlen")
        panel.set_ylabel("TOPS")
        panel.spines[["top", "right"]].set_visible(False)
    for panel in axes.flat[len(panels) :]:
        panel.set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    (dashed,) = axes.flat[0].plot([], [], "--", color="black", linewidth=1)
    figure.legend(
        [*handles, dashed], [*labels, "kernel only"], loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    return figure


def _speeds(cases: list[dict], name: str, part: Callable[[dict], dict | None]) -> tuple[list[int], list[float]]:
    """Lengths and TOPS of a candidate, where it ran. `part`: of its result, what was timed."""
    points = []
    for case in cases:
        timed = [part(result) for result in case["results"] if result["name"] == name]
        points += [(case["seqlen_q"], entry["gops"] / 1e3) for entry in timed if entry]
    points.sort()
    return [seqlen for seqlen, _ in points], [tops for _, tops in points]
