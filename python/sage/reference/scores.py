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
    Q_MEAN_DIGITS,
    Q_MEAN_LIMIT,
    QK_LIMITS,
    Quantized,
    block_mean,
    key_groups,
    nvfp4_sum,
    power_of_two,
    quantize_rows,
    query_groups,
    rest_of_int4,
    rotate,
    shared_amax,
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
        of_q = query_groups(q.shape[-2], recipe, q.device)
        of_k = key_groups(k.shape[-2], recipe, k.device)
        if recipe.qk == "nvfp4":
            self._matmul = torch.matmul
            self._round_nvfp4(q, k, of_q, of_k)
            return
        q_limit, k_limit = QK_LIMITS[recipe.qk]
        self._matmul = functools.partial(integer_matmul, bound=q_limit * k_limit * q.shape[-1])
        self.q, self.k = quantize_rows(q, of_q, q_limit), quantize_rows(k, of_k, k_limit)
        if self.q_mean is not None:
            blocks = torch.arange(q.shape[-2], device=q.device) // recipe.block_q
            mean = quantize_rows(self.q_mean, blocks, Q_MEAN_LIMIT)
            self.q_mean = mean.values * mean.scale
            rest = rest_of_int4(k, self.k) if recipe.qk == "int4" else 0.0
            self._k_for_mean = (self.k.values + rest) * self.k.scale

    def _round_nvfp4(self, q: Tensor, k: Tensor, of_q: Tensor, of_k: Tensor) -> None:
        """A tile of Q or K, and the tile's mean with it, has one power of two; blocks of 16 channels have the rest."""
        q_amax = shared_amax(q, of_q)
        if self.q_mean is not None:
            q_amax = torch.maximum(q_amax, shared_amax(self.q_mean, of_q))
        q_scale, k_scale = power_of_two(q_amax), power_of_two(shared_amax(k, of_k))
        self.q, self.k = (Quantized(nvfp4_sum(x / scale, 1), scale) for x, scale in ((q, q_scale), (k, k_scale)))
        if self.q_mean is not None:
            self.q_mean = nvfp4_sum(self.q_mean / q_scale, Q_MEAN_DIGITS) * q_scale
            self._k_for_mean = nvfp4_sum(k / k_scale, 2) * k_scale

    def step(self, first: int, last: int) -> Tensor:
        """Scores of keys first..last - 1, masked, for a softmax that uses exp2: (..., seqlen_q, last - first).

        The mean of Q times K, which smoothing of Q took from them, is added back, with all that K's operand holds:
        INT4's 4 further bits included, and NVFP4's second plane.
        """
        k, k_scale = (x[..., first:last, :].mT for x in self.k)
        scores = self._matmul(self.q.values, k) * (self.q.scale * self._scale_log2) * k_scale
        if self.q_mean is not None:
            scores = scores + self._scale_log2 * (self.q_mean @ self._k_for_mean[..., first:last, :].mT)
        return self._geometry.mask(scores, first_key=first, unit=LOG2_E)
