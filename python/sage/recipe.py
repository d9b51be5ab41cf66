"""Recipes: how the two matmuls of attention are quantized.

A preset carries the name of the paper's method; its fields stay visible and can be changed with `Recipe.replace`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from dataclasses import dataclass

_ALLOWED = {
    "name": (
        "sage1",
        "sage1_int8",
        "sage2",
        "sage2pp",
        "sage2_int4",
        "sage3",
        "sage3_fp8",
        "sagebwd",
        "int16",
        "sage1@cpu",
        "sage1_int8@cpu",
    ),
    "qk": ("int8", "int4", "int16", "nvfp4"),
    "qk_granularity": ("token", "thread", "warp", "block", "1x16"),
    "pv": ("fp16", "int8", "int16", "fp8_e4m3", "nvfp4"),
    "pv_accum": ("fp32", "fp16", "fp16+fp32", "fp32+fp32", "int32"),
    "v_granularity": ("channel", "block"),
    "key_order": ("forward", "reverse"),
    "dp": ("fp16", "int8"),
}

FP16_MAX = 65504
E4M3_MAX = 448  # 1.75 * 2^8
# FP8 P V with pv_accum "fp16+fp32" adds up steps in a second fp16 register, each divided by this.
FP16_FOLD = 128


def _at_most_in_e4m3(x: float) -> float:
    """The larger of x and what e4m3 rounds it to, which has 4 significant bits and is a multiple of 2^-9."""
    spacing = 2.0 ** max(math.frexp(x)[1] - 4, -9)
    return max(x, round(x / spacing) * spacing)


@dataclass(frozen=True)
class Recipe:
    """One way to quantize attention. Hashable; equal recipes compute the same thing.

    Attributes:
        name: the preset this recipe started from.
        qk: operands of Q K^T: "int8", "int4", "int16" (Q 13 bit, K 12 bit) or "nvfp4" (e2m1 with ue4m3 scales).
        qk_granularity: what shares one scale: a row ("token"), the rows of one tensor-core thread ("thread",
            SageAttention2 section 3.2), the rows of a warp ("warp", K per block), a tile ("block"), or 16 channels
            of a row ("1x16", NVFP4).
        pv: operands of P V: "fp16" (V's own 16-bit format, so bf16 for bf16 V), "int8" (unsigned P, signed V; signed P
            in sagebwd, where p_max is 127), "int16", "fp8_e4m3" or "nvfp4".
        pv_accum: accumulator of P V; "a+b" accumulates fold_every steps in `a` and folds into `b`.
        block_q: query rows per tile: what "block" and "warp" scales and the smoothing of Q refer to.
        block_k: keys per online-softmax step; integer P has one scale per row and step. The kernels for sm_90 take two
            steps at once up to head_dim 128.
        p_max: what the largest probability maps to: of the row and step for integer P, of the row so far otherwise,
            which NVFP4 P, and FP8 P with NVFP4 Q and K, takes rounded up to a power of two.
        v_max: what the largest |v| of a scale group maps to; 0 where V is not scaled.
        v_granularity: scale V per "channel" over the sequence, or one scale per "block" of block_k keys.
        fold_every: steps of block_k keys between two folds of `pv_accum`; 1 where nothing is folded.
        key_order: in which order a row meets the steps: "forward", or "reverse", from the last key. Keys that come
            before the row's largest score are rounded relative to a smaller one, that is, finer.
        p_two_level: scale P to p_max before it is cut into 1x16 blocks (SageAttention3 section 3.2); without, P is at
            most 1.
        smooth_q: subtract the mean of each block_q rows of Q; its product with K is added back to the scores.
        smooth_k: subtract the mean of K over the sequence; softmax does not see it, and the LSE is corrected for it.
        smooth_v: subtract the mean of V over the sequence and add it back to the output.
        hadamard: rotate Q and K, after smoothing, by random signs and a Hadamard matrix (QuaRot, arXiv 2404.00456,
            section 3): spreads channels that are larger than the others, which no mean removes.
        approximate_exp: a quarter of FP8 P's codes comes from a straight line of the score in place of its exponential,
            which spares the GPU's exp2 unit; what it costs is told at `PRESETS`.
        dp: operands of dO V^T in the backward pass (SageBwd keeps them in 16 bits).
    """

    name: str
    qk: str
    qk_granularity: str
    pv: str
    pv_accum: str
    block_q: int = 128
    block_k: int = 64
    p_max: float = 1.0
    v_max: float = 0.0
    v_granularity: str = "channel"
    fold_every: int = 1
    key_order: str = "forward"
    p_two_level: bool = False
    smooth_q: bool = False
    smooth_k: bool = True
    smooth_v: bool = False
    hadamard: bool = False
    approximate_exp: bool = False
    dp: str = "fp16"

    def __post_init__(self) -> None:
        for field, allowed in _ALLOWED.items():
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"recipe field {field} must be one of {', '.join(allowed)}, got {getattr(self, field)!r}"
                )
        for field in ("block_q", "block_k"):
            value = getattr(self, field)
            if not isinstance(value, int) or value <= 0 or value % 16:
                raise ValueError(f"recipe field {field} must be a positive multiple of 16, got {value!r}")
        if type(self.fold_every) is not int or not 1 <= self.fold_every < 2**31:
            raise ValueError(f"recipe field fold_every must be an integer within [1, 2^31), got {self.fold_every!r}")
        for field in ("p_two_level", "smooth_q", "smooth_k", "smooth_v", "hadamard", "approximate_exp"):
            if not isinstance(getattr(self, field), bool):
                raise ValueError(f"recipe field {field} must be True or False, got {getattr(self, field)!r}")
        for field in ("p_max", "v_max"):
            value = getattr(self, field)
            if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise ValueError(f"recipe field {field} must be a finite number >= 0, got {value!r}")
            object.__setattr__(self, field, float(value))
        if (self.qk == "nvfp4") != (self.qk_granularity == "1x16"):
            raise ValueError(
                f"recipe field qk_granularity '1x16' goes with qk 'nvfp4', got {self.qk_granularity!r} with {self.qk!r}"
            )
        if (self.pv in ("int8", "int16")) != (self.pv_accum == "int32"):
            raise ValueError(
                f"recipe field pv_accum 'int32' goes with an integer pv, got {self.pv_accum!r} with {self.pv!r}"
            )
        if self.p_max == 0:
            raise ValueError("recipe field p_max must be > 0, got 0")
        if self.v_max == 0 and self.pv not in ("fp16", "nvfp4"):
            raise ValueError(f"recipe field v_max must be > 0 for pv {self.pv!r}, got 0")
        if self.p_two_level and self.pv != "nvfp4":
            raise ValueError(f"recipe field p_two_level goes with pv 'nvfp4', got {self.pv!r}")
        if self.approximate_exp and (self.pv != "fp8_e4m3" or self.p_max > E4M3_MAX):
            raise ValueError(
                "recipe field approximate_exp goes with pv 'fp8_e4m3' and a p_max of at most 448, e4m3's largest number, "
                f"got pv {self.pv!r} and p_max {self.p_max:g}"
            )
        if self.fold_every > 1 and "+" not in self.pv_accum:
            raise ValueError(
                f"recipe field fold_every must be 1 where pv_accum has one accumulator, got {self.fold_every} with "
                f"{self.pv_accum!r}"
            )
        self._check_fp16_sums()

    def _check_fp16_sums(self) -> None:
        """No sum of FP8 P V may leave the range of the fp16 accumulators."""
        if (self.pv, self.pv_accum) != ("fp8_e4m3", "fp16+fp32"):
            return
        step = self.block_k * _at_most_in_e4m3(self.p_max) * _at_most_in_e4m3(self.v_max)
        if step > FP16_MAX:
            raise ValueError(
                f"recipe fields block_k * p_max * v_max, the last two as e4m3 rounds them, must be at most {FP16_MAX}, "
                f"the largest fp16 number, for pv_accum 'fp16+fp32', got {step:g}"
            )
        # Rounding of the single additions can at most double a sum.
        if 2 * self.fold_every * step > FP16_MAX * FP16_FOLD:
            raise ValueError(
                f"recipe field fold_every must be at most {int(FP16_MAX * FP16_FOLD / (2 * step))} for pv_accum "
                f"'fp16+fp32' with block_k * p_max * v_max = {step:g}, got {self.fold_every}"
            )

    def replace(self, **fields) -> Recipe:
        """A copy with some fields changed."""
        unknown = sorted(set(fields) - {f.name for f in dataclasses.fields(self)})
        if unknown:
            raise TypeError(f"Recipe has no field {', '.join(map(repr, unknown))}")
        return dataclasses.replace(self, **fields)

    @staticmethod
    def parse(text: str) -> Recipe:
        """A recipe from its text, a preset's name with changed fields in parentheses: "sage2(smooth_v=True)"."""
        return _parse(text)

    def __str__(self) -> str:
        """The shortest text that `parse` reads back to this recipe."""
        base = PRESETS[self.name]
        changed = [
            f"{f.name}={getattr(self, f.name)}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != getattr(base, f.name)
        ]
        return f"{self.name}({', '.join(changed)})" if changed else self.name


