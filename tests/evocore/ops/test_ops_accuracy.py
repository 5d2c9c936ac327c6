"""The rule that turns errors into one number."""

import math

import pytest
import torch

from evocore.ops.accuracy import FLOOR, LIMIT, error_ratio

EXACT = torch.tensor([1.0, -4.0, 0.5], dtype=torch.float64)


def ratio(found, plain, exact=EXACT, dtype=torch.float32):
    return error_ratio(found.to(dtype), plain.to(dtype), exact).item()


def test_it_is_the_error_over_that_of_the_reference():
    assert ratio(EXACT + 3e-3, EXACT + 1e-3) == pytest.approx(3, rel=1e-3)
    assert ratio(EXACT, EXACT + 1e-3) == 0


@pytest.mark.parametrize("dtype", FLOOR)
def test_the_floor_of_an_exact_reference_reaches_the_limit(dtype):
    allowed = FLOOR[dtype] * torch.finfo(dtype).eps * 4  # the largest number is 4
    found = EXACT.clone()
    found[1] += allowed
    assert ratio(found, EXACT, dtype=dtype) == pytest.approx(LIMIT)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e20])
def test_the_size_of_a_result_does_not_matter(scale):
    wrong = EXACT * 1.01
    scaled = ratio(wrong * scale, EXACT * scale, EXACT * scale)
    assert scaled == pytest.approx(ratio(wrong, EXACT), rel=0.1) and scaled > 1000


def test_numbers_too_small_to_be_normal_are_not_an_error():
    tiny = torch.tensor([3e-8, 6e-8], dtype=torch.float64)  # float16 is spaced by 6e-8 here
    assert ratio(tiny, tiny, tiny, torch.float16) < 1


def test_what_is_not_finite():
    inf, nan = torch.tensor([math.inf, -4, 0.5]), torch.tensor([math.nan, -4, 0.5])
    assert ratio(inf, EXACT) == ratio(nan, EXACT) == math.inf
    assert ratio(inf, inf) == ratio(nan, inf) == 0  # the reference overflows too
    assert ratio(EXACT, EXACT, nan.double()) == 0


def test_nothing_and_zeros():
    assert ratio(EXACT[:0], EXACT[:0], EXACT[:0]) == 0
    zeros = torch.zeros(3, dtype=torch.float64)
    assert ratio(zeros, zeros, zeros) == 0 and ratio(zeros + 1e-3, zeros, zeros) > 1000
