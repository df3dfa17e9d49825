"""The rounds of one side, as a row of the table."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from scripts.instrument.figures import binomial_interval
from vcluster.cli.output.tables import table

RATE_PERCENT, FAULT_S, FRAMES_A_SECOND = 1.0, 0.001, 200_000  # the goals
Round = dict[str, Any]
Verdict = tuple[str, "bool | None"]  # the cell RESULT, and whether the goal is reached


class NotRun(Exception):
    """A side that cannot be measured here. The text is the reason."""


@dataclass
class Row:
    """A side of a comparison. `effort` is what a user types for it."""

    figure: str
    side: str
    goal: str
    effort: str
    work: Callable[[], Round]
    judge: Callable[[list[Round]], Verdict]
    rounds: list[Round] = field(default_factory=list)
    not_run: str = ""
    failures: list[str] = field(default_factory=list)

    def measure(self) -> None:
        """Measure one round, unless the first one could not be measured. A round that fails does not end the rest."""
        if self.not_run:
            return
        try:
            self.rounds.append(self.work())
        except NotRun as error:
            if self.rounds:
                self.failures.append(str(error))
            else:
                self.not_run = str(error)
        except Exception as error:  # noqa: BLE001  other tools fail in many ways
            self.failures.append(f"{type(error).__name__}: {error}")

    def verdict(self) -> Verdict:
        """The result of all rounds."""
        if self.not_run:
            return f"not run: {self.not_run}", None
        text, is_reached = self.judge(self.rounds) if self.rounds else ("", False)
        if self.failures:
            return f"{len(self.failures)} rounds failed; {text}", False
        return text, is_reached

    def cells(self, result: str = "") -> tuple[str, ...]:
        """The row of the table. Another result can be in the place of its own."""
        own, is_reached = self.verdict()
        reached = "-" if is_reached is None else "yes" if is_reached else "no"
        return self.figure, self.side, result or own, self.goal, reached, self.effort

    def document(self) -> dict[str, Any]:
        """The raw numbers."""
        names = ("figure", "side", "result", "goal", "reached", "effort")
        return {**dict(zip(names, self.cells(), strict=True)), "rounds": self.rounds, "failures": self.failures}


def report(rows: list[Row]) -> str:
    """The table of all rows, and below it the reasons for those that were not run."""
    reasons = list(dict.fromkeys(row.not_run for row in rows if row.not_run))
    cells = [row.cells(f"not run ({reasons.index(row.not_run) + 1})" if row.not_run else "") for row in rows]
    notes = [f"({number}) {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([table(("FIGURE", "SIDE", "RESULT", "GOAL", "REACHED", "EFFORT"), cells), *notes])


def commands(*lines: str) -> str:
    """The cell EFFORT of these commands."""
    return "1 command" if len(lines) == 1 else f"{len(lines)} commands"


def spread(values: list[float], unit: str, digits: int = 2) -> str:
    """The median, the smallest and the largest value."""
    middle, low, high = (f"{each:.{digits}f}" for each in (statistics.median(values), min(values), max(values)))
    return f"{middle} {unit} ({low} to {high})"


def judge_rate(rounds: list[Round]) -> Verdict:
    """By the median difference from the ideal goodput."""
    percents = [(one["goodput_bit_s"] / one["ideal_bit_s"] - 1) * 100 for one in rounds]
    return spread(percents, "%"), abs(statistics.median(percents)) <= RATE_PERCENT


def judge_loss(rounds: list[Round]) -> Verdict:
    """By the sum of all rounds, which is binomial too."""
    frames, lost = (sum(one[name] for one in rounds) for name in ("frames", "lost"))
    low, high = binomial_interval(frames, rounds[0]["probability"])
    return f"{lost} of {frames} (chance: {low} to {high})", low <= lost <= high


def judge_frame_size(rounds: list[Round]) -> Verdict:
    """There is no goal: the size explains how much a loss takes."""
    sizes = [one["lost_bytes"] / one["lost"] for one in rounds if one["lost"]]
    return (spread(sizes, "bytes", 0), None) if sizes else ("no frame was lost", None)


def judge_change(rounds: list[Round]) -> Verdict:
    """By the upper bound. A round in which the sender waited for a processor has a large one, so the median counts."""
    least = statistics.median(one["least_s"] for one in rounds) * 1000
    most = [one["most_s"] * 1000 for one in rounds]
    return f"at most {spread(most, 'ms')}; at least {least:.2f} ms", statistics.median(most) / 1000 <= FAULT_S


def judge_capture(rounds: list[Round]) -> Verdict:
    """By all rounds: nothing lost, and the counts of each port equal to its counters.

    If the machine sends fewer frames than the goal has, this decides nothing about the goal.
    """
    frames, lost, unordered = (sum(one[name] for one in rounds) for name in ("frames", "lost", "unordered"))
    speeds = [one["frames"] / one["seconds"] for one in rounds]
    is_equal = all(one["counters"] == one["in_file"] for one in rounds)
    counters = "equal" if is_equal else "differ from"
    text = f"{lost} of {frames} lost at {spread(speeds, '/s', 0)}; counts {counters} the counters"
    is_complete = is_equal and lost == 0
    is_too_slow = statistics.median(speeds) < FRAMES_A_SECOND
    return f"{text}; {unordered} in wrong order", None if is_complete and is_too_slow else is_complete


def judge_delay(rounds: list[Round]) -> Verdict:
    """By the median of the differences of round trips, within 10 % or 200 µs."""
    asked, found = rounds[0]["asked_ms"], [one["found_ms"] for one in rounds]
    return spread(found, "ms"), abs(statistics.median(found) - asked) <= max(0.1 * asked, 0.2)
