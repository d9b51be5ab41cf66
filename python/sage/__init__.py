"""Quantized attention: SageAttention's recipes behind one call.

    out = sage.attention(q, k, v)

`attention` and `attention_varlen` are the API; `sdpa` and `patch_sdpa` stand in for PyTorch's
scaled_dot_product_attention; `Recipe` and `PRESETS` say how the matmuls are quantized.
"""

from . import _C
from .attention import attention, attention_varlen
from .recipe import PRESETS, Recipe
from .sdpa import patch_sdpa, sdpa

__version__: str = _C.build_info()["version"]

__all__ = ["PRESETS", "Recipe", "attention", "attention_varlen", "patch_sdpa", "sdpa"]
