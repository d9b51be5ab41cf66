"""The attention kernels as the model sees them: a warp's tile and the instructions that it takes."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass, replace
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
}
"""Tensor instructions, and what a GPU's rates call them."""


@dataclass(frozen=True)
class Kernel:
    """A warp's tile, and what it issues for one. `maximum` of `alu` come before the lanes exchange their maxima, `fold`
    of `fma` after P V; `rescale` is the share of tiles in which it waits until accumulators are at a new maximum."""

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

    @property
    def issue(self) -> float:
        return self.xu + self.alu + self.fma + self.other

    @property
    def slots_per_score(self) -> float:
        return self.issue * 32 / (self.rows * self.keys)

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


def is_qk(opcode: str) -> bool:
    return kind_of(opcode) in ("int8", "int4") and ".U8." not in opcode


def tensor_cycles(kernel: Kernel, gpu: Gpu) -> tuple[float, float]:
    """Of Q K^T and of P V, for a tile."""
    qk = pv = 0.0
    for opcode, count in kernel.tensor.items():
        cycles = count * operations_of(opcode) * 4 / gpu.tensor[kind_of(opcode)]
        qk, pv = (qk + cycles, pv) if is_qk(opcode) else (qk, pv + cycles)
    return (qk, pv) if qk else (pv / 2, pv / 2)  # FP8 for both


def peak_cycles(kernel: Kernel, gpu: Gpu) -> float:
    """Of a tile where the tensor cores do nothing but Q K^T and P V."""
    kinds = {is_qk(opcode): gpu.tensor[kind_of(opcode)] for opcode in kernel.tensor}
    pv = kinds[False]
    return kernel.operations / 2 * 4 * (1 / kinds.get(True, pv) + 1 / pv)


def pipe_cycles(kernel: Kernel, gpu: Gpu) -> dict[str, float]:
    return {
        "tensor": sum(tensor_cycles(kernel, gpu)),
        "xu": kernel.xu * gpu.xu_cycles,
        "alu": kernel.alu * gpu.alu_cycles,
        "fma": kernel.fma * gpu.fma_cycles,
        "issue": kernel.issue,
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
    family, head_dim = name.split("_")[0], int(name.rpartition("_d")[2])
    mix = {pipe: values[pipe] for pipe in ("xu", "alu", "fma")}
    mix["other"] = sum(values.get(pipe, 0) for pipe in ("memory", "uniform", "other"))
    if family == "sm90":
        keys, warps = (64, 2) if head_dim == 256 else (128, 3)
        tiles = sum(values["tensor"][x] for x in values["tensor"] if is_qk(x)) / (head_dim // 32)
        mix = {pipe: count / tiles for pipe, count in mix.items()}
        tensor = {opcode: count / tiles for opcode, count in values["tensor"].items()}
        return Kernel(name, "wgmma_halves", head_dim, 16, keys, warps, tensor, **mix, maximum=keys * 0.26, fold=0)
    rows = 16 if head_dim == 256 else 32
    scores = rows * 64 / 32
    maximum = 0 if re.match(r"sm80_fwd_(int4_)?b?f16", name) else scores  # 16-bit P needs none
    fold = max(0.0, mix["fma"] - 2 * scores)
    return Kernel(name, "mma_sync", head_dim, rows, 64, 2, values["tensor"], **mix, maximum=maximum, fold=fold)


RUNS_ON = {
    "A100": ("sm80-sm_80",),
    "RTX 4090": ("sm80-sm_80", "sm89-sm_89"),
    "H100": ("sm90-sm_90a",),
    "RTX 5090": ("sm120-sm_120a", "sm89-sm_120"),
}


def library_kernels(gpu: str, records: Path = RECORDS) -> list[Kernel]:
    """Those with tensor instructions, of the newest compiler; bfloat16 P takes as long as float16."""
    result = []
    for family in RUNS_ON[gpu]:
        versions = sorted(
            records.glob(f"{family}-cuda*.json"), key=lambda path: [int(x) for x in re.findall(r"\d+", path.stem)]
        )
        for path in versions[-1:]:
            kernels = json.loads(path.read_text())["kernels"]
            result += [recorded(name, x) for name, x in kernels.items() if "tensor" in x and "bf16" not in name]
    return result


# ---- the sm_90 kernel's rare work


def moving_share(seqlen: int, rows: int = 16, keys: int = 128) -> float:
    """Of a warp's steps, those in which a score of some row is the largest so far, where scores are independent and all
    alike. The largest of n steps is as likely in each of them, so a row moves in step n with probability 1 / n."""
    steps = max(1, -(-seqlen // keys))
    return sum(1 - (1 - 1 / n) ** rows for n in range(1, steps + 1)) / steps


def num_folds(steps: int, fold_every: int, tiles_per_step: int) -> int:
    """Of a row of the wgmma kernels with this many steps, as they count: after every fold_every // tiles_per_step steps but
    the last, and at the end if there was one before."""
    folds = (steps - 1) // (fold_every // tiles_per_step)
    return folds + (folds > 0)


def at_seqlen(kernel: Kernel, seqlen: int) -> Kernel:
    """With the rescaling and the folds of a problem of this length. wgmma waits for the warp of its four that is last."""
    if kernel.schedule != "wgmma_halves":
        return kernel
    steps = -(-seqlen // kernel.keys)
    folds = num_folds(steps, FOLD_EVERY, kernel.keys // 64) / steps  # an addition and two accesses
    work = {"fold": kernel.fold + kernel.accumulators * folds, "fma": kernel.fma + kernel.accumulators * folds}
    work["other"] = kernel.other + kernel.accumulators / 2 * folds
    return replace(kernel, **work, rescale=moving_share(seqlen, 4 * kernel.rows, kernel.keys))
