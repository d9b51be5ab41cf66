"""What only silicon can settle about sm_120's block-scaled instructions (tests/golden/README.md): a GPU is asked the
questions of tests/golden/questions.h and must answer as the emulator does, which is what the kernels assume."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from building import REPOSITORY
from test_emulator import run as run_emulator

sys.path.append(str(REPOSITORY / "benchmarks"))
import gpu_check  # noqa: E402

YES = {
    *(f"nvfp4_scales_of_thread_{thread}_and_no_others" for thread in range(4)),
    "nvfp4_nan_scale_reaches_its_row_and_column",
    "nvfp4_subnormal_scales",
    "nvfp4_normal_scales",
    "nvfp4_rounds_to_nearest",
    "mxfp8_rounds_to_nearest",
}
BITS_OF_SUMS = {f"{kind}_bits_of_sum_{of}" for kind in ("nvfp4", "mxfp8") for of in ("of_products", "with_c")}
E2M1 = {"e2m1_wrong_codes_of_float16": 0, "e2m1_code_of_nan": 7, "e2m1_code_of_negative_nan": 7}
CLOCKS = ("nvfp4_m16n8k64_clocks", "mxfp8_m16n8k32_clocks", "mxfp8_clocks_per_nvfp4_clock")

ASSUMED = {**dict.fromkeys(YES, 1), **dict.fromkeys(BITS_OF_SUMS, 23), **E2M1}
"""What the emulator answers."""
NEEDED = YES - {"nvfp4_rounds_to_nearest", "mxfp8_rounds_to_nearest"} | {"e2m1_wrong_codes_of_float16"}
"""What the kernels' correctness rests on. Of sums it is enough that they keep what golden vectors allow (2^-20); of the code
of NaN nothing depends, its block's scale is NaN."""
ENOUGH_BITS = 20

needs_nvcc = pytest.mark.skipif(gpu_check.find_nvcc() is None, reason="there is no nvcc")


def compile_questions(folder: Path, architecture: int) -> Path:
    program = folder / "ask_gpu"
    command = list(map(str, gpu_check.golden_command("ask_gpu.cu", architecture, program)))
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    return program


def parse(text: str) -> dict[str, float]:
    """Lines `NAME NUMBER`."""
    words = [line.split() for line in text.splitlines()]
    return {pair[0]: float(pair[1]) for pair in words if len(pair) == 2 and pair[0].count("_") > 1}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The GPU's. Clocks are answered, too."""
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU that PyTorch sees")
    major, minor = torch.cuda.get_device_capability()
    if major != 12:
        pytest.skip(f"this GPU is sm_{major}{minor}: sm_120 and sm_121 have block-scaled mma.sync")
    if gpu_check.find_nvcc() is None:
        pytest.skip("there is no nvcc")
    program = compile_questions(tmp_path_factory.mktemp("silicon"), 10 * major + minor)
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    found = parse(done.stdout)
    assert found.keys() == ASSUMED.keys() | set(CLOCKS)
    return found


@pytest.mark.cuda
@pytest.mark.parametrize("name", sorted(NEEDED))
def test_answer_that_kernels_rest_on(answers: dict[str, float], name: str) -> None:
    assert answers[name] == ASSUMED[name]


@pytest.mark.cuda
def test_sums_are_float32(answers: dict[str, float], record_property: pytest.FixtureRequest) -> None:
    """Rounded in which way is recorded only."""
    for name in sorted(ASSUMED.keys() - NEEDED):
        record_property(name, answers[name])
    assert all(answers[name] >= ENOUGH_BITS for name in BITS_OF_SUMS), {name: answers[name] for name in BITS_OF_SUMS}


@pytest.mark.cuda
def test_clocks(answers: dict[str, float], record_property: pytest.FixtureRequest) -> None:
    """Recorded for the choice between e4m3 and NVFP4 P V; here they need only be possible."""
    for name in CLOCKS:
        record_property(name, answers[name])
        assert 0.4 < answers[name] < 100
    nvfp4, mxfp8, ratio = (answers[name] for name in CLOCKS)
    assert ratio == pytest.approx(mxfp8 / nvfp4, rel=1e-3)


def test_emulator_answers() -> None:
    """The questions themselves work, and what is asserted of a GPU is what the emulator does."""
    assert parse(run_emulator("questions").stdout) == ASSUMED


@needs_nvcc
def test_questions_compile(tmp_path: Path) -> None:
    """Without a GPU the program then says that there is none."""
    program = compile_questions(tmp_path, 120)
    if not torch.cuda.is_available():
        done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 1 and done.stdout == "" and "cudaGetDeviceProperties" in done.stderr
