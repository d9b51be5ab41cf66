"""Quantized attention beside exact attention: the error, and the speed beside PyTorch's."""

import time

import torch
import torch.nn.functional as F

import sage


def milliseconds(function):
    function()
    start = time.perf_counter()
    for _ in range(5):
        function()
    return (time.perf_counter() - start) / 5 * 1e3


torch.manual_seed(0)
q, k, v = (torch.randn(1, 8, 2048, 128, dtype=torch.bfloat16) for _ in range(3))

out = sage.attention(q, k, v, is_causal=True)

exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True)
print(f"relative error  {(out - exact).norm() / exact.norm():.4f}")
print(f"sage            {milliseconds(lambda: sage.attention(q, k, v, is_causal=True)):.1f} ms")
print(f"PyTorch         {milliseconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)):.1f} ms")
