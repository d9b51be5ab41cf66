"""Predicts how fast the attention kernels run, from their instruction mix (benchmarks/sass) and their tiles.

    python tools/predict.py [--clock MHZ] [--plot FILE]

Per tile of a warp: the cycles that each pipe of a scheduler needs (the largest is the bound), and a simulation of the
scheduler's warps, which wait for each other and for latencies. tools/README.md says what the columns mean, where the
numbers come from and how far off the model is.
"""

from __future__ import annotations

import argparse
import functools
from dataclasses import replace
from pathlib import Path

import nvfp4
from kernels import (
    Kernel,
    at_seqlen,
    cycles_of,
    facts,
    gpus,
    known_kernels,
    library_kernels,
    moving_share,
    peak_cycles,
    peak_tflops,
    pipe_cycles,
    tensor_cycles,
)
from simulate import Gpu, Latency, Tensor, Vector, cycles_per_round

SEQLENS = (1024, 8192, 32768)
RESCALE_SLOTS = 8
"""Of a move to a new maximum, beside one for each accumulator, by the SASS of sm90_fwd_wgmma: two are exp2."""


def program(kernel: Kernel, gpu: Gpu) -> list[Tensor | Latency | Vector]:
    qk, pv = tensor_cycles(kernel, gpu)
    k, shuffles = kernel, Latency(110 if kernel.maximum else 10)
    exp = Vector(xu=k.xu, alu=k.alu - k.maximum, fma=k.fma - k.fold)
    if kernel.schedule == "wgmma_halves":
        first, half = Vector(alu=k.maximum, other=k.other / 4), exp.part(0.5) + Vector(other=k.other / 4)
        start = [Tensor(qk), Latency(60), first, shuffles, _move(k), half, Tensor(pv / 2, awaited=False)]
        return [*start, half, Tensor(pv / 2), Latency(60), Vector(fma=k.fold, other=k.other / 4)]
    if kernel.schedule == "wgmma_whole":
        start = [Latency(40), Tensor(qk), Latency(60), Vector(alu=k.maximum, other=0.8 * k.other), shuffles]
        return [*start, exp + Vector(other=0.2 * k.other), Latency(20), Tensor(pv), Latency(60), Vector(fma=k.fold)]
    if kernel.schedule == "wgmma_pipelined":  # Q K^T of the next tile with P V of this one
        return [Tensor(qk + pv), Latency(60), Vector(alu=k.maximum), shuffles, exp + Vector(other=k.other), Latency(20)]
    if kernel.schedule == "mma_ahead":  # Q K^T of the next half with P V of this one
        make = (exp + Vector(other=k.other)).part(0.5)
        largest = Vector(alu=k.maximum / 2), Latency(60), _move(k).part(0.5)
        return [Tensor(qk / 2), make, Tensor(pv / 2), *largest] * 2
    if kernel.schedule == "mma_sync":
        start = [Tensor(qk), Latency(35), Vector(alu=k.maximum, other=0.3 * k.other), shuffles]
        exp += Vector(other=0.4 * k.other)
        return [*start, exp, Latency(15), Tensor(pv), Latency(35), Vector(fma=k.fold, other=0.3 * k.other)]
    raise ValueError(f"kernel {kernel.name}: no schedule {kernel.schedule}")


def _move(kernel: Kernel) -> Vector:
    """To a new maximum, in the share of tiles that have one."""
    return Vector(fma=kernel.accumulators, xu=2, other=RESCALE_SLOTS - 2).part(kernel.rescale)


def service_program(kernel: Kernel, gpu: Gpu) -> list[Tensor | Latency | Vector]:
    """Of the warp that works for all others of its scheduler."""
    if not kernel.service:
        return []
    return [
        Tensor(cycles_of(kernel.service_tensor, gpu) * kernel.warps),
        Latency(60),
        Vector(other=kernel.service * kernel.warps),
    ]


@functools.cache
def _simulated(steps: tuple, warps: int, gpu: Gpu, service: tuple) -> float:
    return cycles_per_round(steps, warps, gpu, service)


def share_of_peak(kernel: Kernel, gpu: Gpu) -> float:
    """What the simulation says, without the factor that measurements give."""
    steps, service = tuple(program(kernel, gpu)), tuple(service_program(kernel, gpu))
    return peak_cycles(kernel, gpu) / _simulated(steps, kernel.warps, gpu, service)


def factors() -> dict[str, float]:
    """By GPU: what is lost to all that is not simulated (clock under load, gaps, launch and tails), from the first
    figure that is known of it."""
    result = {}
    for figure in facts()["measured"]["figures"]:
        gpu, kernel = gpus()[figure["gpu"]], known_kernels()[figure["kernel"]]
        share = figure["tflops"] / peak_tflops(kernel, gpu)
        result.setdefault(gpu.name, min(1.0, share / share_of_peak(kernel, gpu)))
    return result


# ---- output


