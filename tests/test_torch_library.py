"""The operators in PyTorch's machinery: opcheck, torch.compile, autograd, import."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sage
from bounds import DTYPES
from compare import compare
from distributions import nrmse
from needs import needs_emulator
from sage.reference import exact

BACKENDS = [
    "cpu",
    "reference",
    pytest.param("emulator", marks=needs_emulator),
    pytest.param("cuda", marks=pytest.mark.cuda),
]
RECIPES = {
    "cpu": ("sage1@cpu", "int16"),
    "reference": ("sage1@cpu", "int16"),
    "emulator": ("sage1", "sage1_int8"),
    "cuda": ("sage1", "sage1_int8"),
}


@pytest.fixture(autouse=True)
def _tensors_on_the_gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """For the backend that takes them there."""
    on_gpu = hasattr(request.node, "callspec") and request.node.callspec.params.get("backend") == "cuda"
    with request.getfixturevalue("cuda") if on_gpu else contextlib.nullcontext():
        yield


def make(
    *,
    num_heads_kv: int = 2,
    seqlen_q: int = 20,
    seqlen_k: int = 24,
    requires_grad: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (2, 4, seqlen_q, 32), (2, num_heads_kv, seqlen_k, 32), (2, num_heads_kv, seqlen_k, 32)
    return tuple(torch.randn(shape, dtype=dtype, requires_grad=requires_grad) for shape in shapes)


def op_arguments(
    backend: str, recipe: str, *, layout: str = "bhsd", return_lse: bool = True, requires_grad: bool = False
) -> tuple[Any, ...]:
    q, k, v = (
        t.transpose(1, 2).contiguous().detach().requires_grad_(requires_grad) if layout == "bshd" else t
        for t in make(requires_grad=requires_grad, dtype=DTYPES[backend])
    )
    mask = torch.rand(2, 1, 20, 24) < 0.8
    return (
        q,
        k,
        v,
        mask,
        torch.tensor([24, 9], dtype=torch.int32),
        True,
        None,
        10,
        -1,
        layout,
        recipe,
        backend,
        return_lse,
    )


def varlen_arguments(backend: str, recipe: str, *, requires_grad: bool = False) -> tuple[Any, ...]:
    q, k, v = (
        torch.randn(shape, dtype=DTYPES[backend], requires_grad=requires_grad)
        for shape in ((20, 4, 32), (24, 2, 32), (24, 2, 32))
    )
    of_q, of_k = (torch.tensor(n, dtype=torch.int32) for n in ((0, 8, 20), (0, 20, 24)))
    return q, k, v, of_q, of_k, None, 12, 20, False, 0.2, -1, 5, recipe, backend, True


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("return_lse", [True, False], ids=["lse", "no_lse"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend: str, return_lse: bool, layout: str) -> None:
    torch.library.opcheck(
        torch.ops.sage.attention.default,
        op_arguments(backend, RECIPES[backend][0], layout=layout, return_lse=return_lse),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_varlen(backend: str) -> None:
    torch.library.opcheck(torch.ops.sage.attention_varlen.default, varlen_arguments(backend, RECIPES[backend][0]))


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_opcheck_with_gradients(layout: str) -> None:
    torch.library.opcheck(
        torch.ops.sage.attention.default, op_arguments("reference", "sagebwd", layout=layout, requires_grad=True)
    )


def test_opcheck_varlen_with_gradients() -> None:
    torch.library.opcheck(
        torch.ops.sage.attention_varlen.default, varlen_arguments("reference", "sagebwd", requires_grad=True)
    )


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_compile(backend: str, dynamic: bool) -> None:
    """One graph, the same bits, and with dynamic shapes no new graph for new lengths."""
    from torch._dynamo.testing import CompileCounter

    mask = torch.randn(1, 1, 1, 60)

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        causal = sage.attention(q, k, v, is_causal=True, backend=backend)
        full, lse = sage.attention(
            causal,
            k,
            v,
            attn_mask=mask[..., : k.shape[2]],
            backend=backend,
            recipe=RECIPES[backend][1],
            return_lse=True,
        )
        return full + lse[..., None]

    torch._dynamo.reset()
    graphs = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=graphs)
    for seqlen in (20, 33, 57):
        inputs = make(seqlen_q=seqlen, seqlen_k=seqlen + 2, dtype=DTYPES[backend])
        assert torch.equal(compiled(*inputs), model(*inputs))
    assert graphs.frame_count == (1 if dynamic else 3)


def test_compile_with_inductor() -> None:
    inputs = make()
    torch._dynamo.reset()

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sage.attention(q * 2, k, v).sin()

    compare(torch.compile(model, fullgraph=True)(*inputs), model(*inputs), atol=1e-6, what="inductor")


def test_compile_recipe_objects() -> None:
    """A Recipe is a constant of the graph; another one makes another graph."""
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda q, k, v, recipe: sage.attention(q, k, v, recipe=recipe), fullgraph=True, backend="eager"
    )
    q, k, v = make()
    for recipe in (
        sage.PRESETS["int16"],
        sage.PRESETS["sage1@cpu"],
        sage.PRESETS["sage1@cpu"].replace(smooth_k=False),
        "sage1_int8",
    ):
        assert torch.equal(compiled(q, k, v, recipe), sage.attention(q, k, v, recipe=recipe))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_varlen(backend: str) -> None:
    q, k, v, of_q, of_k, *_ = varlen_arguments(backend, RECIPES[backend][1])

    def model(*inputs: Tensor) -> Tensor:
        return sage.attention_varlen(*inputs, 12, 20, recipe=RECIPES[backend][1], backend=backend)

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(q, k, v, of_q, of_k), model(q, k, v, of_q, of_k))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("patched", [False, True], ids=["sdpa", "patch_sdpa"])
def test_compile_sdpa(patched: bool, dynamic: bool) -> None:
    torch._dynamo.reset()

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attend = torch.nn.functional.scaled_dot_product_attention if patched else sage.sdpa
        return attend(q, k, v, is_causal=True, enable_gqa=True)

    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="eager")
    for seqlen_q, seqlen_k in ((20, 24), (33, 20), (21, 21)):
        q, k, v = make(seqlen_q=seqlen_q, seqlen_k=seqlen_k)
        expected = sage.sdpa(q, k, v, is_causal=True, enable_gqa=True)
        with sage.patch_sdpa() as calls:
            assert torch.equal(compiled(q, k, v), expected)
        assert calls.served == patched


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("num_heads_kv", [4, 2])
@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"is_causal": True},
        {"window_size": (6, 2), "seqused_k": torch.tensor([24, 9], dtype=torch.int32)},
        {"attn_mask": torch.arange(480).reshape(20, 24) % 5 > 0, "scale": 0.3},
    ],
    ids=["full", "causal", "window_seqused_k", "mask_scale"],
)
def test_gradients(rules: dict[str, Any], num_heads_kv: int, layout: str) -> None:
    """sagebwd through autograd, against float64 attention's own gradients: INT8 errs by a few percent."""
    inputs = make(num_heads_kv=num_heads_kv, requires_grad=True)
    grad = torch.randn(2, 4, 20, 32)
    names = {"is_causal": "causal", "window_size": "window"}
    expected, _ = exact(*inputs, **{"scale": 32**-0.5} | {names.get(n, n): value for n, value in rules.items()})
    expected.backward(grad.double())
    expected_grads = [t.grad for t in inputs]
    leaves = [(t.transpose(1, 2) if layout == "bshd" else t).detach().contiguous().requires_grad_() for t in inputs]
    out = sage.attention(*leaves, layout=layout, recipe="sagebwd", backend="reference", **rules)
    out.backward(grad.transpose(1, 2) if layout == "bshd" else grad)
    for name, leaf, expected_grad in zip("qkv", leaves, expected_grads):
        actual = leaf.grad.transpose(1, 2) if layout == "bshd" else leaf.grad
        assert nrmse(actual, expected_grad) < 0.05, f"d{name}"


