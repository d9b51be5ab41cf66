"""The picture of a benchmark: speed-up over PyTorch's attention, and the error beside it."""

from __future__ import annotations

from pathlib import Path

from . import machine

# Okabe and Ito's palette, which colour-blind readers can tell apart; grey is for PyTorch.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_GREY = "#8C8C8C"


def save(report: dict, path: Path) -> None:
    """Writes a PNG with one group of bars per case of a `bench` report."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

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
    settings = report["settings"]
    figure.suptitle(
        f"{machine.summary(report['machine'])}, {settings['dtype']}, backend {settings['backend']}", fontsize=10
    )
    figure.savefig(path, format="png", dpi=150)
    pyplot.close(figure)


def _bars(axes, cases: list[dict], colors: dict[str, str], key: str, unit: float, label: str) -> None:
    width = 0.8 / len(colors)
    for i, (name, color) in enumerate(colors.items()):
        values = [unit * next(r[key] for r in case["results"] if r["name"] == name) for case in cases]
        x = [group + (i - (len(colors) - 1) / 2) * width for group in range(len(cases))]
        bars = axes.bar(x, values, width * 0.92, color=color, label=name)
        axes.bar_label(bars, [label.format(value) for value in values], fontsize=7, padding=1)
    axes.set_xticks(range(len(cases)), [case["case"].replace(" causal", "\ncausal") for case in cases], fontsize=8)
