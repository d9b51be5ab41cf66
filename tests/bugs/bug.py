"""A change that makes a kernel wrong."""

from __future__ import annotations

from typing import NamedTuple


class Bug(NamedTuple):
    file: str  # in csrc/kernels, or with its whole path
    right: str  # occurs exactly once in the file
    wrong: str
    program: str = "sm80_fwd_f16_d64"  # of the emulator: what must fail
