"""Q K^T of a recipe: smoothing, rounding and the scaled scores of one step of keys. Forward and backward share it."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from ..recipe import Recipe
from .geometry import Geometry
from .numerics import integer_matmul
from .quantize import (
    Q_MEAN_LIMIT,
    QK_LIMITS,
    Quantized,
    block_mean,
    key_groups,
    quantize_nvfp4,
    quantize_rows,
    query_groups,
    rest_of_int4,
    rotate,
)

LOG2_E = math.log2(math.e)


class Scores:
    """Quantized Q and K.

    Attributes:
        q, k: the rounded operands, grouped, after smoothing and rotation.
        q_mean: (batch, num_heads_kv, group, seqlen_q, head_dim), the mean of each row's block as the scores hold it, or
            None.
        lse_shift: (batch, num_heads_kv, group, seqlen_q): what K smoothing took from every score of a row, natural
            logarithm; 0 without smoothing.
    """

    def __init__(self, q: Tensor, k: Tensor, recipe: Recipe, geometry: Geometry, scale: float) -> None:
        """q, k: grouped, float32; k is zero past the sequence's length."""
        self._geometry = geometry
        self._scale_log2 = scale * LOG2_E
        if recipe.smooth_k:
            k_mean = geometry.mean_over_keys(k)
            k = geometry.only_existing(k - k_mean)
            self.lse_shift = scale * (q * k_mean).sum(-1)
        else:
            self.lse_shift = q.new_zeros(q.shape[:-1])
        self.q_mean = None
        if recipe.smooth_q:
            self.q_mean = block_mean(q, recipe.block_q)
            q = q - self.q_mean
        if recipe.hadamard:
            q, k = rotate(q), rotate(k)
            self.q_mean = None if self.q_mean is None else rotate(self.q_mean)
        if recipe.qk == "nvfp4":
            self._matmul = torch.matmul
            self.q, self.k = (Quantized(quantize_nvfp4(x), torch.ones_like(x[..., :1])) for x in (q, k))
            self._k_for_mean = k
            return
        q_limit, k_limit = QK_LIMITS[recipe.qk]
        self._matmul = functools.partial(integer_matmul, bound=q_limit * k_limit * q.shape[-1])
        self.q = quantize_rows(q, query_groups(q.shape[-2], recipe, q.device), q_limit)
        self.k = quantize_rows(k, key_groups(k.shape[-2], recipe, k.device), k_limit)
        if self.q_mean is not None:
            blocks = torch.arange(q.shape[-2], device=q.device) // recipe.block_q
            mean = quantize_rows(self.q_mean, blocks, Q_MEAN_LIMIT)
            self.q_mean = mean.values * mean.scale
            rest = rest_of_int4(k, self.k) if recipe.qk == "int4" else 0.0
            self._k_for_mean = (self.k.values + rest) * self.k.scale

    def step(self, first: int, last: int) -> Tensor:
        """Scores of keys first..last - 1, masked, for a softmax that uses exp2: (..., seqlen_q, last - first).

        The mean of Q times K, which smoothing of Q took from them, is added back: with all that K's operand holds for
        integers, INT4's 4 further bits included, and the unrounded K for NVFP4.
        """
        k, k_scale = (x[..., first:last, :].mT for x in self.k)
        scores = self._matmul(self.q.values, k) * (self.q.scale * self._scale_log2) * k_scale
        if self.q_mean is not None:
            scores = scores + self._scale_log2 * (self.q_mean @ self._k_for_mean[..., first:last, :].mT)
        return self._geometry.mask(scores, first_key=first, unit=LOG2_E)
