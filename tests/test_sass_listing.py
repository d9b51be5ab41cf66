"""The reader of machine code, tests/sass_listing.py, on hand-written listings."""

from __future__ import annotations

import re

import pytest

from fake_sass import HMMA, QK, STEP, hot, listing, values
from sass_listing import PIPE_OF, PIPES, Graph, parse


def test_straight_line_has_no_hot_loop() -> None:
    assert Graph(parse(listing("MOV R1, R2", HMMA, "EXIT"))[0].instructions).hot_loop() is None
    assert "loop" not in values("MOV R1, R2", HMMA, "EXIT", "BRA 0x30", "NOP")
    assert values("MOV R1, R2", "@P0 BRA 0x0", "EXIT")["instructions"] == 3


def test_loop_is_found() -> None:
    assert hot("MOV R1, R2", QK, "FADD R1, R2, R3", "@P0 BRA 0x10", "EXIT") == ([1, 2, 3], [1, 2, 3])


def test_rare_branch_is_in_the_loop_but_not_on_the_path() -> None:
    loop, path = hot(QK, "@P1 BRA 0x40", "FADD R1, R2, R3", "FADD R1, R2, R3", HMMA, "@P0 BRA 0x0", "EXIT")
    assert loop == [0, 1, 2, 3, 4, 5] and path == [0, 1, 4, 5]


def test_copies_are_on_the_path_and_are_made_the_cheap_way() -> None:
    copy = "LDGSTS.E.BYPASS.LTC128B.128 [R1], [R2.64]"
    loop, path = hot(
        QK, "@P1 BRA 0x80", "@P2 BRA 0x60", "SEL R1, R2, R3, P0", copy, "BRA 0x80", copy, "NOP", "@P0 BRA 0x0", "EXIT"
    )
    assert loop == list(range(9)) and path == [0, 1, 2, 6, 7, 8]


def test_inner_loop_is_passed_once_and_outer_loop_is_not_hot() -> None:
    texts = [
        "MOV R1, R2",
        "NOP",
        QK,
        "@P1 BRA 0x20",
        HMMA,
        "@!P0 CALL.REL.NOINC 0x80",
        "BRA 0x10",
        "NOP",
        "@P2 BRA 0x0",
        "EXIT",
    ]
    assert hot(*texts) == ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6])


def test_persistent_loop_with_a_tile_of_its_own_is_not_hot() -> None:
    """16 wgmma in the loop over keys, and 8 behind it in the loop over the work."""
    inner = ["NOP", *STEP, *STEP, "@P0 BRA 0x10"]
    loop, path = hot("NOP", *inner, *STEP, "@P1 BRA 0x0", "EXIT")
    assert loop == path == list(range(1, 1 + len(inner)))


def test_waits_rescale_and_fold_are_not_on_the_path_of_wgmma() -> None:
    """A wait whose spinning is out of line, the rescaling of the accumulators where a maximum moved, and the fold."""
    texts = [*STEP[:4], "SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR4], R2", "@!P1 BRA 0x140", "VOTE.ANY P2, P3"]
    texts += ["@!P2 BRA 0xa0", "FMUL R24, R24, R3", "FMUL R25, R25, R3", *STEP[4:]]
    texts += ["@P4 BRA 0x100", "BRA 0x120", "LDS.128 R4, [R2]", "STS.128 [R2], R4", "@P0 BRA 0x0", "EXIT"]
    texts += ["SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR4], R2", "@!P1 BRA 0x140", "BRA 0x60"]
    loop, path = hot(*texts)
    assert loop == [*range(19), 20, 21, 22]
    assert path == [*range(8), *range(10, 16), 18]


def test_conditional_jumps_that_carry_no_guard() -> None:
    assert hot(QK, "BRA P4, 0x30", "FADD R1, R2, R3", "BRA.DIV ~URZ, 0x50", "@P0 BRA 0x0", "EXIT")[1] == [0, 1, 3, 4]


@pytest.mark.parametrize(
    "complaint, texts",
    [
        ("unknown opcode FROB", [QK, "FROB.X R1, R2", "@P0 BRA 0x0", "EXIT"]),
        ("no jump to a known address", [QK, "BRX R2 -0x10", "@P0 BRA 0x0", "EXIT"]),
        ("no target", [QK, "@P0 BRA `(.L_x_1)", "EXIT"]),
        ("where no instruction is", [QK, "@P0 BRA 0x8", "EXIT"]),
        ("continues elsewhere", ["BSSY B0, 0x40", QK, "BSYNC B0", "@P0 BRA 0x0", "EXIT"]),
        ("two entries", ["@P0 BRA 0x20", QK, HMMA, "@P0 BRA 0x10", "EXIT"]),
        ("calls a subroutine", [QK, "CALL.REL.NOINC 0x40", "@P0 BRA 0x0", "EXIT", "RET.REL.NODEC R20 0x0"]),
    ],
)
def test_what_is_not_understood_is_refused(complaint: str, texts: list[str]) -> None:
    with pytest.raises(ValueError, match=complaint):
        values(*texts)


def with_table(text: str, *addresses: int) -> str:
    words = " ".join(f"0x{x:08x}" for x in addresses)
    return text.replace("\nResource usage:", f"\n.nv.constant2.kernel\n{words} \n\nResource usage:")


def test_jumps_by_a_table() -> None:
    """Each goes where its part of the table says; without a table, or by other means, nobody knows."""
    texts = ["LDC R2, c[0x2][R1]", "BRX R2 -0x20", QK, "BRA 0x60", "LDC R4, c[0x2][R3+0x8]", "BRX R4 -0x60", HMMA]
    texts += ["@P0 BRA 0x0", "EXIT"]
    graph = Graph(*parse(with_table(listing(*texts), 0x20, 0x40, 0x60, 0x70))[0][3:])
    targets = {block[-1].address // 16: next_ for block, next_ in zip(graph.blocks, graph.successors, strict=True)}
    starts = [block[0].address // 16 for block in graph.blocks]
    assert sorted(starts[i] for i in targets[1]) == [2, 4] and sorted(starts[i] for i in targets[5]) == [6, 7]
    for faulty in (
        listing(*texts),
        with_table(listing("NOP", *texts[1:]), 0x20),
        with_table(listing("BRX R2 -0x30"), 0),
    ):
        with pytest.raises(ValueError, match="no jump to a known address"):
            Graph(*parse(faulty)[0][3:])


def test_lines_are_not_dropped() -> None:
    text = listing("MOV R1, R2", "NOP", "EXIT")
    with pytest.raises(ValueError, match="an instruction is missing at 0x10"):
        parse(re.sub(r".*/\*0010\*/.*\n", "", text))
    with pytest.raises(ValueError, match="not understood"):
        parse(text.replace("/*0010*/", "/*001x*/"))


def test_functions_of_every_architecture_are_read() -> None:
    functions = parse(listing("EXIT") + listing("NOP", "EXIT", architecture="sm_90"))
    assert [(x.architecture, x.name, len(x.instructions)) for x in functions] == [
        ("sm_80", "kernel", 1),
        ("sm_90", "kernel", 2),
    ]
    assert functions[0].resources["REG"] == 40


def test_no_opcode_is_in_two_pipes() -> None:
    assert len(PIPE_OF) == sum(len(opcodes.split()) for opcodes in PIPES.values())