def _presets() -> dict[str, Recipe]:
    sage1 = Recipe("sage1", qk="int8", qk_granularity="thread", pv="fp16", pv_accum="fp32")
    sage2 = Recipe(
        "sage2",
        qk="int8",
        qk_granularity="thread",
        pv="fp8_e4m3",
        pv_accum="fp32+fp32",
        p_max=448,
        v_max=448,
        fold_every=32,
        key_order="reverse",
    )
    cpu = Recipe(
        "int16", qk="int16", qk_granularity="token", pv="int16", pv_accum="int32", block_k=128, p_max=8191, v_max=2047
    )
    sage3 = Recipe(
        "sage3",
        qk="nvfp4",
        qk_granularity="1x16",
        pv="nvfp4",
        pv_accum="fp32",
        # P may become 448 * 6, the largest ue4m3 scale times the largest e2m1 value: a row's maximum grows by two octaves
        # and more until a kernel has to move what P is relative to.
        p_max=512,
        key_order="reverse",
        p_two_level=True,
        smooth_q=True,
    )
    recipes = [
        sage1,
        sage1.replace(name="sage1_int8", pv="int8", pv_accum="int32", p_max=255, v_max=127),
        sage2,
        # Largest sum of 64 products in fp16: 64 * 112 * 9 = 64512 < 65504 (SageAttention2++, section 3).
        sage2.replace(name="sage2pp", pv_accum="fp16+fp32", p_max=112, v_max=9),
        sage2.replace(name="sage2_int4", qk="int4", smooth_q=True),
        sage3,
        sage3.replace(name="sage3_fp8", pv="fp8_e4m3", p_max=128, v_max=448, p_two_level=False),
        Recipe(
            "sagebwd",
            qk="int8",
            qk_granularity="block",
            pv="int8",
            pv_accum="int32",
            p_max=127,
            v_max=127,
            v_granularity="block",
        ),
        # What the CPU kernels compute. 8191 = 2^20 / 128 - 1 keeps a step's sum of P V below 2^31 even for constant V.
        cpu,
        cpu.replace(name="sage1@cpu", qk="int8"),
        cpu.replace(name="sage1_int8@cpu", qk="int8", pv="int8", block_k=256, p_max=255, v_max=127),
    ]
    return {recipe.name: recipe for recipe in recipes}


