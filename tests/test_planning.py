"""Plans for GPUs that are not here: what serves a problem, how much memory it takes, and why something is refused."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from building import configure, run
from needs import needs_cuda_build
from sage import _C, Recipe

INFO = _C.build_info()
KNOWN = (80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
COMPILED = [int(architecture) for architecture in INFO["cuda_architectures"].split()]
PROBLEM = {"batch": 2, "num_heads_q": 4, "num_heads_kv": 2, "head_dim": 64, "seqlen_q": 70, "seqlen_k": 150}
CPU = {"device": "cpu", "recipe": "sage1@cpu"}


def modules() -> list[Any]:
    """The modules with CUDA kernels in them."""
    found = []
    if INFO["cuda"] != "off":
        found.append(pytest.param(_C, id="_C"))
    try:
        found.append(pytest.param(importlib.import_module("sage._emulator"), id="_emulator"))
    except ModuleNotFoundError:
        pass
    return found or [pytest.param(None, marks=pytest.mark.skip("neither a build with CUDA nor sage._emulator"))]


each_module = pytest.mark.parametrize("module", modules())


def plan(module: Any = _C, **fields: Any) -> Any:
    fields = {"device": "cuda", "dtype": "float16", **PROBLEM, "recipe": "sage1", **fields}
    return module.AttnPlan(**fields | {"recipe": Recipe.parse(fields["recipe"])})


def compiled_for(module: Any) -> list[int]:
    return COMPILED if module is _C else [80]


def runs_on(architecture: int, compiled: list[int]) -> bool:
    """Code runs on its own major version, from its own minor version on; Tegra's (87, 110) where it is at home."""
    if architecture in (87, 110):
        return architecture in compiled
    return any(code // 10 == architecture // 10 and code <= architecture for code in compiled if code not in (87, 110))


def enumeration(values: list[str]) -> str:
    return " and ".join([", ".join(values[:-1]), values[-1]] if len(values) > 1 else values)


def has_driver() -> bool:
    try:
        _C.cuda_devices()
    except RuntimeError:
        return False
    return True


@each_module
@pytest.mark.parametrize("architecture", KNOWN)
def test_architectures(module: Any, architecture: int) -> None:
    """Where there are kernels there is a plan; elsewhere the message says what there is, and where that runs."""
    compiled = compiled_for(module)
    if runs_on(architecture, compiled):
        assert plan(module, architecture=architecture).kernel_name == "sm80_fwd_f16_d64"
        return
    with pytest.raises(NotImplementedError) as refusal:
        plan(module, architecture=architecture)
    served = [known for known in KNOWN if runs_on(known, compiled)]
    code, runs = (enumeration([f"sm_{x}" for x in values]) for values in (compiled, served))
    assert str(refusal.value) == (
        f"no kernel of this build runs on sm_{architecture}: its code is for {code}, which runs on {runs} only"
    )


@pytest.mark.parametrize("architecture", [70, 75, 81, 91, 1, -80])
def test_unknown_architecture(architecture: int) -> None:
    known = ", ".join(map(str, KNOWN))
    expected = f"architecture must be one of {known}, or 0 for that of the device, got {architecture}$"
    with pytest.raises(ValueError, match=expected):
        plan(architecture=architecture)


def test_architecture_of_a_cpu() -> None:
    with pytest.raises(ValueError, match="architecture must be 0 on the CPU, got 80"):
        plan(**CPU, architecture=80)


@pytest.mark.skipif(INFO["cuda"] != "off", reason="this build has CUDA")
@pytest.mark.parametrize("architecture", [0, 80, 90])
def test_build_without_cuda(architecture: int) -> None:
    with pytest.raises(NotImplementedError, match="this build has no CUDA"):
        plan(architecture=architecture)


@each_module
@pytest.mark.parametrize("recipe, pv", [("sage1", "fp16"), ("sage1_int8", "int8")])
@pytest.mark.parametrize("architecture, fits", [(80, True), (86, False), (89, False)])
def test_shared_memory(module: Any, architecture: int, fits: bool, recipe: str, pv: str) -> None:
    """head_dim 256 does not fit on every GPU that runs the code; 128 does."""
    if not runs_on(architecture, compiled_for(module)):
        pytest.skip(f"this build has no code for sm_{architecture}")
    assert plan(module, architecture=architecture, head_dim=128, recipe=recipe).kernel_name.endswith("_d128")
    if fits:
        assert plan(module, architecture=architecture, head_dim=256, recipe=recipe).kernel_name.endswith("_d256")
        return
    with pytest.raises(NotImplementedError) as refusal:
        plan(module, architecture=architecture, head_dim=256, recipe=recipe)
    found = re.fullmatch(
        rf"head_dim 256 with pv {pv} needs (\d+) bytes of shared memory for a block; sm_(\d+) has (\d+)",
        str(refusal.value),
    )
    assert found and int(found[2]) == architecture and int(found[1]) > int(found[3]) == 99 * 1024


@each_module
def test_named_architecture_counts(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is named counts, not what is here, and any index may be planned for."""
    monkeypatch.setenv("SAGE_EMULATOR_ARCH", "sm90")
    architecture = compiled_for(module)[0]
    assert plan(module, architecture=architecture, device_index=7).kernel_name == "sm80_fwd_f16_d64"


@pytest.mark.parametrize("device", [CPU, {"architecture": 80}], ids=["cpu", "cuda"])
@pytest.mark.parametrize(
    "operand, sizes",
    [
        ("q", {"seqlen_q": 2**62}),
        ("q", {"seqlen_q": 2**63 - 1}),
        ("q", {"seqlen_q": 0, "batch": 2**31 - 1, "num_heads_q": 2**30}),
        ("q", {"varlen": True, "total_q": 2**62}),
        ("q", {"varlen": True, "seqlen_q": 2**62}),
        ("k", {"seqlen_k": 2**62}),
        ("k", {"varlen": True, "total_k": 2**62}),
    ],
)
def test_sizes_that_no_machine_has(device: dict[str, Any], operand: str, sizes: dict[str, Any]) -> None:
    """They are refused before a number of bytes wraps around and a small workspace looks sufficient."""
    with pytest.raises(ValueError, match=rf"^{operand} must have at most 2\^46 values, got about \d\.\d+e\+\d+$"):
        plan(**PROBLEM | device | sizes)


@each_module
def test_largest_sizes(module: Any) -> None:
    """What is just allowed is counted in 64 bits."""
    fields = {"architecture": compiled_for(module)[0], "batch": 1, "num_heads_q": 1, "num_heads_kv": 1}
    made = plan(module, **fields, seqlen_q=2**40)
    assert made.quantized_q_bytes == 2**40 * (64 + 1 + 4)  # a scale for 4 rows, and what corrects lse
    made = plan(module, **fields, seqlen_q=1, seqlen_k=2**28)
    assert made.quantized_kv_bytes == 2**28 // 64 * (64 * 64 + 16) + 16 * 64 * 4 + 64


def aligned(size: int) -> int:
    return -(-size // 64) * 64


@each_module
@pytest.mark.parametrize("smooth_k", [False, True])
@pytest.mark.parametrize(
    "name, accum, dtype, v_aligned, v_bytes",
    [
        ("sage1", "fp32", "float16", True, 0),
        ("sage1", "fp32", "bfloat16", False, 2),
        ("sage1", "fp16", "float16", True, 0),
        ("sage1", "fp16+fp32", "bfloat16", True, 2),
        ("sage1_int8", "int32", "float16", True, 1),
    ],
)
def test_memory(module: Any, name: str, accum: str, dtype: str, v_aligned: bool, v_bytes: int, smooth_k: bool) -> None:
    """Q and K take a byte, V what its format takes, each tile has its scales; the rest is statistics."""
    made = plan(
        module,
        architecture=compiled_for(module)[0],
        recipe=f"{name}(pv_accum={accum}, smooth_k={smooth_k})",
        dtype=dtype,
        v_aligned=v_aligned,
        head_dim=104,
    )
    q_tiles, k_tiles, heads_kv, channels = 2 * 4 * 1, 2 * 2 * 3, 2 * 2, 128
    scales_v = v_bytes == 1 or (v_bytes == 2 and v_aligned)
    q = q_tiles * 128 * channels + q_tiles * 32 * 4 + smooth_k * aligned(2 * 4 * 70 * 4)
    kv = k_tiles * 64 * channels * (1 + v_bytes) + aligned(k_tiles * 4 * 4)
    kv += smooth_k * (heads_kv * channels * 4 + aligned(2 * 4)) + scales_v * 2 * heads_kv * channels * 4
    assert made.quantized_q_bytes == q
    assert made.quantized_kv_bytes == kv
    assert made.workspace_bytes == q + kv


def test_cpu_plans_keep_nothing() -> None:
    made = plan(**CPU, dtype="float32")
    assert made.quantized_q_bytes == made.quantized_kv_bytes == 0 < made.workspace_bytes
    view = (64, 0, 0, 0)
    with pytest.raises(NotImplementedError, match="the CPU kernels quantize in their loop"):
        made.quantize_kv(k=view, v=view, buffer=64)
    with pytest.raises(NotImplementedError, match="the CPU kernels quantize in their loop"):
        made.quantize_q(q=view, kv=_C.QuantizedKv(), softmax_scale=1.0, buffer=64)
    with pytest.raises(NotImplementedError, match="the CPU kernels quantize in their loop"):
        made.run_quantized(q=_C.QuantizedQ(), kv=_C.QuantizedKv(), out=view)


@needs_cuda_build
@pytest.mark.skipif(has_driver(), reason="this machine has a GPU")
def test_without_a_driver() -> None:
    """A plan for the device that is not here fails in CUDA's words; one for a named architecture only when it runs."""
    with pytest.raises(RuntimeError, match="^cuda[A-Z][A-Za-z]+: .+"):
        plan()
    made, view = plan(architecture=COMPILED[0]), (64, 0, 0, 0)
    with pytest.raises(RuntimeError, match="^cudaGetDevice: .+"):
        made.run(q=view, k=view, v=view, out=view, softmax_scale=1.0, workspace=64)
    with pytest.raises(RuntimeError, match="^cudaGetDevice: .+"):
        made.quantize_kv(k=view, v=view, buffer=64)


@needs_cuda_build
@pytest.mark.skipif(sys.platform != "linux", reason="links with GCC")
def test_launch_errors_name_the_kernel(tmp_path: Path) -> None:
    """Two kernels, of which one needs an attribute set before; each launched with no block and twice with one."""
    configure(tmp_path, "SAGE_CUDA=ON", "SAGE_CPU=OFF", "SAGE_TESTS=ON", f"CMAKE_CUDA_COMPILER={INFO['cuda_compiler']}")
    run("cmake", "--build", tmp_path, "--target", "sage_launch_check")
    (program,) = tmp_path.rglob("sage_launch_check")
    said = run(program)
    if has_driver():
        pytest.skip(f"this machine has a GPU; the launches said: {said}")
    one = r"3 launch of kernel {0}: .+?"
    expected = " ".join(f"ok {one} {one}".format(name) for name in ("fill_1k", "fill_64k"))
    assert re.fullmatch(expected, said), said
