"""One scheduler of a GPU's multiprocessor, with a few warps that do the same work again and again."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields

LONE_WARP_IPC = 0.7
"""Instructions per cycle of a warp that has the scheduler to itself: it waits for its own results."""

ROUNDS = 60
JITTER = 0.05
"""Of all durations: without it warps may lock into step with each other, as hardware does not."""
RING = 2
"""Rounds that a warp of service may be ahead: of three stages one is read."""
STAGGER_CYCLES = 200
"""How much later each warp starts than the one before."""


@dataclass(frozen=True)
class Gpu:
    """Rates of a multiprocessor, which has four schedulers: `tensor` in operations per cycle by the kind of instruction,
    the others in cycles that a warp's instruction takes of a scheduler's pipe, or 128 bytes of a scheduler's quarter of the
    shared memory."""

    name: str
    multiprocessors: int
    clock_ghz: float
    tensor: dict[str, int]
    fma_cycles: int
    alu_cycles: int = 2
    xu_cycles: int = 8
    shared_cycles: int = 4
    memory_gbs: float = 0.0
    l2_mb: float = 0.0

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True)
class Tensor:
    """Work for the tensor cores, first come, first served. Where it is not `awaited`, the warp goes on."""

    cycles: float
    awaited: bool = True


@dataclass(frozen=True)
class Latency:
    """A wait that keeps nobody else from working."""

    cycles: float


@dataclass(frozen=True)
class Vector:
    """Instructions by their pipe; warps share the pipes and the issue of one instruction a cycle."""

    xu: float = 0.0
    alu: float = 0.0
    fma: float = 0.0
    other: float = 0.0

    def part(self, share: float) -> Vector:
        return Vector(*(share * getattr(self, x.name) for x in fields(self)))

    def __add__(self, more: Vector) -> Vector:
        return Vector(*(getattr(self, x.name) + getattr(more, x.name) for x in fields(self)))

    def demands(self, gpu: Gpu) -> tuple[float, ...]:
        """Cycles of each pipe."""
        issue = self.xu + self.alu + self.fma + self.other
        return issue, self.xu * gpu.xu_cycles, self.alu * gpu.alu_cycles, self.fma * gpu.fma_cycles


Program = tuple[Tensor | Latency | Vector, ...]


def cycles_per_round(program: Program, warps: int, gpu: Gpu, service: Program = ()) -> float:
    """What a tile costs the scheduler when all warps are under way. A warp more may go through `service`: it works for
    a round of all others before they begin it, and is at most RING rounds ahead."""
    programs = [program] * warps + [service] * bool(service)
    demands = [[x.demands(gpu) if isinstance(x, Vector) else () for x in steps] for steps in programs]
    alone = [[max(x[0] / LONE_WARP_IPC, *x) if x else 0.0 for x in steps] for steps in demands]
    at, left = [0] * len(programs), [0.0] * len(programs)  # each warp's step, and its cycles left if no other worked
    ends: list[list[float]] = [[] for _ in programs]
    blocked: set[int] = set()
    queue: list[list] = []  # [warp or None, cycles left] of the tensor cores
    now = 0.0
    chance = random.Random(0)

    def may_begin(warp: int) -> bool:
        if at[warp] or not service:
            return True
        if warp == warps:
            return len(ends[warp]) < RING + min(map(len, ends[:warps]))
        return len(ends[warp]) < len(ends[warps])

    def begin(warp: int) -> None:
        blocked.discard(warp)
        while True:
            if not may_begin(warp):
                blocked.add(warp)
                return
            x = programs[warp][at[warp]]
            if isinstance(x, Tensor):
                queue.append([warp if x.awaited else None, x.cycles])
            if not isinstance(x, Tensor) or x.awaited:
                cycles = alone[warp][at[warp]] if isinstance(x, Vector) else x.cycles
                left[warp] = cycles * chance.uniform(1 - JITTER, 1 + JITTER)
                return
            advance(warp)

    def advance(warp: int) -> None:
        at[warp] = (at[warp] + 1) % len(programs[warp])
        if at[warp] == 0:
            ends[warp].append(now)

    waiting = [STAGGER_CYCLES * warp for warp in range(warps)] + [0] * bool(service)
    started = [False] * len(programs)
    while min(map(len, ends)) < ROUNDS:
        for warp in range(len(programs)):
            if not started[warp] and now >= waiting[warp]:
                started[warp] = True
                begin(warp)
        step = [steps[i] for steps, i in zip(programs, at)]
        running = [
            w for w in range(len(programs)) if started[w] and w not in blocked and not isinstance(step[w], Tensor)
        ]
        vector = [w for w in running if isinstance(step[w], Vector) and alone[w][at[w]]]
        used = [sum(demands[w][at[w]][pipe] / alone[w][at[w]] for w in vector) for pipe in range(4)]
        speed = {w: 1 / max(1.0, *used) if w in vector else 1.0 for w in running}
        times = [left[w] / speed[w] for w in running] + [x[1] for x in queue[:1]]
        passed = min([*times, *(waiting[w] - now for w in range(len(programs)) if not started[w])])
        now += passed
        ended = []
        for w in running:
            left[w] -= passed * speed[w]
            ended += [w] * (left[w] < 1e-6)
        if queue:
            queue[0][1] -= passed
            if queue[0][1] < 1e-6:
                warp, _ = queue.pop(0)
                ended += [] if warp is None else [warp]
        for w in ended:
            advance(w)
            begin(w)
        for w in sorted(blocked):
            begin(w)
    steady = [x[len(x) // 3 :] for x in ends[:warps]]
    return 1 / sum((len(x) - 1) / (x[-1] - x[0]) for x in steady)
