"""The comparer of the test suite: NaN-sticky, and it says where."""

from __future__ import annotations

import torch
from torch import Tensor

_SHOWN = 5


def compare(actual: Tensor, expected: Tensor, *, atol: float, rtol: float = 0.0, what: str) -> None:
    """Raise AssertionError unless |actual - expected| <= atol + rtol * |expected| everywhere.

    NaN equals nothing but NaN, and an infinity only itself: the positions of NaN, +inf and -inf are compared first,
    so that no difference is hidden by a NaN that poisons a maximum. `what` names the tensors in the message, which
    lists the worst elements with their coordinates.
    """
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    for name, is_special in (("NaN", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf)):
        wrong = (is_special(actual) != is_special(expected)).nonzero()
        if len(wrong):
            raise AssertionError(
                _message(
                    f"{what}: {len(wrong)} of {actual.numel()} elements differ in being {name}", wrong, actual, expected
                )
            )
    finite = torch.isfinite(expected)
    error = torch.where(finite, (actual - expected).abs(), 0.0)
    excess = torch.where(finite, error - (atol + rtol * expected.abs()), -1.0)
    count = int((excess > 0).sum())
    if count:
        order = excess.flatten().argsort(descending=True)[: min(count, _SHOWN)]
        worst = torch.stack(torch.unravel_index(order, excess.shape), -1)
        tolerance = f"atol {atol:g} + rtol {rtol:g}, largest error {error.max():.4g}"
        summary = f"{what}: {count} of {actual.numel()} elements beyond {tolerance}"
        raise AssertionError(_message(summary, worst, actual, expected))


def _message(summary: str, positions: Tensor, actual: Tensor, expected: Tensor) -> str:
    lines = [
        f"  {tuple(p)}: {actual[tuple(p)]:.7g}, expected {expected[tuple(p)]:.7g}" for p in positions[:_SHOWN].tolist()
    ]
    return "\n".join([summary, *lines])
