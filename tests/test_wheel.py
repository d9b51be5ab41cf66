"""Wheels: the version that says what CUDA is inside, what is in them, and what `make wheel` refuses.

One is built here, without kernels, from an sdist. SAGE_WHEEL names another to look at; `make wheel-test` sets it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from building import REPOSITORY, configure, run

VERSION = re.search(r'^version = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)[1]


def call_backend(source: Path, call: str, succeed: bool = True, **variables: str) -> str:
    """The output of a function of scikit-build-core, called in the folder `source`."""
    pytest.importorskip("scikit_build_core", reason="builds a wheel: needs scikit_build_core")
    program = f"import os; from scikit_build_core.build import *; os.chdir({str(source)!r}); {call}"
    return run(sys.executable, "-c", program, succeed=succeed, **variables)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked source distribution. A label is for wheels: it does not get one."""
    folder = tmp_path_factory.mktemp("sdist")
    call_backend(REPOSITORY, f"build_sdist({str(folder)!r})", SAGE_VERSION_LABEL="cu130")
    with tarfile.open(folder / f"sage_attn-{VERSION}.tar.gz") as archive:
        archive.extractall(folder)
    return folder / f"sage_attn-{VERSION}"


@pytest.fixture(scope="module", params=("built", "SAGE_WHEEL"))
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "SAGE_WHEEL":
        if "SAGE_WHEEL" not in os.environ:
            pytest.skip("SAGE_WHEEL names no wheel (make wheel-test does)")
        return Path(os.environ["SAGE_WHEEL"])
    source = request.getfixturevalue("sdist")
    stray = source / "python" / "sage" / "_emulator.cpython-311-x86_64-linux-gnu.so"
    stray.touch()  # as `make emulator` in a development tree may leave it
    folder = tmp_path_factory.mktemp("wheel")
    off = {f"cmake.define.{name}": "OFF" for name in ("SAGE_CPU", "SAGE_CUDA")}
    call_backend(source, f"build_wheel({str(folder)!r}, {off | {'cmake.build-type': 'Debug'}})")
    (built,) = folder.iterdir()
    return built


def metadata_version(folder: Path, **variables: str) -> str:
    """The version of a wheel that would be built from `folder`."""
    output = call_backend(folder, "print('DIST', prepare_metadata_for_build_wheel(os.environ['TO']))", **variables)
    return re.search(r"DIST sage_attn-(.+)\.dist-info", output)[1]


def test_version_of_a_wheel(sdist: Path, tmp_path: Path) -> None:
    assert metadata_version(REPOSITORY, TO=str(tmp_path)) == VERSION
    assert metadata_version(REPOSITORY, TO=str(tmp_path), SAGE_VERSION_LABEL="cu130") == f"{VERSION}+cu130"
    assert metadata_version(sdist, TO=str(tmp_path), SAGE_VERSION_LABEL="cu135") == f"{VERSION}+cu135"


@pytest.mark.parametrize("label", ("130", "cu13", "cuda130", "cu13.0", "cu1300", "cpu", "cu130 "))
def test_bad_label_is_refused(label: str, tmp_path: Path) -> None:
    call = f"prepare_metadata_for_build_wheel({str(tmp_path)!r})"
    output = call_backend(REPOSITORY, call, succeed=False, SAGE_VERSION_LABEL=label)
    assert f"SAGE_VERSION_LABEL must be cu, then the CUDA version without its point, as cu130; got '{label}'" in output


def test_label_of_another_cuda_is_refused(tmp_path: Path) -> None:
    options = ("SAGE_CPU=OFF", "SAGE_CUDA=OFF", "SKBUILD_PROJECT_VERSION_FULL=0.1.0+cu135")
    assert "The version 0.1.0+cu135 says cu135, but this build has no CUDA" in configure(
        tmp_path, *options, succeed=False
    )


def test_name_and_contents(wheel: Path) -> None:
    version, python = re.fullmatch(r"sage_attn-(.+?)-(cp\d+-cp\d+)-\w+\.whl", wheel.name).groups()
    assert re.fullmatch(re.escape(VERSION) + r"(\+cu\d{3})?", version) and python == "cp{0}{1}-cp{0}{1}".format(
        *sys.version_info
    )
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {name for name in inside if name.endswith(".so")}
    assert len(modules) == 1 and re.fullmatch(r"sage/_C\.[\w-]+\.so", min(modules)), modules
    package = REPOSITORY / "python"
    tracked = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.suffix == ".py"}
    assert inside - modules == tracked | {"sage/py.typed"}


@pytest.fixture
def wheel_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cmake_wheel", REPOSITORY / "cmake" / "wheel.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_python_has_folders_of_its_own(wheel_script: ModuleType) -> None:
    """What one Python has built there is of no use to another: `make wheel PYTHON=python3.12` after python3.11."""
    python = "cp{}{}".format(*sys.version_info)
    assert wheel_script.Toolkit("13.5", "").folder == REPOSITORY / "build" / f"wheel-13.5-{python}"


def test_environment_without_pip_is_made_again(
    wheel_script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As one is that was interrupted when it was made: it has a Python already."""
    made: list[Path] = []
    monkeypatch.setattr(wheel_script, "subprocess", SimpleNamespace(run=lambda *_, **__: None))
    monkeypatch.setattr(wheel_script, "venv", SimpleNamespace(create=lambda folder, **_: made.append(folder)))
    (tmp_path / "bin").mkdir()
    for name in ("python", "pip"):
        (tmp_path / "bin" / name).touch()
        assert wheel_script.make_environment(tmp_path, "ninja") == tmp_path / "bin" / "python"
    assert made == [tmp_path]


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(
    "arguments, complaint",
    (
        ((), "Give one of CUDA and CUDA_HOME: make wheel CUDA=13.5 takes the compiler"),
        (("CUDA=13.5", "CUDA_HOME=/opt/cuda"), "Give only one of CUDA and CUDA_HOME"),
        (("CUDA=12.8",), "CUDA=12.8: the pip packages of CUDA 12 hold no nvcc, so give CUDA_HOME"),
        (("CUDA=13",), "CUDA must be 13.0 or a later 13.x, got '13'"),
        (("CUDA_HOME=/opt/no-cuda",), "CUDA_HOME: there is no /opt/no-cuda/bin/nvcc"),
    ),
)
def test_what_make_wheel_refuses(arguments: tuple[str, ...], complaint: str) -> None:
    output = run("make", "-C", REPOSITORY, "wheel", f"PYTHON={sys.executable}", *arguments, succeed=False)
    assert complaint in output


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_cuda_of_the_command_line_comes_before_cuda_home_of_the_environment() -> None:
    arguments = ("make", "-C", REPOSITORY, "wheel", f"PYTHON={sys.executable}")
    assert "CUDA=12.8: the pip packages" in run(*arguments, "CUDA=12.8", succeed=False, CUDA_HOME="/opt/no-cuda")
    assert "CUDA_HOME: there is no /opt/no-cuda" in run(*arguments, succeed=False, CUDA_HOME="/opt/no-cuda")
