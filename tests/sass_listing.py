"""Reads what cuobjdump prints of compiled CUDA kernels: their instructions, control flow and hot loop."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

# Where an opcode executes, as Nsight Compute names the pipes of sm_80. "uniform" is the uniform datapath; "other" is
# control flow, barriers and special registers.
PIPES = {
    "tensor": "BMMA DMMA HGMMA HMMA IGMMA IMMA OMMA QGMMA QMMA",
    "xu": "BREV F2F F2I FLO FRND I2F MUFU POPC",
    "alu": "BMSK CS2R F2FP F2IP FCHK FMNMX FMNMX3 FSEL FSET FSETP HMNMX2 I2FP I2IP IABS IADD IADD3 IMNMX ISETP LEA LOP3 MOV P2R "
    "PLOP3 PRMT R2P SEL SGXT SHF VABSDIFF VABSDIFF4 VHMNMX VIADD VIADDMNMX VIMNMX VIMNMX3",
    "fma": "FADD FFMA FMUL FSWZADD HADD2 HFMA2 HMUL2 HSET2 HSETP2 IDP IMAD IMUL",
    "memory": "ATOM ATOMG ATOMS LD LDC LDG LDGSTS LDL LDS LDSM RED SHFL ST STG STL STS UBLKCP UTMALDG",
    "uniform": "LDCU R2UR S2UR UBMSK UF2F UF2FP UF2I UFADD UFFMA UFLO UFMUL UFSEL UFSETP UI2F UIADD3 UIMAD UIMNMX UISETP "
    "ULDC ULEA ULOP3 UMOV UP2UR UPLOP3 UPOPC UPRMT UR2UP USEL USGXT USHF UVIADD UVIMNMX VOTEU",
    "other": "ACQBULK BAR BRA BREAK BRX BSSY BSYNC CALL CCTL CGAERRBAR DEPBAR ELECT ENDCOLLECTIVE ERRBAR EXIT FENCE LDGDEPBAR "
    "MEMBAR NANOSLEEP NOP PREEXIT RET S2R SYNCS UCGABAR_ARV UCGABAR_WAIT USETMAXREG VOTE WARPGROUP WARPSYNC YIELD",
}
PIPE_OF = {opcode: pipe for pipe, opcodes in PIPES.items() for opcode in opcodes.split()}
COPIES = {"LDGSTS", "UBLKCP"}  # to shared memory
MEETINGS = ("VOTE.", "SYNCS.PHASECHK.")  # of a warp's lanes, and of warps at a barrier
INDIRECT_JUMPS = {"BRXU", "JMP", "JMX", "JMXU"}


class Instruction(NamedTuple):
    address: int
    text: str  # without its guard
    guarded: bool  # by @P

    @property
    def opcode(self) -> str:
        """With its modifiers: IMMA.16832.S8.S8."""
        return self.text.split()[0]

    @property
    def name(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def pipe(self) -> str:
        if self.name not in PIPE_OF:
            raise ValueError(
                f"unknown opcode {self.name} at 0x{self.address:x}: sort it into PIPES of tests/sass_listing.py"
            )
        return PIPE_OF[self.name]

    @property
    def ends_group(self) -> bool:
        """Whether this wgmma is the last that a wait is for; a serialized one is, and is waited for at once."""
        return self.pipe == "tensor" and self.text.endswith(" gsb0")

    @property
    def target(self) -> int | None:
        """Where it may jump to. A subroutine returns behind its CALL, but CALL is also used for plain jumps. BRX has a
        table."""
        if self.name in INDIRECT_JUMPS or self.opcode.startswith("CALL.ABS"):
            raise ValueError(f"no jump to a known address at 0x{self.address:x}: {self.text}")
        if self.name not in ("BRA", "CALL") and not self.opcode.startswith("WARPSYNC.COLLECTIVE"):
            return None
        found = re.search(r"(?<=[ ,])0x([0-9a-f]+)$", self.text)
        if not found:
            raise ValueError(f"no target at 0x{self.address:x}: {self.text}")
        return int(found[1], 16)

    @property
    def falls_through(self) -> bool:
        if self.guarded or self.name not in ("BRA", "BRX", "EXIT", "RET"):
            return True
        return self.name not in ("BRX", "RET") and not re.fullmatch(r"EXIT|BRA(\.\w+)* 0x[0-9a-f]+", self.text)


class Function(NamedTuple):
    architecture: str  # sm_80
    name: str
    resources: dict[str, int]  # as cuobjdump names them: REG, STACK, SHARED, LOCAL, CONSTANT[0], ...
    instructions: list[Instruction]
    jump_table: tuple[int, ...] = ()  # of all its BRX, in constant bank 2


def parse(listing: str) -> list[Function]:
    """The functions in what cuobjdump -elf -sass -res-usage prints. A line that is not understood is an error."""
    functions = []
    for section in re.split(r"^Fatbin elf code:$", listing, flags=re.MULTILINE)[1:]:
        architecture = re.search(r"^arch = (\w+)$", section, re.MULTILINE)[1]
        resources = {}
        for name, facts in re.findall(r"^ Function (.+):\n +(REG:.*)$", section, re.MULTILINE):
            resources[name] = {key: int(value) for key, value in re.findall(r"(\S+):(\d+)", facts)}
        for code in re.split(r"^\t*Function : ", section, flags=re.MULTILINE)[1:]:
            name, _, lines = code.partition("\n")
            table = re.search(rf"^\.nv\.constant2\.{re.escape(name)}\n((?:0x[0-9a-f]{{8}}\s+)+)", section, re.MULTILINE)
            addresses = tuple(int(word, 16) for word in (table[1].split() if table else ()))
            functions.append(Function(architecture, name, resources[name], list(_instructions(lines)), addresses))
    return functions


def _instructions(lines: str) -> Iterator[Instruction]:
    expected = 0
    for line in lines.splitlines():
        if found := re.match(r" +/\*([0-9a-f]{4,})\*/ +(@\S+ +)?(\S.*?) *; +/\*", line):
            address = int(found[1], 16)
            if address != expected:
                raise ValueError(f"an instruction is missing at 0x{expected:x}: {line}")
            expected += 16
            yield Instruction(address, found[3], bool(found[2]))
        elif re.match(r"Fatbin ptx code:", line):
            return
        elif not re.fullmatch(r" +/\* 0x[0-9a-f]{16} \*/|\t\.headerflags.*|\t*\.+|", line):
            raise ValueError(f"not understood: {line}")


def _indirect_jumps(instructions: list[Instruction], table: tuple[int, ...]) -> dict[int, list[int]]:
    """Where each BRX may jump to, by its address: to what was loaded from its part of the table."""
    first = {}
    for i, x in enumerate(instructions):
        if x.name == "BRX":
            register, base = x.text.split()[1:]
            load = rf"LDC {register}, c\[0x2\]\[R\d+(?:\+0x([0-9a-f]+))?\]"
            loads = (found for y in reversed(instructions[:i]) if (found := re.fullmatch(load, y.text)))
            found = next(loads, None)
            if not table or found is None or base != f"-0x{x.address + 16:x}":
                raise ValueError(f"no jump to a known address at 0x{x.address:x}: {x.text}")
            first[x.address] = int(found[1] or "0", 16) // 4
    ends = sorted({*first.values(), len(table)})
    return {address: sorted(set(table[i : ends[ends.index(i) + 1]])) for address, i in first.items()}


class Loop(NamedTuple):
    """All of it, and an iteration's path through it, as blocks of a graph."""

    body: list[int]
    path: list[int]


