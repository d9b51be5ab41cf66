"""Which backend and recipe a call means: the one table behind "auto".

| tensors on      | backend="auto"                                     | recipe="auto" |
|-----------------|----------------------------------------------------|---------------|
| cpu             | cpu                                                | sage1@cpu     |
| cuda, any other | NotImplementedError: only the CPU has kernels here | -             |

"auto" never means the reference, which runs every recipe on every device and is asked for by name; there, recipe="auto"
is sage1. To the CPU kernels the name of a preset that has a twin "<name>@cpu" means the twin, which says what they
compute; fields in parentheses stay. A `Recipe` object is taken as it is.
"""

from __future__ import annotations

import functools
import os

from .recipe import PRESETS, Recipe

BACKENDS = ("auto", "cuda", "cpu", "reference")
CPU_ISAS = ("auto", "avx512_vnni", "avx_vnni", "avx2", "portable")
CPU_ISA_VARIABLE = "SAGE_CPU_ISA"

_DEFAULT_RECIPE = "sage1"


def choose(device_type: str, recipe: str | Recipe, backend: str) -> tuple[str, str]:
    """The backend, "cpu" or "reference", and the text of the `Recipe` that a call on such a device runs.

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
    if backend in ("cpu", "cuda") and device_type != backend:
        raise ValueError(f"backend {backend!r} needs tensors on {backend}, got {device_type}")
    on_cpu_kernels = device_type == "cpu" and backend != "reference"
    text = str(recipe) if isinstance(recipe, Recipe) else _by_name(recipe, twin=on_cpu_kernels)
    if on_cpu_kernels:
        return "cpu", text
    if backend == "reference":
        return "reference", text
    raise NotImplementedError(
        f"no kernels for tensors on {device_type}: this version has them for the CPU; "
        'backend="reference" runs every recipe on every device'
    )


def is_differentiable(recipe: str) -> bool:
    """Whether a recipe has a backward pass, by the text that `choose` returned."""
    return recipe.partition("(")[0] == "sagebwd"


def explain_auto(device_type: str) -> str:
    """What "auto" means for tensors on this type of device, and why, for people."""
    try:
        backend, recipe = choose(device_type, "auto", "auto")
    except NotImplementedError as reason:
        return f"nothing: {reason}"
    return f"backend {backend}, recipe {recipe}: between sage1_int8, which is faster, and int16, which is more accurate"


def cpu_isa() -> str:
    """The instruction set that the environment forces on the CPU kernels; "auto", the best one, without it."""
    isa = os.environ.get(CPU_ISA_VARIABLE, "auto")
    if isa not in CPU_ISAS:
        raise ValueError(f"{CPU_ISA_VARIABLE} must be one of {', '.join(CPU_ISAS)}, got {isa!r}")
    return isa


def _by_name(recipe: str, *, twin: bool) -> str:
    text = _DEFAULT_RECIPE if recipe == "auto" else recipe
    name, parenthesis, fields = text.partition("(")
    name_on_cpu = f"{name.strip()}@cpu"
    if twin and name_on_cpu in PRESETS:
        text = name_on_cpu + parenthesis + fields
    return str(Recipe.parse(text))