def test_gradients_of_varlen() -> None:
    q, k, v, of_q, of_k, *_ = varlen_arguments("reference", "sagebwd", requires_grad=True)
    grad = torch.randn_like(q)
    out = sage.attention_varlen(q, k, v, of_q, of_k, 12, 20, is_causal=True, recipe="sagebwd", backend="reference")
    grads = torch.autograd.grad(out, (q, k, v), grad)
    for begin_q, end_q, begin_k, end_k in ((0, 8, 0, 20), (8, 20, 20, 24)):
        alone = [
            t[None, begin:end].detach().requires_grad_()
            for t, begin, end in ((q, begin_q, end_q), (k, begin_k, end_k), (v, begin_k, end_k))
        ]
        out = sage.attention(*alone, layout="bshd", is_causal=True, recipe="sagebwd", backend="reference")
        expected = torch.autograd.grad(out, alone, grad[None, begin_q:end_q])
        for packed, begin, end, one in zip(grads, (begin_q, begin_k, begin_k), (end_q, end_k, end_k), expected):
            compare(packed[begin:end], one[0], atol=1e-5, what="gradient of one sequence")


def test_gradients_when_compiled() -> None:
    torch._dynamo.reset()
    q, k, v = make(requires_grad=True)

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sage.attention(q, k, v, is_causal=True, recipe="sagebwd", backend="reference").square().sum()

    expected = torch.autograd.grad(model(q, k, v), (q, k, v))
    grads = torch.autograd.grad(torch.compile(model, fullgraph=True, backend="aot_eager")(q, k, v), (q, k, v))
    for grad, one in zip(grads, expected):
        compare(grad, one, atol=1e-5, what="gradient")


