"""Speed and error of attention functions, side by side in one process."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_SAMPLE_SECONDS = 2e-3
"""A sample repeats short calls for at least this long: well above the clock's step and one wake-up of a thread pool."""

MIN_CUDA_SAMPLE_SECONDS = 1e-2
"""Likewise on a GPU, where a sample begins with an idle one that waits for the first launch."""

MAX_EXACT_SCORES = 2**27
"""Query-key pairs that the float64 truth computes; of larger cases fewer heads are checked, at least one."""


@dataclass(frozen=True)
class Timing:
    """Seconds per call. `samples` of two timings of one `interleaved` run correspond, one per repeat."""

    samples: tuple[float, ...]
    calls_per_sample: int

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def ratio_to(self, other: Timing) -> float:
        """How many times longer this takes than `other`: the median over the repeats of the ratio within a repeat."""
        return statistics.median(a / b for a, b in zip(self.samples, other.samples, strict=True))

    def milliseconds(self) -> dict[str, float]:
        """{"median", "min", "max"} per call."""
        seconds = {"median": self.median, "min": min(self.samples), "max": max(self.samples)}
        return {name: 1e3 * value for name, value in seconds.items()}


def wall_seconds(function: Callable[[], object], calls: int) -> float:
    """Seconds per call by the clock of the CPU."""
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def cuda_seconds(function: Callable[[], object], calls: int) -> float:
    """Seconds per call on the current CUDA stream, from the first call's start to the last one's end. The CPU only
    enqueues in between; where it is slower than the GPU, this is its time."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    seconds: Callable[[Callable[[], object], int], float] = wall_seconds,
    sample_seconds: float = MIN_SAMPLE_SECONDS,
    within: Mapping[str, Callable[[], AbstractContextManager]] | None = None,
    step: Callable[[str], None] = lambda name: None,
) -> dict[str, Timing]:
    """Times all functions in turn, `repeats` times round, after two calls each to warm up; `step` is called per sample.

    A change of clock, or another process, meets all functions alike, so ratios within a round stay meaningful.
    `within` has makers of the contexts in which some of the functions are called; entering them is not timed.
    """
    within = within or {}

    def measure(name: str, calls: int) -> float:
        with within.get(name, nullcontext)():
            return seconds(functions[name], calls)

    calls = {}
    for name in functions:
        measure(name, 1)
        calls[name] = max(1, math.ceil(sample_seconds / measure(name, 1)))
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name in functions:
            samples[name].append(measure(name, calls[name]))
            step(name)
    return {name: Timing(tuple(values), calls[name]) for name, values in samples.items()}


@dataclass(frozen=True)
class Case:
    """One problem: q (batch, num_heads, seqlen_q, head_dim), k and v (batch, num_heads, seqlen_k, head_dim)."""

    batch: int
    num_heads: int
    seqlen_q: int
    seqlen_k: int
    head_dim: int
    causal: bool = False

    def __str__(self) -> str:
        seqlens = (self.seqlen_q,) if self.seqlen_q == self.seqlen_k else (self.seqlen_q, self.seqlen_k)
        shape = ", ".join(map(str, (self.batch, self.num_heads, *seqlens, self.head_dim)))
        return f"({shape}) causal" if self.causal else f"({shape})"

    @property
    def operations(self) -> int:
        """Multiplications and additions of both matmuls; a causal mask halves them."""
        full = 4 * self.batch * self.num_heads * self.seqlen_q * self.seqlen_k * self.head_dim
        return full // 2 if self.causal else full

    def inputs(self, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
        """Float32 q, k, v ~ N(0, 1) from a fixed seed, rounded to bfloat16: so float32, bfloat16 and float16 hold the
        same values (float16 but for |x| < 2^-14) and are measured against one truth."""
        generator = torch.Generator(device).manual_seed(0)
        shapes = (
            (self.batch, self.num_heads, seqlen, self.head_dim)
            for seqlen in (self.seqlen_q, self.seqlen_k, self.seqlen_k)
        )
        return tuple(torch.randn(shape, generator=generator, device=device).bfloat16().float() for shape in shapes)


class Truth:
    """Float64 attention of a case's inputs, of the first heads only where all would be too many."""

    def __init__(self, case: Case, q: Tensor, k: Tensor, v: Tensor) -> None:
        from sage import reference

        most = max(1, MAX_EXACT_SCORES // (case.seqlen_q * case.seqlen_k))
        self.num_heads = min(most, case.batch * case.num_heads)
        q, k, v = (self._checked(x) for x in (q, k, v))
        self._out, _ = reference.exact(q, k, v, scale=case.head_dim**-0.5, causal=case.causal)

    def _checked(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1)[None, : self.num_heads]

    def errors(self, out: Tensor) -> dict[str, float]:
        """{"nrmse": |out - truth| / |truth|, "max_error": max |out - truth|} over the first `num_heads` heads."""
        error = self._checked(out).double() - self._out
        return {"nrmse": (error.norm() / self._out.norm()).item(), "max_error": error.abs().max().item()}
