"""Plans for GPUs that are not here: what serves a problem, how much memory it takes, and why something is refused."""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace
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
    """Of a recipe's text, or of any object with the fields of one, which Recipe may not allow."""
    fields = {"device": "cuda", "dtype": "float16", **PROBLEM, "recipe": "sage1", **fields}
    recipe = fields["recipe"]
    return module.AttnPlan(**fields | {"recipe": Recipe.parse(recipe) if isinstance(recipe, str) else recipe})


def changed(recipe: str, **fields: Any) -> Any:
    return SimpleNamespace(**dataclasses.asdict(Recipe.parse(recipe)) | fields)


def compiled_for(module: Any) -> list[int]:
    return COMPILED if module is _C else [80, 89, 90, 120]


# What the code of a family is for, of a build's architectures; "+int4" with INT4 tensor cores, "+int8" with INT8 P V.
FAMILIES = {
    "sm80": (80, 86, 87, 89, 90, 120),
    "sm80+int4": (80, 86, 87, 89),
    "sm80+int8": (80, 86, 87, 89, 120),
    "sm89": (89, 120),
    "sm89+int4": (89,),
    "sm90": (90,),
    "sm120": (120,),
}
SPECIFIC = ("sm90", "sm120")  # their code, for 90a and 120a, runs nowhere else


