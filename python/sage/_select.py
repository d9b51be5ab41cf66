"""Which backend and recipe a call means: the one table behind "auto".

| tensors on                       | backend="auto"                                       | recipe="auto"         |
|----------------------------------|------------------------------------------------------|-----------------------|
| cpu                              | cpu                                                  | sage1@cpu             |
| cuda, compute capability 8.9     | cuda                                                 | sage2pp               |
| cuda, compute capability 9.0     | cuda                                                 | sage2                 |
| cuda, compute capability 12.0    | cuda                                                 | sage2                 |
| cuda, compute capability 12.1    | cuda                                                 | sage2pp               |
| cuda, any other or none          | cuda; NotImplementedError where none of this build's | sage1                 |
|                                  | kernels runs there                                   |                       |
| any other                        | NotImplementedError: only the above have kernels     | -                     |

"auto" never means the reference, which runs every recipe on every device and is asked for by name; there, recipe="auto"
is sage1. Nor does it mean the emulator, a test tool that runs the CUDA kernels on CPU tensors; there, recipe="auto" is
that of the GPU which SAGE_EMULATOR_ARCH names. To the CPU kernels the name of a preset that has a twin "<name>@cpu"
means the twin, which says what they compute; fields in parentheses stay. A `Recipe` object is taken as it is.
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
_NO_FP8 = "sage1", "it has INT8 and FP16 tensor cores, and no FP8 ones"
_FAST_FP16_SUMS = (
    "sage2pp",
    "its FP8 tensor cores are up to twice as fast with FP16 accumulators as with FP32 ones, and sage2 errs no less",
)
_AUTO = {
    80: _NO_FP8,
    86: _NO_FP8,
    87: _NO_FP8,
    89: _FAST_FP16_SUMS,
    90: ("sage2", "its FP8 tensor cores have FP32 accumulators at the full rate, twice that of FP16 operands"),
    120: ("sage2", "its block-scaled FP8 matmul has FP32 accumulators at the full rate"),
    121: _FAST_FP16_SUMS,
}
"""By compute capability, 10 * major + minor: the recipe, and why."""


def choose(device_type: str, recipe: str | Recipe, backend: str, device_index: int | None = None) -> tuple[str, str]:
    """The backend, never "auto", and the text of the `Recipe` that a call on such a device runs.

    device_index: which CUDA device; None for the first one.

    Raises ValueError for an unknown name or tensors on a device that is not the backend's, NotImplementedError where
    the request is valid and no kernel of this version serves it.
    """
    if not isinstance(recipe, (str, Recipe)):
        raise TypeError(f"recipe must be str or sage.Recipe, got {type(recipe).__name__}")
    if not isinstance(backend, str):
        raise TypeError(f"backend must be str, got {type(backend).__name__}")
    kernels = device_type if backend == "auto" else backend
    is_auto_on_gpu = recipe == "auto" and kernels in ("cuda", "emulator")
    return _choose(device_type, recipe, backend, _architecture(kernels, device_index or 0) if is_auto_on_gpu else 0)


# torch.compile evaluates `choose` once per recipe and backend instead of tracing it. This is what the decorator
# torch.compiler.assume_constant_result sets; the decorator itself would import the compiler with this module.
choose._dynamo_marked_constant = True


@functools.lru_cache(maxsize=256)
def _choose(device_type: str, recipe: str | Recipe, backend: str, architecture: int) -> tuple[str, str]:
    """architecture: of the GPU that recipe "auto" is for; 0 for none."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    needed = "cpu" if backend == "emulator" else device_type if backend in ("auto", "reference") else backend
    if device_type != needed:
        raise ValueError(f"backend {backend!r} needs tensors on {needed}, got {device_type}")
    if backend == "auto":
        backend = device_type
    if recipe == "auto":
        recipe = _DEFAULT_RECIPE if backend in ("cpu", "reference") else auto_recipe(architecture)[0]
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


def auto_recipe(architecture: int) -> tuple[str, str]:
    """What recipe "auto" is on a GPU of this compute capability (10 * major + minor), and why, for people."""
    return _AUTO.get(architecture, (_DEFAULT_RECIPE, "no recipe has been chosen for this GPU"))


def explain_auto(device_type: str) -> str:
    """What "auto" means for tensors on this type of device, and why, for people."""
    try:
        backend, recipe = choose(device_type, "auto", "auto")
        if backend == "cuda":
            _C.cuda_devices()
    except RuntimeError as reason:  # NotImplementedError is one
        return f"nothing: {reason}"
    if backend == "cuda":
        return "backend cuda, and the recipe that stands beside each GPU above"
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


def _architecture(backend: str, device_index: int) -> int:
    """10 * major + minor of a GPU's compute capability; 0 where there is no such device, as for fake tensors."""
    try:
        return extension(backend).cuda_architecture(device_index)
    except RuntimeError:  # NotImplementedError is one. Whoever asks for a kernel gets it
        return 0


def _by_name(recipe: str, *, twin: bool) -> str:
    name, parenthesis, fields = recipe.partition("(")
    name_on_cpu = f"{name.strip()}@cpu"
    if twin and name_on_cpu in PRESETS:
        recipe = name_on_cpu + parenthesis + fields
    return str(Recipe.parse(recipe))