PRESETS: dict[str, Recipe] = _presets()
"""Every preset by name. "<name>@cpu" is what `<name>` means to the CPU kernels, which multiply integers only.

How the fields of the FP8 recipes were chosen, by the reference at head_dim 128. NRMSE under an attention sink: 16384
keys, the first one's scores about 12 above the mean of the others, its V a fiftieth of theirs; and with the keys in the
opposite order, so that it is the last one:

| recipe                                   | first | last  |
|------------------------------------------|-------|-------|
| sage2, p_max 448, reverse                | .0243 | .0264 |
| sage2, p_max 256, reverse                | .0243 | .0300 |
| sage2, p_max 448, forward                | .0264 | .0243 |
| sage2, p_max 256, forward                | .0300 | .0243 |
| sage2pp, p_max 448, v_max 2.25, reverse  | .0519 | .0525 |
| sage2pp, p_max 224, v_max 4.5, reverse   | .0330 | .0359 |
| sage2pp, p_max 112, v_max 9, reverse     | .0286 | .0372 |
| sage2pp, p_max 112, v_max 9, forward     | .0372 | .0286 |
| sage2pp, p_max 28, v_max 36, reverse     | .0282 | .0688 |

Sinks are first keys, hence the order. Without a sink they agree within 1 %. By how much the output differs from that of
exact inner accumulators (NRMSE; 16384 normal keys, where the recipe's error is .037; FP22 for sage2), by fold_every:
sage2 .0001 (1), .0005 (16), .0011 (32), .0024 (64), .0106 (256); sage2pp .0007 (16), .0009 (32), .0012 (64).

approximate_exp raises the error of sage2 by up to 2 % on the inputs of tests/distributions.py (.0378 to .0385 on normal
ones), and under such a sink by .5 %, 1.2 or 1.8 % where its scores are only 10 or 8 above the mean. Where the sink comes
first in the order of the keys, as the last key in "reverse" or as the first in "forward", it is 40 % (35 and 3 %): then
the others' P are subnormal numbers of e4m3, which lie on another line.

NVFP4 Q and K, likewise, but with the sink's V and that of the 15 keys after it a fiftieth of the others':

| recipe                        | first | last  |
|-------------------------------|-------|-------|
| sage3, p_max 512, reverse     | .1056 | .1141 |
| sage3, p_max 2048, reverse    | .1056 | .1062 |
| sage3, p_max 512, forward     | .1141 | .1056 |
| sage3_fp8, p_max 128, reverse | .0609 | .0765 |
| sage3_fp8, p_max 256, reverse | .0609 | .0654 |
| sage3_fp8, p_max 128, forward | .0765 | .0609 |

A larger p_max makes kernels move what P is relative to more often: each time a row's maximum has grown by .4 to 1.4
octaves for 2048 (256: .8 to 1.8), by 2.4 to 3.4 for 512 (128: 1.8 to 2.8), which is when P would leave its format. Until
then P is larger than here, and as good or better.

Where the sink's V alone is small, it shares the scale of a block of V with others and becomes 0: with V that counts for
nothing beside the others' .061 for sage3_fp8 is .98 for sage3, in either order. P has a range
of 16 octaves in either recipe.
"""


_READERS = {"bool": {"True": True, "False": False}.__getitem__, "int": int, "float": float, "str": str}


@functools.lru_cache(maxsize=256)
def _parse(text: str) -> Recipe:
    match = re.fullmatch(r"\s*([\w@]+)\s*(?:\((.*)\))?\s*", text)
    if not match or match[1] not in PRESETS:
        raise ValueError(
            f"recipe must be one of auto, {', '.join(PRESETS)} (fields may follow in parentheses), got {text!r}"
        )
    recipe = PRESETS[match[1]]
    types = {f.name: f.type for f in dataclasses.fields(Recipe)}
    fields = {}
    for item in filter(None, (part.strip() for part in (match[2] or "").split(","))):
        name, separator, value = (part.strip() for part in item.partition("="))
        if not separator or name not in types or name == "name":
            raise ValueError(f"recipe {text!r}: expected field=value with a field of sage.Recipe, got {item!r}")
        try:
            fields[name] = _READERS[types[name]](value)
        except (KeyError, ValueError):
            raise ValueError(f"recipe {text!r}: field {name} must be a {types[name]}, got {value!r}") from None
    return recipe.replace(**fields)