@pytest.mark.parametrize("recipe", ["sage1", "int16"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_recipes_without_gradients_say_so(recipe: str, compiled: bool) -> None:
    """The forward pass runs, as in a model under evaluation; the backward pass raises."""
    torch._dynamo.reset()
    attention = torch.compile(sage.attention, fullgraph=True, backend="aot_eager") if compiled else sage.attention
    q, k, v = make(requires_grad=True)
    out = attention(q, k, v, recipe=recipe)
    assert torch.equal(out, sage.attention(q.detach(), k.detach(), v.detach(), recipe=recipe))
    with pytest.raises(NotImplementedError, match=f"{recipe}.*sagebwd"):
        out.sum().backward()


def test_second_derivatives_say_that_there_are_none() -> None:
    q, k, v = make(requires_grad=True)
    out = sage.attention(q, k, v, recipe="sagebwd", backend="reference")
    (dq,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="sagebwd"):
        dq.sum().backward()


def test_lse_is_not_differentiable() -> None:
    out, lse = sage.attention(*make(requires_grad=True), recipe="sagebwd", backend="reference", return_lse=True)
    assert out.requires_grad and not lse.requires_grad


def run_python(code: str, **environment: str) -> str:
    path = os.pathsep.join([str(Path(sage.__file__).parents[1]), *sys.path])
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_is_light() -> None:
    """Under 100 ms over PyTorch's own import: the least of several, since a busy machine only adds."""
    code = "import time, torch; start = time.perf_counter(); import sage; print(time.perf_counter() - start)"
    assert min(float(run_python(code)) for _ in range(5)) < 0.1


def test_import_loads_nothing_that_calls_need_not() -> None:
    loaded = run_python(
        "import torch, sys; before = set(sys.modules); import sage; print(*sorted(set(sys.modules) - before))"
    ).split()
    assert "sage._C" in loaded
    assert not [
        name
        for name in loaded
        if name.startswith(("numpy", "torch._dynamo", "torch._inductor", "sage.reference", "sage.cli"))
    ]


def test_missing_extension_is_an_import_error(tmp_path: Path) -> None:
    """The real one, which names what is missing."""
    shutil.copytree(
        Path(sage.__file__).parent, tmp_path / "sage", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    )
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "try:\n    import sage\nexcept ImportError as error:\n    print(error)\n"
        "else:\n    raise SystemExit('imported ' + sage.__file__)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0 and "_C" in result.stdout, result.stdout + result.stderr
