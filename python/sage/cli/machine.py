"""Facts about this machine and this build, as plain values for text and JSON."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

import sage
from sage import _C, _select

from . import nvidia_smi
from .terminal import Refused

# What each instruction set of the CPU kernels needs (csrc/kernels/cpu/isa.cpp), by the names of /proc/cpuinfo.
_ISA_FEATURES: dict[str, tuple[str, ...]] = {
    "avx512_vnni": ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"),
    "avx_vnni": ("avx2", "fma", "f16c", "avx_vnni"),
    "avx2": ("avx2", "fma", "f16c"),
    "portable": (),
}

# Reported where present though no kernel uses them yet.
_OTHER_FEATURES = ("avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16")


def cpu() -> dict:
    """The processor, what this process may use of it, and the instruction sets that the kernels can use or why not."""
    info = _cpuinfo()
    model = info.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in info:
        model += f" (family {info['cpu family']}, model {info['model']})"
    flags = info.get("flags", "").split()
    known = dict.fromkeys((*sum(_ISA_FEATURES.values(), ()), *_OTHER_FEATURES))
    features = [feature for feature in known if feature in flags]
    return {
        "model": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "features": features,
        "isa": isa(),
        "instruction_sets": {name: _why_not(name, features) for name in _ISA_FEATURES},
    }


def summary(facts: dict) -> str:
    """What `cpu` returned, in one line."""
    threads = facts["threads"]
    return f"{facts['model']}, {facts['isa']}, {threads} thread{'s' if threads > 1 else ''}"


def gpu() -> dict:
    """The current CUDA device; what nvidia-smi says about it, or why it says nothing."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    facts = {
        "name": properties.name,
        "architecture": f"sm_{properties.major}{properties.minor}",
        "sm_count": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "uuid": str(getattr(properties, "uuid", "")),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    try:
        return facts | {"nvidia_smi": nvidia_smi.query(facts["uuid"]), "nvidia_smi_error": ""}
    except RuntimeError as error:
        return facts | {"nvidia_smi": {}, "nvidia_smi_error": str(error)}


def describe(report: dict) -> str:
    """What a benchmark's report was measured on, in one line."""
    if "gpu" not in report:
        return summary(report["machine"])
    gpu = report["gpu"]
    driver = gpu["nvidia_smi"].get("driver", "unknown")
    return f"{gpu['name']}, {gpu['architecture']}, CUDA {gpu['cuda']}, driver {driver}"


def isa() -> str:
    """The instruction set that the CPU kernels use: the forced one, else the best. Refused if none has that name."""
    try:
        forced = _select.cpu_isa()
    except ValueError as error:
        raise Refused(str(error), 2) from None
    return _C.best_cpu_isa() if forced == "auto" else forced


def _why_not(isa_name: str, features: list[str]) -> str:
    if _C.cpu_isa_available(isa_name):
        return ""
    missing = [feature for feature in _ISA_FEATURES[isa_name] if feature not in features]
    return f"this CPU has no {', '.join(missing)}" if missing else "not in this build, or the system does not enable it"


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty on systems without it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def kernel_name(recipe: str, backend: str, **problem: Any) -> str:
    """The kernel that serves a problem (see `plan`). Where none does, raises with the reason: ValueError,
    NotImplementedError or, without a device, RuntimeError."""
    device = "cuda" if backend == "cuda" else "cpu"
    chosen, text = _select.choose(device, recipe, backend, problem.get("device_index"))
    return "plain PyTorch" if chosen == "reference" else plan(text, chosen, **problem).kernel_name


def plan(
    recipe: str,
    backend: str,
    *,
    device_index: int = 0,
    dtype: str = "bfloat16",
    batch: int = 1,
    num_heads: int = 1,
    seqlen_q: int = 64,
    seqlen_k: int = 64,
    head_dim: int = 64,
    causal: bool = False,
) -> Any:
    """An `AttnPlan` for a recipe and backend as `_select.choose` returns them."""
    return _select.extension(backend).AttnPlan(
        device="cpu" if backend == "cpu" else "cuda",
        device_index=device_index,
        dtype=dtype,
        recipe=sage.Recipe.parse(recipe),
        batch=batch,
        num_heads_q=num_heads,
        num_heads_kv=num_heads,
        head_dim=head_dim,
        seqlen_q=seqlen_q,
        seqlen_k=seqlen_k,
        causal=causal,
        num_threads=torch.get_num_threads(),
        cpu_isa=_select.cpu_isa(),
    )


def versions() -> dict[str, str]:
    return {
        "sage": sage.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
    }
