"""Machine code that nobody compiled, as cuobjdump prints it, for tests of what reads it."""

from __future__ import annotations

import re
from typing import Any

import sass
from sass_listing import Graph, parse

QK, HMMA = "IMMA.16832.S8.S8 R4, R8.ROW, R10.COL, R4", "HMMA.16816.F32 R4, R8, R10, R4"
OMMA = "OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X"
OMMA_TEXT = f"{OMMA} R4, R8, R12, R4, R16, R20, URZ"
S, PV90 = "IGMMA.64x128x32.S8.S8 R92, gdesc[UR4], R92", "QGMMA.64x136x32.F32.E4M3.E4M3 R24, R96, gdesc[UR8], R24"
STEP = [*[S] * 3, f"{S}, gsb0", PV90, f"{PV90}, gsb0", PV90, f"{PV90}, gsb0"]


def listing(*texts: str, name: str = "kernel", architecture: str = "sm_80") -> str:
    """As cuobjdump prints it: an instruction every 16 bytes."""
    lines = [
        "",
        "Fatbin elf code:",
        "================",
        f"arch = {architecture}",
        "",
        "Resource usage:",
        " Common:",
        "  GLOBAL:0",
        f" Function {name}:",
        "  REG:40 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:664 TEXTURE:0 SURFACE:0 SAMPLER:0",
        "",
        f"\tcode for {architecture}",
        f"\t\tFunction : {name}",
        '\t.headerflags\t@"EF_CUDA_SM80"',
    ]
    for i, text in enumerate(texts):
        lines += [
            f"        /*{16 * i:04x}*/      {text:>30} ;    /* 0x00000a00ff017624 */",
            f"{'':60}/* 0x000fe400078e00ff */",
        ]
    return "\n".join([*lines, "\t\t..........", "", ""])


def values(*texts: str, head_dim: int = 32) -> dict[str, Any]:
    (function,) = parse(listing(*texts))
    return sass.figures(function, head_dim)


def hot(*texts: str) -> tuple[list[int], list[int]]:
    """The addresses, by 16, of the hot loop and of the path through it."""
    graph = Graph(parse(listing(*texts))[0].instructions)
    loop, path = map(graph.instructions, graph.hot_loop())
    return sorted(x.address // 16 for x in loop), [x.address // 16 for x in path]


def assembled(*texts: str) -> list[str]:
    """Jumps to labels, which are lines like `loop:`, as jumps to addresses."""
    places: dict[str, int] = {}
    for text in texts:
        if text.endswith(":"):
            places[text[:-1]] = 16 * (texts.index(text) - len(places))
    return [re.sub(r"(?<=BRA )\w+", lambda x: hex(places[x[0]]), x) for x in texts if not x.endswith(":")]


def block_scaled_kernel(multiplied: int = 34) -> list[str]:
    """Of head_dim 128. The loop of math warps has a mask and the move of a row's reference, which are off the path, and
    of the next step a wait and a vote, which a last step does not have. Then that of the warps that feed them, of which
    one copies."""
    look_ahead = ["SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R2", "@!P0 BRA spin", "back:", "VOTE.ANY P0, P0"]
    move = ["@!P0 BRA end", "MUFU.EX2 R7, R7", *["FMUL R1, R2, R7"] * multiplied]
    math = [
        "@P5 BRA feed",
        "math:",
        *[OMMA_TEXT] * 32,
        "@P1 BRA whole",
        *["FMUL R1, R2, R3"] * 64,
        "whole:",
        *[OMMA_TEXT] * 34,
    ]
    math += ["NOP", *["FFMA R1, R2, R3, R4"] * 25, "@P2 BRA end", *look_ahead, *move, "end:", "@P3 BRA math", "EXIT"]
    feed = ["feed:", "LDS.128 R4, [R2]", *[OMMA_TEXT] * 16, "STS.128 [R2], R4", "@P0 BRA fed"]
    feed += [*["IADD3 R1, R2, R3, RZ"] * 4, "UBLKCP.S.G [UR8], [UR6], UR4", "fed:", "@P1 BRA feed", "EXIT"]
    return assembled(*math, *feed, "spin:", "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R2", "@!P0 BRA spin", "BRA back")
