"""A GPU that is not there: what PyTorch would say of it, and an nvidia-smi that knows it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

H200 = "GPU-0f5c3d6e-1111-2222-3333-444455556666, NVIDIA H200, 580.159.04, 1755, 1980, 412.33, 700.00, 47"
OLD = "GPU-77777777-1111-2222-3333-444455556666, Tesla T4, 535.54.03, 300, 1590, [N/A], 70.00, [Not Supported]"
FAKE_GPU = {
    "name": "NVIDIA H200",
    "architecture": "sm_90",
    "uuid": "0f5c3d6e-1111-2222-3333-444455556666",
    "sm_count": 132,
    "cuda": "13.0",
    "nvidia_smi": {"driver": "580.159.04"},
}


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The answer of an nvidia-smi that knows two GPUs, in a file; what it was asked is in `asked` beside it."""
    folder = tmp_path / "smi"
    folder.mkdir()
    answer, program = folder / "answer", folder / "nvidia-smi"
    answer.write_text(f"{OLD}\n{H200}\n")
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\ncat {answer}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return answer
