"""The build: what the extension module says and needs, and what configuring says when something is missing."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

import sage
from building import REPOSITORY, TOOLS_PATH, configure, pip_nvcc, run
from sage import _C

INFO = _C.build_info()


def test_build_info() -> None:
    assert set(INFO) == {
        "version",
        "build_type",
        "cxx_compiler",
        "cuda",
        "cuda_compiler",
        "cuda_architectures",
        "cutlass",
    }
    version, _, label = INFO["version"].partition("+")
    assert f'version = "{version}"\n' in (REPOSITORY / "pyproject.toml").read_text()
    assert label in ("", "cu" + "".join(INFO["cuda"].split(".")[:2]))
    assert sage.__version__ == INFO["version"]
    assert INFO["build_type"]
    assert re.fullmatch(r"(GNU|Clang|AppleClang) [\d.]+", INFO["cxx_compiler"])
    if INFO["cuda"] == "off":
        assert INFO["cuda_compiler"] == INFO["cuda_architectures"] == INFO["cutlass"] == ""
    else:
        assert re.fullmatch(r"\d+\.\d+\.\d+", INFO["cuda"]) and Path(INFO["cuda_compiler"]).is_absolute()
        assert re.fullmatch(r"4\.2\.0 \(/.+/include\)", INFO["cutlass"])


def test_cuda_devices() -> None:
    """Devices with plausible facts, or RuntimeError with the reason."""
    try:
        devices = _C.cuda_devices()
    except RuntimeError as error:
        assert ("has no CUDA" if INFO["cuda"] == "off" else "cudaGetDeviceCount: ") in str(error)
        return
    assert devices and [device["index"] for device in devices] == list(range(len(devices)))
    for device in devices:
        assert device["name"] and re.fullmatch(r"\d+\.\d", device["compute_capability"])
        assert device["sm_count"] > 0 and device["memory_bytes"] > 2**30


@pytest.mark.skipif(sys.platform != "linux", reason="reads an ELF file")
def test_extension_needs_no_torch_and_no_cuda_library() -> None:
    needed = re.findall(r"\(NEEDED\) Shared library: \[(.+?)\]", run("readelf", "--dynamic", "--wide", _C.__file__))
    # The plain name of GCC's OpenMP runtime is the one that torch's wheels carry: both then share one pool of threads.
    assert "libgomp.so.1" in needed
    system = r"lib(gomp|stdc\+\+|gcc_s|c|m|dl|rt|pthread)\.so\.\d+|ld-linux.*\.so\.\d+"
    assert not [name for name in needed if not re.fullmatch(system, name)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads an ELF file")
def test_extension_keeps_its_symbols_inside() -> None:
    symbols = run("nm", "--dynamic", "--defined-only", _C.__file__)
    assert re.findall(r"[0-9a-f]+ [TDRB] (\S+)", symbols) == ["PyInit__C"]
    assert "_ZN4sage" not in symbols  # sage::, mangled


@pytest.fixture
def path_without_nvcc(tmp_path: Path) -> str:
    """A PATH with what configuring needs and no nvcc."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("cmake", "ninja", "c++", "g++", "gcc", "cc", "as", "ld", "ar", "ranlib", "uname", "sh", "ccache"):
        found = shutil.which(tool, path=TOOLS_PATH)
        if found:
            (tools / tool).symlink_to(found)
    return str(tools)


def test_emulator_needs_cuda_headers(tmp_path: Path, path_without_nvcc: str) -> None:
    """Without Python, so that no pip package is seen; then CUTLASS is named."""
    version = tmp_path / "cutlass" / "include" / "cutlass" / "version.h"
    version.parent.mkdir(parents=True)
    version.write_text("#define CUTLASS_MAJOR 4\n#define CUTLASS_MINOR 2\n#define CUTLASS_PATCH 0\n")
    output = configure(
        tmp_path / "build",
        "SAGE_EMULATOR=ON",
        "SAGE_CUDA=OFF",
        f"CUTLASS_DIR={tmp_path}/cutlass",
        "CMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF",
        path=path_without_nvcc,
        succeed=False,
    )
    assert "SAGE_EMULATOR=ON, but the CUDA headers (cuda_runtime.h and cuda/std/utility) are not in" in output


@pytest.mark.skipif(INFO["cuda"] == "off", reason="this build has no CUDA, so there is no compiler to check")
@pytest.mark.parametrize("source, complaint", [("spill", "Registers are spilled"), ("local", "Local memory used")])
def test_kernels_that_do_not_fit_their_registers_are_refused(tmp_path: Path, source: str, complaint: str) -> None:
    """By the options with which every kernel is compiled."""
    configure(tmp_path, "SAGE_CUDA=ON", "SAGE_CPU=OFF", "SAGE_TESTS=ON", f"CMAKE_CUDA_COMPILER={INFO['cuda_compiler']}")
    target = f"sage_{source}_check"
    assert complaint in run("cmake", "--build", tmp_path, "--target", target, succeed=False)


