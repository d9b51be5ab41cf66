"""What the commands share: refusing a request, argument types, tables, progress, files."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class Refused(Exception):
    """A command that cannot do what was asked; the message is for the person who asked."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def argument(parse: Callable[[str], T]) -> Callable[[str], T]:
    """An argparse type whose ValueError reaches the user with its own words."""

    def parse_argument(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse_argument


def positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"must be a whole number >= 1, got {text!r}")
    return int(text)


def output_file(text: str) -> Path:
    """The path of a file to be written. Its folders are made now: a long run shall not end without a place for it."""
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder of {text}: {error.strerror}") from None
    if path.is_dir():
        raise ValueError(f"{text} is a folder, a file name is needed")
    return path


def write_json(path: Path, report: dict) -> None:
    path.write_text(json.dumps(report, indent=1) + "\n")


def is_installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)


def install_line(extra: str) -> str:
    return f'pip install "sage-attn[{extra}]", or in a clone of the project: pip install ".[{extra}]"'


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on stderr; the function that it yields advances it by one step and shows what was done."""
    if not is_installed("tqdm"):
        print(f"(for a progress bar: {install_line('bench')})", file=sys.stderr)
        yield lambda label: None
        return
    from tqdm import tqdm

    # disable=None: no bar where stderr is a file or a pipe.
    bar_format = "{bar:30} {n_fmt}/{total_fmt}, {remaining} left  {desc}"
    with tqdm(total=total, leave=False, disable=None, bar_format=bar_format) as bar:

        def step(label: str) -> None:
            bar.set_description_str(label, refresh=False)
            bar.update()

        yield step


def table(rows: Sequence[Sequence[str]], *, align: str) -> str:
    """Columns, indented by two; `align` has one of "<" and ">" per column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ("  ".join(f"{cell:{a}{width}}" for cell, a, width in zip(row, align, widths, strict=True)) for row in rows)
    return "\n".join("  " + line.rstrip() for line in cells)
