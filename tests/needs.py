"""Marks of tests that need a part of the build which may be missing."""

from __future__ import annotations

import importlib.util

import pytest

from sage import _C

needs_emulator = pytest.mark.skipif(
    importlib.util.find_spec("sage._emulator") is None, reason="sage._emulator was not built: -DSAGE_EMULATOR=ON"
)
needs_cuda_build = pytest.mark.skipif(_C.build_info()["cuda"] == "off", reason="this build has no CUDA")
