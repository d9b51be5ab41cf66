"""The attention kernels as the model sees them: a warp's tile and the instructions that it takes."""

from __future__ import annotations

import functools
import json
import math
import random
import re
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path

from simulate import Gpu

TOOLS = Path(__file__).resolve().parent
RECORDS = TOOLS.parent / "benchmarks" / "sass"
FOLD_EVERY = 32
"""Of the recipe sage2, in tiles of 64 keys."""

KINDS = {
    r"I(MMA\.\d+|GMMA\.\d+x\d+x\d+)\.[SU]8\.S8": "int8",
    r"IMMA\.\d+\.S4\.S4": "int4",
    r"HMMA\.\d+\.F32(\.BF16)?": "f16",
    r"HMMA\.\d+\.F16": "f16acc",
    r"Q(MMA\.\d+|GMMA\.\d+x\d+x\d+)\.F32\.E4M3\.E4M3": "fp8",
    r"QMMA\.\d+\.F16\.E4M3\.E4M3": "fp8_f16acc",
    r"QMMA\.SF\.\d+\.F32\.E4M3\.E4M3\.E8": "mxfp8",
    r"OMMA\.SF\.\d+\.F32\.E2M1\.E2M1\.UE4M3\.4X": "nvfp4",
}
"""Tensor instructions, and what a GPU's rates call them."""


@dataclass(frozen=True)
class Kernel:
    """A warp's tile, and what it issues for one. `maximum` of `alu` come before the lanes exchange their maxima, `fold`
    of `fma` after P V; `rescale` is the share of tiles in which it waits until accumulators are at a new maximum.
    `service` and `service_tensor` are what other warps of the scheduler issue for it, `shared` what it and they read and
    write of shared memory, in units of 128 bytes, and `copied` the bytes that a multiprocessor has of the L2 cache for the
    tiles of all its warps."""

    name: str
    schedule: str
    head_dim: int
    rows: int
    keys: int
    warps: int  # of a scheduler
    tensor: dict[str, float]
    xu: float
    alu: float
    fma: float
    other: float
    maximum: float
    fold: float
    rescale: float = 0.0
    service: float = 0.0
    service_tensor: dict[str, float] = field(default_factory=dict)
    shared: float = 0.0
    copied: float = 0.0

    @property
    def issue(self) -> float:
        return self.xu + self.alu + self.fma + self.other + self.service

    @property
    def slots_per_score(self) -> float:
        return (self.issue - self.service) * 32 / (self.rows * self.keys)

    @property
    def operations(self) -> float:
        """Of Q K^T and P V, without a column of ones."""
        return 4 * self.rows * self.keys * self.head_dim

    @property
    def accumulators(self) -> float:
        """Of O and of the row sums, that a lane holds."""
        return self.rows * (self.head_dim + 8) / 32


def kind_of(opcode: str) -> str:
    for pattern, kind in KINDS.items():
        if re.fullmatch(pattern, opcode):
            return kind
    raise ValueError(f"no rate is known for the tensor instruction {opcode}")


def operations_of(opcode: str) -> int:
    """Of one warp: wgmma has 64 rows for four of them."""
    if wgmma := re.search(r"\.64x(\d+)x(\d+)\.", opcode):
        return 2 * 16 * int(wgmma[1]) * int(wgmma[2])
    return 2 * 16 * 8 * int(re.search(r"\.168(\d\d)\.", opcode)[1])


def is_qk(opcode: str, tensor: dict[str, float]) -> bool:
    """Whether this one of a kernel's tensor instructions is for Q K^T alone."""
    kind = kind_of(opcode)
    return kind in ("int8", "int4") and ".U8." not in opcode or kind == "nvfp4" and len(tensor) > 1


def cycles_of(tensor: dict[str, float], gpu: Gpu) -> float:
    return sum(count * operations_of(x) * 4 / gpu.tensor[kind_of(x)] for x, count in tensor.items())


def tensor_cycles(kernel: Kernel, gpu: Gpu) -> tuple[float, float]:
    """Of Q K^T and of P V, for a tile."""
    qk = cycles_of({x: count for x, count in kernel.tensor.items() if is_qk(x, kernel.tensor)}, gpu)
    pv = cycles_of(kernel.tensor, gpu) - qk
    return (qk, pv) if qk else (pv / 2, pv / 2)  # one format for both


