"""Plants bugs in the kernels and in what launches them, one at a time, and checks that the tests catch each of them.

    python tests/planted_bugs.py [NAME ...]

Works on a copy of the sources. Those in the CPU kernels must be caught by the shared test suite, those in the CUDA
kernels by the programs of tests/emulator/kernel_test, those on the way to these by the programs of
tests/emulator/api_test. A bug that survives means that a test is missing. Takes about half a minute per bug.
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
CONFIGURATIONS = [("round_robin", "late"), ("priority:1", "late"), ("priority:1", "early")]


class Bug(NamedTuple):
    file: str  # in csrc/kernels, or with its whole path
    right: str  # occurs exactly once in the file
    wrong: str
    program: str = "sm80_fwd_f16_d64"  # of the emulator: what must fail


CPU_BUGS = {
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


CUDA_BUGS = {
    "copies not waited for": Bug(
        "attention/sm80_fwd.cuh", "arch::cp_async_wait<0>();\n      arch::sync_block();", "arch::sync_block();"
    ),
    "no barrier after the wait": Bug(
        "attention/sm80_fwd.cuh", "arch::sync_block();  // tile n is visible", "// tile n is visible"
    ),
    "next tile copied before the barrier": Bug(
        "attention/sm80_fwd.cuh",
        "arch::sync_block();  // tile n is visible to every warp, and no warp still reads the other stage\n"
        "      if (n + 1 < place.last_n) copy_tile(p, shared, n + 1);\n",
        "if (n + 1 < place.last_n) copy_tile(p, shared, n + 1);\n      arch::sync_block();\n",
    ),
    "no barrier before the place is read": Bug(
        "attention/sm80_fwd.cuh", "arch::sync_block();  // place is visible", ""
    ),
    "scratch in the stage that is being copied": Bug(
        "attention/sm80_fwd.cuh", "shared.stages[(n + 1) % 2].k", "shared.stages[n % 2].k"
    ),
    "V past the last key not zeroed": Bug(
        "attention/sm80_fwd.cuh", "return r < rows && c < channels;", "return c < channels;"
    ),
    "V past head_dim not zeroed": Bug("attention/sm80_fwd.cuh", "return r < rows && c < channels;", "return r < rows;"),
    "query scales of the first warp": Bug(
        "attention/sm80_fwd.cuh", "q_scale_index(arch::warp_index() * 16 * kMTiles + ", "q_scale_index("
    ),
    "one key scale for all": Bug("attention/sm80_fwd.cuh", "tile.k_scale[lane % 4]", "tile.k_scale[0]"),
    "key scales of the first tile": Bug("attention/sm80_fwd.cuh", "k_scale + n * kKScalesPerTile", "k_scale"),
    "wrong head of K and V (CUDA)": Bug(
        "attention/sm80_fwd.cuh", "x.head / (p.num_heads_q / p.num_heads_kv)", "x.head % p.num_heads_kv"
    ),
    "offset of V in 32 bits": Bug(
        "attention/sm80_fwd.cuh",
        "(x.batch * p.v.stride_batch + x.head_kv",
        "(static_cast<int32_t>(x.batch * p.v.stride_batch) + x.head_kv",
    ),
    "offset of out in 32 bits": Bug(
        "attention/sm80_fwd.cuh",
        "place.head * p.out.stride_head +",
        "static_cast<int32_t>(place.head * p.out.stride_head) +",
    ),
    "a tile of the diagonal taken for whole": Bug(
        "attention/sm80_fwd.cuh",
        "static_cast<uint32_t>(visible.col_end(x.row) / kBlockN)",
        "static_cast<uint32_t>(ceil_div(visible.col_end(x.row), kBlockN))",
    ),
    "a tile of the window's start taken for whole": Bug(
        "attention/sm80_fwd.cuh",
        "ceil_div(visible.col_begin(last_row), kBlockN)",
        "visible.col_begin(last_row) / kBlockN",
    ),
    "first tile of a window skipped": Bug(
        "attention/sm80_fwd.cuh",
        "static_cast<uint32_t>(visible.col_begin(x.row) / kBlockN)",
        "static_cast<uint32_t>(ceil_div(visible.col_begin(x.row), kBlockN))",
    ),
    "causal mask off by one (CUDA)": Bug("common/mask.h", "seqlen_q + right + 1;", "seqlen_q + right;"),
    "window one key too wide (CUDA)": Bug("common/mask.h", "- window_left;", "- window_left - 1;"),
    "sum of the old tiles not rescaled": Bug("attention/sm80_fwd.cuh", "      exp_sum[mt][r] *= decay[mt][r];\n", ""),
    "old output not rescaled (CUDA)": Bug("attention/sm80_fwd.cuh", "if (arch::any(moved)) o.scale(decay);", ""),
    "stale maximum always accepted": Bug("tile/pv_accumulator.h", "kSumLimit = 16384.f", "kSumLimit = 1e30f"),
    "stale maximum accepted beyond fp16 accumulators": Bug(
        "tile/pv_accumulator.h", "kF16SumLimit = 16.f", "kF16SumLimit = 16384.f", "sm80_fwd_f16acc_f32_d64"
    ),
    "maximum of half of the lanes": Bug("tile/epilogue.h", "return fmaxf(x, arch::shuffle_xor(x, 2));", "return x;"),
    "row without keys not zeroed (CUDA)": Bug("attention/sm80_fwd.cuh", "seen = divisor != 0.f;", "seen = true;"),
    "rows past the last query written": Bug("attention/sm80_fwd.cuh", "if (row >= sequence.seqlen_q) continue;", ""),
    "channels past head_dim written": Bug(
        "tile/epilogue.h", "if (channel < head_dim) *reinterpret_cast", "*reinterpret_cast"
    ),
    "LSE of packed sequences at the first one's place": Bug(
        "attention/sm80_fwd.cuh", "place.head * p.total_q + sequence.row_q + row", "place.head * p.total_q + row"
    ),
    "stride of the mask's keys": Bug("tile/mask_scores.h", "e == 0 ? next : 7 * next", "e == 0 ? next : 6 * next"),
    "additive mask not in base 2 (CUDA)": Bug("tile/mask_scores.h", "  value *= kLog2e;\n", ""),
    "integer P beyond 1": Bug(
        "attention/sm80_fwd.cuh",
        "Accum::kNeedsStepMax ? arch::fma_down(-bias, unit, -base[mt][r]) :",
        "",
        "sm80_fwd_int8_d64",
    ),
    "integer P not folded to the row's maximum": Bug(
        "tile/pv_accumulator.h", "12582912.f, fold[mt][x / 2], outer", "12582912.f, 1.f, outer", "sm80_fwd_int8_d64"
    ),
    "sum of integer P not folded": Bug(
        "attention/sm80_fwd.cuh",
        "static_cast<float>(probabilities.sum[i / 2][i % 2]), f,",
        "static_cast<float>(probabilities.sum[i / 2][i % 2]), 1.f,",
        "sm80_fwd_int8_d64",
    ),
    "keys of INT8 V in the wrong order": Bug(
        "quantize/quantize_qkv.cuh",
        "j / 2 * 8 + Lanes::slot() % 4 * 2 + j % 2; };\n    Channels x[4];\n    rows.load(x, channel, key);\n    float y",
        "j % 2 * 8 + Lanes::slot() % 4 * 2 + j / 2; };\n    Channels x[4];\n    rows.load(x, channel, key);\n    float y",
        "sm80_fwd_int8_d64",
    ),
    "fragments of Q in the wrong order": Bug(
        "common/quant_format.h", "(row % 8 * 4 + d % 16 / 4) * 16", "(d % 16 / 4 * 8 + row % 8) * 16"
    ),
    "halves of Q's fragments swapped": Bug(
        "quantize/quantize_qkv.cuh", "{{other0, other1, high[0], high[1]}}", "{{high[0], high[1], other0, other1}}"
    ),
    "tiles of packed sequences overlap": Bug(
        "common/quant_format.h", "first_row / kTileRows + b :", "first_row / kTileRows :"
    ),
    "LSE not corrected for the mean of K (CUDA)": Bug(
        "quantize/quantize_qkv.cuh", "= p.softmax_scale * dot;", "= 0.f;"
    ),
    "mean of K over the padded length": Bug(
        "quantize/kv_stats.cuh", "static_cast<float>(sequence.seqlen_k);", "static_cast<float>(p.sequences.seqlen_k);"
    ),
    "mean of K not subtracted in the first tile": Bug(
        "quantize/quantize_qkv.cuh",
        "y[j][c] - shared.channel[channel + c] :",
        "y[j][c] - (place.first_row ? shared.channel[channel + c] : 0.f) :",
    ),
    "mean of K of another head": Bug(
        "quantize/quantize_qkv.cuh",
        "place.batch, place.head / (p.num_heads_q / p.num_heads_kv))",
        "place.batch, 0)",
    ),
    "last chunk of K not in the mean": Bug(
        "quantize/quantize_qkv.cuh", "if (i < p.stats_chunks) take", "if (i + 1 < p.stats_chunks || i == 0) take"
    ),
    "sign of softmax_scale lost": Bug(
        "quantize/quantize_qkv.cuh", "p.softmax_scale < 0.f ? -scale.inverse : scale.inverse", "scale.inverse"
    ),
    "largest magnitude maps to 128": Bug("quantize/quantize_qkv.cuh", "kLimit = 127.f", "kLimit = 128.f"),
    "largest magnitude of half of the channels": Bug(
        "quantize/tiles.h",
        "i < kPerRow; i *= 2)\n      x = arch::max_nan",
        "i < kPerRow / 2; i *= 2)\n      x = arch::max_nan",
    ),
    "keys past the last one read": Bug("quantize/tiles.h", "return row < num_rows_;", "return true;"),
    "offset of K in 32 bits": Bug(
        "quantize/tiles.h", "head * x.stride_head +", "static_cast<int32_t>(head * x.stride_head) +"
    ),
    "no barrier before the partial sums are read": Bug(
        "quantize/kv_stats.cuh", "arch::sync_block();  // the partial results", "// the partial results"
    ),
    "no barrier before the mean is read": Bug(
        "quantize/quantize_qkv.cuh", "arch::sync_block();  // the means of all", "// the means of all"
    ),
    "no barrier before the largest magnitudes are read": Bug(
        "quantize/quantize_qkv.cuh",
        "arch::sync_block();  // the maxima of all slots",
        "// the maxima of all slots",
    ),
    "no barrier before the tile of V is written": Bug(
        "quantize/quantize_qkv.cuh",
        "arch::sync_block();  // the tile is complete",
        "// the tile is complete",
        "sm80_fwd_int8_d64",
    ),
    "bfloat16 V overflows": Bug(
        "quantize/quantize_qkv.cuh", ": Scale::power_of_two(amax)", ": Scale{1.f, 1.f}", "sm80_fwd_f16acc_f32_d64"
    ),
    "scale of V of the first head": Bug(
        "attention/sm80_fwd.cuh",
        "p.num_heads_kv + place.head_kv) * kHeadDim",
        "p.num_heads_kv) * kHeadDim",
        "sm80_fwd_int8_d64",
    ),
    "length of the last sequence divides every mean of K": Bug(
        "quantize/kv_stats.cuh", "p.k_seqlens[batch] =", "p.k_seqlens[0 * batch] ="
    ),
    "tiles of K launched with those of Q": Bug(
        "quantize/quantize_qkv.cuh",
        "return p.k_out ? Place::num_blocks(p.k_tiles, p.batch, p.num_heads_kv) : 0;",
        "return Place::num_blocks(p.k_tiles, p.batch, p.num_heads_kv);",
        "api_steps",
    ),
    "tiles of Q launched with those of K": Bug(
        "quantize/quantize_qkv.cuh",
        "return p.q_out ? Place::num_blocks(p.q_tiles, p.batch, p.num_heads_q) : 0;",
        "return Place::num_blocks(p.q_tiles, p.batch, p.num_heads_q);",
        "api_steps",
    ),
    "quantized Q without its part of the LSE": Bug(
        "csrc/api/forward_cuda.cpp", "&q, nullptr, kv, true, stream", "&q, nullptr, kv, args.lse, stream", "api_steps"
    ),
    "LSE with the mean of another K": Bug(
        "csrc/api/attention.cpp", "q.kv == kv.data || !args.lse", "true || !args.lse", "api_steps"
    ),
    "keys that were not quantized are read": Bug(
        "csrc/api/attention.cpp", "args.seqused_k || !kv.has_seqused_k", "true || !kv.has_seqused_k", "api_steps"
    ),
    "V in place is not in the view": Bug(
        "csrc/api/forward_cuda.cpp",
        "== VFormat::kInPlace) *v = args.v;",
        "== VFormat::kCopy) *v = args.v;",
        "api_steps",
    ),
    "quantized Q and K overlap in the workspace": Bug(
        "csrc/api/forward_cuda.cpp",
        "at<void>(workspace, quantized_q_bytes(d, kernels))",
        "at<void>(workspace, quantized_q_bytes(d, kernels) / 128 * 64)",
        "api_steps",
    ),
    "tag without the length of K": Bug(
        "csrc/api/tags.cpp",
        '  comparison.field("seqlen_k", kv.desc.seqlen_k, desc.seqlen_k);\n',
        "",
        "api_steps",
    ),
    "tag without the format of V": Bug(
        "csrc/api/tags.cpp",
        '  comparison.field("V", v_format(kv.desc, kernels), v_format(desc, kernels));\n',
        "",
        "api_steps",
    ),
    "tag of Q with the length of K": Bug(
        "csrc/api/tags.cpp",
        'field("head_dim", has.head_dim, needed.head_dim);',
        'field("head_dim", has.head_dim, needed.head_dim);\n    field("seqlen_k", has.seqlen_k, needed.seqlen_k);',
        "api_steps",
    ),
    "empty views accepted": Bug(
        "csrc/api/tags.cpp", "return desc.head_dim == 0 || (!data && bytes > 0);", "return false;", "api_steps"
    ),
    "what was done on one device counts for all": Bug(
        "arch/once_per_device.h",
        "device < 64 ? uint64_t{1} << device : 0",
        "device < 64 ? 1 : 0",
        "api_once_per_device",
    ),
    "what failed counts as done": Bug(
        "arch/once_per_device.h", "if (error == 0) done_.", "done_.", "api_once_per_device"
    ),
    "done is said before it is": Bug(
        "arch/once_per_device.h",
        "int const error = action();\n    if (error == 0) done_.fetch_or(bit, std::memory_order_release);\n",
        "done_.fetch_or(bit, std::memory_order_release);\n"
        "    int const error = action();\n    if (error != 0) done_.fetch_and(~bit);\n",
        "api_once_per_device",
    ),
}


def run(tree: Path, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in `tree`, with the package of that tree before an installed one."""
    env = os.environ | {"PATH": TOOLS_PATH, "PYTHONPATH": str(tree / "python")} | environment
    return subprocess.run(
        command, cwd=tree, env=env, text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def build(tree: Path, folder: str, options: list[str], *targets: str) -> None:
    """Builds in a folder of `tree`, which is configured if it is new."""
    options = [*options, f"-DPython_EXECUTABLE={sys.executable}"]
    steps = [["cmake", "--build", folder, "--parallel", "2", *(["--target", *targets] if targets else [])]]
    if not (tree / folder).exists():
        steps.insert(0, ["cmake", "-G", "Ninja", "-S", ".", "-B", folder, *options])
    for step in steps:
        done = run(tree, *step)
        if done.returncode:
            sys.exit(done.stdout)


def failure_on_cpu(tree: Path) -> str:
    """How the shared suite fails with the extension built from `tree`; empty if it passes."""
    build(tree, "build", ["-DSAGE_PYTHON=ON", "-DSAGE_CUDA=OFF"])
    (module,) = (tree / "build/csrc").glob("_C*.so")
    shutil.copy(module, tree / "python/sage")
    done = run(tree, sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS)
    if done.returncode == 0:
        return ""
    if done.returncode > 1:  # not a test that failed, nor a signal
        sys.exit(done.stdout)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return failed[0][7:100] if failed else f"exit {done.returncode}"


def failure_in_emulator(tree: Path, program: str) -> str:
    """How a program of the emulator fails; empty if it passes."""
    build(tree, "build-emulator", ["-DSAGE_EMULATOR=ON", "-DSAGE_CUDA=OFF", "-DSAGE_CPU=OFF"], f"emulator_{program}")
    path = tree / "build-emulator" / "tests" / "emulator" / f"emulator_{program}"
    for schedule, timing in CONFIGURATIONS:
        done = run(tree, path, SAGE_EMULATOR_SCHEDULE=schedule, SAGE_EMULATOR_ASYNC=timing)
        if done.returncode == 0:
            continue
        failed = [line for line in done.stdout.splitlines() if "FAILED" in line]
        how = failed[0] if failed else f"{done.stdout.splitlines()[-1]}exit {done.returncode}"
        return f"{schedule}, {timing}: {len(failed)} cases: {how.removeprefix(f'{program}, ')}"[:150]
    return ""


def check_clean(tree: Path, names: list[str]) -> None:
    """Without a bug nothing may fail."""
    results = {}
    if any(name in CPU_BUGS for name in names):
        results["the CPU kernels"] = failure_on_cpu(tree)
    for program in sorted({CUDA_BUGS[name].program for name in names if name in CUDA_BUGS}):
        results[program] = failure_in_emulator(tree, program)
    for what, how in results.items():
        if how:
            sys.exit(f"{what}: the tests fail without any bug: {how}")


def main(names: list[str]) -> int:
    everything = CPU_BUGS | CUDA_BUGS
    unknown = [name for name in names if name not in everything]
    if unknown:
        sys.exit(f"unknown bug {unknown[0]!r}; there are:\n  " + "\n  ".join(everything))
    chosen = {name: everything[name] for name in names or everything}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "sage"
        shutil.copytree(ROOT, tree, ignore=UNWANTED)
        check_clean(tree, list(chosen))
        survivors = 0
        for name, bug in chosen.items():
            path = tree / (bug.file if bug.file.startswith("csrc/") else KERNELS + bug.file)
            text = path.read_text()
            if text.count(bug.right) != 1:
                sys.exit(f"{name}: {bug.right!r} occurs {text.count(bug.right)} times in {bug.file}, not once")
            path.write_text(text.replace(bug.right, bug.wrong))
            how = failure_on_cpu(tree) if name in CPU_BUGS else failure_in_emulator(tree, bug.program)
            path.write_text(text)
            print(f"{'caught' if how else 'SURVIVED':<9} {name}: {how or 'nothing fails'}", flush=True)
            survivors += not how
    print(f"{len(chosen) - survivors} passed, {survivors} failed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
