"""The comparer must see what it is there to see."""

from __future__ import annotations

import math

import pytest
import torch
from compare import compare


@pytest.mark.parametrize("value, named", [(math.nan, "NaN"), (math.inf, "+inf"), (-math.inf, "-inf"), (1.2, "beyond")])
@pytest.mark.parametrize("in_actual", [True, False])
def test_one_wrong_element_is_found_and_located(value, named, in_actual):
    right, wrong = torch.ones(3, 4), torch.ones(3, 4)
    wrong[2, 1] = value
    with pytest.raises(AssertionError) as error:
        compare(*((wrong, right) if in_actual else (right, wrong)), atol=0.1, what="thing")
    assert "thing" in str(error.value) and named in str(error.value) and "(2, 1)" in str(error.value)


def test_equal_specials_and_tolerances_pass():
    expected = torch.tensor([math.nan, math.inf, -math.inf, 0.0, 100.0])
    compare(expected + torch.tensor([0, 0, 0, 0.01, 1.0]), expected, atol=0.011, rtol=0.011, what="thing")
    compare(torch.empty(0, 3), torch.empty(0, 3), atol=0, what="nothing")


def test_shapes_do_not_broadcast():
    with pytest.raises(AssertionError, match="shape"):
        compare(torch.ones(3, 1), torch.ones(3, 4), atol=1, what="thing")


def test_worst_elements_come_first():
    actual = torch.zeros(100)
    actual[17], actual[80] = 1.0, 5.0
    with pytest.raises(AssertionError) as error:
        compare(actual, torch.zeros(100), atol=0.5, what="thing")
    assert str(error.value).index("(80,)") < str(error.value).index("(17,)")
    assert "2 of 100" in str(error.value)
