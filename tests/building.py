"""What the tests of the build share: running CMake, with the tools of the Python that runs the tests first on PATH."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
# The tree of the module under test: what `make build` builds, or what `make wheel-test` names.
BUILD_DIR = Path(os.environ.get("SAGE_BUILD_DIR", REPOSITORY / "build" / "python"))
TOOLS_PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

# What steers CMake and make in the environment of the tests, `make wheel-test CUDA=13.5` among them.
STEERING = (
    *("CUDACXX", "CUDA_HOME", "CUDA", "CMAKE_ARGS", "CMAKE_GENERATOR", "CXXFLAGS", "SAGE_VERSION_LABEL"),
    *("MAKEFLAGS", "MAKELEVEL"),
)


def run(*command: str | Path, path: str = TOOLS_PATH, succeed: bool = True, **variables: str) -> str:
    """The output of `command`, found on `path`, with runs of white space made one space: CMake wraps its messages.

    The variables of STEERING are hidden from it; `variables` are added. With succeed=False it must fail instead.
    """
    environment = {name: value for name, value in os.environ.items() if name not in STEERING}
    environment |= {"PATH": path} | variables
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(list(map(str, command)), env=environment, text=True, check=False, **pipes)
    assert (done.returncode == 0) == succeed, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return " ".join(done.stdout.split())


def configure(build_dir: Path, *options: str, path: str = TOOLS_PATH, succeed: bool = True) -> str:
    """The output of configuring this repository in `build_dir` with `-D` options."""
    defined = [f"-D{option}" for option in (f"Python_EXECUTABLE={sys.executable}", *options)]
    return run("cmake", "-S", REPOSITORY, "-B", build_dir, "-G", "Ninja", *defined, path=path, succeed=succeed)


def pip_nvcc() -> Path | None:
    """The nvcc among this Python's packages (cmake/cuda_toolchain.txt)."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else ()
    candidates = [Path(folder) / "cu13" / "bin" / "nvcc" for folder in folders]
    return next((path for path in candidates if path.exists()), None)
