"""Recipe: text round trip, replace, and what its fields refuse."""

from __future__ import annotations

import pytest
from sage.recipe import PRESETS, Recipe


@pytest.mark.parametrize("name", PRESETS)
def test_preset_round_trip(name):
    recipe = PRESETS[name]
    assert str(recipe) == name
    assert Recipe.parse(name) == recipe
    assert Recipe.parse(f"  {name} ") == recipe


@pytest.mark.parametrize(
    "text, fields",
    [
        ("sage2(p_max=256.0, smooth_v=True)", {"p_max": 256.0, "smooth_v": True}),
        ("sage1(qk_granularity=block, block_q=64)", {"qk_granularity": "block", "block_q": 64}),
        ("sage1(pv_accum=fp16+fp32)", {"pv_accum": "fp16+fp32"}),
        ("sage1@cpu(smooth_k=False)", {"smooth_k": False}),
        ("sagebwd(dp=int8)", {"dp": "int8"}),
        ("sage2(fold_every=4, key_order=forward)", {"fold_every": 4, "key_order": "forward"}),
        ("sage2_int4(hadamard=True)", {"hadamard": True}),
        ("sage2(approximate_exp=True)", {"approximate_exp": True}),
        (
            "sage2_int4(pv_accum=fp16+fp32, p_max=112.0, v_max=9.0)",
            {"pv_accum": "fp16+fp32", "p_max": 112.0, "v_max": 9.0},
        ),
    ],
)
def test_changed_fields_round_trip(text, fields):
    name = text.partition("(")[0]
    recipe = PRESETS[name].replace(**fields)
    assert Recipe.parse(text) == recipe
    assert str(recipe) == text
    assert hash(Recipe.parse(text)) == hash(recipe)


def test_parse_accepts_spaces_empty_parentheses_and_integers_for_floats():
    assert Recipe.parse("sage2()") == PRESETS["sage2"]
    assert Recipe.parse("sage2 ( p_max = 256 )") == PRESETS["sage2"].replace(p_max=256.0)
    assert str(PRESETS["sage2"].replace(p_max=448)) == "sage2"


@pytest.mark.parametrize(
    "text, named",
    [
        ("sage9", "sage9"),
        ("", "recipe must be one of"),
        ("sage2(p_max)", "p_max"),
        ("sage2(nothing=1)", "nothing=1"),
        ("sage2(name=sage1)", "name=sage1"),
        ("sage2(p_max=many)", "p_max"),
        ("sage2(smooth_v=yes)", "smooth_v"),
        ("sage2(block_k=64.5)", "block_k"),
        ("sage2(qk=int3)", "qk must be one of int8, int4, int16, nvfp4, got 'int3'"),
        ("sage2(p_max=256) trailing", "trailing"),
    ],
)
def test_bad_text_is_a_value_error_that_names_it(text, named):
    with pytest.raises(ValueError) as error:
        Recipe.parse(text)
    assert named in str(error.value)


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"name": "mine"}, "name"),
        ({"qk": "int2"}, "qk"),
        ({"qk": "nvfp4"}, "qk_granularity"),
        ({"qk_granularity": "1x16"}, "qk_granularity"),
        ({"pv": "int8"}, "pv_accum"),
        ({"pv_accum": "int32"}, "pv_accum"),
        ({"pv": "fp8_e4m3", "v_max": 0}, "v_max"),
        ({"p_two_level": True}, "p_two_level"),
        ({"block_k": 0}, "block_k"),
        ({"block_k": 24}, "block_k"),
        ({"block_q": 64.0}, "block_q"),
        ({"p_max": 0}, "p_max"),
        ({"p_max": float("inf")}, "p_max"),
        ({"v_max": float("nan")}, "v_max"),
        ({"v_max": "448"}, "v_max"),
        ({"smooth_k": 1}, "smooth_k"),
        ({"v_granularity": "row"}, "v_granularity"),
        ({"key_order": "random"}, "key_order"),
        ({"hadamard": 1}, "hadamard"),
        ({"approximate_exp": 1}, "approximate_exp must be True or False"),
        ({"approximate_exp": True}, "approximate_exp goes with pv"),  # sage1 has fp16
        ({"fold_every": 0}, "fold_every"),
        ({"fold_every": 2.0}, "fold_every"),
        ({"fold_every": True}, "fold_every"),
        ({"pv_accum": "fp16+fp32", "fold_every": 2**31}, "fold_every must be an integer within"),
        ({"fold_every": 2}, "fold_every"),  # sage1 has one accumulator
        ({"dp": "fp8"}, "dp"),
    ],
)
def test_bad_field_is_a_value_error_that_names_it(fields, named):
    with pytest.raises(ValueError, match=rf"recipe field {named}\b"):
        PRESETS["sage1"].replace(**fields)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"v_max": 9.25}, r"block_k \* p_max \* v_max, .* must be at most 65504, .* got 66304"),
        ({"p_max": 109, "v_max": 9.3}, r"block_k \* p_max \* v_max, .* must be at most 65504, .* got 66662.4"),
        ({"p_max": 102, "v_max": 9.9}, r"block_k \* p_max \* v_max, .* must be at most 65504, .* got 66560"),
        ({"block_k": 128}, r"block_k \* p_max \* v_max, .* must be at most 65504, .* got 129024"),
        ({"fold_every": 65}, r"fold_every must be at most 64 .* = 64512, got 65"),
    ],
)
def test_fp16_accumulators_that_could_overflow_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PRESETS["sage2pp"].replace(**fields)
    assert PRESETS["sage2pp"].replace(p_max=448, v_max=2.25).v_max == 2.25


def test_approximate_exp_needs_a_p_that_e4m3_holds():
    with pytest.raises(
        ValueError, match="approximate_exp goes with .* at most 448.* got pv 'fp8_e4m3' and p_max 448.5"
    ):
        PRESETS["sage2"].replace(approximate_exp=True, p_max=448.5)
    assert PRESETS["sage2"].replace(p_max=448.5).p_max == 448.5


def test_unknown_field_is_a_type_error():
    with pytest.raises(TypeError, match="'p_maximum'"):
        PRESETS["sage1"].replace(p_maximum=3)


def test_recipes_are_values():
    changed = PRESETS["sage2"].replace(p_max=256)
    assert changed != PRESETS["sage2"] and changed.replace(p_max=448) == PRESETS["sage2"]
    assert len({changed, PRESETS["sage2"], changed.replace(p_max=448)}) == 2
    with pytest.raises(AttributeError):
        changed.p_max = 1.0
