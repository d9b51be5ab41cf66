"""The command line: python -m sage info | demo | bench."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import bench, demo, info
from .terminal import Refused


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0: done. 1: something that the command needs is missing. 2: the request makes no sense or nothing serves it.
    """
    parser = argparse.ArgumentParser(prog="python -m sage", description="Quantized attention.")
    commands = parser.add_subparsers(title="commands", metavar="")
    for command, summary in (
        (info, "what is installed, what this machine runs, what recipe='auto' picks"),
        (demo, "a real text-embedding model on quantized attention, then a long sequence"),
        (bench, "speed next to PyTorch's attention, with the error beside it"),
    ):
        subparser = commands.add_parser(
            command.__name__.rpartition(".")[2],
            help=summary,
            description=command.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run, prog=subparser.prog)
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "run"):
        parser.print_help()
        return 2
    try:
        arguments.run(arguments)
    except Refused as refused:
        print(f"{arguments.prog}: error: {refused}", file=sys.stderr)
        return refused.exit_code
    return 0
