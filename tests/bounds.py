"""The recipes that each backend serves, and the errors that a test of one allows."""

from __future__ import annotations

from typing import NamedTuple

import torch

CPU_RECIPES = ("int16", "sage1@cpu", "sage1_int8@cpu")
INT4_PP = "sage2_int4(pv_accum=fp16+fp32, p_max=112, v_max=9)"
# The GPU that the emulator stands for, and the recipe.
CUDA_CASES = (
    ("sm80", "sage1"),
    ("sm80", "sage1(pv_accum=fp16)"),
    ("sm80", "sage1(pv_accum=fp16+fp32)"),
    ("sm80", "sage1_int8"),
    ("sm89", "sage2"),
    ("sm89", "sage2pp"),
    ("sm89", "sage2_int4"),
    ("sm90", "sage2"),
    ("sm120", "sage3"),
    ("sm120", "sage3_fp8"),
)
SAGE3_ROUGH = "sage3(smooth_q=False, smooth_v=True, key_order=forward)"
SAGE3_FP8_ROTATED = "sage3_fp8(hadamard=True, p_max=64, v_max=96)"
# Kernels and fields of recipes whose difference from the above a part of the tests sees, the ones marked `central`.
CUDA_VARIANTS = (
    ("sm80", "sage1(qk=int4, smooth_q=True)"),
    ("sm80", "sage1_int8(smooth_v=True, key_order=reverse, hadamard=True)"),
    ("sm89", INT4_PP),
    ("sm89", "sage2(fold_every=1, smooth_v=True)"),
    ("sm89", "sage2_int4(fold_every=2, hadamard=True)"),
    ("sm89", "sage2pp(p_max=448, v_max=2.25, key_order=forward)"),
    ("sm90", "sage2(approximate_exp=True)"),
    ("sm90", "sage2(fold_every=2, key_order=forward, smooth_v=True)"),
    ("sm120", "sage2"),
    ("sm120", "sage2(pv_accum=fp32, fold_every=1)"),
    ("sm120", SAGE3_ROUGH),
    ("sm120", SAGE3_FP8_ROTATED),
)


def cases(backend: str, central: bool) -> list[tuple[str, str]]:
    """The GPU that the emulator stands for ("auto" elsewhere), and a recipe: what a test runs on this backend."""
    cpu = [("auto", recipe) for recipe in CPU_RECIPES]
    if backend == "cpu":
        return cpu
    cuda = [*CUDA_CASES, *(CUDA_VARIANTS if central else ())]
    if backend == "emulator":
        return cuda
    cuda = [("auto", recipe) for recipe in dict.fromkeys(recipe for _, recipe in cuda)]
    return cuda if backend == "cuda" else [*cpu, *cuda]


DTYPES = {"cpu": torch.float32, "reference": torch.float32, "cuda": torch.float16, "emulator": torch.float16}
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
    value: of what a row returns that sees one key, against max|v|: the rounding of V.
    difference, lse_difference: of single elements of a kernel against the reference, of out against max|v|. Kernels
        follow its steps with sums in another order and their own exp2, so that a code on a rounding tie can differ by
        one; inputs in fp16 are on ties often. In P it moves one probability, by 1 / 255 of the largest for u8, 1 / 8191
        for INT16 and 2^-11 for fp16; in Q or K it moves the scores of a row or a key by about 1 / 127 (1 / 2047) of a
        typical one; in INT8 V it moves what only one key sees by 1 / 127 of the channel's largest. FP8 P has 4
        significant bits, and a kernel's maximum of a row is off by 1e-4, so that one P in 500 is rounded the other way;
        the LSE is that of the rounded P where the accumulators are float32. With INT4's scores, whose steps are 18 times
        as large, it is off by up to 1 %, and P of keys that share a scale by as much. NVFP4's scales are short numbers,
        so that a 16-bit input is on a tie often, and a tie is up to a third of the largest value of 16: in V of what
        only one key sees.
    difference_nrmse: the same of all elements together: ties are few.
    """

    nrmse: float
    error: float
    lse: float
    value: float
    difference: float
    lse_difference: float
    difference_nrmse: float


BOUNDS = {
    "int16": Bounds(0.0012, 1.5e-3, 2e-3, 1e-3, 2e-4, 3e-4, 3e-4),
    "sage1@cpu": Bounds(0.012, 0.02, 0.05, 1e-3, 5e-4, 3e-3, 1e-3),
    "sage1_int8@cpu": Bounds(0.018, 0.025, 0.05, 6e-3, 2e-3, 3e-3, 2e-3),
    "sage1": Bounds(0.013, 0.02, 0.05, 1e-3, 1e-3, 8e-3, 1e-3),
    "sage1(pv_accum=fp16)": Bounds(0.013, 0.02, 0.05, 1e-3, 1.5e-3, 8e-3, 1.5e-3),
    "sage1(pv_accum=fp16+fp32)": Bounds(0.013, 0.02, 0.05, 1e-3, 1e-3, 8e-3, 1e-3),
    "sage1_int8": Bounds(0.017, 0.025, 0.05, 6e-3, 9e-3, 8e-3, 2e-3),
    "sage1_int8(smooth_v=True, key_order=reverse, hadamard=True)": Bounds(0.017, 0.025, 0.05, 6e-3, 9e-3, 8e-3, 2e-3),
    "sage1(qk=int4, smooth_q=True)": Bounds(0.22, 0.35, 0.6, 1e-3, 0.02, 0.03, 0.015),
    **dict.fromkeys(
        (
            "sage2",
            "sage2(approximate_exp=True)",
            "sage2(fold_every=1, smooth_v=True)",
            "sage2(fold_every=2, key_order=forward, smooth_v=True)",
            "sage2(pv_accum=fp32, fold_every=1)",
        ),
        Bounds(0.042, 0.05, 0.06, 0.04, 0.012, 0.03, 8e-3),
    ),
    **dict.fromkeys(
        ("sage2pp", "sage2pp(p_max=448, v_max=2.25, key_order=forward)"),
        Bounds(0.042, 0.05, 0.06, 0.04, 0.012, 8e-3, 8e-3),
    ),
    **dict.fromkeys(
        ("sage2_int4", "sage2_int4(fold_every=2, hadamard=True)"),
        Bounds(0.22, 0.35, 0.6, 0.04, 0.04, 0.06, 0.03),
    ),
    INT4_PP: Bounds(0.22, 0.35, 0.6, 0.04, 0.04, 0.03, 0.03),
    **dict.fromkeys(("sage3", SAGE3_ROUGH), Bounds(0.22, 0.35, 0.8, 0.2, 0.12, 0.06, 0.025)),
    **dict.fromkeys(("sage3_fp8", SAGE3_FP8_ROTATED), Bounds(0.17, 0.3, 0.8, 0.04, 0.012, 0.015, 0.005)),
}
