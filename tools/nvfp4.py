"""NVFP4 attention on sm_120a, as far as no GPU has said how fast it is: by what is not known, and as a whole call."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kernels import (
    Kernel,
    at_seqlen,
    block_scaled,
    facts,
    gpus,
    kind_of,
    known_kernels,
    library_records,
    peak_cycles,
    peak_tflops,
    pipe_cycles,
)
from simulate import Gpu

GPUS = ("RTX 5090", "RTX PRO 6000")
UPSTREAM = "upstream sm120 FP4"
QMMA_CYCLES = (16, 8)
"""Of a QMMA.SF.16832, which multiplies half as much as OMMA.SF.16864 does in 16: as long as that, or at its rate."""

BATCH, HEADS = 4, 32  # of upstream's figures
BLOCK_ROWS = 128
MEMORY_SHARE = 0.8
"""Of the nominal bandwidth, that the quantizer reaches: an assumption, like the next."""
LAUNCH_SECONDS = 3e-6
"""Between a kernel's end and the next one's work."""
LAUNCHES = 3


def with_qmma(gpu: Gpu, cycles: int) -> Gpu:
    """`cycles` of a QMMA.SF.16832 on a scheduler's tensor core."""
    return replace(gpu, tensor={**gpu.tensor, "mxfp8": 4 * 2 * 16 * 8 * 32 // cycles})


def variants(gpu: Gpu) -> list[tuple[Kernel, bool, int | None, Gpu]]:
    """The recorded kernels with and without smooth_q; those with QMMA at each rate that it may have."""
    result = []
    for kernel, values in library_records("sm120_fp4-sm_120a"):
        rates = QMMA_CYCLES if any(kind_of(x) == "mxfp8" for x in kernel.tensor) else (None,)
        for smooth_q in (True, False):
            made = block_scaled(kernel, values, smooth_q)
            result += [(made, smooth_q, rate, with_qmma(gpu, rate) if rate else gpu) for rate in rates]
    return result


def fill(gpu: Gpu, seqlen: int) -> float:
    """The share of the blocks' rounds in which they have an item."""
    items = BATCH * HEADS * -(-seqlen // BLOCK_ROWS)
    return items / (-(-items // gpu.multiprocessors) * gpu.multiprocessors)


def copied_tbs(kernel: Kernel, gpu: Gpu, share: float) -> float:
    """What the multiprocessors together copy from the L2 cache, at this share of the peak."""
    cycles = peak_cycles(kernel, gpu) * kernel.warps / share
    return kernel.copied / cycles * gpu.multiprocessors * gpu.clock_ghz / 1e3


@dataclass(frozen=True)
class Call:
    """Seconds of the attention kernel, and of kv_stats and quantize_nvfp4, which move `moved` bytes: `best` if the
    second finds k and v in the L2 cache, where the first left them."""

    operations: float
    kernel: float
    moved: float
    quantize: float
    best: float

    @property
    def seconds(self) -> float:
        return self.kernel + self.quantize


def call(kernel: Kernel, smooth_q: bool, gpu: Gpu, share: float, seqlen: int) -> Call:
    elements = BATCH * HEADS * seqlen * kernel.head_dim
    nvfp4 = 9 / 16
    v = nvfp4 if len(kernel.tensor) == 1 else 1
    read, again, written = 3 * 2, 2 * 2, nvfp4 * (2 + smooth_q) + v  # 16-bit q, k and v; k and v for their statistics
    moved = elements * (read + again + written)
    kept = elements * again if elements * again < gpu.l2_mb * 1e6 else 0

    def seconds(size: float) -> float:
        return size / (MEMORY_SHARE * gpu.memory_gbs * 1e9) + LAUNCHES * LAUNCH_SECONDS

    operations = 4 * elements * seqlen
    kernel_seconds = operations / (share * peak_tflops(kernel, gpu) * 1e12) / fill(gpu, seqlen)
    return Call(operations, kernel_seconds, moved, seconds(moved), seconds(moved - kept))


def fp4_factor(gpu: Gpu, share_of_peak) -> float:
    """Of the first figure that is known of upstream's FP4 kernel on this GPU."""
    figures = facts()["measured"]["figures"]
    figure = next(x for x in figures if (x["gpu"], x["kernel"]) == (gpu.name, UPSTREAM))
    kernel = known_kernels()[UPSTREAM]
    return figure["tflops"] / peak_tflops(kernel, gpu) / share_of_peak(kernel, gpu)


def bound_rows(factor: dict[str, float], share_of_peak, seqlen: int) -> list[tuple]:
    rows = []
    for name in GPUS:
        for kernel, smooth_q, rate, gpu in variants(gpus()[name]):
            moving = at_seqlen(kernel, seqlen)
            pipes, ideal, raw = pipe_cycles(moving, gpu), peak_cycles(moving, gpu), share_of_peak(moving, gpu)
            bound, fp4 = max(pipes, key=pipes.get), fp4_factor(gpus()[name], share_of_peak)
            low, high = sorted(raw * x * peak_tflops(moving, gpu) for x in (factor[name], fp4))
            shown = [f"{pipes[x]:.0f}" for x in ("tensor", "xu", "issue", "shared")]
            cells = f"{kernel.slots_per_score:.2f}", f"{ideal:.0f}", *shown, f"{bound} {ideal / pipes[bound]:.2f}"
            tbs = copied_tbs(moving, gpu, raw * max(factor[name], fp4))
            speed = f"{peak_tflops(moving, gpu):.0f}", f"{low:.0f}", f"{high:.0f}", f"{tbs:.1f}"
            about = name, kernel.name, "on" if smooth_q else "off", rate or ""
            rows.append((*about, *cells, f"{raw:.2f}", *speed))
    return rows


def call_rows(share_of_peak, seqlens: tuple[int, ...]) -> list[tuple]:
    """On an RTX 5090 with smooth_q, as the recipes have it, and the slower QMMA; beside upstream's."""
    gpu, known, rows = gpus()["RTX 5090"], facts()["calls"], []
    factor = fp4_factor(gpu, share_of_peak)
    for kernel, smooth_q, rate, rated in variants(gpu):
        if kernel.head_dim != 128 or not smooth_q or rate not in (None, QMMA_CYCLES[0]):
            continue
        for seqlen in seqlens:
            share = share_of_peak(at_seqlen(kernel, seqlen), rated) * factor
            x = call(kernel, smooth_q, rated, share, seqlen)
            ours = [f"{1e6 * t:.0f}" for t in (x.kernel, x.quantize, x.best)]
            tflops = [f"{x.operations / t / 1e12:.0f}" for t in (x.kernel, x.seconds)]
            shares = f"{fill(gpu, seqlen):.2f}", *tflops, f"{x.quantize / x.seconds:.0%}"
            upstream = known["kernel"][str(seqlen)], known["call"][str(seqlen)]
            outside = f"{1 - upstream[1] / upstream[0]:.0%}"
            rows.append((kernel.name, seqlen, f"{x.moved / 1e6:.0f}", *ours, *shares, *upstream, outside))
    return rows
