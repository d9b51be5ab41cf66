"""What nvidia-smi says about a GPU. Standard library only: benchmarks/gpu_check.py needs this before sage is built."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Callable, Iterator

_FIELDS = {
    "uuid": ("uuid", str),
    "name": ("name", str),
    "driver": ("driver_version", str),
    "sm_clock_mhz": ("clocks.sm", float),
    "max_sm_clock_mhz": ("clocks.max.sm", float),
    "power_w": ("power.draw", float),
    "power_limit_w": ("power.limit", float),
    "temperature_c": ("temperature.gpu", float),
}
"""Our name, nvidia-smi's, and the type of the value."""

STATE = ("sm_clock_mhz", "power_w", "temperature_c")
"""Of these, what changes while the GPU works."""


def query(uuid: str) -> dict[str, str | float | None]:
    """The GPU with this UUID, with or without "GPU-" before it. RuntimeError says why there is no answer."""
    names = ",".join(name for name, _ in _FIELDS.values())
    command = ["nvidia-smi", f"--query-gpu={names}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"nvidia-smi: {error}") from None
    if done.returncode:
        raise RuntimeError(f"nvidia-smi ended with {done.returncode}: {(done.stdout + done.stderr).strip()}")
    gpus = parse(done.stdout)
    for gpu in gpus:
        if gpu["uuid"].removeprefix("GPU-") == uuid.removeprefix("GPU-"):
            return gpu
    raise RuntimeError(f"nvidia-smi knows no GPU {uuid}, only {', '.join(gpu['uuid'] for gpu in gpus) or 'none'}")


def parse(text: str) -> list[dict[str, str | float | None]]:
    """The GPUs of an answer to `query`, one a line; None for what a GPU does not tell ("[N/A]")."""
    gpus = []
    for line in text.strip().splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) != len(_FIELDS):
            raise RuntimeError(f"nvidia-smi: expected {len(_FIELDS)} values, got {line!r}")
        gpus.append({name: _value(kind, value) for (name, (_, kind)), value in zip(_FIELDS.items(), values)})
    return gpus


def _value(kind: type, text: str) -> str | float | None:
    try:
        return None if text.startswith("[") else kind(text)
    except ValueError:
        raise RuntimeError(f"nvidia-smi: expected a number, got {text!r}") from None


@contextlib.contextmanager
def sampled(read: Callable[[], dict], seconds: float) -> Iterator[list[dict]]:
    """What `read` returns, while the block runs: at once, every `seconds`, in another thread. Ends early where it raises
    RuntimeError."""
    samples: list[dict] = []
    stopped = threading.Event()

    def sample() -> None:
        with contextlib.suppress(RuntimeError):
            samples.append(read())
            while not stopped.wait(seconds):
                samples.append(read())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        stopped.set()
        thread.join()


def ranges(samples: list[dict]) -> dict[str, list[float] | None]:
    """[smallest, largest] of each name in STATE; None where no sample has it."""
    known = {name: [s[name] for s in samples if s.get(name) is not None] for name in STATE}
    return {name: [min(values), max(values)] if values else None for name, values in known.items()}
