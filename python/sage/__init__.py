"""Quantized attention: SageAttention's recipes behind one call.

    out = sage.attention(q, k, v)

`attention` and `attention_varlen` are the API; `sdpa` and `patch_sdpa` stand in for PyTorch's
scaled_dot_product_attention; `Recipe` and `PRESETS` say how the matmuls are quantized, `MixedRecipe` where a finer
recipe takes the place of another.
"""

from . import _C
from .attention import attention, attention_varlen
from .policy import MixedRecipe
from .recipe import PRESETS, Recipe
from .sdpa import patch_sdpa, sdpa

__version__: str = _C.build_info()["version"]

__all__ = ["MixedRecipe", "PRESETS", "Recipe", "attention", "attention_varlen", "patch_sdpa", "sdpa"]
