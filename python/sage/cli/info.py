"""Prints what is installed, what this machine can run, what "auto" means here, and which recipes run where."""

from __future__ import annotations

import argparse
import json

from sage import PRESETS, _C, _select

from . import machine
from .terminal import table

BACKENDS = ("cpu", "cuda", "reference")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the same as JSON")


def run(arguments: argparse.Namespace) -> None:
    facts = gather()
    print(json.dumps(facts, indent=1) if arguments.json else render(facts))


def gather() -> dict:
    """Everything that `info` shows. Where something is unavailable, the reason is in its place."""
    return {
        "versions": machine.versions(),
        "build": _C.build_info(),
        "cpu": machine.cpu(),
        "gpus": _gpus(),
        "auto": {device: _select.explain_auto(device) for device in ("cpu", "cuda")},
        "recipes": {
            recipe: {backend: _availability(recipe, backend) for backend in BACKENDS}
            for recipe in PRESETS
            if not recipe.endswith("@cpu")
        },
    }


def _gpus() -> dict:
    """The devices, each with its default recipe, why that, and what runs it; or why there are none."""
    try:
        devices = _C.cuda_devices()
    except RuntimeError as error:
        return {"devices": [], "reason": str(error)}
    for device in devices:
        recipe, why = _select.auto_recipe(device["architecture"])
        served = _availability("auto", "cuda", device_index=device["index"])
        device["auto"] = {"recipe": recipe, "why": why, **served}
    return {"devices": devices, "reason": ""}


def _availability(recipe: str, backend: str, **problem: int) -> dict[str, str]:
    """The kernel that runs a recipe, or why none does."""
    try:
        return {"kernel": machine.kernel_name(recipe, backend, **problem), "reason": ""}
    except RuntimeError as error:  # NotImplementedError is one
        return {"kernel": "", "reason": str(error)}


def render(facts: dict) -> str:
    versions, cpu, gpus = facts["versions"], facts["cpu"], facts["gpus"]
    sections = {
        f"sage {versions['sage']}": [(name, versions[name]) for name in ("python", "torch", "system")],
        "Build": [
            (name.replace("_", " "), value or "none") for name, value in facts["build"].items() if name != "version"
        ],
        "CPU": [
            ("model", cpu["model"]),
            ("threads", f"{cpu['threads']} on {cpu['cores']} cores; torch.set_num_threads changes it"),
            ("features", ", ".join(cpu["features"]) or "none that matter here"),
        ],
        f"Instruction sets of the CPU kernels ({_select.CPU_ISA_VARIABLE} forces one)": [
            (isa, f"no: {reason}" if reason else "yes, in use" if isa == cpu["isa"] else "yes")
            for isa, reason in cpu["instruction_sets"].items()
        ],
        "GPUs": [
            (
                str(gpu["index"]),
                f"{gpu['name']}, compute capability {gpu['compute_capability']}, "
                f"{gpu['sm_count']} SMs, {gpu['memory_bytes'] / 2**30:.0f} GiB; " + _render_auto(**gpu["auto"]),
            )
            for gpu in gpus["devices"]
        ]
        or [("none", gpus["reason"] or "the driver reports no device")],
        'What recipe="auto" and backend="auto" mean': [
            (f"{device} tensors", text) for device, text in facts["auto"].items()
        ],
    }
    blocks = [f"{title}\n{table(rows, align='<<')}" for title, rows in sections.items()]
    return "\n\n".join([*blocks, _render_recipes(facts["recipes"])])


def _render_auto(recipe: str, why: str, kernel: str, reason: str) -> str:
    return f"auto is {recipe} ({kernel}): {why}" if kernel else f"not served: {reason}"


def _render_recipes(recipes: dict[str, dict[str, dict[str, str]]]) -> str:
    """One row per recipe and one column per backend; equal reasons share a footnote."""
    entries = [entry for backends in recipes.values() for entry in backends.values()]
    reasons = [reason for reason in dict.fromkeys(entry["reason"] for entry in entries) if reason]
    cells = {"": "yes"} | {reason: f"no [{i}]" for i, reason in enumerate(reasons, 1)}
    rows = [("recipe", *BACKENDS, "CPU kernel")]
    rows += [
        (recipe, *(cells[backends[backend]["reason"]] for backend in BACKENDS), backends["cpu"]["kernel"])
        for recipe, backends in recipes.items()
    ]
    notes = [f"  [{i}] {reason}" for i, reason in enumerate(reasons, 1)]
    return "\n".join(["Recipes and the backends that run them", table(rows, align="<" * len(rows[0])), *notes])
