"""The recipes that each backend serves, and the errors that a test of one allows."""

from __future__ import annotations

from typing import NamedTuple

import torch

CPU_RECIPES = ("int16", "sage1@cpu", "sage1_int8@cpu")
CUDA_RECIPES = ("sage1", "sage1(pv_accum=fp16)", "sage1(pv_accum=fp16+fp32)", "sage1_int8")
RECIPES = {
    "cpu": CPU_RECIPES,
    "cuda": CUDA_RECIPES,
    "emulator": CUDA_RECIPES,
    "reference": CPU_RECIPES + CUDA_RECIPES,
}

DTYPES = {backend: torch.float16 if recipes == CUDA_RECIPES else torch.float32 for backend, recipes in RECIPES.items()}
"""What a test takes that is not about dtypes."""

# One rounding unit of the output.
DTYPE_EPS = {torch.float32: 2.0**-23, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


class Bounds(NamedTuple):
    """Allowed errors of a recipe on normal data.

    nrmse: the accuracy that the project states at seqlen 1k, which is the hard case: fewer keys err less.
    error: of single elements of out, against max|v|. A score is off by about sqrt(head_dim) * scale * half a code, a
        code being 1 / 127 of the largest |q| or |k| that share a scale for INT8, 1 / 4095 and 1 / 2047 for INT16, and
        a probability of INT8 by 1 / 510 of the largest.
    lse: of the LSE.
    difference, lse_difference: of single elements of a kernel against the reference, of out against max|v|. Kernels
        follow its steps with sums in another order and their own exp2, so that a code on a rounding tie can differ by
        one; inputs in fp16 are on ties often. In P it moves one probability, by 1 / 255 of the largest for u8, 1 / 8191
        for INT16 and 2^-11 for fp16; in Q or K it moves the scores of a row or a key by about 1 / 127 (1 / 2047) of a
        typical one; in INT8 V it moves what only one key sees by 1 / 127 of the channel's largest.
    difference_nrmse: the same of all elements together: ties are few.
    """

    nrmse: float
    error: float
    lse: float
    difference: float
    lse_difference: float
    difference_nrmse: float


BOUNDS = {
    "int16": Bounds(0.0012, 1.5e-3, 2e-3, 2e-4, 3e-4, 3e-4),
    "sage1@cpu": Bounds(0.012, 0.02, 0.05, 5e-4, 3e-3, 1e-3),
    "sage1_int8@cpu": Bounds(0.018, 0.025, 0.05, 2e-3, 3e-3, 2e-3),
    "sage1": Bounds(0.013, 0.02, 0.05, 1e-3, 8e-3, 1e-3),
    "sage1(pv_accum=fp16)": Bounds(0.013, 0.02, 0.05, 1.5e-3, 8e-3, 1.5e-3),
    "sage1(pv_accum=fp16+fp32)": Bounds(0.013, 0.02, 0.05, 1e-3, 8e-3, 1e-3),
    "sage1_int8": Bounds(0.017, 0.025, 0.05, 9e-3, 8e-3, 2e-3),
}
