"""Inputs on which accuracy is stated, and the measures it is stated in.

Every generator returns q, k, v of shape (batch, num_heads, seqlen, head_dim), the same numbers for the same seed.
Random data is the hard case for relative errors: outputs average out, rounding errors do not shrink with them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

QKV = tuple[Tensor, Tensor, Tensor]


class _Source:
    """N(0, 1) tensors from one seed, and what each distribution adds to them."""

    def __init__(self, batch: int, num_heads: int, seqlen: int, head_dim: int, seed: int) -> None:
        self.batch, self.num_heads, self.seqlen, self.head_dim = batch, num_heads, seqlen, head_dim
        self.generator = torch.Generator().manual_seed(seed)

    def randn(self, seqlen: int) -> Tensor:
        return torch.randn(self.batch, self.num_heads, seqlen, self.head_dim, generator=self.generator)

    def qkv(self) -> QKV:
        return self.randn(self.seqlen), self.randn(self.seqlen), self.randn(self.seqlen)


def _normal(source: _Source) -> QKV:
    return source.qkv()


def _kbias(source: _Source) -> QKV:
    """K with a constant per channel, as diffusion transformers have it: what K smoothing removes."""
    q, k, v = source.qkv()
    return q, k + 20 * source.randn(1), v


def _qbias(source: _Source) -> QKV:
    """Q with a constant per channel, which makes the scores large: what Q smoothing takes out of INT4's range."""
    q, k, v = source.qkv()
    return q + 20 * source.randn(1), k, v


def _outlier(source: _Source) -> QKV:
    """head_dim / 32 channels (at least one) of Q and K are 8 times the others: no mean removes that."""
    q, k, v = source.qkv()
    channels = torch.randperm(source.head_dim, generator=source.generator)[: max(1, source.head_dim // 32)]
    q[..., channels] *= 8
    k[..., channels] *= 8
    return q, k, v


def _sink(source: _Source) -> QKV:
    """An attention sink: the first key's scores are N(3.6, 1.8^2) where the others are N(0, 1), and its V is a tenth.

    Q is shifted by 2 along one direction of each head, and the first key lies in that direction.
    """
    q, k, v = source.qkv()
    direction = torch.nn.functional.normalize(source.randn(1), dim=-1)
    k[..., :1, :] = 1.8 * source.head_dim**0.5 * direction
    v[..., :1, :] *= 0.1
    return q + 2 * direction, k, v


def _vbias(source: _Source) -> QKV:
    """V with a constant per channel: the output is nearly that constant, and a wrong row sum shows."""
    q, k, v = source.qkv()
    return q, k, v + 8 * source.randn(1)


def _large(source: _Source) -> QKV:
    """Scores of standard deviation 4: peaked attention."""
    q, k, v = source.qkv()
    return 4 * q, k, v


DISTRIBUTIONS: dict[str, Callable[[_Source], QKV]] = {
    "normal": _normal,
    "kbias": _kbias,
    "qbias": _qbias,
    "outlier": _outlier,
    "sink": _sink,
    "vbias": _vbias,
    "large": _large,
}


def make(
    name: str,
    *,
    batch: int = 1,
    num_heads: int = 4,
    seqlen: int = 1024,
    head_dim: int = 128,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> QKV:
    """q, k, v of the distribution `name`, on the CPU."""
    return tuple(x.to(dtype) for x in DISTRIBUTIONS[name](_Source(batch, num_heads, seqlen, head_dim, seed)))


def nrmse(out: Tensor, reference: Tensor) -> float:
    """|out - reference| / |reference|, 2-norms over everything."""
    return ((out.double() - reference.double()).norm() / reference.double().norm()).item()


def relative_l1(out: Tensor, reference: Tensor) -> float:
    """sum |out - reference| / sum |reference|."""
    return ((out.double() - reference.double()).abs().sum() / reference.double().abs().sum()).item()


def cosine(out: Tensor, reference: Tensor) -> float:
    """Cosine of the two tensors taken as vectors."""
    out, reference = out.double(), reference.double()
    return ((out * reference).sum() / (out.norm() * reference.norm())).item()


def magnitude_ratio(out: Tensor, reference: Tensor) -> float:
    """sum |out| / sum |reference|: a systematic loss or gain, which the cosine does not see."""
    return (out.double().abs().sum() / reference.double().abs().sum()).item()
