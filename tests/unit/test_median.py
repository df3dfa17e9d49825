"""The median and its interval, against values that are known from elsewhere."""

from __future__ import annotations

import random
from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcluster.util.median import SAMPLES_MAX, SAMPLES_MIN, median, median_interval, quantile

# Ranks of the interval's ends for samples of a size. The probability that the median is outside is below 5 %.
RANKS = {
    6: (1, 6),
    8: (1, 8),
    9: (2, 8),
    12: (3, 10),
    20: (6, 15),
    30: (10, 21),
    40: (14, 27),
    50: (18, 33),
    70: (27, 44),
}


@pytest.mark.parametrize(("count", "ranks"), RANKS.items())
def test_ranks_of_the_interval(count: int, ranks: tuple[int, int]) -> None:
    assert median_interval(range(1, count + 1)) == ranks

    def outside(rank: int) -> Fraction:
        """The probability that fewer than `rank` values are below the median."""
        return sum((Fraction(comb(count, below), 2**count) for below in range(rank)), Fraction(0))

    assert ranks[0] + ranks[1] == count + 1
    assert 2 * outside(ranks[0]) <= Fraction(5, 100) < 2 * outside(ranks[0] + 1)


@pytest.mark.parametrize("count", range(SAMPLES_MIN))
def test_few_values_have_no_interval(count: int) -> None:
    assert median_interval(range(count)) is None


def test_too_many_values_are_refused() -> None:
    assert median_interval(range(SAMPLES_MAX)) is not None
    with pytest.raises(ValueError, match="more than 1000"):
        median_interval(range(SAMPLES_MAX + 1))


def test_interval_contains_the_true_median_in_95_of_100_samples() -> None:
    numbers = random.Random(7)
    hits = 0
    for _ in range(2000):
        low, high = median_interval(sorted(numbers.expovariate(1) for _ in range(25))) or (0, 0)
        hits += low <= 0.6931 <= high
    assert 1880 <= hits <= 1960  # at least 95 % by its definition; 25 values have 95.7 %


@pytest.mark.parametrize(("values", "expected"), [([3], 3), ([1, 2], 1.5), ([1, 2, 9], 2), ([1, 2, 4, 9], 3)])
def test_median(values: list[float], expected: float) -> None:
    assert median(values) == expected


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.01, 1), (0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100)])
def test_quantile(share: float, expected: int) -> None:
    assert quantile(range(1, 101), share) == expected


@given(st.lists(st.floats(0, 1e9), min_size=SAMPLES_MIN, max_size=200))
def test_median_lies_in_its_interval(values: list[float]) -> None:
    ordered = sorted(values)
    low, high = median_interval(ordered) or (1, 0)
    assert ordered[0] <= low <= median(ordered) <= high <= ordered[-1]
