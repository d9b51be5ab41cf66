"""The C++ package: installed, used by a stranger's project, and what is inside the library."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from building import BUILD_DIR, REPOSITORY, configure, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads an archive of ELF objects")
CONSUMER = REPOSITORY / "tests" / "cpp" / "consumer"


@pytest.fixture(scope="module")
def build_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of the module under test, or a new one."""
    folder = BUILD_DIR
    if not (folder / "CMakeCache.txt").exists():
        folder = tmp_path_factory.mktemp("build")
        configure(folder, "SAGE_CUDA=OFF")
    return folder


@pytest.fixture(scope="module")
def package(build_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prefix of an installed package, of a tree that is brought up to date."""
    prefix = tmp_path_factory.mktemp("prefix")
    run("cmake", "--build", build_dir, "--target", "sage")
    run("cmake", "--install", build_dir, "--component", "cpp", "--prefix", prefix)
    return prefix


def config(package: Path) -> Path:
    return next(package.glob("lib*/cmake/sage"))


@pytest.fixture(scope="module")
def has_cuda(package: Path) -> bool:
    return "CUDA::cudart_static" in (config(package) / "sageTargets.cmake").read_text()


@pytest.fixture(scope="module")
def nvcc(build_dir: Path, has_cuda: bool) -> Path:
    """The CUDA compiler of the package."""
    if not has_cuda:
        pytest.skip("this build has no CUDA")
    facts = (build_dir / "csrc" / "generated" / "api" / "build_info.h").read_text()
    return Path(re.search(r'kCudaCompiler\[\] = "(.+)"', facts)[1])


@pytest.fixture(scope="module")
def toolkit(request: pytest.FixtureRequest, has_cuda: bool) -> Path | None:
    """The toolkit of the package; None where CMake finds one by itself."""
    root = request.getfixturevalue("nvcc").parent.parent if has_cuda else Path()
    return root if (root / "include" / "cuda_runtime.h").exists() else None


def use(package: Path, source: Path, build_dir: Path, toolkit: Path | None, succeed: bool = True) -> str:
    """The output of configuring and building the project in `source` with the package; it finds no CUTLASS."""
    options = [
        f"-DCMAKE_PREFIX_PATH={package}",
        "-DCMAKE_BUILD_TYPE=Release",
        "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror",
    ]
    options += [f"-DCUDAToolkit_ROOT={toolkit}"] if toolkit else []
    output = run("cmake", "-S", source, "-B", build_dir, "-G", "Ninja", *options, succeed=succeed)
    return output + run("cmake", "--build", build_dir) if succeed else output


def test_consumer(package: Path, has_cuda: bool, toolkit: Path | None, tmp_path: Path) -> None:
    """Its calls on the CPU work; those for a GPU say why not, where there is none."""
    use(package, CONSUMER, tmp_path, toolkit)
    output = run(tmp_path / "consumer")
    assert output.count("NRMSE") == 2 and "FAILED" not in output, output
    assert ("this build has no CUDA" in output) != has_cuda
    assert ("CUDA on sm_80: sm80_fwd_f16_d64" in output) == has_cuda


def test_engine_example(package: Path, toolkit: Path | None, tmp_path: Path) -> None:
    """Its exit status says whether the errors are those of the recipe."""
    use(package, REPOSITORY / "examples" / "cpp", tmp_path, toolkit)
    output = run(tmp_path / "engine")
    assert re.search(r"prompt of 512 tokens (cpu|sm\d+)_\w+ [\d.]+ 0\.0\d+ ", output), output


def test_engine_example_on_emulated_kernels(tmp_path: Path) -> None:
    """What it does on a GPU, quantizing K and V once included: linked with the library whose CUDA the emulator runs."""
    folder = Path(os.environ.get("SAGE_EMULATOR_BUILD_DIR", REPOSITORY / "build" / "emulator"))
    libraries = [folder / "csrc" / "libsage_emulated.a", folder / "tests" / "emulator" / "libsage_simt.a"]
    if not all(library.exists() for library in libraries):
        pytest.skip(f"there is no emulated library in {folder}")
    source = REPOSITORY / "examples" / "cpp" / "engine.cpp"
    options = ["-std=c++17", "-O1", "-DENGINE_HAS_CUDA=0", f"-I{REPOSITORY}/csrc/include"]
    run("c++", *options, source, "-o", tmp_path / "engine", *libraries, "-lpthread")
    assert re.search(r"K and V quantized once sm80_fwd_bf16_d128 [\d.]+ 0\.0\d+$", run(tmp_path / "engine"))


def test_toolkit_in_the_folders_of_pip(package: Path, nvcc: Path, tmp_path: Path) -> None:
    """Libraries in lib, not lib64, and no libcudart.so: a package with CUDA is used with CUDAToolkit_ROOT alone."""
    installed = Path(re.search(r"#\$ TOP=(\S+)", run(nvcc, "--dryrun", "-x", "cu", "-c", "/dev/null"))[1])
    if not (installed / "lib64").exists():
        pytest.skip("the package was built with a toolkit from pip: the other tests use that")
    root = tmp_path / "cu13"
    (root / "lib").mkdir(parents=True)
    for folder in ("bin", "include", "nvvm"):
        (root / folder).symlink_to(installed / folder)
    for library in (*installed.glob("lib64/libcudart_static.a"), *installed.glob("lib64/libcudart.so.*")):
        (root / "lib" / library.name).symlink_to(library)
    use(package, CONSUMER, tmp_path / "build", root)
    assert f"{root}/lib/libcudart_static.a" in (tmp_path / "build" / "build.ninja").read_text()


@pytest.mark.parametrize(
    "pattern, other, complaint",
    (
        (r"\(CUDAToolkit \d+", "(CUDAToolkit 99", 'required is at least "99.'),
        (r'MAJOR EQUAL "\d+"', 'MAJOR EQUAL "1"', "and cannot be linked with the runtime of CUDA"),
    ),
)
def test_runtime_of_another_cuda_is_refused(
    package: Path, nvcc: Path, toolkit: Path | None, tmp_path: Path, pattern: str, other: str, complaint: str
) -> None:
    """By a package that says it was built with that."""
    shutil.copytree(package, tmp_path / "other")
    file = config(tmp_path / "other") / "sageConfig.cmake"
    text, count = re.subn(pattern, other, file.read_text())
    assert count == 1
    file.write_text(text)
    assert complaint in use(tmp_path / "other", CONSUMER, tmp_path / "build", toolkit, succeed=False)


def test_package_needs_no_cutlass(package: Path) -> None:
    for path in (*package.rglob("*.cmake"), *package.rglob("*.h")):
        assert "cutlass" not in path.read_text().lower(), path


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
