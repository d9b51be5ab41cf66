"""What compiled CUDA kernels spend, read from their SASS, compared with the record in benchmarks/sass.

    python tests/sass.py [--update] [BUILD_DIR]

Prints the figures of every instance in BUILD_DIR (build/python) and how they differ from the record, and exits with 1
where one is worse, or missing. --update writes the record anew. benchmarks/sass/README.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, NamedTuple

from building import BUILD_DIR, REPOSITORY
from sass_listing import PIPES, Function, Graph, Instruction, Loop, parse

RECORDS = REPOSITORY / "benchmarks" / "sass"

# More of these is worse than the record. What is allocated to a kernel with a hot loop is decided by its launch bounds,
# and what surrounds the loop hardly matters; of the others nothing better is known.
GATED_WITH_HOT_LOOP = ("slots_per_score", "xu", "loop", "service_tensor", "service_slots")
GATED_WITHOUT = ("registers", "instructions")


def figures(function: Function, head_dim: int) -> dict[str, Any]:
    """What benchmarks/sass/README.md describes."""
    resources, instructions = function.resources, function.instructions
    result: dict[str, Any] = {
        "registers": resources["REG"],
        "stack": resources["STACK"],
        "local": resources["LOCAL"],
        "local_accesses": sum(x.name in ("LDL", "STL") for x in instructions),
        "shared": resources["SHARED"],
        "constant": resources["CONSTANT[0]"],
        "instructions": len(instructions),
    }
    result |= registers_of_roles(instructions)
    if not any(x.pipe == "tensor" for x in instructions):
        return result
    graph = Graph(instructions, function.jump_table)
    hot = graph.hot_loop()
    if hot is None:
        return result
    path = graph.instructions(hot.path)
    pipes = collections.Counter(x.pipe for x in path)
    result["loop"] = len(graph.instructions(hot.body))
    result["tensor"] = dict(sorted(collections.Counter(x.opcode for x in path if x.pipe == "tensor").items()))
    if groups := sum(x.ends_group for x in path):
        result["wgmma_groups"] = groups
    result |= {pipe: pipes[pipe] for pipe in PIPES if pipe != "tensor"}
    result["slots_per_score"] = round((len(path) - pipes["tensor"]) / scores_of_lane(head_dim, result["tensor"]), 3)
    return result | (block_scaled(graph, hot, head_dim) if "OMMA" in (x.name for x in path) else {})


def block_scaled(graph: Graph, hot: Loop, head_dim: int) -> dict[str, int]:
    """What else there is to know of an NVFP4 kernel: the fillers on the hot path; the branch that moves a row to a new
    reference, which multiplies all its accumulators; and what the warps that feed the hot loop spend on its stage."""

    def count(instructions: list[Instruction], name: str) -> int:
        return sum(x.name == name for x in instructions)

    accumulators = 2 * (head_dim // 8 + 1)  # of a row
    moves = [len(x) for x in graph.detours(hot) if count(x, "FMUL") >= accumulators]
    result = {"nop": count(graph.instructions(hot.path), "NOP"), "move": min(moves, default=0)}
    if service := graph.second_loop(hot):
        path = graph.instructions(graph.path(service.body, with_copies=False))
        tensor = sum(x.pipe == "tensor" for x in path)
        result |= {"service_tensor": tensor, "service_slots": len(path) - tensor}
        result["copy_slots"] = len(graph.instructions(service.path)) - len(path)
    return result


def registers_of_roles(instructions: list[Instruction]) -> dict[str, int]:
    """Per thread, of the warps that give registers away and of those that take them."""
    found = {}
    for x in instructions:
        if x.name == "USETMAXREG":
            role = "producer_registers" if x.opcode.startswith("USETMAXREG.DEALLOC") else "consumer_registers"
            count = int(x.text.split()[-1], 16)
            if found.setdefault(role, count) != count:
                raise ValueError(f"{role} are {found[role]} and {count}")
    return dict(sorted(found.items()))


def rows_of_warp(head_dim: int) -> int:
    """The queries that a warp of a mma.sync kernel has: by the sizes at the top of mma_sync_fwd.cuh."""
    return 16 if head_dim == 256 else 32


def scores_of_lane(head_dim: int, tensor: dict[str, int]) -> int:
    """Elements of Q K^T that a lane gets on a hot path with these tensor instructions: with mma.sync those of a tile of
    64 keys; wgmma has 64 rows of a warpgroup and the N keys of its name, 32 channels at a time; of OMMA as many as make
    a stage have 16 rows and 128 keys."""
    if omma := sum(count for opcode, count in tensor.items() if opcode.startswith("OMMA")):
        return 64 * omma // omma_of_stage(head_dim, is_pv_nvfp4=sum(tensor.values()) == omma)
    shapes = {opcode: re.match(r"IGMMA\.64x(\d+)x32\.", opcode) for opcode in tensor}
    wgmma = sum(64 * int(shape[1]) // 128 * tensor[opcode] for opcode, shape in shapes.items() if shape)
    return wgmma // (head_dim // 32) or rows_of_warp(head_dim) * 64 // 32


def omma_of_stage(head_dim: int, *, is_pv_nvfp4: bool) -> int:
    """Of a warp's 16 rows and a stage of 128 keys, 64 channels or keys at a time: Q K^T, and P V with the column of
    ones."""
    return 16 * head_dim // 64 + (2 * (head_dim // 8 + 1) if is_pv_nvfp4 else 0)


class Unit(NamedTuple):
    """A kernel on an architecture."""

    family: str
    name: str
    architecture: str

    def __str__(self) -> str:
        return f"{self.name} on {self.architecture}"


def find_cuobjdump(build_dir: Path) -> str | None:
    """Beside the build's nvcc, else on PATH, else among this Python's packages."""
    cache = build_dir / "CMakeCache.txt"
    nvcc = re.search(r"^CMAKE_CUDA_COMPILER:\w+=(.+)$", cache.read_text(), re.MULTILINE) if cache.exists() else None
    folders = [str(Path(nvcc[1]).resolve().parent)] if nvcc else []
    folders += [os.environ["PATH"], str(Path(sysconfig.get_path("purelib"), "nvidia", "cu13", "bin"))]
    return shutil.which("cuobjdump", path=os.pathsep.join(folders))


def nvcc_version(build_dir: Path) -> str | None:
    """The version of the nvcc that a build uses, as 13.0.88; None if it is one without CUDA."""
    for found in sorted(build_dir.glob("CMakeFiles/*/CMakeCUDACompiler.cmake")):
        if version := re.search(r'CMAKE_CUDA_COMPILER_VERSION "([\d.]+)"', found.read_text()):
            return version[1]
    return None


def objects(build_dir: Path) -> dict[tuple[str, str], Path]:
    """The objects of all instances, whether or not they are built, by family and name."""
    commands = build_dir / "compile_commands.json"
    outputs = [x["output"] for x in json.loads(commands.read_text())] if commands.exists() else []
    found = (
        re.search(r"sage_cuda_(\w+?)_[\da_]+(?:_emulated)?\.dir/instances/(\w+)\.cu\.o$", output) for output in outputs
    )
    return {(x[1], x[2]): build_dir / x.string for x in sorted(filter(None, found), key=lambda x: x.string)}


def disassemble(cuobjdump: str, path: Path) -> list[Function]:
    done = subprocess.run([cuobjdump, "-elf", "-sass", "-res-usage", path], capture_output=True, text=True, check=False)
    if done.returncode != 0 or not path.exists():
        raise RuntimeError(f"{cuobjdump} -sass {path} ended with {done.returncode}: {done.stderr.strip()}")
    return parse(done.stdout)


def measure(cuobjdump: str, kernels: dict[tuple[str, str], Path]) -> dict[Unit, dict[str, Any]]:
    """The figures of objects, each of which holds one kernel for one or more architectures."""
    result = {}
    for (family, name), path in kernels.items():
        functions = disassemble(cuobjdump, path)
        for function in functions:
            unit = Unit(family, name, function.architecture)
            if unit in result:
                raise ValueError(f"{path} holds more than one function for {unit.architecture}")
            result[unit] = figures(function, int(name.rpartition("_d")[2]))
        if not functions:
            raise ValueError(f"{path} holds no kernel")
    return result


def uses_local_memory(values: dict[str, Any]) -> bool:
    return any(values[key] for key in ("stack", "local", "local_accesses"))


class Difference(NamedTuple):
    unit: Unit
    verdict: str  # worse, better, changed, or missing
    text: str

    def __str__(self) -> str:
        return f"{self.verdict}: {self.unit}: {self.text}"


def compare(recorded: dict[Unit, dict[str, Any]], measured: dict[Unit, dict[str, Any]]) -> list[Difference]:
    result = []
    for unit in sorted(recorded.keys() | measured.keys()):
        if unit not in recorded or unit not in measured:
            result.append(Difference(unit, "missing", "not recorded" if unit in measured else "recorded, not built"))
            continue
        old, new = recorded[unit], measured[unit]
        gated = GATED_WITH_HOT_LOOP if "loop" in old else GATED_WITHOUT
        for key in sorted(old.keys() | new.keys(), key=[*old, *new].index):
            before, after = old.get(key), new.get(key)
            if before == after:
                continue
            if before is None or after is None or key == "tensor":
                verdict = "worse"
            else:
                verdict = "changed" if key not in gated else "worse" if after > before else "better"
            result.append(Difference(unit, verdict, f"{key} {before} -> {after}"))
    return result


def record_path(family: str, architecture: str, version: str) -> Path:
    return RECORDS / f"{family}-{architecture}-cuda{'.'.join(version.split('.')[:2])}.json"


def compare_with_records(measured: dict[Unit, dict[str, Any]], version: str) -> tuple[list[Difference], list[str]]:
    """The differences from what this very compiler's code was recorded to be, and what was never recorded."""
    differences, unrecorded = [], []
    for family, architecture in sorted({(unit.family, unit.architecture) for unit in measured}):
        path = record_path(family, architecture, version)
        record = json.loads(path.read_text()) if path.exists() else {"nvcc": "no compiler of this minor version"}
        if record["nvcc"] != version:
            unrecorded.append(f"{path.name} is of {record['nvcc']}, this build of {version}")
            continue
        recorded = {Unit(family, name, architecture): x for name, x in record["kernels"].items()}
        differences += compare(
            recorded, {unit: x for unit, x in measured.items() if unit[::2] == (family, architecture)}
        )
    return differences, unrecorded


