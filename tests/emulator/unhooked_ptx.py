"""Which of CUTLASS's PTX wrappers do emulated object files use that no hook replaces?

On the host such a function does nothing, so a kernel that uses one would pass tests that it should fail.
hooks/begin_ptx.h gives all of them the ABI tag `ptx` and keeps them out of line; one that an object file uses is therefore
in its symbol table, defined or not.

    python unhooked_ptx.py OBJECT_OR_ARCHIVE...

Prints each one with the file that uses it, and ends with 1 if there are any.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

_TAG = "[abi:ptx]"
_RENAMED = "_ptx_"  # what the name of a replaced function ends with
# Written in C++, in terms of functions that are replaced.
_HARMLESS = re.compile(r"\bcutlass::arch::detail::initialize_barrier_array\w*\[abi:ptx\]<")


def unhooked_functions(paths: Iterable[str | Path]) -> dict[str, list[str]]:
    """The functions, demangled and without their tags, that each file uses; files that use none are left out.

    An archive's members are listed as the archive.
    """
    found = {}
    for path in map(str, paths):
        command = ["nm", "--demangle", "--format=posix", path]
        symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if not symbols.strip():
            raise ValueError(f"{path} has no symbols: not an object file of the emulator?")
        # NAME TYPE [VALUE SIZE], where NAME has spaces.
        used = [line for line in symbols.splitlines() if _TAG in line or _RENAMED in line]
        used = [line for line in used if not _HARMLESS.search(line)]
        names = {re.sub(r" \S( [0-9a-f]*)*$", "", line) for line in used}
        if names:
            found[path] = sorted(name.replace(_TAG, "") for name in names)
    return found


def main(paths: list[str]) -> int:
    if not paths:
        sys.exit(__doc__)
    found = unhooked_functions(paths)
    for path, names in found.items():
        for name in names:
            print(f"{path}: {name}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
