"""Runs quantized attention inside a real model, then on a long sequence.

The model turns sentences into vectors, once with PyTorch's attention and once with each recipe: are the vectors the
same, and does every sentence keep its nearest neighbour? Then one long random sequence, where the speed shows.
"""

from __future__ import annotations

import argparse
from textwrap import shorten

from torch import Tensor

import sage

from . import bench
from .embedding import PACKAGES, Embedder
from .measure import Case, interleaved
from .sentences import GROUPS, SENTENCES
from .terminal import Refused, argument, install_line, is_installed, output_file, progress, table, write_json

LONG = Case(1, 8, 4096, 4096, 64)
REPEATS = 7
SHOWN_RECIPE = "sage1"
SHOWN_SUBJECTS = ("dogs", "astronomy", "law", "programming")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=argument(output_file), metavar="FILE", help="write everything that was measured")


def run(arguments: argparse.Namespace) -> None:
    if not is_installed(*PACKAGES):
        raise Refused(f"the model is not installed: {install_line('demo')}", 1)
    recipes, settings = tuple(bench.RECIPES), {"backend": "auto", "dtype": "bfloat16"}
    bench.kernel_names([LONG], recipes, **settings)  # a refusal comes before the first result
    print(
        f"{len(SENTENCES)} sentences through all-MiniLM-L6-v2, a real text-embedding model, weights included ...\n",
        flush=True,
    )
    sentences = _sentences(Embedder())
    print(_render_sentences(sentences), flush=True)
    print("\nAttention alone, on a long sequence (random inputs, bfloat16; NRMSE is the error against float64):\n")
    long = bench.measure([LONG], recipes, **settings, repeats=REPEATS)
    print(bench.render_case(long["cases"][0]))
    print("\nNext: python -m sage bench (more shapes), python -m sage info (what this machine can run).")
    if arguments.json:
        write_json(arguments.json, {**long, "sentences": sentences})
        print(f"wrote {arguments.json}")


def _sentences(embedder: Embedder) -> dict:
    """What each recipe does to the embeddings."""
    batches = embedder.tokenize(SENTENCES)

    def embed(recipe: str | None) -> tuple[Tensor, int]:
        """The embeddings, and how many attention calls ran on sage."""
        if recipe is None:
            return embedder.embed(batches), 0
        with sage.patch_sdpa(recipe=recipe) as calls:
            return embedder.embed(batches), calls.served

    functions = {"PyTorch": lambda: embed(None)}
    functions |= {recipe: lambda recipe=recipe: embed(recipe) for recipe in bench.RECIPES}
    outcomes = {name: function() for name, function in functions.items()}
    with progress(len(functions) * REPEATS) as step:
        timings = interleaved(functions, REPEATS, step=step)
    results, (expected, _) = [], outcomes["PyTorch"]
    for name, (vectors, served) in outcomes.items():
        cosine = (vectors * expected).sum(-1)
        agree = _nearest(vectors)[1] == _nearest(expected)[1]
        results.append(
            {
                "name": name,
                "cosine_min": cosine.min().item(),
                "cosine_mean": cosine.mean().item(),
                "same_neighbour": int(agree.sum()),
                "calls_on_sage": served,
                "ms": timings[name].milliseconds(),
            }
        )
    return {
        "count": len(SENTENCES),
        "attention_calls": len(batches) * embedder.num_layers,
        "results": results,
        "pairs": _pairs(outcomes[SHOWN_RECIPE][0]),
    }


def _nearest(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The largest cosine of each row with another row, and which row that is."""
    return (vectors @ vectors.T).fill_diagonal_(-1).max(-1)


def _pairs(vectors: Tensor) -> list[dict]:
    """The first sentence of some subjects and its nearest neighbour."""
    cosine, neighbour = _nearest(vectors)
    firsts = [SENTENCES.index(GROUPS[subject][0]) for subject in SHOWN_SUBJECTS]
    return [
        {"sentence": SENTENCES[i], "neighbour": SENTENCES[neighbour[i]], "cosine": cosine[i].item()} for i in firsts
    ]


def _render_sentences(sentences: dict) -> str:
    pairs = [("cosine", "sentence", "nearest neighbour")]
    pairs += [
        (f"{pair['cosine']:.3f}", pair["sentence"], shorten(pair["neighbour"], 80, placeholder=" ..."))
        for pair in sentences["pairs"]
    ]
    count, calls = sentences["count"], sentences["attention_calls"]
    rows = [("attention", "min cosine", "mean cosine", "same neighbour", "calls on sage", "ms, whole model")]
    rows += [
        (
            r["name"],
            f"{r['cosine_min']:.5f}",
            f"{r['cosine_mean']:.5f}",
            f"{r['same_neighbour']}/{count}",
            f"{r['calls_on_sage']}/{calls}",
            f"{r['ms']['median']:.1f}",
        )
        for r in sentences["results"]
    ]
    return (
        f"Some of them and their nearest neighbours, as found with recipe {SHOWN_RECIPE}:\n\n"
        f"{table(pairs, align='><<')}\n\n"
        f"All {count} sentences: their vectors against those of PyTorch's attention.\n"
        f"Recipes: {bench.describe_recipes()}.\n\n{table(rows, align='<>>>>>')}"
    )
