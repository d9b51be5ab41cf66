"""The C++ package: installed, used by a stranger's project, and what is inside the library."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from building import REPOSITORY, configure, pip_nvcc, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads an archive of ELF objects")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prefix of an installed package, from the tree that `make` builds (brought up to date) or else a new one."""
    build_dir = REPOSITORY / "build" / "python"
    if not (build_dir / "CMakeCache.txt").exists():
        build_dir = tmp_path_factory.mktemp("build")
        configure(build_dir, "SAGE_CUDA=OFF")
    prefix = tmp_path_factory.mktemp("prefix")
    run("cmake", "--build", build_dir, "--target", "sage")
    run("cmake", "--install", build_dir, "--component", "cpp", "--prefix", prefix)
    return prefix


def toolkit_options(package: Path) -> list[str]:
    """What a project must say of a CUDA toolkit from pip, which is in no usual place and has no libcudart.so."""
    nvcc = pip_nvcc()
    if nvcc is None or "CUDA::cudart_static" not in next(package.glob("lib*/cmake/sage/sageTargets.cmake")).read_text():
        return []
    root = nvcc.parent.parent
    return [f"-DCUDAToolkit_ROOT={root}", f"-DCUDA_CUDART={root}/lib/libcudart.so.13"]


def test_consumer(package: Path, tmp_path: Path) -> None:
    source = REPOSITORY / "tests" / "cpp" / "consumer"
    options = [f"-DCMAKE_PREFIX_PATH={package}", "-DCMAKE_BUILD_TYPE=Release", *toolkit_options(package)]
    run("cmake", "-S", source, "-B", tmp_path, "-G", "Ninja", *options)
    run("cmake", "--build", tmp_path)
    output = run(tmp_path / "consumer")
    assert output.count("NRMSE") == 2 and "FAILED" not in output, output


def test_consumer_of_another_minor_version_is_refused(package: Path, tmp_path: Path) -> None:
    lines = ["cmake_minimum_required(VERSION 3.25)", "project(other LANGUAGES CXX)", "find_package(sage 0.0 REQUIRED)"]
    (tmp_path / "CMakeLists.txt").write_text("\n".join(lines))
    output = run("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={package}", succeed=False)
    assert 'compatible with requested version "0.0"' in output


def test_installed_headers_stand_alone(package: Path) -> None:
    headers = sorted((package / "include").rglob("*.h"))
    assert [header.name for header in headers] == sorted(p.name for p in (REPOSITORY / "csrc/include/sage").iterdir())
    for header in headers:
        for name in re.findall(r'^\s*#\s*include\s+["<](.+?)[">]', header.read_text(), re.MULTILINE):
            assert name in ("cstddef", "cstdint") or (package / "include" / name).exists(), f"{header} includes {name}"


def test_instruction_sets_share_no_code(package: Path) -> None:
    """Of a weak function in two of these objects one version is kept: AVX-512 code could reach an older CPU."""
    listing = run("nm", "--print-file-name", "--defined-only", next(package.glob("lib*/libsage.a")))
    shared: dict[str, set[str]] = {}
    for member, kind, name in re.findall(
        r"libsage\.a:(forward_(?:portable|avx\w+))\.cpp\.o:[0-9a-f]+ (\w) (\S+)", listing
    ):
        if kind not in "rtdb":  # those are internal
            shared.setdefault(member, set()).add(name)
    assert "forward_portable" in shared
    for member, names in shared.items():
        assert len(names) == 1 and "kForward" in min(names), f"{member} defines more than its table: {sorted(names)}"
