"""How far the clocks of the nodes are apart.

A node answers with its time at the begin and at the end of its tests. The time until its program begins, and the time
until its answer arrives, count as an error of this comparison; the time that the tests take does not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeGuard

from vcluster.model.checks import Check
from vcluster.model.plan import Plan

APART_MAX_S = 5.0  # the title of the check has it too
TIME_MAX_S = 1e11  # of an answer; nodes are not trusted


@dataclass(frozen=True, slots=True)
class Clock:
    """A clock that is ahead of time.monotonic() of this machine by at least and at most so many seconds."""

    least_s: float
    most_s: float

    @classmethod
    def of(cls, began_s: object, ended_s: object, asked_s: float, answered_s: float) -> Clock | None:
        """The clock that showed these times, one after the other, between two readings of time.monotonic().

        None if one of them is not a time.
        """
        if not _is_time(began_s) or not _is_time(ended_s):
            return None
        return cls(ended_s - answered_s, began_s - asked_s)

    def ahead_of_s(self, other: Clock) -> float:
        """How far this clock is certainly ahead of another; negative if it is behind, 0 if neither is certain."""
        return max(0.0, self.least_s - other.most_s) + min(0.0, self.most_s - other.least_s)


UNKNOWN_CLOCK = Clock(-math.inf, math.inf)


def _is_time(value: object) -> TypeGuard[float]:
    return isinstance(value, float) and math.isfinite(value) and abs(value) <= TIME_MAX_S


def compare(plan: Plan, clocks: Mapping[str, Clock]) -> Iterator[Check]:
    """The check of each node's clock, by name, against that of the head.

    That of the head is compared with this machine's clock, if the head runs here.
    """
    head, server = plan.head.name, plan.server(plan.head.server)
    if server.login is None:
        apart_s = clocks[head].ahead_of_s(_own_clock())
        yield _check(plan, head, apart_s, "that of this machine")
    else:
        yield _check(plan, head, 0.0, "")
    for node in plan.workers:
        yield _check(plan, node.name, clocks[node.name].ahead_of_s(clocks[head]), f"that of {head}")


def _own_clock() -> Clock:
    ahead_s = time.time() - time.monotonic()
    return Clock(ahead_s, ahead_s)


def _check(plan: Plan, node: str, apart_s: float, whose: str) -> Check:
    passed = abs(apart_s) <= APART_MAX_S
    side = "ahead of" if apart_s > 0 else "behind"
    detail = f"its clock is {abs(apart_s):.0f} s {side} {whose}; to set it: vcluster repair {plan.name}"
    return Check("clock", node, plan.head.name, passed, "" if passed else detail)