def peak_cycles(kernel: Kernel, gpu: Gpu) -> float:
    """Of a tile where the tensor cores do nothing but Q K^T and P V."""
    kinds = {is_qk(opcode, kernel.tensor): gpu.tensor[kind_of(opcode)] for opcode in kernel.tensor}
    pv = kinds[False]
    return kernel.operations / 2 * 4 * (1 / kinds.get(True, pv) + 1 / pv)


def pipe_cycles(kernel: Kernel, gpu: Gpu) -> dict[str, float]:
    return {
        "tensor": sum(tensor_cycles(kernel, gpu)) + cycles_of(kernel.service_tensor, gpu),
        "xu": kernel.xu * gpu.xu_cycles,
        "alu": kernel.alu * gpu.alu_cycles,
        "fma": kernel.fma * gpu.fma_cycles,
        "issue": kernel.issue,
        **({"shared": kernel.shared * gpu.shared_cycles} if kernel.shared else {}),
    }


def peak_tflops(kernel: Kernel, gpu: Gpu) -> float:
    """At the nominal clock."""
    return kernel.operations / peak_cycles(kernel, gpu) * 4 * gpu.multiprocessors * gpu.clock_ghz / 1e3


# ---- where they come from


@functools.cache
def facts() -> dict:
    return json.loads((TOOLS / "facts.json").read_text())


def gpus() -> dict[str, Gpu]:
    return {name: Gpu(name, **values) for name, values in facts()["gpus"].items() if name != "source"}


def known_kernels() -> dict[str, Kernel]:
    """Those that are not this library's."""
    return {name: Kernel(name, **values) for name, values in facts()["kernels"].items() if name != "source"}


