"""The version for scikit-build-core: what pyproject.toml says; in a wheel, then the label of the environment variable
SAGE_VERSION_LABEL, where that is set: 0.1.0+cu130 for one built with CUDA 13.0. `make wheel` sets it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

LABEL = "SAGE_VERSION_LABEL"


class Version:
    def build_state(self, state: str) -> None:
        self.state = state

    def dynamic_metadata(self, settings: Mapping[str, str], project: Mapping[str, object]) -> dict[str, str]:
        label = os.environ.get(LABEL, "")
        if label and not re.fullmatch(r"cu\d{3}", label):
            raise ValueError(f"{LABEL} must be cu, then the CUDA version without its point, as cu130; got {label!r}")
        labelled = label and self.state != "sdist"
        return {"version": settings["version"] + (f"+{label}" if labelled else "")}