def table(head: str, rows: list[tuple]) -> str:
    cells = [head.split("|"), *([str(x) for x in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = (
        "  ".join(f"{x:<{w}}" if i < 2 else f"{x:>{w}}" for i, (x, w) in enumerate(zip(row, widths))) for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def known_rows(factor: dict[str, float]) -> list[tuple]:
    rows, calibrated = [], set()
    for figure in facts()["measured"]["figures"]:
        gpu, kernel = gpus()[figure["gpu"]], known_kernels()[figure["kernel"]]
        raw, peak = share_of_peak(kernel, gpu), peak_tflops(kernel, gpu)
        predicted, measured = raw * factor[gpu.name], figure["tflops"] / peak
        error = f"{predicted / measured - 1:+.0%}" + ("" if gpu.name in calibrated else ", calibrates")
        calibrated.add(gpu.name)
        row = (f"{kernel.slots_per_score:.2f}", f"{peak:.0f}", f"{raw:.2f}", f"{predicted:.1%}", f"{measured:.1%}")
        rows.append((gpu.name, kernel.name, *row, f"{predicted * peak:.0f}", figure["tflops"], figure["by"], error))
    return rows


def kernel_rows(factor: dict[str, float], clock_ghz: float | None) -> list[tuple]:
    """At the longest of SEQLENS."""
    rows = []
    for gpu in gpus().values():
        others = [x for x in known_kernels().values() if x.schedule == "wgmma_halves" and gpu.name == "H100"]
        for kernel in (*library_kernels(gpu.name), *others):
            slots, kernel = kernel.slots_per_score, at_seqlen(kernel, SEQLENS[-1])
            pipes, ideal, raw = pipe_cycles(kernel, gpu), peak_cycles(kernel, gpu), share_of_peak(kernel, gpu)
            bound, predicted = max(pipes, key=pipes.get), raw * factor[gpu.name]
            tflops = predicted * peak_tflops(kernel, gpu) * (clock_ghz or gpu.clock_ghz) / gpu.clock_ghz
            shown = (pipes[x] for x in ("tensor", "xu", "alu", "fma", "issue"))
            cells = (f"{slots:.2f}", *(f"{x:.0f}" for x in (ideal, *shown)))
            shares = f"{bound} {ideal / pipes[bound]:.2f}", f"{raw:.2f}", f"{predicted:.1%}", f"{tflops:.0f}"
            rows.append((gpu.name, kernel.name, *cells, *shares))
    return rows


def seqlen_rows(factor: dict[str, float]) -> list[tuple]:
    gpu = gpus()["H100"]
    rows = []
    for kernel in (*library_kernels("H100"), *known_kernels().values()):
        if kernel.schedule != "wgmma_halves":
            continue
        for seqlen in SEQLENS:
            x = at_seqlen(kernel, seqlen)
            warp_moves = moving_share(seqlen, kernel.rows, kernel.keys)
            moved = warp_moves * (kernel.accumulators + RESCALE_SLOTS) * 32 / (kernel.rows * kernel.keys)
            slots = f"{kernel.slots_per_score:.2f}", f"{moved:.2f}", f"{x.slots_per_score - kernel.slots_per_score:.2f}"
            share = share_of_peak(x, gpu)
            cost = round(1 - share / share_of_peak(replace(x, rescale=0.0), gpu), 3) + 0.0  # never -0.0
            row = (kernel.name, seqlen, f"{warp_moves:.2f}", f"{x.rescale:.2f}", *slots, f"{cost:.1%}")
            rows.append((*row, f"{share * factor[gpu.name]:.1%}"))
    return rows


def report(clock_ghz: float | None = None) -> str:
    factor = factors()
    clocks = ", ".join(f"{gpu.name} {clock_ghz or gpu.clock_ghz:.2f} GHz" for gpu in gpus().values())
    kernel_head = "GPU|kernel|slots|peak|tensor|xu|alu|fma|issue|bound|simulated|predicted|TFLOPS"
    known_head = "GPU|kernel|slots|peak TFLOPS|simulated|predicted|measured|TFLOPS|measured|by|error"
    seqlen_head = "kernel|seqlen|warp moves|group moves|slots|+ moves|+ folds|moves cost|predicted"
    nvfp4_head = (
        "GPU|kernel|smooth_q|QMMA|slots|peak|tensor|xu|issue|shared|bound|simulated|peak TFLOPS|low|high|L2 TB/s"
    )
    call_head = "kernel|keys|moved MB|kernel us|quantize us|from L2|fill|kernel TFLOPS|call TFLOPS|outside"
    call_head += "|upstream kernel|call|outside"
    parts = {
        "Known figures; head_dim 128 where the name has none": table(known_head, known_rows(factor)),
        f"Cycles per tile, {SEQLENS[-1]} keys; {clocks}": table(kernel_head, kernel_rows(factor, clock_ghz)),
        "H100 by length, where scores are independent of each other": table(seqlen_head, seqlen_rows(factor)),
        f"NVFP4 by what is not known, {SEQLENS[-1]} keys": table(
            nvfp4_head, nvfp4.bound_rows(factor, share_of_peak, SEQLENS[-1])
        ),
        "Whole calls on an RTX 5090, batch 4, 32 heads": table(call_head, nvfp4.call_rows(share_of_peak, SEQLENS)),
    }
    return "\n\n".join(f"{title}\n{text}" for title, text in parts.items())


def plot(path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    factor = factors()
    rows = [(f"{x[0]}: {x[1]}", float(x[5][:-1]), float(x[6][:-1])) for x in known_rows(factor)]
    rows += [(f"{x[0]}: {x[1]}", float(x[-2][:-1]), None) for x in kernel_rows(factor, None)]
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.22 * len(rows)), layout="constrained")
    axes.barh([x[0] for x in rows], [x[1] for x in rows], color="#0072B2", label="predicted")
    known = [x for x in rows if x[2] is not None]
    axes.plot([x[2] for x in known], [x[0] for x in known], "D", color="#D55E00", label="measured")
    axes.invert_yaxis()
    axes.set_xlabel("% of the tensor cores' peak")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clock", type=float, metavar="MHZ", help="of all GPUs (default: each one's nominal clock)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture (PNG), with matplotlib")
    arguments = parser.parse_args()
    print(report(arguments.clock / 1e3 if arguments.clock else None))
    if arguments.plot:
        plot(arguments.plot)


if __name__ == "__main__":
    main()
