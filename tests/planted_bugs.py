"""Plants bugs in the CPU kernels, one at a time, and checks that the tests catch each of them.

    python tests/planted_bugs.py [NAME ...]

Works on a copy of the sources. A bug that survives means that a test is missing. Takes about half a minute per bug.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from building import TOOLS_PATH

ROOT = Path(__file__).resolve().parent.parent
KERNELS = "csrc/kernels/"
UNWANTED = shutil.ignore_patterns(".git", ".venv", "build", "dist", "_C*.so", "_emulator*.so", "__pycache__")
TESTS = ["tests/test_attention.py", "tests/test_varlen.py"]


class Bug(NamedTuple):
    file: str
    right: str  # occurs exactly once in the file
    wrong: str


BUGS = {
    "causal mask off by one": Bug("common/mask.h", "seqlen_q + right + 1;", "seqlen_q + right;"),
    "causal diagonal at the top left": Bug("common/mask.h", "row + seqlen_k - seqlen_q + right", "row + right"),
    "window one key too wide": Bug("common/mask.h", "- window_left;", "- window_left - 1;"),
    "seqused_k ignored": Bug("common/seqlen.h", "if (seqused_k) s.", "if (false) s."),
    "packed keys start at the query offset": Bug(
        "common/seqlen.h", "s.row_k = cu_seqlens_k[batch];", "s.row_k = cu_seqlens_q[batch];"
    ),
    "offsets in 32 bits": Bug(
        "cpu/attention_pack.h",
        "(batch * view.stride_batch + head",
        "(static_cast<int32_t>(batch * view.stride_batch) + head",
    ),
    "keys behind the last one seen": Bug("cpu/attention_tile.h", "min64(kGroup, end - col)", "int64_t{kGroup}"),
    "no correction for the bias of Q": Bug(
        "cpu/attention_pack.h", "seeds[position] = -seeds[position];", "seeds[position] = 0;"
    ),
    "key scale of the wrong key": Bug(
        "cpu/attention_pack.h", "scales[score_position<Isa>(key)] = scale", "scales[key] = scale"
    ),
    "negative softmax scale not folded into Q": Bug(
        "cpu/attention_kernel.h", "p_.softmax_scale < 0 ? -scale.inverse : scale.inverse", "scale.inverse"
    ),
    "16-bit probabilities overflow the sum": Bug(
        "cpu/attention_pack.h", "kBits == 8 ? 255.f : 8191.f", "kBits == 8 ? 255.f : 16383.f"
    ),
    "old output not rescaled": Bug(
        "cpu/attention_tile.h", "take, Isa::mul(Isa::load(out), keep))", "take, Isa::load(out))"
    ),
    "maximum of the masked scores kept": Bug(
        "cpu/attention_tile.h", "    row_max[r] = top;\n  }\n}", "    (void)top;\n  }\n}"
    ),
    "finite mask value becomes -inf": Bug(
        "cpu/attention_tile.h", "x < -kFloatMax ? -kFloatMax : x", "x < -kFloatMax ? -kInfinity : x"
    ),
    "additive mask not in base 2": Bug("cpu/attention_tile.h", "bias[j] * kLog2e, bounded", "bias[j], bounded"),
    "mask read as if contiguous": Bug("cpu/attention_tile.h", "src[j * stride_k] ?", "src[j] ?"),
    "LSE from the rounded probabilities": Bug(
        "cpu/attention_tile.h",
        "exact = Isa::add(exact, y[v]);",
        "exact = Isa::add(exact, Isa::to_float(Isa::round(y[v])));",
    ),
    "LSE not corrected for the mean of K": Bug(
        "cpu/attention_kernel.h", "= Isa::sum(shift) * p_.softmax_scale;", "= 0;"
    ),
    "wrong head of K and V": Bug(
        "cpu/attention_kernel.h", "at.head / (p_.num_heads_q / p_.num_heads_kv)", "at.head % p_.num_heads_kv"
    ),
    "V scaled by the maximum of its last chunk": Bug(
        "cpu/attention_kernel.h", "amax_bits[c] = amax_bits[c] > bits ? amax_bits[c] : bits;", "amax_bits[c] = bits;"
    ),
    "row without keys not zeroed": Bug("cpu/attention_kernel.h", "visible ? scaled : Isa::set(0.f)", "scaled"),
    "NaN swallowed": Bug("cpu/attention_kernel.h", "= !scale.finite || !keys_finite;", "= false;"),
    "last partial strip skipped": Bug(
        "cpu/attention_kernel.h", "strips = ceil_div(rows, kRows);", "strips = max64(1, rows / kRows);"
    ),
}


def run(tree: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in `tree`, with the package of that tree before an installed one."""
    env = os.environ | {"PATH": TOOLS_PATH, "PYTHONPATH": str(tree / "python")}
    return subprocess.run(
        command, cwd=tree, env=env, text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def build(tree: Path) -> None:
    """Builds the extension of `tree` into its Python package."""
    options = ["-DSAGE_PYTHON=ON", "-DSAGE_CUDA=OFF", f"-DPython_EXECUTABLE={sys.executable}"]
    for step in (["cmake", "-G", "Ninja", "-S", ".", "-B", "build", *options], ["cmake", "--build", "build"]):
        done = run(tree, *step)
        if done.returncode:
            sys.exit(done.stdout)
    (module,) = (tree / "build/csrc").glob("_C*.so")
    shutil.copy(module, tree / "python/sage")


def test(tree: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run(tree, sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *options, *TESTS)


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in BUGS]
    if unknown:
        sys.exit(f"unknown bug {unknown[0]!r}; there are:\n  " + "\n  ".join(BUGS))
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "sage"
        shutil.copytree(ROOT, tree, ignore=UNWANTED)
        build(tree)
        clean = test(tree)
        if clean.returncode:
            sys.exit("the tests fail without any bug:\n" + clean.stdout)
        survivors = []
        for name in names or BUGS:
            bug = BUGS[name]
            path = tree / KERNELS / bug.file
            text = path.read_text()
            if text.count(bug.right) != 1:
                sys.exit(f"{name}: {bug.right!r} occurs {text.count(bug.right)} times in {bug.file}, not once")
            path.write_text(text.replace(bug.right, bug.wrong))
            build(tree)
            result = test(tree)
            path.write_text(text)
            caught = result.returncode == 1 or result.returncode < 0  # tests failed, or a signal ended them
            failed = [line for line in result.stdout.splitlines() if line.startswith("FAILED")]
            how = failed[0][7:100] if failed else f"exit {result.returncode}"
            print(f"{'caught' if caught else 'SURVIVED':<9} {name}: {how}", flush=True)
            if not caught:
                survivors.append(name)
    print(f"{len(names or BUGS) - len(survivors)} passed, {len(survivors)} failed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
