"""The reference, with the steps of the kernel that it is compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor

from sage.cli import machine
from sage.recipe import Recipe
from sage.reference import scores


@contextlib.contextmanager
def kernel_steps(backend: str, recipe: str, head_dim: int) -> Iterator[Recipe]:
    """The recipe that makes the reference take the steps of the backend's kernel, while the context lasts.

    Up to head_dim 128 those of the kernels with wgmma have two tiles of block_k keys. P is rounded relative to the
    maximum of the steps so far, so that half of P can come out otherwise, by one rounding. Scales stay those of tiles.
    On the same GPU other kernels may serve other recipes.
    """
    fields = Recipe.parse(recipe)
    tiles = 1
    if backend in ("cuda", "emulator") and head_dim <= 128:
        kernel = machine.kernel_name(recipe, backend, head_dim=head_dim)
        tiles = 2 if kernel.startswith("sm90_") else 1
    groups_of = scores.key_groups

    def groups_of_tiles(seqlen: int, _: Recipe, device: torch.device) -> Tensor:
        return groups_of(seqlen, fields, device)

    with mock.patch.object(scores, "key_groups", groups_of_tiles):
        yield fields.replace(block_k=tiles * fields.block_k, fold_every=max(1, fields.fold_every // tiles))
