"""The backends that one suite runs on: `backend` in a test's arguments runs it on each."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Before PyTorch loads OpenMP: on a machine whose cores are busy, threads that spin while they wait make these many
# small calls ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: E402

from sage import _C, _select  # noqa: E402


def _backends() -> list:
    cpu = [pytest.param(("cpu", isa), id=f"cpu-{isa}") for isa in _select.CPU_ISAS if isa != "auto"]
    return [
        pytest.param(("reference", "auto"), id="reference"),
        *cpu,
        pytest.param(("cuda", "auto"), id="cuda", marks=pytest.mark.cuda),
    ]


@pytest.fixture(params=_backends())
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The `backend` argument of a call; on the CPU every instruction set that this machine runs is forced in turn."""
    name, isa = request.param
    if name == "cuda":
        try:
            _select.choose("cuda", "auto", "cuda")
        except NotImplementedError as reason:
            pytest.skip(str(reason))
    if isa != "auto" and not _C.cpu_isa_available(isa):
        pytest.skip(f"this build or this CPU has no {isa}")
    monkeypatch.setenv(_select.CPU_ISA_VARIABLE, isa)
    return name


@pytest.fixture
def kernels(backend: str) -> str:
    """`backend` without the reference: what has kernels of its own."""
    if backend == "reference":
        pytest.skip("compares kernels with the reference")
    return backend


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
