"""How fast the tensor cores of a GPU could be: what a measured speed is a share of."""

from __future__ import annotations

import sage

_H100 = {"16bit": 4096, "16bit_f16acc": 4096, "int8": 8192, "fp8": 8192}
_GEFORCE = {"16bit": 512, "16bit_f16acc": 1024, "int8": 2048, "fp8": 1024, "fp8_f16acc": 2048}
_RATES = {
    "A100": {"16bit": 2048, "16bit_f16acc": 2048, "int8": 4096, "int4": 8192},
    "H100": _H100,
    "H200": _H100,
    "RTX 4090": _GEFORCE | {"int4": 4096},
    "RTX 5090": _GEFORCE | {"mxfp8": 2048, "nvfp4": 4096},
    "RTX PRO 6000 Blackwell": {
        **dict.fromkeys(("16bit", "16bit_f16acc"), 1024),
        **dict.fromkeys(("int8", "fp8", "fp8_f16acc", "mxfp8"), 2048),
        "nvfp4": 4096,
    },
}
"""Dense operations per clock of a multiprocessor, by a word of the GPU's name: from NVIDIA's whitepapers of A100, Hopper,
Ada and RTX Blackwell, whose figures are at the boost clock. mxfp8 is inferred (tools/facts.json, also of RTX PRO 6000)."""

_FP8 = {"fp32": "fp8", "fp32+fp32": "fp8", "fp16+fp32": "fp8_f16acc"}
_16BIT = {"fp32": "16bit", "fp16": "16bit_f16acc", "fp16+fp32": "16bit_f16acc"}


def formats(recipe: sage.Recipe | None, kernel: str) -> tuple[str, str]:
    """What Q K^T and P V are multiplied in; None is PyTorch's attention, in 16 bits."""
    if recipe is None:
        return "16bit", "16bit"
    if "mxfp8" in kernel or (recipe.qk == "nvfp4" and recipe.pv == "fp8_e4m3"):  # FP8 with scales for blocks, all 1
        return recipe.qk, "mxfp8"
    return recipe.qk, {"fp16": _16BIT, "fp8_e4m3": _FP8}.get(recipe.pv, {}).get(recipe.pv_accum, recipe.pv)


def peak_gops(gpu: dict, clock_mhz: float | None, recipe: sage.Recipe | None, kernel: str) -> float | None:
    """Of attention whose matmuls take turns on tensor cores that never wait, at this clock. None where the GPU, the rate
    of a format on it, or the clock is not known."""
    rates = next((rates for word, rates in _RATES.items() if word in gpu["name"].split("NVIDIA ")[-1]), {})
    qk, pv = (rates.get(name) for name in formats(recipe, kernel))
    if not (qk and pv and clock_mhz):
        return None
    return 2 / (1 / qk + 1 / pv) * gpu["sm_count"] * clock_mhz / 1e3
