"""The median of a sample, and an interval that contains the true median. It assumes no distribution."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import comb

CONFIDENCE = 0.95
SAMPLES_MIN = 6  # fewer values have no interval with this confidence
SAMPLES_MAX = 1000


def median(ordered: Sequence[float]) -> float:
    """The median of values in ascending order."""
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest of the values in ascending order that at least this share of them does not exceed."""
    rank = -int(-share * len(ordered) // 1)
    return ordered[max(rank, 1) - 1]


def median_interval(ordered: Sequence[float]) -> tuple[float, float] | None:
    """Two of the values, in ascending order, between which the true median lies with at least the CONFIDENCE.

    The number of values below the median is binomially distributed (Hoefler and Belli, "Scientific Benchmarking of
    Parallel Computing Systems", SC'15, section 3.1.3). Returns None for fewer than SAMPLES_MIN values. Raises
    ValueError for more than SAMPLES_MAX.
    """
    count = len(ordered)
    if count > SAMPLES_MAX:
        raise ValueError(f"{count} values are more than {SAMPLES_MAX}")
    tail = (1 - CONFIDENCE) / 2 * 2**count
    outside = sum(1 for below in accumulate(comb(count, number) for number in range(count // 2)) if below <= tail)
    return (ordered[outside - 1], ordered[count - outside]) if outside else None