def recorded(name: str, values: dict) -> Kernel:
    """A kernel of this library from its line in benchmarks/sass."""
    family, head_dim = name.partition("_fwd")[0], int(name.rpartition("_d")[2])
    mix = {pipe: values[pipe] for pipe in ("xu", "alu", "fma")}
    mix["other"] = sum(values.get(pipe, 0) for pipe in ("memory", "uniform", "other"))
    if family == "sm120_fp4":
        return block_scaled(
            Kernel(name, "mma_ahead", head_dim, 16, 128, 2, values["tensor"], **mix, maximum=56, fold=0), values
        )
    if family == "sm90":
        keys, warps = (64, 2) if head_dim == 256 else (128, 3)
        tiles = sum(values["tensor"][x] for x in values["tensor"] if is_qk(x, values["tensor"])) / (head_dim // 32)
        mix = {pipe: count / tiles for pipe, count in mix.items()}
        tensor = {opcode: count / tiles for opcode, count in values["tensor"].items()}
        return Kernel(name, "wgmma_halves", head_dim, 16, keys, warps, tensor, **mix, maximum=keys * 0.26, fold=0)
    rows = 16 if head_dim == 256 else 32
    scores = rows * 64 / 32
    maximum = 0 if re.match(r"sm80_fwd_(int4_)?b?f16", name) else scores  # 16-bit P needs none
    fold = max(0.0, mix["fma"] - 2 * scores)
    return Kernel(name, "mma_sync", head_dim, rows, 64, 2, values["tensor"], **mix, maximum=maximum, fold=fold)


def block_scaled(kernel: Kernel, values: dict, smooth_q: bool = True) -> Kernel:
    """With what the service warps do for one of the eight math warps: they copy, and multiply Q's mean by K's two
    planes. Of their four it is the one that copies: the scheduler that it is on is the last to be done."""
    tiles = round(kernel.issue * 32 / (kernel.rows * kernel.keys) / values["slots_per_score"])  # unrolled
    if tiles != 1:
        raise ValueError(f"{kernel.name}: the model knows no unrolled loop, of {tiles} stages")
    plane = kernel.keys * kernel.head_dim * 9 // 16  # a byte for two values, and one for the scale of 16
    v = plane if len(kernel.tensor) == 1 else kernel.keys * kernel.head_dim
    copied = plane * (1 + smooth_q) + v
    corrections = kernel.keys // 8  # an access each, of the same bytes for all rows
    tensor = {x: values["service_tensor"] / kernel.warps for x in kernel.tensor if kind_of(x) == "nvfp4" and smooth_q}
    return replace(
        kernel,
        service=(values["copy_slots"] + smooth_q * values["service_slots"]) / kernel.warps,
        service_tensor=tensor,
        shared=(plane + v) / 128 + corrections + (copied + 2 * smooth_q * plane) / 128 / (4 * kernel.warps),
        copied=copied,
    )


RUNS_ON = {
    "A100": ("sm80-sm_80",),
    "RTX 4090": ("sm80-sm_80", "sm89-sm_89"),
    "H100": ("sm90-sm_90a",),
    "RTX 5090": ("sm120_fp4-sm_120a", "sm120-sm_120a", "sm89-sm_120"),
    "RTX PRO 6000": ("sm120_fp4-sm_120a",),
}


def library_records(target: str, records: Path = RECORDS) -> list[tuple[Kernel, dict]]:
    """The kernels of a family and architecture with tensor instructions, by the newest compiler, each with its line."""
    versions = sorted(
        records.glob(f"{target}-cuda*.json"), key=lambda path: [int(x) for x in re.findall(r"\d+", path.stem)]
    )
    kernels = json.loads(versions[-1].read_text())["kernels"] if versions else {}
    return [(recorded(name, x), x) for name, x in kernels.items() if "tensor" in x]


def library_kernels(gpu: str, records: Path = RECORDS) -> list[Kernel]:
    """Those that are meant for a GPU; bfloat16 P takes as long as float16."""
    found = (kernel for target in RUNS_ON[gpu] for kernel, _ in library_records(target, records))
    return [kernel for kernel in found if "bf16" not in kernel.name]


# ---- rare work


def moving_share(seqlen: int, rows: int = 16, keys: int = 128) -> float:
    """Of a warp's steps, those in which a score of some row is the largest so far, where scores are independent and all
    alike. The largest of n steps is as likely in each of them, so a row moves in step n with probability 1 / n."""
    steps = max(1, -(-seqlen // keys))
    return sum(1 - (1 - 1 / n) ** rows for n in range(1, steps + 1)) / steps


@functools.cache
def lazy_share(seqlen: int, rows: int, keys: int, headroom: float = 2.0) -> float:
    """Likewise where a row moves only when a score is more octaves than this above the whole number of octaves that it
    moved to, and scores are of N(0, 1), in 64 trials."""
    chance, normal = random.Random(0), statistics.NormalDist(sigma=math.log2(math.e))
    steps, moved = -(-seqlen // keys), 0
    for _ in range(64):
        references = [-math.inf] * rows
        for _ in range(steps):
            largest = [normal.inv_cdf(chance.random() ** (1 / keys)) for _ in range(rows)]
            grown = [x > y + headroom for x, y in zip(largest, references)]
            references = [math.ceil(x) if up else y for x, y, up in zip(largest, references, grown)]
            moved += any(grown)
    return moved / (64 * steps)


def num_folds(steps: int, fold_every: int, tiles_per_step: int) -> int:
    """Of a row of the wgmma kernels with this many steps, as they count: after every fold_every // tiles_per_step steps but
    the last, and at the end if there was one before."""
    folds = (steps - 1) // (fold_every // tiles_per_step)
    return folds + (folds > 0)


def at_seqlen(kernel: Kernel, seqlen: int) -> Kernel:
    """With the rescaling and the folds of a problem of this length. wgmma waits for the warp of its four that is last."""
    if kernel.schedule == "mma_ahead":
        return replace(kernel, rescale=2 * lazy_share(seqlen, kernel.rows, kernel.keys // 2))
    if kernel.schedule != "wgmma_halves":
        return kernel
    steps = -(-seqlen // kernel.keys)
    folds = num_folds(steps, FOLD_EVERY, kernel.keys // 64) / steps  # an addition and two accesses
    work = {"fold": kernel.fold + kernel.accumulators * folds, "fma": kernel.fma + kernel.accumulators * folds}
    work["other"] = kernel.other + kernel.accumulators / 2 * folds
    return replace(kernel, **work, rescale=moving_share(seqlen, 4 * kernel.rows, kernel.keys))