def write_records(measured: dict[Unit, dict[str, Any]], version: str) -> list[Path]:
    """One file per family, architecture and minor version of nvcc, with a line per kernel."""
    files: dict[Path, list[str]] = collections.defaultdict(list)
    for unit in sorted(measured):
        line = f"    {json.dumps(unit.name)}: {json.dumps(measured[unit])}"
        files[record_path(unit.family, unit.architecture, version)].append(line)
    for path, lines in files.items():
        kernels = ",\n".join(lines)
        path.write_text(f'{{\n  "nvcc": "{version}",\n  "kernels": {{\n{kernels}\n  }}\n}}\n')
    return list(files)


def table(measured: dict[Unit, dict[str, Any]]) -> str:
    columns = ["registers", "instructions", "loop", "xu", "alu", "fma", "memory", "other", "slots_per_score"]
    lines = [f"{'':32}" + "".join(f"{column:>{len(column) + 2}}" for column in columns) + "  tensor"]
    for unit, x in measured.items():
        tensor = " ".join(f"{count} {opcode}" for opcode, count in x.get("tensor", {}).items())
        cells = "".join(f"{x.get(column, ''):>{len(column) + 2}}" for column in columns)
        lines.append(f"{unit!s:32}{cells}  {tensor}".rstrip())
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build_dir", nargs="?", type=Path, default=BUILD_DIR, metavar="BUILD_DIR")
    parser.add_argument("--update", action="store_true", help="write the record anew")
    arguments = parser.parse_args()
    build_dir = arguments.build_dir
    kernels, version, cuobjdump = objects(build_dir), nvcc_version(build_dir), find_cuobjdump(build_dir)
    if not kernels or version is None:
        sys.exit(f"there are no CUDA kernels in {build_dir}")
    if cuobjdump is None:
        sys.exit("there is no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    measured = measure(cuobjdump, kernels)
    print(table(measured))
    if faulty := [str(unit) for unit, x in measured.items() if uses_local_memory(x)]:
        sys.exit(f"local memory is used by {', '.join(faulty)}")
    differences, unrecorded = compare_with_records(measured, version)
    for line in [*differences, *unrecorded]:
        print(line)
    if arguments.update:
        for path in write_records(measured, version):
            print(f"wrote {path}")
        return 0
    print("--update writes the record anew" if differences or unrecorded else "no difference from the record")
    return int(any(x.verdict in ("worse", "missing") for x in differences))


if __name__ == "__main__":
    sys.exit(main())
