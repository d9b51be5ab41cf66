"""Which layers of a model, and which tiles of queries in the others, are computed by a finer recipe.

    policy = sage.MixedRecipe("sage3", fine="sage2pp", fine_layers=(0, 1, 27), fine_tiles=((0, 1),))
    out = sage.attention(q, k, v, recipe=policy.at(layer=5))

NVFP4 is too coarse for some layers (SageAttention3, table 15) and for rows whose scores are peaked. Whoever measures a
model writes down here what it found; `to_dict` and `from_dict` keep it in a JSON file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .recipe import PRESETS, Recipe


@dataclass(frozen=True)
class MixedRecipe:
    """A recipe for most of a model and a finer one for the rest. Hashable.

    Attributes:
        base: the recipe of what follows does not name; a `sage.Recipe` or the text of one.
        fine: the other recipe, with the block_q of `base`.
        fine_layers: layers that `fine` computes.
        fine_tiles: ranges (first, end) of tiles of block_q query rows that `fine` computes in all other layers,
            ascending, no tile twice. A call has as many of these tiles as it has rows for.
    """

    base: Recipe = PRESETS["sage3"]
    fine: Recipe = PRESETS["sage2pp"]
    fine_layers: tuple[int, ...] = ()
    fine_tiles: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        for field in ("base", "fine"):
            object.__setattr__(self, field, _recipe(field, getattr(self, field)))
        if self.fine.block_q != self.base.block_q:
            raise ValueError(
                f"policy field fine must have the block_q of base, {self.base.block_q}, got {self.fine.block_q}"
            )
        layers = _tuple("fine_layers", self.fine_layers)
        for layer in layers:
            if not _is_number(layer):
                raise ValueError(f"policy field fine_layers must hold integers >= 0, got {layer!r}")
        object.__setattr__(self, "fine_layers", tuple(sorted(set(layers))))
        tiles = tuple(_tuple("fine_tiles", tile) for tile in _tuple("fine_tiles", self.fine_tiles))
        end_before = 0
        for tile in tiles:
            if len(tile) != 2 or not all(map(_is_number, tile)) or tile[0] >= tile[1]:
                raise ValueError(f"policy field fine_tiles must hold ranges (first, end), 0 <= first < end, got {tile}")
            if tile[0] < end_before:
                raise ValueError(f"policy field fine_tiles must ascend and not overlap, got {tile} behind {end_before}")
            end_before = tile[1]
        object.__setattr__(self, "fine_tiles", _merged(tiles))

    def at(self, layer: int) -> Recipe | MixedRecipe:
        """What `sage.attention` takes for this layer: a recipe, or a mixture whose layers are settled."""
        if not _is_number(layer):
            raise ValueError(f"layer must be an integer >= 0, got {layer!r}")
        if layer in self.fine_layers:
            return self.fine
        return dataclasses.replace(self, fine_layers=()) if self.fine_tiles else self.base

    def runs(self, seqlen_q: int) -> Iterator[tuple[int, int, Recipe]]:
        """The query rows [begin, end) of a call and their recipe, in order and gapless; one empty run for no rows."""
        begin = 0
        for first, last in self.fine_tiles:
            fine_begin, fine_end = (min(tile * self.base.block_q, seqlen_q) for tile in (first, last))
            if begin < fine_begin:
                yield begin, fine_begin, self.base
            if fine_begin < fine_end:
                yield fine_begin, fine_end, self.fine
            begin = fine_end
        if begin < seqlen_q or seqlen_q == 0:
            yield begin, seqlen_q, self.base

    def to_dict(self) -> dict[str, Any]:
        """Text and lists of integers, for JSON."""
        return {
            "base": str(self.base),
            "fine": str(self.fine),
            "fine_layers": list(self.fine_layers),
            "fine_tiles": [list(tile) for tile in self.fine_tiles],
        }

    @staticmethod
    def from_dict(fields: Mapping[str, Any]) -> MixedRecipe:
        """What `to_dict` returned; fields that are not there have their defaults."""
        known = [f.name for f in dataclasses.fields(MixedRecipe)]
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise ValueError(f"a policy has the fields {', '.join(known)}, got {', '.join(map(repr, unknown))}")
        return MixedRecipe(**fields)


def _recipe(field: str, value: str | Recipe) -> Recipe:
    if isinstance(value, Recipe):
        return value
    if not isinstance(value, str) or value == "auto":
        raise ValueError(f"policy field {field} must be a sage.Recipe or the text of one, got {value!r}")
    return Recipe.parse(value)


def _tuple(field: str, value: Iterable[Any]) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"policy field {field} must be a sequence, got {value!r}")
    return tuple(value)


def _merged(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Ascending ranges, those that touch as one."""
    merged: list[tuple[int, int]] = []
    for first, end in ranges:
        if merged and merged[-1][1] == first:
            first, _ = merged.pop()
        merged.append((first, end))
    return tuple(merged)


def _is_number(value: Any) -> bool:
    return type(value) is int and value >= 0
