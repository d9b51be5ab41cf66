"""Builds a wheel with one version of CUDA, and tests it in an environment of its own: `make wheel`, `make wheel-test`.

wheel.py build --cuda 13.5                         # nvcc from pip, in build/wheel-13.5-cp312
wheel.py build --cuda-home /usr/local/cuda-12.9    # an installed toolkit
wheel.py test --cuda 13.5 -- -k varlen             # after build; then come arguments of pytest
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PYPROJECT = (REPOSITORY / "pyproject.toml").read_text()
BUILD_REQUIREMENTS = ast.literal_eval(re.search(r"^requires = (\[.+\])$", PYPROJECT, re.MULTILINE)[1])
PYTHON_TAG = "cp{}{}".format(*sys.version_info)
MAX_WHEEL_BYTES = 60_000_000
WHAT_TO_GIVE = (
    "make wheel CUDA=13.5 takes the compiler of that CUDA version from pip, "
    "make wheel CUDA_HOME=/usr/local/cuda-12.9 an installed toolkit"
)


class Toolkit:
    """A CUDA version, where its nvcc is (None: pip will bring it), and the folder for what is built with it."""

    def __init__(self, cuda: str, cuda_home: str) -> None:
        if bool(cuda) == bool(cuda_home):
            raise SystemExit(f"Give {'only one' if cuda else 'one'} of CUDA and CUDA_HOME: {WHAT_TO_GIVE}")
        if cuda_home:
            self.nvcc = Path(cuda_home).resolve() / "bin" / "nvcc"
            self.version = version_of(self.nvcc)
            self.folder = REPOSITORY / "build" / f"wheel-{self.version}-{PYTHON_TAG}-installed"
            return
        if not re.fullmatch(r"13\.\d", cuda):
            why = f"CUDA must be 13.0 or a later 13.x, got {cuda!r}"
            if cuda.startswith("12."):
                why = f"CUDA={cuda}: the pip packages of CUDA 12 hold no nvcc, so give CUDA_HOME"
            raise SystemExit(f"{why}: {WHAT_TO_GIVE}")
        self.nvcc = None
        self.version = cuda
        self.folder = REPOSITORY / "build" / f"wheel-{cuda}-{PYTHON_TAG}"

    @property
    def label(self) -> str:
        return "cu" + self.version.replace(".", "")

    def wheel(self) -> Path:
        """The wheel of this version for this Python."""
        version = re.search(r'^version = "(.+)"$', PYPROJECT, re.MULTILINE)[1]
        name = f"sage_attn-{version}+{self.label}-{PYTHON_TAG}-{PYTHON_TAG}-*.whl"
        found = list((REPOSITORY / "dist").glob(name))
        if len(found) != 1:
            raise SystemExit(f"There should be one dist/{name}, got {found or 'none'}")
        return found[0]


def version_of(nvcc: Path) -> str:
    if not nvcc.exists():
        raise SystemExit(f"CUDA_HOME: there is no {nvcc}")
    says = subprocess.run([nvcc, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    release = re.search(r"release (\d+\.\d+)", says)
    if not release:
        raise SystemExit(f"CUDA_HOME: {nvcc} --version names no release: {says}")
    return release[1]


def make_environment(folder: Path, *requirements: str) -> Path:
    """The Python of a virtual environment in `folder` that has `requirements`."""
    python = folder / "bin" / "python"
    if not (folder / "bin" / "pip").exists():  # the last thing that comes into it
        venv.create(folder, symlinks=True, with_pip=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "pip>=23.1"], check=True)
    subprocess.run([*pip, *requirements], check=True)
    return python


def build(toolkit: Toolkit) -> None:
    start = time.monotonic()
    requirements = ["cmake", "ninja", *BUILD_REQUIREMENTS]
    if toolkit.nvcc is None:
        requirements.append(f"cuda-toolkit[nvcc,cccl,cudart]=={toolkit.version}.*")
    print(f"CUDA {toolkit.version}: build tools into {toolkit.folder / 'venv'}", flush=True)
    python = make_environment(toolkit.folder / "venv", *requirements)
    nvcc = toolkit.nvcc or next((toolkit.folder / "venv").glob("lib/python*/site-packages/nvidia/cu13/bin/nvcc"))
    if version_of(nvcc) != toolkit.version:
        raise SystemExit(f"pip brought nvcc {version_of(nvcc)} for CUDA {toolkit.version}")

    print(f"Compiling with {nvcc} (the first time: minutes)", flush=True)
    settings = {
        "build-dir": toolkit.folder / "cmake",
        "cmake.define.SAGE_CUDA": "ON",
        "cmake.define.CMAKE_CUDA_COMPILER": nvcc,
    }
    options = [f"--config-settings={name}={value}" for name, value in settings.items()]
    pip = [python, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    environment = os.environ | {"SAGE_VERSION_LABEL": toolkit.label}
    subprocess.run([*pip, *options, "--wheel-dir", REPOSITORY / "dist", REPOSITORY], env=environment, check=True)

    wheel = toolkit.wheel()
    size = wheel.stat().st_size
    with zipfile.ZipFile(wheel) as archive:
        (module,) = (info for info in archive.infolist() if info.filename.startswith("sage/_C."))
    seconds = time.monotonic() - start
    print(
        f"{wheel.relative_to(REPOSITORY)}: {size / 1e6:.2f} MB, "
        f"{module.filename} in it {module.file_size / 1e6:.2f} MB; {seconds:.0f} s"
    )
    if size > MAX_WHEEL_BYTES:
        raise SystemExit(f"The wheel is larger than {MAX_WHEEL_BYTES / 1e6:.0f} MB")


def test(toolkit: Toolkit, torch: str, pytest_arguments: list[str]) -> None:
    wheel = toolkit.wheel()
    folder = toolkit.folder / "test"
    print(f"Installing {wheel.name} and what its tests need into {folder / 'venv'}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # The tests of the build configure this project.
    python = make_environment(folder / "venv", *torch.split(), f"{wheel}[bench,demo,test]", *BUILD_REQUIREMENTS)
    environment = os.environ | {"SAGE_WHEEL": str(wheel), "SAGE_BUILD_DIR": str(toolkit.folder / "cmake")}
    environment.pop("PYTHONPATH", None)
    program = "import sage; print(sage.__version__, sage.__file__)"
    installed = subprocess.run(
        [python, "-c", program], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    print(f"Testing sage {installed}", flush=True)
    version, path = installed.split(maxsplit=1)
    if version != wheel.name.split("-")[1] or folder not in Path(path).parents:
        raise SystemExit(f"The tests would not test {wheel.name} in {folder}")
    start = time.monotonic()
    pytest = [python, "-m", "pytest", REPOSITORY / "tests", *pytest_arguments]
    outcome = subprocess.run(pytest, cwd=folder, env=environment, check=False)
    print(f"The tests ran on {wheel.name} for {time.monotonic() - start:.0f} s")
    if outcome.returncode != 0:
        raise SystemExit(outcome.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("build", "test"))
    parser.add_argument("--cuda", default="", help="a CUDA version whose compiler pip brings: 13.0 or later")
    parser.add_argument("--cuda-home", default="", help="an installed toolkit")
    parser.add_argument("--torch", default="torch", help="test: what pip installs as PyTorch")
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:end])
    toolkit = Toolkit(options.cuda, options.cuda_home)
    if options.command == "build":
        build(toolkit)
    else:
        test(toolkit, options.torch, arguments[end + 1 :])


if __name__ == "__main__":
    main()
