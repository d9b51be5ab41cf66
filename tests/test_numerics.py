"""Number formats against definitions of their own, tensor-core accumulators, and quantization groups."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from sage.recipe import PRESETS
from sage.reference import numerics
from sage.reference.quantize import (
    AMAX_FLOOR,
    block_mean,
    key_groups,
    nvfp4_sum,
    power_of_two,
    quantize_nvfp4,
    quantize_rows,
    quantize_v,
    query_groups,
    rest_of_int4,
    rotate,
)


def decode(code: int, exponent_bits: int, fraction_bits: int, bias: int) -> float:
    """The non-negative value of a small float's code, from the definition of its fields."""
    exponent, fraction = code >> fraction_bits, code & ((1 << fraction_bits) - 1)
    assert exponent < 1 << exponent_bits
    if exponent == 0:
        return fraction * 2.0 ** (1 - bias - fraction_bits)
    return (1 + fraction / 2**fraction_bits) * 2.0 ** (exponent - bias)


FORMATS = {
    # e4m3 (fn): code 127 is NaN, 126 is the largest finite value.
    "e4m3": (numerics.round_e4m3, [decode(code, 4, 3, 7) for code in range(127)]),
    "e2m1": (numerics.round_e2m1, [decode(code, 2, 1, 1) for code in range(8)]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_small_float_rounds_to_nearest_even_and_saturates(name):
    round_to, values = FORMATS[name]
    grid = torch.tensor(values)
    assert values[-1] == {"e4m3": 448.0, "e2m1": 6.0}[name]
    middle = (grid[1:] + grid[:-1]) / 2  # exact in float32
    even = torch.tensor([values[i + i % 2] for i in range(len(values) - 1)])  # of codes i, i + 1 the even one
    infinity = torch.tensor(torch.inf)
    beyond = torch.tensor([values[-1] * 1.01, values[-1] * 2, 1e30, torch.inf])
    for sign in (1.0, -1.0):
        assert torch.equal(round_to(sign * grid), sign * grid)
        assert torch.equal(round_to(sign * middle), sign * even)
        assert torch.equal(round_to(sign * torch.nextafter(middle, -infinity)), sign * grid[:-1])
        assert torch.equal(round_to(sign * torch.nextafter(middle, infinity)), sign * grid[1:])
        assert torch.equal(round_to(sign * beyond), torch.full_like(beyond, sign * values[-1]))
    assert round_to(torch.tensor([torch.nan])).isnan().all()
    # The vectorised and the scalar path of a conversion can differ: the same values at an odd length.
    many = torch.linspace(-1.1 * values[-1], 1.1 * values[-1], 100_003)
    nearest = (many[:, None].abs() - grid).abs().min(-1).values
    assert torch.equal((round_to(many) - many).abs()[many.abs() <= values[-1]], nearest[many.abs() <= values[-1]])


def test_round_integer():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 1e9, -1e9, torch.inf])
    assert numerics.round_integer(x, 127).tolist() == [0, 2, 2, 0, -2, 126, 127, 127, -127, 127]


def test_round_fp16_overflows_like_a_register():
    x = torch.tensor([65504.0, 65519.0, 65520.0, -1e6, 2049.0, 2051.0])
    assert numerics.round_fp16(x).tolist() == [65504, 65504, torch.inf, -torch.inf, 2048, 2052]


