"""Accumulators of P V, from one float32 register to an inner and an outer one."""

from __future__ import annotations

from torch import Tensor

from ..recipe import FP16_FOLD, Recipe
from .numerics import (
    FP8_MMA_DEPTH,
    FP16_MMA_DEPTH,
    add_fp16,
    add_fp22,
    chained_mma,
    integer_matmul,
    round_fp16,
)


class Accumulator:
    """The sum over steps of scale * p @ v, where every step first multiplies what there is by `decay`.

    An inner accumulator of the recipe's precision is folded into an outer one of float32 every fold_every steps, or,
    where the recipe has no outer one, at the end alone.
    """

    def __init__(self, recipe: Recipe, zeros: Tensor, fp22: bool) -> None:
        """zeros: (..., rows, columns), what the sum starts with. fp22: see `forward`."""
        self._recipe, self._fp22 = recipe, fp22
        self._zeros = self._inner = self._outer = zeros
        self._fold_every = recipe.fold_every if folds(recipe) else 0
        self._steps = 0
        # SageAttention2++ with a second fp16 register: what it holds is smaller than the sum by FP16_FOLD.
        self._is_two_level_fp16 = (recipe.pv, recipe.pv_accum) == ("fp8_e4m3", "fp16+fp32")

    def step(self, decay: Tensor, p: Tensor, v: Tensor, scale: Tensor | float) -> None:
        """decay (..., rows, 1), p (..., rows, keys), v (..., keys, columns). scale is 1 unless every step is folded."""
        self._outer = self._outer * decay
        self._inner = self._add(self._rescaled(decay), p, v)
        self._steps += 1
        if self._fold_every and self._steps % self._fold_every == 0:
            self._fold(scale)

    def total(self) -> Tensor:
        if not self._fold_every or self._steps % self._fold_every:
            self._fold(1.0)
        return self._outer

    def _fold(self, scale: Tensor | float) -> None:
        self._outer = self._outer + self._inner * (FP16_FOLD * scale if self._is_two_level_fp16 else scale)
        self._inner = self._zeros

    def _rescaled(self, decay: Tensor) -> Tensor:
        """Back in its register after the multiplication."""
        if self._is_two_level_fp16:
            return round_fp16(self._inner * round_fp16(decay))
        rescaled = self._inner * decay
        return round_fp16(rescaled) if self._recipe.pv_accum.startswith("fp16") else rescaled

    def _add(self, inner: Tensor, p: Tensor, v: Tensor) -> Tensor:
        if self._recipe.pv_accum == "int32":
            return integer_matmul(p, v, self._recipe.p_max * self._recipe.v_max * p.shape[-1])
        if self._is_two_level_fp16:  # one instruction multiplies and adds: it rounds once
            step = chained_mma(self._zeros, p, v, FP8_MMA_DEPTH, add_fp16)
            return round_fp16(inner + step / FP16_FOLD)
        if self._recipe.pv_accum.startswith("fp16"):
            return chained_mma(inner, p, v, FP16_MMA_DEPTH if self._recipe.pv == "fp16" else FP8_MMA_DEPTH, add_fp16)
        return chained_mma(inner, p, v, FP8_MMA_DEPTH, add_fp22) if self._fp22 else inner + p @ v


def folds(recipe: Recipe) -> bool:
    """Whether the recipe has an outer accumulator."""
    return recipe.pv_accum == "int32" or "+" in recipe.pv_accum