def test_unknown_cuda_architecture(tmp_path: Path) -> None:
    output = configure(tmp_path, "SAGE_CUDA=OFF", "SAGE_CUDA_ARCHS=80;100", succeed=False)
    assert "SAGE_CUDA_ARCHS must be a list of 80, 86, 87, 89, 90, 120, got '100'" in output


# What the kernels of each kind are compiled for, by SAGE_CUDA_ARCHS and SAGE_CUDA_EXTRA_ARCH: sage1, INT4 with FP16 P V,
# FP8, INT4 with FP8, FP8 by wgmma, MXFP8 and NVFP4; and what build_info says.
TARGETS = {
    ("80;89;90;120", ""): ("80 90 120", "80", "89 120", "89", "90a", "120a", "80 89 90 120"),
    ("80", ""): ("80", "80", "", "", "", "", "80"),
    ("120;86;80", ""): ("80 120", "80", "120", "", "", "120a", "80 120"),
    ("86;87;89", ""): ("86 87", "86 87", "89", "89", "", "", "86 87 89"),
    ("90", ""): ("90", "", "", "", "90a", "", "90"),
    ("120", ""): ("120", "", "120", "", "", "120a", "120"),
    ("89", "90"): ("89 90", "89 90", "89 90", "89 90", "90a", "", "89 90"),
    ("", "90"): ("90", "90", "90", "90", "90a", "", "90"),
    ("80;89;90", "90"): ("80 90", "80 90", "89 90", "89 90", "90a", "", "80 89 90"),
    ("89;90", "100"): ("89 90 100", "89 100", "89 100", "89 100", "90a", "", "89 90 100"),
    ("", "86"): ("86", "86", "", "", "", "", "86"),
    ("80;120", "120"): ("80 120", "80 120", "120", "120", "", "120a", "80 120"),
    ("120", "121"): ("120 121", "121", "120 121", "121", "", "120a 121a", "120 121"),
}
KINDS = ["sm80_fwd_f16", "sm80_fwd_int4_f16", "sm89_fwd_fp8", "sm89_fwd_int4_fp8", "sm90_fwd_wgmma", "sm120_fwd_mxfp8"]
WIDE_WGMMA = "-DCUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED"  # what CuTe has to be told for the width of these kernels' sums


@pytest.mark.skipif(INFO["cuda"] == "off", reason="this build has no CUDA, so there is no compiler to configure with")
@pytest.mark.parametrize("listed, extra", TARGETS)
def test_targets(tmp_path: Path, listed: str, extra: str) -> None:
    """Each kernel for what it is of use on, once for those that share code; those for nothing are left out."""
    options = ("SAGE_CUDA=ON", "SAGE_CPU=OFF", f"CMAKE_CUDA_COMPILER={INFO['cuda_compiler']}")
    configure(tmp_path, *options, f"SAGE_CUDA_ARCHS={listed}", f"SAGE_CUDA_EXTRA_ARCH={extra}")
    expected = dict(zip(KINDS, TARGETS[listed, extra], strict=False)) | {"quantize_qkv": TARGETS[listed, extra][0]}
    expected |= dict.fromkeys(
        ("sm120_fp4_fwd_nvfp4", "sm120_fp4_fwd_fp8", "quantize_nvfp4"), expected["sm120_fwd_mxfp8"]
    )
    full = {
        Path(entry["file"]).stem: entry["command"]
        for entry in json.loads((tmp_path / "compile_commands.json").read_text())
    }
    commands = {stem: " ".join(re.findall(r"code=\[?sm_(\w+)", command)) for stem, command in full.items()}
    assert all((WIDE_WGMMA in command) == stem.startswith("sm90_fwd") for stem, command in full.items())
    assert all(("-Xptxas=-O2" in command) == stem.startswith("sm120_fwd") for stem, command in full.items())
    assert {kind: commands.get(f"{kind}_d64", "") for kind in expected} == expected
    with_room = " ".join(x for x in expected["sm80_fwd_f16"].split() if x not in ("120", "121"))  # for 16-bit V
    assert commands.get("sm80_fwd_f16_d256", "") == with_room
    int8 = [x for x in expected["sm80_fwd_f16"].split() if x != "90" or extra == "90"]
    assert commands.get("sm80_fwd_int8_d256", "") == " ".join(int8)
    said = (tmp_path / "csrc" / "generated" / "api" / "build_info.h").read_text()
    assert f'kCudaArchitectures[] = "{TARGETS[listed, extra][-1]}"' in said
    rows = (tmp_path / "csrc" / "generated" / "api" / "instances.h").read_text()
    for kind in expected.keys() - {"quantize_qkv", "quantize_nvfp4"}:
        quantizer = "quantize_nvfp4" if "fp4_fwd" in kind else "quantize_qkv"
        row = re.search(rf" kv_stats_d64, {quantizer}_d64, {kind}_d64, \{{(.*)\}}\}},", rows)
        numbers = re.findall(r"\{(\d+), (true|false)\}", f"{row[1]}}}" if row else "")
        assert " ".join(number + "a" * (exact == "true") for number, exact in numbers) == expected[kind]


