"""Gates on the compiled CUDA kernels, where no GPU is there to measure them: tests/sass.py explains the figures."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import sass
from building import BUILD_DIR, REPOSITORY, configure, run
from fake_sass import HMMA, OMMA, PV90, QK, S, STEP, block_scaled_kernel, listing, values
from sage import _C
from sass import Unit

NVCC = _C.build_info()["cuda_compiler"]

# Non-tensor issue slots per element of Q K^T, on the GPUs that the kernels were designed for.
GOALS = {
    ("sm89_fwd_fp8_d128", "sm_89"): 7.0,
    ("sm89_fwd_fp8_f16acc_d128", "sm_89"): 8.0,
    ("sm90_fwd_wgmma_d128", "sm_90a"): 5.5,
    ("sm90_fwd_wgmma_approx_d128", "sm_90a"): 5.5,
    ("sm120_fp4_fwd_nvfp4_d128", "sm_120a"): 7.0,
    ("sm120_fp4_fwd_fp8_d128", "sm_120a"): 7.0,
}

# P V: the instruction and its depth.
PV = {
    "f16": ("HMMA.16816.F32", 16),
    "bf16": ("HMMA.16816.F32.BF16", 16),
    "f16acc": ("HMMA.16816.F16", 16),
    "f16acc_f32": ("HMMA.16816.F16", 16),
    "int8": ("IMMA.16832.U8.S8", 32),
    "fp8": ("QMMA.16832.F32.E4M3.E4M3", 32),
    "fp8_f16acc": ("QMMA.16832.F16.E4M3.E4M3", 32),
    "mxfp8": ("QMMA.SF.16832.F32.E4M3.E4M3.E8", 32),
}
ONES_COLUMN = {"fp8", "mxfp8"}  # eight channels more, for the sum of the rounded P


def expected_tensor(name: str) -> dict[str, int]:
    """The tensor instructions that a warp issues for a tile of keys: by the sizes at the top of mma_sync_fwd.cuh,
    sm90_fwd.cuh or sm120_fp4_fwd.cuh."""
    if found := re.fullmatch(r"sm120_fp4_fwd_(nvfp4|fp8)_d(\d+)", name):
        return expected_block_scaled(found[1], int(found[2]))
    found = re.fullmatch(r"sm\d+_fwd_(int4_)?(\w+)_d(\d+)", name)
    if not found:
        return {}
    if found[2].startswith("wgmma"):
        return expected_wgmma(int(found[3]))
    is_int4, mode, head_dim = bool(found[1]), found[2], int(found[3])
    tiles, keys, warps = sass.rows_of_warp(head_dim) // 16, 64, 128 // sass.rows_of_warp(head_dim)
    kind, depth = PV[mode]
    result = {kind: tiles * (head_dim // 8 + (mode in ONES_COLUMN)) * (keys // depth)}
    if is_int4:
        # The product of the mean of Q: each warp has a part of the keys, and K is there twice, coarse and fine.
        result["IMMA.16864.S4.S4"] = (tiles * (keys // 8) + 2 * (keys // 8 // warps)) * (head_dim // 64)
    else:
        result["IMMA.16832.S8.S8"] = tiles * (keys // 8) * (head_dim // 32)
    return result


def expected_wgmma(head_dim: int) -> dict[str, int]:
    """Of a warpgroup's 64 rows and a stage of keys; 8 channels more, of ones, for the sum of the rounded P. No
    instruction has 264 channels."""
    keys, parts = (64, 3) if head_dim == 256 else (128, 1)
    qk, pv = f"IGMMA.64x{keys}x32.S8.S8", f"QGMMA.64x{(head_dim + 8) // parts}x32.F32.E4M3.E4M3"
    return {qk: head_dim // 32, pv: keys // 32 * parts}


QMMA_SF = "QMMA.SF.16832.F32.E4M3.E4M3.E8"


def expected_block_scaled(pv: str, head_dim: int) -> dict[str, int]:
    """Of a warp's 16 rows and a stage of 128 keys; P V has 8 channels more, of ones, for the sum of the rounded P."""
    omma = sass.omma_of_stage(head_dim, is_pv_nvfp4=pv == "nvfp4")
    return {OMMA: omma} if pv == "nvfp4" else {OMMA: omma, QMMA_SF: 128 // 32 * (head_dim // 8 + 1)}


# On sm_90 the assembler makes others of those for FP8.
EMULATED = {"QMMA.16832.F32.E4M3.E4M3": "HMMA.16816.F32",
            "QMMA.16832.F16.E4M3.E4M3": "HMMA.16816.F16"}  # fmt: skip


def expected_on(unit: Unit) -> dict[str, int]:
    expected = expected_tensor(unit.name)
    if unit.architecture != "sm_90":
        return expected
    return {EMULATED.get(kind, kind): count * (1 + (kind in EMULATED)) for kind, count in expected.items()}


def absolute_faults(measured: dict[Unit, dict[str, Any]]) -> list[str]:
    """What no record can excuse. What is emulated may spill."""
    faults = []
    for unit, x in measured.items():
        if sass.uses_local_memory(x) and expected_on(unit) == expected_tensor(unit.name):
            faults.append(f"{unit}: local memory is used: {x}")
        tensor, expected = x.get("tensor", {}), expected_on(unit)
        stages = 1
        if "wgmma" in unit.name or OMMA in expected:
            # Warp-specialised; the loop may be unrolled.
            stages = max(1, tensor.get(next(iter(expected)), 0) // next(iter(expected.values())))
            if not {"producer_registers", "consumer_registers"} <= x.keys():
                faults.append(f"{unit}: no registers are moved from the producer to the consumers (setmaxnreg)")
        if "wgmma" in unit.name:
            groups = 3 * stages  # Q K^T, and each half of P V
            if x.get("wgmma_groups") == sum(tensor.values()):
                faults.append(f"{unit}: wgmma is serialized: each is waited for on its own (ptxas C7510 to C7514)")
            elif x.get("wgmma_groups") != groups:
                faults.append(f"{unit}: the hot loop has {x.get('wgmma_groups')} groups of wgmma, expected {groups}")
        if tensor != {opcode: stages * count for opcode, count in expected.items()}:
            faults.append(f"{unit}: the hot loop's tensor instructions are {tensor}, expected {stages} x {expected}")
    return faults


def cuobjdump(build_dir: Path) -> str:
    found = sass.find_cuobjdump(build_dir)
    if found is None:
        pytest.skip("there is no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    return found


@pytest.fixture(scope="module")
def measured() -> dict[Unit, dict[str, Any]]:
    """Of the build that `make test` made."""
    kernels = sass.objects(BUILD_DIR)
    if not kernels:
        pytest.skip(f"there are no CUDA kernels in {BUILD_DIR}")
    return sass.measure(cuobjdump(BUILD_DIR), kernels)


def test_local_memory_and_tensor_instructions(measured: dict[Unit, dict[str, Any]]) -> None:
    faults = absolute_faults(measured)
    assert not faults, "\n".join(faults)


def over_goal(measured: dict[Unit, dict[str, Any]]) -> list[str]:
    slots = {unit: x.get("slots_per_score", float("inf")) for unit, x in measured.items() if unit[1:] in GOALS}
    return [
        f"{unit}: {x} slots per score, the goal is {GOALS[unit[1:]]}"
        for unit, x in slots.items()
        if x > GOALS[unit[1:]]
    ]


def test_goals(measured: dict[Unit, dict[str, Any]]) -> None:
    if not any(unit[1:] in GOALS for unit in measured):
        pytest.skip("this build has no kernel with a goal")
    faults = over_goal(measured)
    assert not faults, "\n".join(faults)


def test_instruction_mix(measured: dict[Unit, dict[str, Any]]) -> None:
    differences, unrecorded = sass.compare_with_records(measured, sass.nvcc_version(BUILD_DIR))
    worse = [str(x) for x in differences if x.verdict in ("worse", "missing")]
    assert not worse, "\n".join([*worse, "if this is on purpose: python tests/sass.py --update"])
    if differences:
        lines = [*map(str, differences), "python tests/sass.py --update records this"]
        warnings.warn("\n".join(lines), stacklevel=1)
    if unrecorded:
        pytest.skip("; ".join(unrecorded))


# Builds for architectures that the default build has no code of, one of them to be tested there; 87 has the shared memory
# and the instructions of 80 and 86. And some of their kernels.
OTHER_BUILDS = {
    ("86", "90"): ["quantize_qkv_d128", "sm80_fwd_f16_d128", "sm89_fwd_fp8_d128"],
    ("89", ""): ["sm80_fwd_int8_d128"],
}


def check_other_architectures(build_dir: Path, listed: str, extra: str, names: list[str] | None) -> None:
    options = ("SAGE_CUDA=ON", "SAGE_CPU=OFF", f"CMAKE_CUDA_COMPILER={NVCC}")
    configure(build_dir, *options, f"SAGE_CUDA_ARCHS={listed}", f"SAGE_CUDA_EXTRA_ARCH={extra}")
    kernels = {key: path for key, path in sass.objects(build_dir).items() if names is None or key[1] in names}
    assert len(kernels) == len(names or sass.objects(build_dir))
    run("ninja", "-C", build_dir, "-j1", *(path.relative_to(build_dir) for path in kernels.values()))
    # INT4 is emulated in subroutines, which the analyser does not follow.
    kernels = {key: path for key, path in kernels.items() if not (extra and "int4" in key[1])}
    measured = sass.measure(cuobjdump(build_dir), kernels)
    assert {unit.architecture.rstrip("a") for unit in measured} == {f"sm_{x}" for x in (listed, extra) if x}
    faults = absolute_faults(measured)
    assert not faults, "\n".join(faults)


@pytest.mark.skipif(not NVCC, reason="this build has no CUDA, so there is no compiler")
@pytest.mark.parametrize("listed, extra", OTHER_BUILDS)
def test_other_architectures(listed: str, extra: str, tmp_path: Path) -> None:
    """Those that the families also run on, and one that they are built for to be tested there: no spills."""
    check_other_architectures(tmp_path, listed, extra, OTHER_BUILDS[listed, extra])


@pytest.mark.long
@pytest.mark.skipif(not NVCC, reason="this build has no CUDA, so there is no compiler")
@pytest.mark.parametrize("listed, extra", OTHER_BUILDS)
def test_every_kernel_on_other_architectures(
    request: pytest.FixtureRequest, listed: str, extra: str, tmp_path: Path
) -> None:
    if "long" not in request.config.getoption("-m"):
        pytest.skip("takes ten minutes: run with -m long")
    check_other_architectures(tmp_path, listed, extra, None)


def test_unknown_extra_architecture(tmp_path: Path) -> None:
    output = configure(tmp_path, "SAGE_CUDA=OFF", "SAGE_CUDA_EXTRA_ARCH=banana", succeed=False)
    assert "SAGE_CUDA_EXTRA_ARCH must be one architecture, as 90, or empty, got 'banana'" in output


# On hand-written listings.


def test_figures_of_wgmma() -> None:
    texts = [
        "USETMAXREG.DEALLOC.CTAPOOL 0x18",
        "USETMAXREG.TRY_ALLOC.CTAPOOL UP0, 0xa0",
        *STEP,
        *["FADD R1, R2, R3"] * 64,
    ]
    found = values(*texts, "UMOV UR4, 0x0", "@P0 BRA 0x20", "EXIT", head_dim=128)
    assert (found["producer_registers"], found["consumer_registers"]) == (24, 160)
    assert (found["wgmma_groups"], found["uniform"], found["other"], found["fma"]) == (3, 1, 1, 64)
    assert found["tensor"] == expected_tensor("sm90_fwd_wgmma_approx_d128")
    assert found["slots_per_score"] == round(66 / 64, 3)  # 64 rows x 128 keys, of 128 threads
    with pytest.raises(ValueError, match="producer_registers are 24 and 32"):
        values("USETMAXREG.DEALLOC.CTAPOOL 0x18", "USETMAXREG.DEALLOC.CTAPOOL 0x20", "EXIT")


@pytest.mark.parametrize(
    ("head_dim", "qk", "scores"), [(64, "64x128x32", 64), (128, "64x128x32", 64), (256, "64x64x32", 32)]
)
def test_scores_of_wgmma(head_dim: int, qk: str, scores: int) -> None:
    """For each of 128 threads, of 64 rows and 128 keys, or 64 keys at head_dim 256; twice as many unrolled by two."""
    tensor = expected_tensor(f"sm90_fwd_wgmma_d{head_dim}")
    assert next(iter(tensor)) == f"IGMMA.{qk}.S8.S8"
    assert sass.scores_of_lane(head_dim, tensor) == scores
    assert sass.scores_of_lane(head_dim, {opcode: 2 * count for opcode, count in tensor.items()}) == 2 * scores


def test_figures_of_block_scaled_kernels() -> None:
    found = values(*block_scaled_kernel(), head_dim=128)
    assert found["tensor"] == expected_tensor("sm120_fp4_fwd_nvfp4_d128") == {OMMA: 66}
    # Jumps: over the mask, at the end of the keys, of the wait, of the vote, back.
    assert (found["fma"], found["other"], found["xu"]) == (25, 5 + len(["NOP", "SYNCS", "VOTE"]), 0)
    assert found["slots_per_score"] == round(33 / 64, 3) and found["loop"] == 66 + 33 + 64 + 35 + 3
    assert (found["nop"], found["move"]) == (1, 35)
    assert (found["service_tensor"], found["service_slots"], found["copy_slots"]) == (16, 4, 5)
    assert values(*block_scaled_kernel(33), head_dim=128)["move"] == 64  # not all accumulators of a row: the mask


@pytest.mark.parametrize(("name", "scores"), [("nvfp4_d128", 64), ("nvfp4_d64", 64), ("fp8_d128", 64), ("fp8_d64", 64)])
def test_scores_of_block_scaled_kernels(name: str, scores: int) -> None:
    """Of 16 rows and 128 keys; twice as many unrolled by two."""
    tensor, head_dim = expected_tensor(f"sm120_fp4_fwd_{name}"), int(name.rpartition("_d")[2])
    assert sass.scores_of_lane(head_dim, tensor) == scores
    assert sass.scores_of_lane(head_dim, {opcode: 2 * count for opcode, count in tensor.items()}) == 2 * scores


MIX = [
    QK,
    HMMA,
    "FFMA R1, R2, R3, R4",
    "MUFU.EX2 R1, R2",
    "LDS R1, [R2]",
    "FMNMX R1, R2, R3, !PT",
    "@P0 BRA 0x0",
    "EXIT",
]


def test_figures() -> None:
    assert values(*MIX) == {
        "registers": 40,
        "stack": 0,
        "local": 0,
        "local_accesses": 0,
        "shared": 0,
        "constant": 664,
        "instructions": 8,
        "loop": 7,
        "tensor": {"HMMA.16816.F32": 1, "IMMA.16832.S8.S8": 1},
        "xu": 1,
        "alu": 1,
        "fma": 1,
        "memory": 1,
        "uniform": 0,
        "other": 1,
        "slots_per_score": 0.078,
    }
    assert values(*MIX, head_dim=256)["slots_per_score"] == 0.156


UNIT = Unit("sm80", "sm80_fwd_f16_d32", "sm_80")


def verdicts(old: list[str], new: list[str]) -> set[str]:
    return {f"{x.verdict} {x.text.split()[0]}" for x in sass.compare({UNIT: values(*old)}, {UNIT: values(*new)})} - {
        "changed instructions"
    }


def test_one_more_instruction_is_worse() -> None:
    more = ["FADD R1, R2, R3", *MIX]
    assert verdicts(MIX, MIX) == set()
    assert verdicts(MIX, [*MIX[:-2], "FADD R1, R2, R3", *MIX[-2:]]) == {
        "worse slots_per_score",
        "worse loop",
        "changed fma",
    }
    assert verdicts([*MIX[:-2], "FADD R1, R2, R3", *MIX[-2:]], MIX) == {
        "better slots_per_score",
        "better loop",
        "changed fma",
    }
    assert verdicts(MIX, [x.replace("FFMA R1, R2, R3, R4", "MUFU.EX2 R1, R2") for x in MIX]) == {
        "worse xu",
        "changed fma",
    }
    assert verdicts(MIX, [x.replace("F32", "F16") for x in MIX]) == {"worse tensor"}
    assert "worse slots_per_score" in verdicts(MIX, ["EXIT"])
    assert verdicts(MIX, [*more[:-2], "@P0 BRA 0x10", "EXIT"]) == set()  # outside the loop
    old, new = {UNIT: values("EXIT")}, {UNIT: values("NOP", "EXIT")}
    assert [str(x) for x in sass.compare(old, new)] == ["worse: sm80_fwd_f16_d32 on sm_80: instructions 1 -> 2"]
    assert [x.verdict for x in sass.compare(old, {})] == [x.verdict for x in sass.compare({}, old)] == ["missing"]


def test_absolute_faults() -> None:
    def tile(mma: str, *more: str) -> dict[Unit, dict[str, Any]]:
        texts = [*[QK] * 32, *[mma] * 64, *more, "@P0 BRA 0x0", "EXIT"]
        return {Unit("sm80", "sm80_fwd_f16_d64", "sm_80"): values(*texts, head_dim=64)}

    assert absolute_faults(tile(HMMA)) == []
    assert "expected" in absolute_faults(tile(HMMA, QK))[0]
    assert "expected" in absolute_faults(tile(HMMA.replace("F32", "F16")))[0]
    assert "expected" in absolute_faults({Unit("sm80", "sm80_fwd_f16_d64", "sm_80"): values("NOP", "EXIT")})[0]
    assert "local memory is used" in absolute_faults(tile(HMMA, "STL [R1], R2"))[0]

    def stages(*texts: str) -> list[str]:
        roles = ["USETMAXREG.DEALLOC.CTAPOOL 0x18", "USETMAXREG.TRY_ALLOC.CTAPOOL UP0, 0xa0"]
        found = values(*roles, *texts, "@P0 BRA 0x20", "EXIT", head_dim=128)
        return absolute_faults({Unit("sm90", "sm90_fwd_wgmma_d128", "sm_90a"): found})

    assert stages(*STEP) == stages(*STEP, *STEP) == []
    assert "expected 1 x" in stages(*STEP, PV90)[-1] and "expected 2 x" in stages(*STEP, *STEP[:4])[-1]
    serialized = [x if x.endswith("gsb0") else f"{x}, gsb0" for x in STEP]
    assert ["serialized" in fault for fault in stages(*serialized)] == [True]
    assert ["has 4 groups of wgmma, expected 3" in x for x in stages(f"{S}, gsb0", *STEP[1:])] == [True]
    assert ["has 5 groups of wgmma, expected 6" in x for x in stages(*STEP[:-1], PV90, *STEP)] == [True]
    without = values(*STEP, "@P0 BRA 0x0", "EXIT", head_dim=128)
    assert "setmaxnreg" in absolute_faults({Unit("sm90", "sm90_fwd_wgmma_d128", "sm_90a"): without})[0]

    def fp4(found: dict[str, Any]) -> list[str]:
        return absolute_faults({Unit("sm120_fp4", "sm120_fp4_fwd_nvfp4_d128", "sm_120a"): found})

    found = values(*block_scaled_kernel(), head_dim=128)
    assert ["setmaxnreg" in x for x in fp4(found)] == [True]
    found |= {"producer_registers": 120, "consumer_registers": 192}
    assert fp4(found) == fp4(found | {"tensor": {OMMA: 132}}) == []
    assert "expected 1 x" in fp4(found | {"tensor": {OMMA: 64}})[0]  # no column of ones


def test_expected_tensor_instructions() -> None:
    assert expected_tensor("kv_stats_d64") == {}
    assert expected_tensor("sm80_fwd_f16_d128") == {"IMMA.16832.S8.S8": 64, "HMMA.16816.F32": 128}
    assert expected_tensor("sm90_fwd_wgmma_d256") == {
        "IGMMA.64x64x32.S8.S8": 8,
        "QGMMA.64x88x32.F32.E4M3.E4M3": 6,
    }
    assert expected_tensor("sm120_fp4_fwd_nvfp4_d64") == {OMMA: 16 + 18}
    assert expected_tensor("sm120_fp4_fwd_fp8_d128") == {OMMA: 32, QMMA_SF: 68}
    assert expected_tensor("quantize_nvfp4_d128") == {}
    assert expected_tensor("sm89_fwd_fp8_d128") == {"IMMA.16832.S8.S8": 64, "QMMA.16832.F32.E4M3.E4M3": 68}
    assert expected_tensor("sm89_fwd_int4_fp8_f16acc_d256") == {
        "IMMA.16864.S4.S4": 32 + 8,
        "QMMA.16832.F16.E4M3.E4M3": 64,
    }
    on_hopper = expected_on(Unit("sm89", "sm89_fwd_fp8_d128", "sm_90"))
    assert on_hopper == {"IMMA.16832.S8.S8": 64, "HMMA.16816.F32": 136}


def test_over_goal() -> None:
    unit = Unit("sm89", "sm89_fwd_fp8_d128", "sm_89")
    assert over_goal({unit: {"slots_per_score": 7.0}, UNIT: {"slots_per_score": 9.0}}) == []
    assert over_goal({unit: {"slots_per_score": 7.1}}) == [f"{unit}: 7.1 slots per score, the goal is 7.0"]
    assert over_goal({unit: {}})  # no hot loop


@pytest.mark.skipif(not NVCC, reason="this build has no CUDA, so there is no compiler")
def test_local_memory_of_a_compiled_kernel(tmp_path: Path) -> None:
    source, path = REPOSITORY / "tests" / "cpp" / "toolchain" / "local.cu", tmp_path / "local.o"
    run(NVCC, "-c", "-arch=sm_80", "-o", path, source)
    (values,) = sass.measure(cuobjdump(BUILD_DIR), {("sm80", "local_d64"): path}).values()
    assert values["stack"] == 64 and values["local_accesses"] > 0
    assert sass.uses_local_memory(values)


@pytest.mark.skipif(not NVCC, reason="this build has no CUDA, so there is no compiler")
@pytest.mark.parametrize("serialized", [True, False])
def test_serialized_wgmma_of_a_compiled_kernel(tmp_path: Path, serialized: bool) -> None:
    source, path = REPOSITORY / "tests" / "cpp" / "toolchain" / "serialized.cu", tmp_path / "serialized.o"
    options = ["-gencode", "arch=compute_90a,code=sm_90a", f"-DIS_SERIALIZED={int(serialized)}"]
    run(NVCC, "-c", *options, "-o", path, source)
    (values,) = sass.measure(cuobjdump(BUILD_DIR), {("sm90", "wgmma_d64"): path}).values()
    count = sum(values["tensor"].values())
    assert count >= 2 and (values["wgmma_groups"] == count) == serialized
    faults = absolute_faults({Unit("sm90", "sm90_fwd_wgmma_d64", "sm_90a"): values})
    assert any("serialized" in fault for fault in faults) == serialized


def build(folder: Path, version: str = "13.0.88") -> Path:
    """A build folder as CMake leaves it, with one kernel; cuobjdump is a script that prints the file `listing`."""
    output = folder / "csrc/CMakeFiles/sage_cuda_sm80_80_120.dir/instances/sm80_fwd_f16_d32.cu.o"
    for path, text in {
        output: "",
        folder / "compile_commands.json": json.dumps(
            [{"output": str(output)}, {"output": str(folder / "launch.cpp.o")}]
        ),
        folder / "CMakeCache.txt": f"CMAKE_CUDA_COMPILER:FILEPATH={folder}/nvcc\n",
        folder / "CMakeFiles/4.0/CMakeCUDACompiler.cmake": f'set(CMAKE_CUDA_COMPILER_VERSION "{version}")\n',
        folder / "cuobjdump": f"#!/bin/sh\ncat {folder}/listing\n",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "cuobjdump").chmod(0o755)
    return folder


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sass, "RECORDS", tmp_path)

    def command(*arguments: str, texts: list[str], version: str = "13.0.88") -> tuple[int | str, str]:
        folder = build(tmp_path / "build", version)
        (folder / "listing").write_text(listing(*texts))
        monkeypatch.setattr(sys, "argv", ["sass.py", *arguments, str(folder)])
        try:
            status = sass.main()
        except SystemExit as error:
            status = error.code
        return status, capsys.readouterr().out

    more = [*MIX[:-2], "FADD R1, R2, R3", *MIX[-2:]]
    status, output = command(texts=MIX)
    assert status == 0 and "sm80-sm_80-cuda13.0.json is of no compiler of this minor version" in output
    status, output = command("--update", texts=MIX)
    assert status == 0 and f"wrote {tmp_path}/sm80-sm_80-cuda13.0.json" in output
    assert command(texts=MIX)[0] == 0
    status, output = command(texts=more)
    assert status == 1 and "worse: sm80_fwd_f16_d32 on sm_80: slots_per_score 0.078 -> 0.094" in output
    status, _ = command("--update", texts=["STL [R1], R2", *MIX])
    assert status == "local memory is used by sm80_fwd_f16_d32 on sm_80"
    assert command("--update", texts=more)[0] == 0
    status, output = command(texts=MIX)
    assert status == 0 and "better: sm80_fwd_f16_d32 on sm_80: slots_per_score 0.094 -> 0.078" in output
    output = command(texts=MIX, version="13.0.99")[1]  # another compiler's code is not compared
    assert "sm80-sm_80-cuda13.0.json is of 13.0.88, this build of 13.0.99" in output and "better" not in output


def test_objects_must_be_built(tmp_path: Path) -> None:
    folder = build(tmp_path)
    kernels = sass.objects(folder)
    assert list(kernels) == [("sm80", "sm80_fwd_f16_d32")]
    (folder / "listing").write_text(listing("EXIT") + listing("EXIT"))
    with pytest.raises(ValueError, match="more than one function for sm_80"):
        sass.measure(str(folder / "cuobjdump"), kernels)
    (folder / "listing").write_text("")
    with pytest.raises(ValueError, match="holds no kernel"):
        sass.measure(str(folder / "cuobjdump"), kernels)
    kernels["sm80", "sm80_fwd_f16_d32"].unlink()
    with pytest.raises(RuntimeError, match="sm80_fwd_f16_d32"):
        sass.measure(str(folder / "cuobjdump"), kernels)
