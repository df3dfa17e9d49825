"""The calculations of this measurement: what is ideal, what is due to chance, and when pairs of nodes changed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

ETHERNET, IPV4, TCP_WITH_TIMES = 14, 20, 32  # the headers of a frame whose bytes a rate counts
MTU = 1450  # of lab0
CONFIDENCE = 0.99


def ideal_goodput(rate_bit_s: float, mtu: int = MTU) -> float:
    """The data of TCP in bits a second, if full frames use the whole rate."""
    return rate_bit_s * (mtu - IPV4 - TCP_WITH_TIMES) / (mtu + ETHERNET)


def binomial_interval(count: int, probability: float, confidence: float = CONFIDENCE) -> tuple[int, int]:
    """The smallest and the largest number of successes of `count` trials that chance explains.

    Fewer have at most half of the rest of the probability, and so have more.
    """
    rest = (1 - confidence) / 2
    low, total = None, 0.0
    for successes in range(count + 1):
        total += math.exp(_log_probability(count, successes, probability))
        if low is None and total > rest:
            low = successes
        if total >= 1 - rest:
            return low or 0, successes
    return low or 0, count


def _log_probability(count: int, successes: int, probability: float) -> float:
    combinations = math.lgamma(count + 1) - math.lgamma(successes + 1) - math.lgamma(count - successes + 1)
    return combinations + successes * math.log(probability) + (count - successes) * math.log1p(-probability)


@dataclass(frozen=True, slots=True)
class Change:
    """When frames of a pair of nodes stopped: after one that passed, and before the end of one that was dropped."""

    after_ns: int
    before_ns: int


def change_window(changes: Iterable[Change]) -> tuple[float, float]:
    """The least and the most seconds in which all pairs changed.

    The least is 0 if there is a moment at which all can have changed.
    """
    found = list(changes)
    least = max(one.after_ns for one in found) - min(one.before_ns for one in found)
    most = max(one.before_ns for one in found) - min(one.after_ns for one in found)
    return max(least, 0) / 1e9, most / 1e9
