"""The shape of the tree: includes point down only, what may stand where, sizes and names."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "python" / "sage"

# An include goes to a lower layer or stays in its own folder. `include/sage` is the vocabulary of every layer.
LAYERS = {
    "bindings": 6,
    "api": 5,
    "kernels/attention": 4,
    "kernels/quantize": 4,
    "kernels/sparse": 4,
    "kernels/backward": 4,
    "kernels/cpu": 4,
    "kernels/tile": 3,
    "kernels/arch": 2,
    "kernels/common": 1,
    "include/sage": 0,
}
INCLUDE_PATHS = (".", "kernels", "include")  # as csrc/CMakeLists.txt has them
GENERATED = {"api/build_info.h", "api/instances.h"}  # by CMake, from the files with .in at their end

SYSTEM_INCLUDES = {  # who else may not include what
    r"pybind11/|Python\.h": ("bindings",),
    r"cuda|cutlass/|cute/": ("api", "kernels"),
    r"immintrin\.h|cpuid\.h|omp\.h": ("kernels/cpu",),
}

# In code, not in comments or strings; and where it may stand.
FORBIDDEN = {
    r"\btorch\b|\bat::|\bc10\b|\bATen\b": (),
    r"\bcuda(Malloc\w*|\w*Synchronize|SetDevice)\b": (),
    r"\b(exit|abort|assert)\s*\(|\b(f|v|vf)?printf\s*\(|\bstd::(cout|cerr)\b|\bputs\s*\(": (),
    r"\basm\b": ("kernels/arch", "kernels/cpu/isa_"),
    r"\b__shfl\w*|\b__sync\w*|\bthreadIdx\b|\bblockIdx\b|\b__cvta\w*|<<<|\b__CUDA_ARCH__\b|\b__global__\b": (
        "kernels/arch",
    ),
}

# The spellings that this project does not use, and the one that it does.
BANNED_NAMES = {
    "sm_scale": "softmax_scale",
    "qo_len": "seqlen_q",
    "kv_len": "seqlen_k",
    "num_kv_groups": "num_heads_kv",
    "h_k": "num_heads_kv",
    "bz": "batch",
    "CTA_Q": "kBlockM",
    "CTA_K": "kBlockN",
    "sm_scale_div_log2": "scale_log2",
    "RS": "s",
    "RO": "o",
    "mdo": "o",
    "fq": "q",
    "fk": "k",
    "km": "k_mean",
    "vm": "v_mean",
    "tensor_layout": "layout",
    "NHD": "bshd",
    "HND": "bhsd",
}
COMPAT_NAMES = {"sm_scale", "tensor_layout", "NHD", "HND"}  # the predecessor's, which compat.py offers

MAX_LINES = 600


def cpp_sources() -> dict[str, str]:
    paths = (
        p for p in CSRC.rglob("*") if p.suffix in {".h", ".cuh", ".cpp", ".cu"} or p.name.endswith((".h.in", ".cu.in"))
    )
    return {p.relative_to(CSRC).as_posix(): p.read_text() for p in paths}


def python_sources() -> dict[str, str]:
    return {p.relative_to(PACKAGE).as_posix(): p.read_text() for p in PACKAGE.rglob("*.py")}


def layer(path: str) -> str:
    found = [name for name in LAYERS if path.startswith(name + "/")]
    assert found, f"csrc/{path} is in no layer"
    return found[0]


def code(text: str) -> str:
    """Without comments and strings."""
    return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', " ", text, flags=re.DOTALL)


def include_errors(sources: dict[str, str]) -> list[str]:
    errors = []
    for path, text in sources.items():
        for quote, name in re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', text, re.MULTILINE):
            if quote == "<":
                for pattern, allowed in SYSTEM_INCLUDES.items():
                    if re.match(pattern, name) and not path.startswith(allowed):
                        errors.append(f"{path} includes <{name}>, which belongs to {', '.join(allowed)}")
                if path.startswith("include/") and name not in {"cstdint", "cstddef"}:
                    errors.append(f"{path} is public and includes <{name}>: only <cstdint> and <cstddef> may be")
                continue
            if name.startswith("@"):  # which CMake replaces
                continue
            candidates = [(Path(base) / name).as_posix() for base in (*INCLUDE_PATHS, Path(path).parent)]
            target = next((c for c in candidates if c in sources or c in GENERATED), None)
            if target is None:
                errors.append(f'{path} includes "{name}", which is not in csrc')
            elif layer(target) != layer(path) and LAYERS[layer(target)] >= LAYERS[layer(path)]:
                errors.append(f"{path} includes {target}: that is not down")
    return errors


def token_errors(sources: dict[str, str]) -> list[str]:
    return [
        f"{path}: {match[0]!r}"
        for path, text in sources.items()
        for pattern, allowed in FORBIDDEN.items()
        if not (allowed and path.startswith(allowed))
        for match in re.finditer(pattern, code(text))
    ]


def name_errors(sources: dict[str, str]) -> list[str]:
    pattern = rf"\b({'|'.join(BANNED_NAMES)})\b"
    return [
        f"{path}: {match[0]}, here called {BANNED_NAMES[match[0]]}"
        for path, text in sources.items()
        for match in re.finditer(pattern, text)
        if not (path == "compat.py" and match[0] in COMPAT_NAMES)
    ]


def test_includes_point_down() -> None:
    assert not include_errors(cpp_sources())


def test_no_forbidden_tokens() -> None:
    assert not token_errors(cpp_sources())


def test_one_spelling_per_concept() -> None:
    assert not name_errors({**cpp_sources(), **python_sources()})


@pytest.mark.parametrize(
    "path, text",
    [
        ("kernels/common/new.h", '#include "cpu/forward.h"'),
        ("kernels/cpu/new.h", '#include "api/status.h"'),
        ("kernels/cpu/new.h", '#include "tile/nowhere.h"'),
        ("api/new.cpp", "#include <pybind11/pybind11.h>"),
        ("include/sage/new.h", "#include <string>"),
        ("include/sage/new.h", "#include <cuda_runtime_api.h>"),
    ],
)
def test_wrong_includes_are_found(path: str, text: str) -> None:
    assert len(include_errors({**cpp_sources(), path: text})) >= 1


@pytest.mark.parametrize(
    "path, text",
    [
        ("bindings/new.cpp", "at::Tensor x;"),
        ("kernels/cpu/new.cpp", 'void f() { std::printf("x"); }'),
        ("api/new.cpp", "assert(x > 0);"),
        ("kernels/attention/new.cuh", "int i = threadIdx.x;"),
        ("kernels/cpu/attention_new.h", 'asm volatile("nop");'),
        ("api/new.cpp", "float qo_len;"),
    ],
)
def test_wrong_tokens_are_found(path: str, text: str) -> None:
    assert len(token_errors({path: text}) + name_errors({path: text})) == 1


def test_comments_and_static_assert_are_no_tokens() -> None:
    text = '// torch, printf( in a comment\nstatic_assert(sizeof(int) == 4, "exit( here");\nstd::vsnprintf(a, b);'
    assert not token_errors({"api/new.cpp": text})


def test_files_are_short() -> None:
    folders = ("csrc", "python", "tests", "cmake", "examples", "third_party/cutlass/*.cmake")
    paths = [p for folder in folders for p in (ROOT.glob(folder) if "*" in folder else (ROOT / folder).rglob("*"))]
    sources = [p for p in paths if p.suffix in {".h", ".cuh", ".cpp", ".cu", ".py", ".cmake"} and p.is_file()]
    assert len(sources) > 50
    lengths = {p.relative_to(ROOT).as_posix(): len(p.read_text().splitlines()) for p in sources}
    assert not {path: n for path, n in lengths.items() if n > MAX_LINES}


def _imports(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {"." * node.level + (node.module or alias.name) for alias in node.names}
    return names


def test_library_prints_nothing_and_swallows_nothing() -> None:
    """Only the command line prints. No bare `except`, no `assert` on what a user gave, no catch-all keywords."""
    for path, text in python_sources().items():
        if path == "__main__.py" or path.startswith("cli/"):
            continue
        for node in ast.walk(ast.parse(text)):
            assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"), (
                f"{path}:{node.lineno} prints"
            )
            assert not isinstance(node, ast.Assert), f"{path}:{node.lineno} asserts"
            assert not (
                isinstance(node, ast.ExceptHandler)
                and (node.type is None or getattr(node.type, "id", "") == "Exception")
            ), f"{path}:{node.lineno} catches everything"


def test_library_needs_only_torch() -> None:
    for path, text in python_sources().items():
        if path == "__main__.py" or path.startswith("cli/"):
            continue
        outside = {name.split(".")[0] for name in _imports(ast.parse(text)) if not name.startswith(".")}
        assert outside <= sys.stdlib_module_names | {"torch"}, path


def test_the_reference_stands_alone() -> None:
    """The oracle uses nothing of what it judges: of the package it imports the recipes alone."""
    for path, text in python_sources().items():
        if path.startswith("reference/"):
            above = {name for name in _imports(ast.parse(text)) if name.startswith("..")}
            assert above <= {"..recipe"}, f"{path} imports {above}"