def _fp22_sum(a: float, b: float) -> float:
    """The accumulator of numerics.add_fp22, in rational arithmetic."""

    def cut(x: Fraction, largest: Fraction) -> Fraction:
        if largest == 0:
            return Fraction(0)
        exponent = 0
        while abs(largest) >= Fraction(2) ** (exponent + 1):
            exponent += 1
        while abs(largest) < Fraction(2) ** exponent:
            exponent -= 1
        ulp = Fraction(2) ** (exponent - 13)
        return (1 if x >= 0 else -1) * (abs(x) // ulp) * ulp

    a, b = Fraction(a), Fraction(b)
    largest = max(abs(a), abs(b))
    total = cut(a, largest) + cut(b, largest)
    return float(cut(total, total))


def test_add_fp22_is_a_cut_sum():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(2000, generator=generator) * torch.exp2(torch.randint(-6, 12, (2000,), generator=generator).float())
    b = torch.randn(2000, generator=generator) * torch.exp2(torch.randint(-6, 12, (2000,), generator=generator).float())
    a, b = (
        torch.cat([a, torch.tensor([0.0, 1.0, 1.0, -1.0, 2.0])]),
        torch.cat([b, torch.tensor([0.0, 2**-13, 2**-14, -(2**-14), -(2**-14)])]),
    )
    expected = torch.tensor([_fp22_sum(x, y) for x, y in zip(a.tolist(), b.tolist())])
    assert torch.equal(numerics.add_fp22(a, b), expected)
    assert numerics.add_fp22(torch.tensor([1.0]), torch.tensor([2**-14])).item() == 1.0


def test_chained_mma_rounds_once_per_instruction():
    # Each instruction adds 16 * 2^-5 = 0.5; from 1024 on an fp16 accumulator has a spacing of 1 and ties to even.
    acc, a, b = torch.full((1, 1), 2048.0), torch.full((1, 64), 2.0**-5), torch.ones(64, 1)
    assert numerics.chained_mma(acc, a, b, 16, numerics.add_fp16).item() == 2048
    assert numerics.chained_mma(acc, a, b, 64, numerics.add_fp16).item() == 2050
    assert numerics.chained_mma(acc * 8, a, b, 16, numerics.add_fp22).item() == 16384
    # A depth that does not divide the number of products leaves a shorter last instruction.
    assert (
        numerics.chained_mma(torch.zeros(1, 1), torch.ones(1, 40), torch.ones(40, 1), 32, numerics.add_fp22).item()
        == 40
    )


@pytest.mark.parametrize("a, b, depth", [(127, 127, 256), (4095, 2047, 256), (255, 127, 256), (8191, 2047, 128)])
def test_integer_matmul_is_exact_at_its_bound(a, b, depth):
    generator = torch.Generator().manual_seed(1)
    left = torch.randint(a // 2, a + 1, (3, depth), generator=generator)
    right = torch.randint(b // 2, b + 1, (depth, 5), generator=generator)
    left[0], right[:, 0] = a, b
    product = numerics.integer_matmul(left.float(), right.float(), a * b * depth)
    assert torch.equal(product, (left @ right).float())
    assert product[0, 0] < 2**31


def test_thread_groups_are_what_one_tensor_core_thread_owns():
    recipe = PRESETS["sage2"]
    rows = query_groups(128, recipe, torch.device("cpu"))
    keys = key_groups(128, recipe, torch.device("cpu"))
    assert len(rows.unique()) == 128 // 32 * 8 and len(keys.unique()) == 128 // 64 * 4
    for warp in range(4):
        for t in range(8):
            group = rows == rows[32 * warp + t]
            assert group.nonzero().flatten().tolist() == [32 * warp + 8 * i + t for i in range(4)]
    for block in range(2):
        for t in range(4):
            group = keys == keys[64 * block + 2 * t]
            assert group.nonzero().flatten().tolist() == sorted(
                64 * block + 8 * i + 2 * t + e for i in range(8) for e in (0, 1)
            )


@pytest.mark.parametrize(
    "granularity, rows_per_group, keys_per_group", [("token", 1, 1), ("warp", 32, 64), ("block", 128, 64)]
)
def test_contiguous_groups(granularity, rows_per_group, keys_per_group):
    recipe = PRESETS["sage1"].replace(qk_granularity=granularity)
    index = torch.arange(200)
    assert torch.equal(query_groups(200, recipe, torch.device("cpu")), index // rows_per_group)
    assert torch.equal(key_groups(200, recipe, torch.device("cpu")), index // keys_per_group)


def test_quantize_rows_scale_and_zero_group():
    x = torch.randn(2, 70, 8, generator=torch.Generator().manual_seed(2))
    x[:, 32:64] = 0
    values, scale = quantize_rows(x, torch.arange(70) // 32, 127)
    assert torch.equal(values, values.round()) and values.abs().amax() == 127
    assert torch.equal(scale[:, :32, 0], (x[:, :32].abs().amax((1, 2)) / 127)[:, None].expand(2, 32))
    assert (values[:, 32:64] == 0).all() and torch.allclose(
        scale[:, 32:64], torch.tensor(AMAX_FLOOR / 127), rtol=1e-6, atol=0
    )
    assert ((values * scale - x).abs() <= 0.5001 * scale).all()


def test_quantize_rows_hands_nan_to_its_group_only():
    x = torch.ones(64, 4)
    x[3, 1] = torch.nan
    values, scale = quantize_rows(x, torch.arange(64) // 32, 127)
    assert (values * scale)[:32].isnan().all() and torch.isfinite((values * scale)[32:]).all()


def test_quantize_nvfp4_against_its_definition():
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(3))
    x[1, 16:32] = 0
    x[2] *= 1e-4  # amax / 6 rounds to the e4m3 value 0: the block is flushed
    e4m3, e2m1 = torch.tensor(FORMATS["e4m3"][1]), torch.tensor(FORMATS["e2m1"][1])
    actual = quantize_nvfp4(x)
    for row in range(3):
        for first in range(0, 40, 16):
            block = x[row, first : first + 16]
            scale = e4m3[(e4m3 - block.abs().max() / 6).abs().argmin()]
            expected = (
                torch.zeros_like(block)
                if scale == 0
                else e2m1[(e2m1 - (block / scale).abs()[:, None]).abs().argmin(-1)] * scale * block.sign()
            )
            assert torch.equal(actual[row, first : first + 16], expected)
    assert (actual[2] == 0).all()


def test_a_value_that_is_not_finite_makes_its_nvfp4_block_nan():
    for bad in (torch.nan, torch.inf, -torch.inf):
        x = torch.ones(48)
        x[20] = bad
        actual = quantize_nvfp4(x)
        assert actual[16:32].isnan().all() and actual[:16].isfinite().all() and actual[32:].isfinite().all()
        assert power_of_two(x).isnan()[20] and (power_of_two(x) == 2.0**-11).sum() == 47


def test_scales_of_p_are_the_codes_of_a_rounded_logarithm():
    amax = torch.cat([torch.tensor([0.0, 1e-30]), torch.logspace(-4, 4, 10_001)])
    expected = [
        decode(min(max(math.floor(8 * math.log2(x) + 35), 8), 126) if x else 8, 4, 3, 7) for x in amax.double().tolist()
    ]
    assert torch.equal(numerics.p_scale_e4m3(amax), torch.tensor(expected))
    assert torch.equal(numerics.p_scale_e4m3(amax[:5]), torch.tensor(expected[:5]))  # the scalar path
    assert numerics.p_scale_e4m3(torch.tensor([torch.nan])).isnan().all()
    # Blocks of P become 6 at their largest value, and lose or gain at most an eighth by it.
    used = amax[(amax > 0.2) & (amax <= 2048)]
    ratio = 6 * numerics.p_scale_e4m3(used) / used
    assert 0.88 < ratio.min() < 0.9 and 1.02 < ratio.max() < 1.04


def test_power_of_two_brings_the_largest_value_below_2688():
    amax = torch.cat([2688 * torch.exp2(torch.arange(-115.0, 110)), torch.logspace(-31, 38, 1001)])
    scale = power_of_two(amax)
    assert (torch.frexp(scale).mantissa == 0.5).all()
    assert (amax / scale <= 2688).all() and (amax / scale > 1344).all()
    assert (amax / scale)[:225].eq(2688).all()
    assert power_of_two(torch.tensor(1e-38)).item() == 2.0**-115


def test_every_term_of_an_nvfp4_sum_takes_three_bits_of_what_is_left():
    x = 1000 * torch.randn(50, 64, generator=torch.Generator().manual_seed(7))
    errors = [(x - nvfp4_sum(x, terms)).norm().item() for terms in range(5)]
    assert torch.equal(nvfp4_sum(x, 1), quantize_nvfp4(x))
    assert all(0.05 < after / before < 0.13 for before, after in zip(errors, errors[1:]))


def test_nvfp4_v_has_a_power_of_two_for_each_channel():
    v = torch.randn(1, 1, 1, 100, 4, generator=torch.Generator().manual_seed(8))
    factors = torch.tensor([1.0, 2.0**-40, 2.0**30, 0.0])
    values, scale = quantize_v(v * factors, PRESETS["sage3"], torch.float32)
    expected, expected_scale = quantize_v(v, PRESETS["sage3"], torch.float32)
    assert torch.equal(scale[..., :3], (expected_scale * factors)[..., :3])
    assert torch.equal(values[..., :3], expected[..., :3]) and (values[..., 3] == 0).all()
    assert torch.equal(expected[..., 48:64, 0], quantize_nvfp4(v[..., 48:64, 0] / expected_scale[..., 0]))
    assert (values * scale - v * factors).norm() < 0.12 * (v * factors).norm()


def test_block_mean_counts_the_tail():
    x = torch.arange(10.0)[:, None]
    assert block_mean(x, 4).flatten().tolist() == [1.5] * 4 + [5.5] * 4 + [8.5] * 2


@pytest.mark.parametrize("head_dim, padded", [(1, 64), (64, 64), (65, 128), (128, 128), (200, 256)])
def test_rotation_against_its_definition(head_dim, padded):
    generator = torch.Generator().manual_seed(5)
    q, k = (torch.randn(2, 30, head_dim, generator=generator, dtype=torch.float64) for _ in range(2))
    parity = torch.tensor([[(i & j).bit_count() % 2 for j in range(padded)] for i in range(padded)])
    pi = 0x243F6A8885A308D313198A2E03707344A4093822299F31D0082EFA98EC4E6C89  # the first 256 bits of its fraction
    words = [pi >> 32 * (7 - word) & 0xFFFFFFFF for word in range(8)]
    signs = torch.tensor([1.0 - 2 * (words[c // 32] >> c % 32 & 1) for c in range(padded)], dtype=torch.float64)
    matrix = signs[:, None] * (1 - 2 * parity) / padded**0.5
    # As the kernels have it: bits 2 and up of a column's number turn left by one, and two neighbouring ones of them
    # change its sign.
    high, width = padded // 4, padded.bit_length() - 3
    places = torch.tensor([4 * (i // 4 * 2 % high + (i // 4 >> width - 1)) + i % 4 for i in range(padded)])
    flips = torch.tensor([1.0 - 2 * ((i // 4 & i // 8).bit_count() % 2) for i in range(padded)], dtype=torch.float64)
    matrix = torch.zeros_like(matrix).index_copy(1, places, matrix * flips)
    assert torch.allclose(rotate(q), q @ matrix[:head_dim], atol=1e-12)
    assert torch.allclose(rotate(q) @ rotate(k).mT, q @ k.mT, atol=1e-12)


def test_int4_and_its_rest_are_8_bits():
    x = torch.randn(100, 64, generator=torch.Generator().manual_seed(6))
    q = quantize_rows(x, torch.arange(100) // 10, 7)
    rest = rest_of_int4(x, q)
    assert torch.equal(rest * 16, (rest * 16).round()) and rest.min() == -0.5 and rest.max() == 7 / 16
    # The upper half of a step ends at 7 / 16: a 32nd of a step is rounding, the other 32nd is that.
    assert (((q.values + rest) * q.scale - x).abs() <= 1.001 / 16 * q.scale).all()


@pytest.mark.parametrize("name", ["sage1_int8", "sage2", "sage2pp", "int16", "sagebwd"])
def test_quantize_v_reaches_v_max_per_scale_group(name):
    recipe = PRESETS[name]
    v = torch.randn(1, 1, 1, 128, 6, generator=torch.Generator().manual_seed(4)) * torch.tensor(
        [1.0, 1e-3, 30.0, 0.0, 5.0, 1e4]
    )
    values, scale = quantize_v(v, recipe, torch.float32)
    group_dims = (-2, -1) if recipe.v_granularity == "block" else (-2,)
    blocks = values.unflatten(-2, (-1, recipe.block_k)) if recipe.v_granularity == "block" else values
    largest = blocks.abs().amax(group_dims)
    zero = largest == 0
    assert int(zero.sum()) == (0 if recipe.v_granularity == "block" else 1)
    # e4m3 rounds v_max itself: 9 and 448 are both representable.
    assert torch.allclose(largest[~zero], torch.tensor(recipe.v_max), rtol=1e-6, atol=0)
    assert torch.isfinite(values * scale).all()


def test_fp16_v_outside_the_range_of_fp16_keeps_its_value():
    v = torch.tensor([1e6, -2e6, 3.0e5])[None, None, None, :, None]
    values, scale = quantize_v(v, PRESETS["sage1"], torch.float32)
    assert torch.equal(values, values.half().float()) and torch.allclose(values * scale, v, rtol=2**-11, atol=0)
    values, scale = quantize_v(v.bfloat16().float(), PRESETS["sage1"], torch.bfloat16)
    assert torch.equal(values, v.bfloat16().float()) and (scale == 1).all()
    values, scale = quantize_v(v.bfloat16().float(), PRESETS["sage1"].replace(pv_accum="fp16"), torch.bfloat16)
    assert torch.equal(values * scale, v.bfloat16().float()) and values.abs().amax() <= 1
