"""Runs the AVX-VNNI kernels on a CPU that has AVX-512 VNNI but not AVX-VNNI (Zen 4, Ice Lake).

    python tests/avx_vnni_on_avx512.py

Both have the same two instructions in different encodings. This builds a copy of the sources with the other encoding
and runs the tests of the AVX-VNNI kernels on it.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from planted_bugs import ROOT, TESTS, UNWANTED, build, run

EDITS = {
    "csrc/kernels/cpu/isa_avx2.h": [("%{vex%} ", "")],
    "csrc/kernels/cpu/isa.cpp": [("return avx2 && cpu::has_avx_vnni();", "return avx2;")],
    "csrc/kernels/cpu/instruction_sets.cmake": [("-mavxvnni", "-mavx512vl -mavx512vnni")],
}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "sage"
        shutil.copytree(ROOT, tree, ignore=UNWANTED)
        for file, edits in EDITS.items():
            path = tree / file
            text = path.read_text()
            for right, wrong in edits:
                assert right in text, f"{file} has no {right!r}"
                text = text.replace(right, wrong)
            path.write_text(text)
        build(tree, "build", ["-DSAGE_PYTHON=ON", "-DSAGE_CUDA=OFF"])
        (module,) = (tree / "build/csrc").glob("_C*.so")
        shutil.copy(module, tree / "python/sage")
        result = run(tree, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "avx_vnni", *TESTS)
    print(result.stdout)
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())
