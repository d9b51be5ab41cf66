"""Which backend and recipe a call means: the one table behind "auto".

| tensors on | backend="auto"                                        | recipe="auto" |
|------------|-------------------------------------------------------|---------------|
| cpu        | cpu                                                   | sage1@cpu     |
| cuda       | cuda; NotImplementedError where this build has none   | sage1         |
| any other  | NotImplementedError: only the two above have kernels  | -             |

"auto" never means the reference, which runs every recipe on every device and is asked for by name; there, recipe="auto"
is sage1. Nor does it mean the emulator, a test tool that runs the CUDA kernels on CPU tensors. To the CPU kernels the
name of a preset that has a twin "<name>@cpu" means the twin, which says what they compute; fields in parentheses stay.
A `Recipe` object is taken as it is.
"""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType

from . import _C
from .recipe import PRESETS, Recipe

BACKENDS = ("auto", "cuda", "cpu", "reference", "emulator")
CPU_ISAS = ("auto", "avx512_vnni", "avx_vnni", "avx2", "portable")
CPU_ISA_VARIABLE = "SAGE_CPU_ISA"
EMULATED_VARIABLE = "SAGE_EMULATOR_ARCH"

_DEFAULT_RECIPE = "sage1"


def choose(device_type: str, recipe: str | Recipe, backend: str) -> tuple[str, str]:
    """The backend, never "auto", and the text of the `Recipe` that a call on such a device runs.

    Raises ValueError for an unknown name or tensors on a device that is not the backend's, NotImplementedError where
    the request is valid and no kernel of this version serves it.
    """
    if not isinstance(recipe, (str, Recipe)):
        raise TypeError(f"recipe must be str or sage.Recipe, got {type(recipe).__name__}")
    if not isinstance(backend, str):
        raise TypeError(f"backend must be str, got {type(backend).__name__}")
    return _choose(device_type, recipe, backend)


# torch.compile evaluates `choose` once per recipe and backend instead of tracing it. This is what the decorator
# torch.compiler.assume_constant_result sets; the decorator itself would import the compiler with this module.
choose._dynamo_marked_constant = True


@functools.lru_cache(maxsize=256)
def _choose(device_type: str, recipe: str | Recipe, backend: str) -> tuple[str, str]:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    needed = "cpu" if backend == "emulator" else device_type if backend in ("auto", "reference") else backend
    if device_type != needed:
        raise ValueError(f"backend {backend!r} needs tensors on {needed}, got {device_type}")
    if backend == "auto":
        backend = device_type
    text = str(recipe) if isinstance(recipe, Recipe) else _by_name(recipe, twin=backend == "cpu")
    if backend not in ("cpu", "reference"):
        extension(backend)
    return backend, text


def extension(backend: str) -> ModuleType:
    """The extension module with the kernels of a backend. NotImplementedError where there is none."""
    everywhere = 'backend="reference" runs every recipe on every device'
    if backend == "emulator":
        try:
            return importlib.import_module("sage._emulator")
        except ModuleNotFoundError:
            raise NotImplementedError(
                f"backend 'emulator' needs the module sage._emulator, which -DSAGE_EMULATOR=ON builds; {everywhere}"
            ) from None
    if backend not in ("cpu", "cuda"):
        raise NotImplementedError(f"no kernels for tensors on {backend}: there are some for cpu and cuda; {everywhere}")
    if backend == "cuda" and _C.build_info()["cuda"] == "off":
        raise NotImplementedError(f"no kernels for tensors on cuda: this build has no CUDA; {everywhere}")
    return _C


def is_differentiable(recipe: str) -> bool:
    """Whether a recipe has a backward pass, by the text that `choose` returned."""
    return recipe.partition("(")[0] == "sagebwd"


def explain_auto(device_type: str) -> str:
    """What "auto" means for tensors on this type of device, and why, for people."""
    try:
        backend, recipe = choose(device_type, "auto", "auto")
        if backend == "cuda":
            _C.cuda_devices()
    except RuntimeError as reason:  # NotImplementedError is one
        return f"nothing: {reason}"
    if backend == "cuda":
        return f"backend cuda, recipe {recipe}; which kernel serves it depends on the device"
    return f"backend {backend}, recipe {recipe}: between sage1_int8, which is faster, and int16, which is more accurate"


def cpu_isa() -> str:
    """The instruction set that the environment forces on the CPU kernels; "auto", the best one, without it."""
    isa = os.environ.get(CPU_ISA_VARIABLE, "auto")
    if isa not in CPU_ISAS:
        raise ValueError(f"{CPU_ISA_VARIABLE} must be one of {', '.join(CPU_ISAS)}, got {isa!r}")
    return isa


def emulated() -> str:
    """The GPU that the environment makes the emulator stand for; empty for its default."""
    return os.environ.get(EMULATED_VARIABLE, "")


def _by_name(recipe: str, *, twin: bool) -> str:
    text = _DEFAULT_RECIPE if recipe == "auto" else recipe
    name, parenthesis, fields = text.partition("(")
    name_on_cpu = f"{name.strip()}@cpu"
    if twin and name_on_cpu in PRESETS:
        text = name_on_cpu + parenthesis + fields
    return str(Recipe.parse(text))