def test_cuda_option_is_checked(tmp_path: Path) -> None:
    assert "SAGE_CUDA must be AUTO, ON or OFF, got 'maybe'" in configure(tmp_path, "SAGE_CUDA=maybe", succeed=False)


def test_no_nvcc(tmp_path: Path, path_without_nvcc: str) -> None:
    """ON says where it looked and how to get one; AUTO goes on without."""
    options = ("SAGE_CPU=OFF", "CMAKE_DISABLE_FIND_PACKAGE_Python=ON")  # so that no pip package is seen either
    output = configure(tmp_path / "on", "SAGE_CUDA=ON", *options, path=path_without_nvcc, succeed=False)
    assert "there is no nvcc in CMAKE_CUDA_COMPILER, CUDACXX, CUDA_HOME/bin, PATH and the pip packages" in output
    assert f"pip install -r {REPOSITORY}/cmake/cuda_toolchain.txt" in output
    output = configure(tmp_path / "auto", "SAGE_CUDA=AUTO", *options, path=path_without_nvcc)
    assert "CUDA is off: no nvcc in CMAKE_CUDA_COMPILER" in output


def test_old_nvcc(tmp_path: Path) -> None:
    """ON refuses it by version; AUTO goes on without CUDA."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text('#!/bin/sh\necho "Cuda compilation tools, release 12.0, V12.0.140"\n')
    nvcc.chmod(0o755)
    message = f"a CUDA toolkit >= 12.8 is needed, got 12.0 ({nvcc}, from CMAKE_CUDA_COMPILER)"
    options = ("SAGE_CPU=OFF", f"CMAKE_CUDA_COMPILER={nvcc}")
    assert f"SAGE_CUDA=ON, but {message}" in configure(tmp_path / "on", "SAGE_CUDA=ON", *options, succeed=False)
    assert f"CUDA is off: {message}" in configure(tmp_path / "auto", "SAGE_CUDA=AUTO", *options)


CUDA_WITHOUT_COMPILER = ("SAGE_CUDA=ON", "CMAKE_CUDA_COMPILER=/named/but/not/run/nvcc")  # CUTLASS is resolved first


def test_missing_cutlass(tmp_path: Path) -> None:
    output = configure(tmp_path / "build", *CUDA_WITHOUT_COMPILER, f"CUTLASS_DIR={tmp_path}", succeed=False)
    assert f"looked for cutlass/version.h in {tmp_path}/include (CUTLASS_DIR)" in output
    assert "pip install --no-deps nvidia-cutlass==4.2.0.0" in output


def test_wrong_cutlass_version(tmp_path: Path) -> None:
    header = tmp_path / "include" / "cutlass" / "version.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define CUTLASS_MAJOR 3\n#define CUTLASS_MINOR 5\n#define CUTLASS_PATCH 1\n")
    output = configure(tmp_path / "build", *CUDA_WITHOUT_COMPILER, f"CUTLASS_DIR={tmp_path}", succeed=False)
    assert f"CUTLASS must be version 4.2.0, got 3.5.1 in {tmp_path}/include" in output


def test_library_without_cpu_kernels(tmp_path: Path) -> None:
    configure(tmp_path, "SAGE_CPU=OFF", "SAGE_CUDA=OFF")
    run("cmake", "--build", tmp_path)
    assert "kForward" not in run("nm", tmp_path / "csrc" / "libsage.a")


@pytest.mark.skipif(pip_nvcc() is None, reason="no nvcc from pip: pip install -r cmake/cuda_toolchain.txt")
def test_nvcc_from_pip(tmp_path: Path, path_without_nvcc: str) -> None:
    output = configure(tmp_path / "build", "SAGE_CUDA=ON", "SAGE_CPU=OFF", path=path_without_nvcc)
    assert f"{pip_nvcc()} (from the pip packages of {sys.executable})" in output


@pytest.mark.skipif(INFO["cuda"] == "off", reason="this build has no CUDA, so there is no compiler to check")
def test_cuda_compiler_and_cutlass_work_together(tmp_path: Path) -> None:
    """Compiles a little CuTe for sm_80."""
    configure(
        tmp_path,
        "SAGE_CUDA=ON",
        "SAGE_CPU=OFF",
        "SAGE_TESTS=ON",
        f"CMAKE_CUDA_COMPILER={INFO['cuda_compiler']}",
        f"CUTLASS_DIR={re.search(r'[(](.+)/include[)]', INFO['cutlass'])[1]}",
    )
    run("cmake", "--build", tmp_path, "--target", "sage_toolchain_check")
    assert list(tmp_path.rglob("toolchain.cu.o"))
