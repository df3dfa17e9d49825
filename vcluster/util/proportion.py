"""An interval that contains a true part of all trials, for example of frames that are lost."""

from __future__ import annotations

from math import sqrt

_Z = 1.959964  # the normal distribution has 95 % of its values within so many standard deviations


def proportion_interval(hits: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of the part of trials that hit (Wilson, JASA 22, 1927). It needs at least one trial.

    It assumes that trials do not depend on each other.
    """
    part, square = hits / trials, _Z * _Z
    middle = part + square / (2 * trials)
    margin = _Z * sqrt(part * (1 - part) / trials + square / (4 * trials * trials))
    scale = 1 + square / trials
    return max(0.0, (middle - margin) / scale), min(1.0, (middle + margin) / scale)
