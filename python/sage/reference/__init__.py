"""The oracle: every recipe in plain PyTorch, step by step as in the papers, on any device, and float64 attention."""

from .backward import backward
from .exact import exact
from .forward import forward

__all__ = ["backward", "exact", "forward"]
