"""The CUDA backend as PyTorch meets it: streams, graphs, devices, launches, torch.compile.

What the kernels compute is tested by the suite that runs on every backend. The tests marked `cuda` need a GPU; the rest
runs where there is none.
"""

from __future__ import annotations

import threading
import types

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import sage
from needs import needs_cuda_build, needs_emulator
from sage import _C, _select, ops

cuda_only = pytest.mark.cuda
BUSY_CYCLES = 500_000_000
"""What keeps a GPU of 2 GHz busy for a quarter of a second: longer than any call takes to return."""


def make(device: torch.device, *, seqlen: int = 300, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    shapes = (2, 4, seqlen, 64), (2, 2, seqlen, 64), (2, 2, seqlen, 64)
    return tuple(torch.randn(shape, device=device, dtype=torch.float16, generator=generator) for shape in shapes)


@cuda_only
@pytest.mark.parametrize("smooth_k, launches", [(True, 3), (False, 2)])
def test_launches(cuda: torch.device, smooth_k: bool, launches: int) -> None:
    """Nothing runs on the GPU but our kernels, and of these no more than are needed."""
    inputs, recipe = make(cuda), f"sage1(smooth_k={smooth_k})"
    sage.attention(*inputs, recipe=recipe)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        sage.attention(*inputs, recipe=recipe)
        torch.cuda.synchronize()
    on_gpu = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    on_gpu = [name for name in on_gpu if not name.endswith(" Sync")]  # the profiler reports synchronizations there too
    assert len(on_gpu) == launches and all("device_kernel" in name for name in on_gpu), on_gpu


@cuda_only
def test_call_only_enqueues(cuda: torch.device) -> None:
    """The call returns while the GPU is still busy with what was enqueued before it; so does the first of a shape. The
    first of a kernel may not: CUDA loads the code then."""
    sage.attention(*make(cuda, seqlen=300))
    inputs = make(cuda, seqlen=301)
    torch.cuda.synchronize()
    torch.cuda._sleep(BUSY_CYCLES)
    before = torch.cuda.Event()
    before.record()
    sage.attention(*inputs)
    assert not before.query(), "the call waited for the GPU"


@cuda_only
def test_stream(cuda: torch.device) -> None:
    """Work goes to the current stream: it waits for what produces its inputs there."""
    inputs = make(cuda)
    expected = sage.attention(*inputs)
    stream = torch.cuda.Stream(cuda)
    late = [torch.zeros_like(t) for t in inputs]
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(BUSY_CYCLES)
        for target, source in zip(late, inputs):
            target.copy_(source)
        out = sage.attention(*late)
    stream.synchronize()
    assert torch.equal(out, expected)


@cuda_only
@pytest.mark.parametrize("recipe", ["sage1", "sage1_int8", "auto"])
def test_graph(cuda: torch.device, recipe: str) -> None:
    """Captured once and replayed on other values."""
    static = make(cuda)
    mask = torch.rand(300, 300, device=cuda) < 0.9

    def attend(*qkv: Tensor) -> tuple[Tensor, Tensor]:
        return sage.attention(*qkv, attn_mask=mask, recipe=recipe, return_lse=True)

    stream = torch.cuda.Stream(cuda)
    with torch.cuda.stream(stream):
        attend(*static)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = attend(*static)
    for seed in (1, 2):
        inputs = make(cuda, seed=seed)
        for target, source in zip(static, inputs):
            target.copy_(source)
        graph.replay()
        for got, expected in zip(captured, attend(*inputs)):
            assert torch.equal(got, expected)


@cuda_only
def test_first_call_may_be_captured(cuda: torch.device) -> None:
    """A shape and a head_dim that no call has used: attributes are set and plans made under capture."""
    q, k, v = (torch.randn(1, 2, 130, 100, device=cuda, dtype=torch.bfloat16) for _ in range(3))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sage.attention(q, k, v)
    graph.replay()
    assert torch.equal(captured, sage.attention(q, k, v))


@cuda_only
def test_other_device(cuda: torch.device) -> None:
    """Tensors on a device that is not the current one, which stays current."""
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    inputs = make(cuda)
    expected = sage.attention(*inputs)
    other = [t.to("cuda:1") for t in inputs]
    with torch.cuda.device(0):
        out = sage.attention(*other)
        assert torch.cuda.current_device() == 0 and out.device.index == 1
    assert torch.equal(out.to(cuda), expected)


@cuda_only
def test_threads(cuda: torch.device) -> None:
    """Calls from several threads at once, each in a stream of its own, as the first of their head_dim."""
    inputs = [torch.randn(2, 4, 200, 120, device=cuda, dtype=torch.float16) for _ in range(3)]
    torch.cuda.synchronize()
    results: list[Tensor] = []

    def work() -> None:
        with torch.cuda.stream(torch.cuda.Stream(cuda)):
            for _ in range(20):
                out = sage.attention(*inputs)
            torch.cuda.current_stream().synchronize()
            results.append(out)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(threads)
    assert all(torch.equal(out, results[0]) for out in results)


@cuda_only
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compile(cuda: torch.device, mode: str) -> None:
    """One graph through Inductor, with and without its CUDA graphs."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda q, k, v: sage.attention(q * 2, k, v) + 1, fullgraph=True, mode=mode)
    inputs = make(cuda)
    expected = sage.attention(inputs[0] * 2, *inputs[1:]) + 1
    for _ in range(3):
        assert torch.equal(compiled(*inputs), expected)


@cuda_only
@pytest.mark.parametrize("recipe", ["sage1", "sage1_int8", "auto"])
def test_offsets_above_32_bits(cuda: torch.device, recipe: str) -> None:
    """The last head of a tensor whose heads are 2^31 elements apart."""
    if torch.cuda.mem_get_info(cuda)[0] < 3 * 2**33:
        pytest.skip("24 GiB of free GPU memory are needed")
    inputs = make(cuda)
    wide = []
    for t in inputs:
        memory = torch.empty(2**31 + t[0, 0].numel(), device=cuda, dtype=t.dtype)
        view = memory.as_strided((1, 2, *t.shape[2:]), (2**31, 2**31, 64, 1))
        view.copy_(t[:1, :2])
        wide.append(view)
    expected = sage.attention(*(t[:1, :2] for t in inputs), recipe=recipe)
    assert torch.equal(sage.attention(*wide, recipe=recipe), expected)


@cuda_only
@pytest.mark.parametrize("recipe", ["sage1", "auto"])
def test_repeats_bit_for_bit(cuda: torch.device, recipe: str) -> None:
    inputs = make(cuda, seqlen=1000)
    expected = sage.attention(*inputs, recipe=recipe)
    assert all(torch.equal(sage.attention(*inputs, recipe=recipe), expected) for _ in range(50))


@cuda_only
def test_plan_of_another_device_is_refused(cuda: torch.device) -> None:
    """The library does not change the current device."""
    major, minor = torch.cuda.get_device_capability(cuda)
    plan = _C.AttnPlan(
        device="cuda",
        device_index=1,
        architecture=10 * major + minor,
        dtype="float16",
        recipe=sage.PRESETS["sage1"],
        batch=1,
        num_heads_q=1,
        num_heads_kv=1,
        head_dim=64,
        seqlen_q=16,
        seqlen_k=16,
    )
    q = torch.zeros(1, 1, 16, 64, device=cuda, dtype=torch.float16)
    workspace = torch.empty(plan.workspace_bytes, device=cuda, dtype=torch.uint8)
    view = (q.data_ptr(), 1024, 1024, 64)
    with pytest.raises(ValueError, match="the current CUDA device must be that of the plan, 1, got 0"):
        plan.run(q=view, k=view, v=view, out=view, softmax_scale=1.0, workspace=workspace.data_ptr(), stream=0)


def test_parameters_of_gpu_tests_hold_no_tensors(request: pytest.FixtureRequest) -> None:
    """They are made when tests are collected, on the CPU."""

    def holds_tensor(value: object) -> bool:
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
        return isinstance(value, Tensor) or any(map(holds_tensor, parts))

    on_gpu = [item for item in request.session.items if item.get_closest_marker("cuda") and hasattr(item, "callspec")]
    if not on_gpu:
        pytest.skip("none of them is selected")
    assert not [item.nodeid for item in on_gpu if holds_tensor(item.callspec.params)]


@needs_cuda_build
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_fake_tensors(layout: str) -> None:
    """Shapes, strides, dtypes and devices without a GPU: what torch.compile and torch.export ask for."""
    with FakeTensorMode():
        q = torch.empty(2, 16, 24, 64, device="cuda", dtype=torch.bfloat16)
        k = torch.empty(2, *((8, 24) if layout == "bhsd" else (16, 8)), 64, device="cuda", dtype=torch.bfloat16)
        out, lse = sage.attention(q, k, k, layout=layout, return_lse=True)
        assert (out.device, out.dtype, out.shape, out.stride()) == (q.device, q.dtype, q.shape, q.stride())
        heads, seqlen = (16, 24) if layout == "bhsd" else (24, 16)
        assert (lse.device, lse.dtype, tuple(lse.shape)) == (q.device, torch.float32, (2, heads, seqlen))
        packed = torch.empty(40, 4, 64, device="cuda", dtype=torch.float16)
        cu_seqlens = torch.empty(3, device="cuda", dtype=torch.int32)
        out = sage.attention_varlen(packed, packed, packed, cu_seqlens, cu_seqlens, 30, 30)
        assert (out.device, out.dtype, out.shape) == (packed.device, packed.dtype, packed.shape)


@needs_cuda_build
def test_fake_tensors_are_checked() -> None:
    with FakeTensorMode():
        q = torch.empty(1, 2, 24, 64, device="cuda", dtype=torch.float16)
        with pytest.raises(ValueError, match="k must be on the device of q, cuda:0, got cpu"):
            sage.attention(q, torch.empty(1, 2, 24, 64, dtype=torch.float16), q)
        with pytest.raises(ValueError, match="k must be on the device of q, cuda:0, got cuda:1"):
            sage.attention(q, torch.empty(1, 2, 24, 64, device="cuda:1", dtype=torch.float16), q)


@pytest.mark.parametrize(
    "architecture, recipe",
    [(80, "sage1"), (86, "sage1"), (87, "sage1"), (89, "sage2pp"), (90, "sage2"), (120, "sage2"), (121, "sage2pp")],
)
def test_default_recipe_of_each_gpu(monkeypatch: pytest.MonkeyPatch, architecture: int, recipe: str) -> None:
    """That of the tensors' own GPU, whichever is the first; with a reason for those that have a choice."""
    gpus = {0: 75, 1: architecture}
    planted = types.SimpleNamespace(build_info=lambda: {"cuda": "13.0"}, cuda_architecture=gpus.__getitem__)
    monkeypatch.setattr(_select, "_C", planted)
    assert _select.choose("cuda", "auto", "auto", 1) == ("cuda", recipe)
    assert _select.choose("cuda", "auto", "reference", 1) == ("reference", "sage1")
    assert _select.auto_recipe(architecture)[0] == recipe
    gpus[1] = 0
    assert _select.choose("cuda", "sage2pp", "cuda", 1) == ("cuda", "sage2pp")


@needs_emulator
@pytest.mark.parametrize(
    "gpu, recipe, launches",
    [
        ("sm89", "sage1", 3),
        ("sm89", "sage1(smooth_k=False)", 2),
        ("sm89", "sage1_int8", 3),
        ("sm89", "sage2", 3),
        ("sm89", "sage2_int4(smooth_v=True, hadamard=True)", 3),
        ("sm89", "sage2_int4(smooth_k=False, smooth_v=False)", 3),
        ("sm90", "sage2", 3),
        ("sm90", "sage2(approximate_exp=True, smooth_v=True)", 3),
        ("sm120", "sage3", 3),
        ("sm120", "sage3_fp8", 3),
        ("sm120", "sage3(smooth_q=False, smooth_k=False, smooth_v=True, hadamard=True)", 3),
    ],
)
def test_emulated_launches(monkeypatch: pytest.MonkeyPatch, gpu: str, recipe: str, launches: int) -> None:
    """The statistics of K and V, where the recipe has any; the quantizer; attention. Smoothing and rotation add none."""
    monkeypatch.setenv(_select.EMULATED_VARIABLE, gpu)
    emulator = _select.extension("emulator")
    inputs = make(torch.device("cpu"), seqlen=70)
    emulator.reset_stats()
    sage.attention(*inputs, recipe=recipe, backend="emulator", return_lse=True)
    assert emulator.stats()["launches"] == launches


@needs_emulator
def test_plans_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One plan per problem; what selects another kernel or another layout of the workspace makes another."""
    q, k, v = make(torch.device("cpu"), seqlen=20)
    unaligned = torch.empty(v.numel() + 1, dtype=v.dtype)[1:].view(v.shape).copy_(v)

    def plans_made(*inputs: Tensor, **arguments: object) -> int:
        before = ops._plan.cache_info().misses
        sage.attention(*inputs, backend="emulator", **arguments)
        return ops._plan.cache_info().misses - before

    ops._plan.cache_clear()
    assert plans_made(q, k, v) == 1
    assert plans_made(k.repeat(1, 2, 1, 1), k + 1, v + 1, scale=0.5) == 0
    assert plans_made(q, k, v, attn_mask=torch.ones(20, 20, dtype=torch.bool)) == 0
    assert plans_made(q, k, unaligned) == 1
    assert plans_made(q, k, v, is_causal=True) == 1
    assert plans_made(q, k, v, recipe="sage1(smooth_k=False)") == 1
    assert plans_made(q[:, :, :9], k, v) == 1
    monkeypatch.setenv(_select.EMULATED_VARIABLE, "sm89")
    assert plans_made(q, k, v) == 1
    assert plans_made(q, k, v) == 0