def family_runs_on(family: str, architecture: int, module: Any) -> bool:
    listed = FAMILIES[family]
    # What else a build may have kernels for: to test them there.
    extra = [x for x in compiled_for(module) if x not in FAMILIES["sm80"] and x >= listed[0]]
    if family in SPECIFIC:
        extra = [x for x in extra if x // 10 == listed[0] // 10]
    code = [x for x in compiled_for(module) if x in listed] + extra
    return architecture in code if family in SPECIFIC else runs_on(architecture, code)


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


INT4_F16 = "sage1(qk=int4, smooth_q=True)"
INT4_F16ACC = "sage2_int4(pv_accum=fp16+fp32, v_max=2.25, fold_every=64)"

# By recipe: the kernels that serve it, the first that runs, and what they need of the machine.
SERVED = {
    "sage1": (["sm80_fwd_f16"], ""),
    "sage1(pv_accum=fp16)": (["sm80_fwd_f16acc"], ""),
    "sage1(pv_accum=fp16+fp32)": (["sm80_fwd_f16acc_f32"], ""),
    "sage1_int8": (["sm80_fwd_int8"], "code that is not made for sm_90"),
    INT4_F16: (["sm80_fwd_int4_f16"], "INT4 tensor cores (sm_80 to sm_89)"),
    "sage2": (["sm120_fwd_mxfp8", "sm90_fwd_wgmma", "sm89_fwd_fp8"], "FP8 tensor cores (sm_89 and later)"),
    "sage2(approximate_exp=True)": (["sm90_fwd_wgmma_approx"], "tensor cores with wgmma (sm_90)"),
    "sage2(pv_accum=fp32, fold_every=1)": (["sm120_fwd_mxfp8"], "block-scaled FP8 tensor cores (sm_120)"),
    "sage2pp": (["sm89_fwd_fp8_f16acc"], "FP8 tensor cores with mma.sync (sm_89 and sm_120)"),
    "sage2_int4": (["sm89_fwd_int4_fp8"], "INT4 and FP8 tensor cores (sm_89)"),
    INT4_F16ACC: (["sm89_fwd_int4_fp8_f16acc"], "INT4 and FP8 tensor cores (sm_89)"),
    "sage3": (["sm120_fp4_fwd_nvfp4"], "NVFP4 tensor cores with mma.sync (sm_120)"),
    "sage3_fp8": (["sm120_fp4_fwd_fp8"], "NVFP4 tensor cores with mma.sync (sm_120)"),
    "sage3_fp8(pv_accum=fp32+fp32)": (["sm120_fp4_fwd_fp8"], "NVFP4 tensor cores with mma.sync (sm_120)"),
}


def family(kernel: str) -> str:
    return kernel.partition("_")[0] + "+int4" * ("int4" in kernel) + "+int8" * ("int8" in kernel)


def served_on(module: Any, recipe: str) -> list[int]:
    """The architectures on which a build has a kernel for a recipe."""
    kernels = SERVED[recipe][0]
    return [known for known in KNOWN if any(family_runs_on(family(kernel), known, module) for kernel in kernels)]


def an_architecture(module: Any, recipe: str) -> int:
    """One that runs a recipe; the test is skipped where the build has none."""
    if not (served := served_on(module, recipe)):
        pytest.skip(f"this build, for {COMPILED}, has no kernel for {recipe}")
    return served[0]


@each_module
@pytest.mark.parametrize("recipe", SERVED)
@pytest.mark.parametrize("architecture", KNOWN)
def test_kernels_of_an_architecture(module: Any, architecture: int, recipe: str) -> None:
    """The first kernel whose code runs there; else the message says where one runs, and what it needs."""
    kernels, needs = SERVED[recipe]
    if not any(family_runs_on(name, architecture, module) for name in FAMILIES):
        return  # test_architectures
    if here := [kernel for kernel in kernels if family_runs_on(family(kernel), architecture, module)]:
        assert plan(module, architecture=architecture, recipe=recipe).kernel_name == f"{here[0]}_d64"
        return
    with pytest.raises(NotImplementedError) as refusal:
        plan(module, architecture=architecture, recipe=recipe)
    r, served = Recipe.parse(recipe), served_on(module, recipe)
    if not served:
        assert re.match(
            r"the CUDA kernels of this build \([\w, ]+\) .*serve recipe field \w+ .+ only", str(refusal.value)
        )
        return
    has_instructions = any(
        runs_on(architecture, FAMILIES[family(kernel)]) for kernel in kernels
    )  # sm_121: those of 120a
    if has_instructions:
        needs = "code for it in the build"
    assert str(refusal.value) == (
        f"the CUDA kernels of this build for qk {r.qk}, pv {r.pv}, pv_accum {r.pv_accum}"
        f"{', approximate_exp true' if r.approximate_exp else ''} run on "
        f"{enumeration([f'sm_{x}' for x in served])} only, got sm_{architecture}: they need {needs}"
    )


@each_module
def test_bfloat16_has_a_kernel_of_its_own_for_16_bit_p_alone(module: Any) -> None:
    for recipe, name in (
        ("sage1", "bf16"),
        ("sage1(pv_accum=fp16)", "f16acc"),
        (INT4_F16, "int4_bf16"),
        ("sage2pp", ""),
    ):
        architecture = an_architecture(module, recipe)
        name = f"sm80_fwd_{name}_d64" if name else "sm89_fwd_fp8_f16acc_d64"
        assert plan(module, architecture=architecture, recipe=recipe, dtype="bfloat16").kernel_name == name


# Fields of a recipe that no kernel serves beside the others: what the message says.
NOT_SERVED = [
    ("sage1", {"pv": "int16"}, "serve recipe field pv fp16, int8, fp8_e4m3 or nvfp4 only, got int16"),
    ("sage1", {"pv_accum": "int32"}, "for pv fp16 serve recipe field pv_accum fp32, fp16 or fp16+fp32 only, got int32"),
    ("sage2", {"pv_accum": "fp16"}, "for pv fp8_e4m3 serve recipe field pv_accum fp32, fp16+fp32 or fp32+fp32 only, got fp16"),
    ("sage1_int8", {"qk": "int4"}, "for pv int8 with pv_accum int32 serve recipe field qk int8 only, got int4"),
    ("sage1", {"qk": "int16"}, "for pv fp16 with pv_accum fp32 serve recipe field qk int8 or int4 only, got int16"),
    ("sage1(pv_accum=fp16)", {"qk": "int4"}, "with pv_accum fp16 serve recipe field qk int8 only, got int4"),
    ("sage1", {"approximate_exp": True},
     "for qk int8, pv fp16, pv_accum fp32 serve recipe field approximate_exp false only, got true"),
    ("sage2pp", {"approximate_exp": True},
     "for qk int8, pv fp8_e4m3, pv_accum fp16+fp32 serve recipe field approximate_exp false only, got true"),
    ("sage2_int4", {"approximate_exp": True},
     "for qk int4, pv fp8_e4m3, pv_accum fp32+fp32 serve recipe field approximate_exp false only, got true"),
    ("sage2", {"qk_granularity": "token"}, "for qk int8 serve recipe field qk_granularity thread, warp or block only, got token"),
    ("sage2", {"qk_granularity": "1x16"}, "for qk int8 serve recipe field qk_granularity thread, warp or block only, got 1x16"),
    ("sage2", {"block_q": 64}, "block_q 128 only, got 64"),
    ("sage2", {"block_k": 128}, "block_k 64 only, got 128"),
    ("sage2", {"v_granularity": "block"}, "v_granularity channel only, got block"),
    ("sage2", {"p_two_level": True}, "for pv fp8_e4m3 serve recipe field p_two_level false only, got true"),
    ("sage1", {"smooth_q": True}, "smooth Q for qk int4 and nvfp4 only, got smooth_q with qk int8"),
    ("sage1", {"smooth_v": True}, "smooth V for pv int8, fp8_e4m3 and nvfp4 only, got smooth_v with pv fp16"),
    ("sage1", {"fold_every": 2}, "for pv fp16 with pv_accum fp32 serve recipe field fold_every 1 only, got 2"),
    ("sage1(pv_accum=fp16+fp32)", {"fold_every": 2}, "with pv_accum fp16+fp32 serve recipe field fold_every 1 only, got 2"),
    ("sage1", {"p_max": 448.0}, "for pv fp16 serve recipe fields p_max 1, v_max 0 only, got 448, 0"),
    ("sage1_int8", {"v_max": 126.0}, "for pv int8 serve recipe fields p_max 255, v_max 127 only, got 255, 126"),
    ("sage2", {"p_max": 0.99}, "p_max must be in [1, 448] for pv fp8_e4m3, got 0.99"),
    ("sage2", {"p_max": 449.0}, "p_max must be in [1, 448] for pv fp8_e4m3, got 449"),
    ("sage2", {"p_max": float("nan")}, "p_max must be in [1, 448] for pv fp8_e4m3, got nan"),
    ("sage2", {"v_max": 0.99}, "v_max must be in [1, 448] for pv fp8_e4m3, got 0.99"),
    ("sage2", {"v_max": 450.0}, "v_max must be in [1, 448] for pv fp8_e4m3, got 450"),
    ("sage2pp", {"p_max": 448.0, "v_max": 2.5}, "64 * p_max * v_max, as e4m3 rounds them, must be at most 65504, got p_max 448, v_max 2.5"),
    ("sage2pp", {"p_max": 448.0, "v_max": 2.25, "fold_every": 65},
     "fold_every * p_max * v_max, as e4m3 rounds them, must be at most 65504, got fold_every 65, p_max 448, v_max 2.25"),
    ("sage2pp", {"p_max": 101.0, "v_max": 9.0, "fold_every": 70},  # 104: 101 is none of e4m3's numbers
     "must be at most 65504, got fold_every 70, p_max 101, v_max 9"),
    ("sage2pp", {"p_max": 99.9, "v_max": 10.2},  # the kernel's P may be 2^.016 larger, which is 104 in e4m3
     "64 * p_max * v_max, as e4m3 rounds them, must be at most 65504, got p_max 99.9, v_max 10.2"),
    ("sage2pp", {"p_max": 10.0, "v_max": 101.0, "fold_every": 1},
     "must be at most 65504, got p_max 10, v_max 101"),
    ("sage2(pv_accum=fp32, fold_every=1)", {"fold_every": 2}, "fold_every 1 only, got 2"),
    ("sage2(approximate_exp=True)", {"fold_every": 1},
     "the CUDA kernels for pv fp8_e4m3 on sm_90 serve recipe field fold_every >= 2 only, got 1"),
    ("sage2(approximate_exp=True)", {"p_max": 449.0}, "p_max must be in [1, 448] for pv fp8_e4m3, got 449"),
    ("sage3", {"qk": "int8"}, "for pv nvfp4 with pv_accum fp32 serve recipe field qk nvfp4 only, got int8"),
    ("sage3", {"pv_accum": "fp32+fp32"}, "for pv nvfp4 serve recipe field pv_accum fp32 only, got fp32+fp32"),
    ("sage3", {"approximate_exp": True},
     "for qk nvfp4, pv nvfp4, pv_accum fp32 serve recipe field approximate_exp false only, got true"),
    ("sage3", {"qk_granularity": "thread"}, "for qk nvfp4 serve recipe field qk_granularity 1x16 only, got thread"),
    ("sage3_fp8", {"qk_granularity": "token"}, "for qk nvfp4 serve recipe field qk_granularity 1x16 only, got token"),
    ("sage3", {"block_q": 64}, "block_q 128 only, got 64"),
    ("sage3", {"block_k": 128}, "block_k 64 only, got 128"),
    ("sage3", {"v_granularity": "block"}, "v_granularity channel only, got block"),
    ("sage3", {"p_two_level": False}, "for pv nvfp4 serve recipe field p_two_level true only, got false"),
    ("sage3_fp8", {"p_two_level": True}, "for pv fp8_e4m3 serve recipe field p_two_level false only, got true"),
    ("sage3", {"fold_every": 2}, "for pv nvfp4 with pv_accum fp32 serve recipe field fold_every 1 only, got 2"),
    *(("sage3", {"p_max": p_max},
       f"for pv nvfp4 with qk nvfp4 serve recipe field p_max a power of two in [16, 2048] only, got {p_max:g}")
      for p_max in (2688.0, 8.0, 4096.0, 500.0)),
    ("sage3", {"v_max": 6.0}, "for pv nvfp4 serve recipe field v_max 0 only, got 6"),
    *(("sage3_fp8", {"p_max": p_max},
       f"for pv fp8_e4m3 with qk nvfp4 serve recipe field p_max a power of two in [16, 256] only, got {p_max:g}")
      for p_max in (8.0, 24.0, 255.9, 448.0)),
    ("sage3_fp8", {"p_max": 512.0}, "p_max must be in [1, 448] for pv fp8_e4m3, got 512"),
    ("sage3_fp8", {"v_max": 0.0}, "v_max must be in [1, 448] for pv fp8_e4m3, got 0"),
]  # fmt: skip


@each_module
@pytest.mark.parametrize("recipe, fields, message", NOT_SERVED)
def test_fields_that_are_not_served(module: Any, recipe: str, fields: dict[str, Any], message: str) -> None:
    architecture = an_architecture(module, recipe)
    assert plan(module, architecture=architecture, recipe=changed(recipe)).kernel_name
    if "or nvfp4 only" in message or "or fp32+fp32" in message or "or int4" in message:
        for needed in ("sage2(pv_accum=fp32, fold_every=1)", INT4_F16, "sage3"):
            an_architecture(module, needed)
    with pytest.raises(NotImplementedError) as refusal:
        plan(module, architecture=architecture, recipe=changed(recipe, **fields))
    assert str(refusal.value).endswith(message)


@each_module
def test_fields_that_are_served(module: Any) -> None:
    for recipe, fields in (
        ("sage1", {"hadamard": True, "key_order": "reverse"}),
        ("sage1_int8", {"smooth_v": True}),
        (INT4_F16, {"smooth_q": False, "hadamard": True}),
        ("sage2", {"smooth_v": True, "p_max": 256.0, "v_max": 1.0, "fold_every": 10**6, "key_order": "forward"}),
        ("sage2pp", {"p_max": 448.0, "v_max": 2.25, "fold_every": 64}),
        ("sage2pp", {"p_max": 101.0, "v_max": 9.0, "fold_every": 69}),
        ("sage2_int4", {"qk_granularity": "warp", "hadamard": True}),
        ("sage2(approximate_exp=True)", {"qk_granularity": "block", "smooth_v": True, "p_max": 256.0, "fold_every": 2}),
        ("sage3", {"smooth_q": False, "smooth_k": False, "smooth_v": True, "hadamard": True}),
        ("sage3", {"key_order": "forward"}),
        ("sage3_fp8", {"smooth_v": True, "p_max": 16.0, "v_max": 1.0, "key_order": "reverse"}),
        ("sage3_fp8(pv_accum=fp32+fp32)", {"smooth_q": False, "p_max": 128.0, "fold_every": 10**6}),
    ):
        assert plan(module, architecture=an_architecture(module, recipe), recipe=changed(recipe, **fields)).kernel_name


@each_module
def test_fold_every_must_be_positive(module: Any) -> None:
    with pytest.raises(ValueError, match="recipe field fold_every must be >= 1, got 0"):
        plan(module, architecture=an_architecture(module, "sage2"), recipe=changed("sage2", fold_every=0))


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
@pytest.mark.parametrize(
    "recipe", [text for text in SERVED for r in [Recipe.parse(text)] if r.pv != "fp16" and r.qk != "nvfp4"]
)
def test_8_bit_v_fits_with_head_dim_256(module: Any, recipe: str) -> None:
    """Into the shared memory of GeForce, too, and with what else Hopper's kernels have there."""
    architectures = [x for x in served_on(module, recipe) if x in (86, 89, 90, 120, 121)]
    for architecture in architectures:
        assert plan(module, architecture=architecture, recipe=recipe, head_dim=256).kernel_name.endswith("_d256")
    if not architectures:
        pytest.skip(f"this build, for {COMPILED}, has no kernel for {recipe}")


@each_module
@pytest.mark.parametrize(
    "architecture, fits", [(80, True), (86, False), (89, False), (90, True), (120, False), (121, False)]
)
def test_shared_memory(module: Any, architecture: int, fits: bool) -> None:
    """head_dim 256 with 16-bit V does not fit on every GPU that runs the code; 128 does."""
    if not runs_on(architecture, compiled_for(module)):
        pytest.skip(f"this build has no code for sm_{architecture}")
    assert plan(module, architecture=architecture, head_dim=128).kernel_name.endswith("_d128")
    if fits:
        assert plan(module, architecture=architecture, head_dim=256).kernel_name.endswith("_d256")
        return
    with pytest.raises(NotImplementedError) as refusal:
        plan(module, architecture=architecture, head_dim=256)
    if not any(x // 10 in (8, 9, 10, 11) for x in compiled_for(module)):  # no such kernel was compiled
        assert f"for pv fp16 do not serve head_dim 256 on sm_{architecture}: it needs more" in str(refusal.value)
        return
    found = re.fullmatch(
        r"head_dim 256 with pv fp16 needs (\d+) bytes of shared memory for a block; sm_(\d+) has (\d+)",
        str(refusal.value),
    )
    assert found and int(found[2]) == architecture and int(found[1]) > int(found[3]) == 99 * 1024


@each_module
@pytest.mark.parametrize("recipe", ["sage3", "sage3_fp8"])
def test_head_dim_of_nvfp4(module: Any, recipe: str) -> None:
    """Up to 128, by padding; more is refused, on any GPU with the reason that holds there."""
    architecture, (kernel,) = an_architecture(module, recipe), SERVED[recipe][0]
    for head_dim, padded in ((1, 64), (40, 64), (64, 64), (65, 128), (128, 128)):
        made = plan(module, architecture=architecture, recipe=recipe, head_dim=head_dim)
        assert made.kernel_name == f"{kernel}_d{padded}"
    for head_dim in (129, 192, 256):
        expected = (
            f"^the CUDA kernels for qk nvfp4 serve head_dim up to 128 only, got {head_dim}: the accumulators of more "
            "have no registers$"
        )
        with pytest.raises(NotImplementedError, match=expected):
            plan(module, architecture=architecture, recipe=recipe, head_dim=head_dim)
    if 80 in compiled_for(module):
        with pytest.raises(NotImplementedError, match=r"run on sm_120 only, got sm_80: they need NVFP4 tensor cores"):
            plan(module, architecture=80, recipe=recipe, head_dim=256)


@each_module
def test_named_architecture_counts(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is named counts, not what is here, and any index may be planned for."""
    monkeypatch.setenv("SAGE_EMULATOR_ARCH", "sm90")
    architecture = compiled_for(module)[0]
    assert plan(module, architecture=architecture, device_index=7).kernel_name == "sm80_fwd_f16_d64"


@each_module
def test_architecture_of_a_device(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a call that takes no time; the emulator's is what its variable says at that moment."""
    if module is _C:
        if has_driver():
            assert [_C.cuda_architecture(x["index"]) for x in _C.cuda_devices()] == [
                x["architecture"] for x in _C.cuda_devices()
            ]
        with pytest.raises(RuntimeError, match="^cudaDeviceGetAttribute: .+"):
            _C.cuda_architecture(1000)
        return
    for name, architecture in (("sm80", 80), ("sm89", 89), ("sm90", 90), ("sm120", 120)):
        monkeypatch.setenv("SAGE_EMULATOR_ARCH", name)
        assert module.cuda_architecture(0) == module.cuda_devices()[0]["architecture"] == architecture
    with pytest.raises(ValueError, match="the emulator has CUDA device 0 only, got 1"):
        module.cuda_architecture(1)


@pytest.mark.skipif(INFO["cuda"] != "off", reason="this build has CUDA")
def test_architecture_without_cuda() -> None:
    with pytest.raises(NotImplementedError, match="this build has no CUDA"):
        _C.cuda_architecture(0)


@each_module
def test_wgmma_folds_steps_of_two_tiles(module: Any) -> None:
    if not family_runs_on("sm90", 90, module):
        pytest.skip("this build has no code for sm_90a")
    with pytest.raises(
        NotImplementedError, match="the CUDA kernels for pv fp8_e4m3 on sm_90 serve recipe field fold_every >= 2 only"
    ):
        plan(module, architecture=90, recipe="sage2(fold_every=1)")


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("hadamard", True, "hadamard false only, got true"),
        ("approximate_exp", True, "approximate_exp false only, got true"),
        ("fold_every", 2, "fold_every 1 only, got 2"),
        ("key_order", "reverse", "key_order forward only, got reverse"),
    ],
)
def test_fields_that_the_cpu_does_not_serve(field: str, value: Any, message: str) -> None:
    with pytest.raises(NotImplementedError, match=f"the CPU kernels serve recipe field {message}$"):
        plan(**CPU | {"recipe": changed(CPU["recipe"], **{field: value})}, dtype="float32")


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
