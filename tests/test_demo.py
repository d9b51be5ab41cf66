"""The demo: a real model on quantized attention."""

from __future__ import annotations

import json
import sys

import pytest
import torch

import sage
from sage.cli import demo, main
from sage.cli.bench import RECIPES
from sage.cli.embedding import BATCH, PACKAGES, Embedder
from sage.cli.measure import Case
from sage.cli.sentences import GROUPS, SENTENCES
from sage.cli.terminal import is_installed

needs_model = pytest.mark.skipif(not is_installed(*PACKAGES), reason=f"needs {' and '.join(PACKAGES)} (extra demo)")

# The least cosine with PyTorch's embedding, with 5 to 10 times the distance from 1 that the avx512_vnni kernels have.
LEAST_COSINE = {"sage1_int8": 0.9995, "sage1": 0.9999, "int16": 0.999997}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """On a busy machine the many short parallel regions of a small model wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


@needs_model
def test_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "LONG", Case(1, 2, 200, 200, 64))
    monkeypatch.setattr(demo, "REPEATS", 1)
    file = tmp_path / "folder" / "demo.json"
    assert main(["demo", "--json", str(file)]) == 0
    text = capsys.readouterr().out
    report = json.loads(file.read_text())
    sentences = report["sentences"]
    assert sentences["count"] == len(SENTENCES)
    pytorch, *ours = sentences["results"]
    assert pytorch["calls_on_sage"] == 0 and pytorch["same_neighbour"] == len(SENTENCES)
    assert [result["name"] for result in ours] == list(RECIPES)
    for result in ours:
        assert result["calls_on_sage"] == sentences["attention_calls"] == -(-len(SENTENCES) // BATCH) * 6
        assert LEAST_COSINE[result["name"]] < result["cosine_min"] <= result["cosine_mean"] < 1 + 1e-6
        assert result["same_neighbour"] >= len(SENTENCES) - 2
        assert result["ms"]["median"] > 0
        assert f"{result['cosine_min']:.5f}" in text
    for pair in sentences["pairs"]:
        assert pair["sentence"] in text and pair["neighbour"][:40] in text
        assert pair["sentence"] != pair["neighbour"]
    (long,) = report["cases"]
    assert long["case"] == str(demo.LONG)
    assert all(result["nrmse"] < 0.02 for result in long["results"])


@needs_model
def test_model_understands_the_sentences(embedder):
    subjects = [subject for subject, group in GROUPS.items() for _ in group]
    with sage.patch_sdpa():
        neighbours = demo._nearest(embedder.embed(embedder.tokenize(SENTENCES)))[1]
    same = sum(subjects[i] == subjects[neighbour] for i, neighbour in enumerate(neighbours.tolist()))
    assert same > 0.75 * len(SENTENCES)


@needs_model
@pytest.mark.parametrize("recipe", RECIPES)
def test_padding_of_a_batch_is_hidden(embedder, recipe):
    short, long = SENTENCES[0], SENTENCES[4]
    with sage.patch_sdpa(recipe=recipe) as calls:
        alone = embedder.embed(embedder.tokenize([short]))
        padded = embedder.embed(embedder.tokenize([short, long]))
    assert calls.served == 2 * embedder.num_layers and not calls.fell_back
    assert torch.cosine_similarity(alone[0], padded[0], dim=0) > LEAST_COSINE[recipe]


@needs_model
def test_refuses_before_the_first_result(monkeypatch, capsys):
    monkeypatch.setenv("SAGE_CPU_ISA", "sse9")
    assert main(["demo"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "sse9" in captured.err


@pytest.mark.parametrize("package", PACKAGES)
def test_without_the_model_says_what_to_install(package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)  # Python's own way to make an import fail
    assert main(["demo"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and 'pip install "sage-attn[demo]"' in captured.err