class Graph:
    """The basic blocks of a function that can be reached, as lists of instructions, and the jumps between them.

    Blocks are numbers in reverse postorder: but for loops, a jump goes to a higher number.
    """

    def __init__(self, instructions: list[Instruction], jump_table: tuple[int, ...] = ()):
        indirect = _indirect_jumps(instructions, jump_table)
        joins = {(x.text.split()[1], int(x.text.split()[-1], 16)) for x in instructions if x.name == "BSSY"}
        starts = {0} | {x.target for x in instructions if x.target is not None}
        starts |= {x.address + 16 for x in instructions if x.target is not None or not x.falls_through}
        starts |= set(itertools.chain(*indirect.values()))
        blocks: dict[int, list[Instruction]] = {}
        for x in instructions:
            if x.name == "BSYNC" and (x.text.split()[1] + ",", x.address + 16) not in joins:
                raise ValueError(f"BSYNC at 0x{x.address:x} continues elsewhere")
            if x.address in starts:
                block = blocks[x.address] = []
            block.append(x)
        following = {}
        for start, block in blocks.items():
            last = block[-1]
            targets = indirect.get(last.address, [] if last.target is None else [last.target])
            following[start] = targets + [last.address + 16] * last.falls_through
        order = _postorder(following)[::-1]
        number = {start: i for i, start in enumerate(order)}
        self.blocks = [blocks[start] for start in order]
        self.successors = [[number[x] for x in following[start]] for start in order]
        self.predecessors: list[list[int]] = [[] for _ in order]
        for i, successors in enumerate(self.successors):
            for x in successors:
                self.predecessors[x].append(i)
        self.dominators = self._dominators()
        self.tensor = [sum(x.pipe == "tensor" for x in block) for block in self.blocks]
        self.copies = [sum(x.name in COPIES for x in block) for block in self.blocks]
        self.meetings = [sum(x.opcode.startswith(MEETINGS) for x in block) for block in self.blocks]

    def _dominators(self) -> list[int]:
        """Per block the set, as bits, of the blocks that are passed on every way to it."""
        result = [1] + [-1] * (len(self.blocks) - 1)
        changed = True
        while changed:
            changed = False
            for i in range(1, len(self.blocks)):
                new = functools.reduce(int.__and__, (result[x] for x in self.predecessors[i])) | 1 << i
                changed |= new != result[i]
                result[i] = new
        return result

    def loops(self) -> dict[int, set[int]]:
        """The natural loops: the blocks from which a jump back to the loop's header is reached without passing it."""
        loops: dict[int, set[int]] = {}
        for end, successors in enumerate(self.successors):
            for header in successors:
                if self.dominators[end] >> header & 1:
                    body = loops.setdefault(header, {header})
                    pending = [end]
                    while pending:
                        x = pending.pop()
                        if x not in body:
                            body.add(x)
                            pending += self.predecessors[x]
                elif header <= end:
                    raise ValueError(f"a loop with two entries at 0x{self.blocks[header][0].address:x}")
        return loops

    def hot_loop(self) -> Loop | None:
        """The smallest loop that has every tensor instruction of the loop with the most, and half as many. So a loop
        around that over the tiles of keys may have tiles of its own, and one within may repeat a product. None if no loop
        has any."""
        return self._fullest(self.loops())

    def second_loop(self, hot: Loop) -> Loop | None:
        """Likewise, of the loops that share nothing with the hot one and have less than half its tensor instructions:
        that of warps which help those of the hot loop."""
        most = sum(self.tensor[i] for i in hot.body)
        return self._fullest(
            {
                header: body
                for header, body in self.loops().items()
                if body.isdisjoint(hot.body) and 2 * sum(self.tensor[i] for i in body) < most
            }
        )

    def _fullest(self, loops: dict[int, set[int]]) -> Loop | None:
        tensor = {
            header: [x.opcode for i in body for x in self.blocks[i] if x.pipe == "tensor"]
            for header, body in loops.items()
        }
        most = max(tensor.values(), key=len, default=[])
        if not most:
            return None
        full = [header for header, x in tensor.items() if 2 * len(x) >= len(most) and set(x) == set(most)]
        header = min(full, key=lambda header: sum(len(self.blocks[i]) for i in loops[header]))
        return Loop(sorted(loops[header]), self.path(loops[header]))

    def path(self, body: Iterable[int], with_copies: bool = True) -> list[int]:
        """Of an iteration of a loop that does its full work in the cheapest way: of the paths with the most tensor
        instructions, of those with the most copies to shared memory, or the least, of those with the most votes and
        waits that are not repeated, the one with the fewest instructions. Without votes and waits it would be that of a
        last iteration, which looks at no next tile."""
        header, *_ = body = sorted(body)  # a loop is entered at its first block only
        repeated = set().union(*(x for start, x in self.loops().items() if start in body and start != header))
        best: dict[int, tuple[tuple[int, int, int, int], list[int]]] = {}  # by the path's end
        for i in body:  # jumps back are not followed: inner loops are passed once
            (tensor, copies, meetings, length), path = ((0, 0, 0, 0), [])
            if i != header:
                (tensor, copies, meetings, length), path = max(best[x] for x in self.predecessors[i] if x in best)
            copies += self.copies[i] * (1 if with_copies else -1)
            meetings += 0 if i in repeated else self.meetings[i]
            best[i] = ((tensor + self.tensor[i], copies, meetings, length - len(self.blocks[i])), [*path, i])
        path = max(best[x] for x in self.predecessors[header] if x in best)[1]
        for i, following in itertools.pairwise(path):
            last = self.blocks[i][-1]
            if last.name == "CALL" and not last.guarded and self.blocks[following][0].address != last.target:
                raise ValueError(f"the hot path calls a subroutine, which is not counted, at 0x{last.address:x}")
        return path

    def instructions(self, blocks: Iterable[int]) -> list[Instruction]:
        return [x for i in blocks for x in self.blocks[i]]

    def detours(self, loop: Loop) -> list[list[Instruction]]:
        """What of a loop is not on its path, in pieces that no jump leads from one to another."""
        pieces: list[set[int]] = []
        for i in sorted(set(loop.body) - set(loop.path)):
            near = {i, *self.predecessors[i], *self.successors[i]}
            joined = [x for x in pieces if not x.isdisjoint(near)]
            pieces = [x for x in pieces if x.isdisjoint(near)] + [{i}.union(*joined)]
        return [self.instructions(sorted(x)) for x in pieces]


def _postorder(following: dict[int, list[int]]) -> list[int]:
    order, seen, pending = [], {0}, [(0, iter(following[0]))]
    while pending:
        start, rest = pending[-1]
        for x in rest:
            if x not in following:
                raise ValueError(f"from the block at 0x{start:x} on to 0x{x:x}, where no instruction is")
            if x not in seen:
                seen.add(x)
                pending.append((x, iter(following[x])))
                break
        else:
            order.append(start)
            pending.pop()
    return order
