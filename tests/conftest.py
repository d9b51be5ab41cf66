"""The backends that one suite runs on: `backend` in a test's arguments runs it on each, `recipe` beside it with each
recipe that the backend serves: of a backend's variants of a recipe only with the mark `central`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

# Before PyTorch loads OpenMP: on a machine whose cores are busy, threads that spin while they wait make these many
# small calls ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# The fixture `poisoned` asks for deterministic algorithms. Without this the matmuls of PyTorch before 2.11 refuse then
# on a GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch  # noqa: E402

from bounds import DTYPES, cases  # noqa: E402
from sage import _C, Recipe, _select  # noqa: E402

CPU_ISAS = [isa for isa in _select.CPU_ISAS if isa != "auto"]
BACKENDS = [("reference", "auto"), *(("cpu", isa) for isa in CPU_ISAS), ("emulator", "auto"), ("cuda", "auto")]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "central: runs with the variants of recipes, too (tests/bounds.py)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = metafunc.fixturenames
    given = {name.strip() for mark in metafunc.definition.iter_markers("parametrize") for name in _names(mark)}
    if "backend" not in names or "backend" in given:
        return
    each_recipe = "recipe" in names and "recipe" not in given
    central = metafunc.definition.get_closest_marker("central") is not None
    params = []
    for backend, isa in BACKENDS:
        if backend == "reference" and "kernels" in names:
            continue
        marks = [pytest.mark.cuda] if backend == "cuda" else []
        label = f"cpu-{isa}" if backend == "cpu" else backend
        if not each_recipe:
            params.append(pytest.param((backend, isa), id=label, marks=marks))
            continue
        for gpu, recipe in cases(backend, central):
            name = f"{label}-{recipe}" if gpu in ("auto", "sm80", "sm89") else f"{label}-{gpu}-{recipe}"
            case = (backend, isa if gpu == "auto" else gpu, recipe)
            params.append(pytest.param(case, recipe, id=name, marks=marks))
    metafunc.parametrize(["backend", "recipe"] if each_recipe else ["backend"], params, indirect=["backend"])


def _names(mark: pytest.Mark) -> list[str]:
    names = mark.args[0]
    return names.split(",") if isinstance(names, str) else list(names)


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The `backend` argument of a call; on the CPU every instruction set that this machine runs is forced in turn, the
    emulator stands for a GPU that has kernels for the recipe, and for CUDA tensors are made there."""
    name, which, *recipe = request.param
    if reason := _why_not(name, which, *recipe):
        pytest.skip(reason)
    if name == "cpu":
        monkeypatch.setenv(_select.CPU_ISA_VARIABLE, which)
    if name == "emulator":
        monkeypatch.setenv(_select.EMULATED_VARIABLE, "sm80" if which == "auto" else which)
    with torch.device("cuda") if name == "cuda" else contextlib.nullcontext():
        yield name


def _why_not(backend: str, which: str, recipe: str = "auto") -> str:
    if backend == "cpu" and which != "auto" and not _C.cpu_isa_available(which):
        return f"this build or this CPU has no {which}"
    try:
        _, text = _select.choose("cuda" if backend == "cuda" else "cpu", recipe, backend)
        if backend == "cuda":
            _served_by_the_gpu(text)
    except RuntimeError as reason:  # NotImplementedError is one
        return str(reason)
    return "" if backend != "cuda" or torch.cuda.is_available() else "this PyTorch has no CUDA"


def _served_by_the_gpu(recipe: str) -> None:
    """RuntimeError where there is no GPU, or this build has no kernels of the recipe for it."""
    sizes = dict.fromkeys(("batch", "num_heads_q", "num_heads_kv", "head_dim", "seqlen_q", "seqlen_k"), 1)
    _C.AttnPlan(device="cuda", dtype="float16", recipe=Recipe.parse(recipe), **sizes)


@pytest.fixture
def cuda() -> torch.device:
    """The first GPU; a test is skipped, with the reason, where none runs the kernels of this build."""
    if reason := _why_not("cuda", "auto"):
        pytest.skip(reason)
    return torch.device("cuda", 0)


@pytest.fixture
def kernels(backend: str) -> str:
    """`backend` without the reference: what has kernels of its own."""
    return backend


@pytest.fixture
def dtype(backend: str) -> torch.dtype:
    """The dtype of a test that is not about dtypes."""
    return DTYPES[backend]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that PyTorch hands out holds NaN, or the largest value of an integer dtype: what is not written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1000).isnan().all(), "torch.utils.deterministic.fill_uninitialized_memory is off"
        yield
    finally:
        torch.use_deterministic_algorithms(before)
