"""A file with rates of a link over time: its lines, and the steps that follow from them. Pure."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vcluster.errors import RequestError
from vcluster.model.plan import Plan
from vcluster.model.quoting import shown
from vcluster.model.spec import FROM, TO
from vcluster.planning import link_spec, traffic_plan
from vcluster.planning.link_spec import Changes

LINES_MAX = 10_000
TIME, DIRECTIONS = "t_s", (FROM, TO)
GAP_MIN_S, TIME_MAX_S = 0.01, 10.0**6
EXAMPLE = "the first line is t_s,from,to; the next one for example 0,10mbit,20mbit"
HEADERS = ([TIME, FROM, TO], [TIME, TO, FROM], [TIME, FROM], [TIME, TO])
_FIELDS = {"rate_bits", "queue_bytes"}

Steps = list[tuple[float, list[dict[str, Any]]]]  # times in seconds, and requests of the agent's operations on links


@dataclass(frozen=True, slots=True)
class TraceLine:
    """The limits of a link from a time on, by direction."""

    t_s: float
    limits: Mapping[str, Changes]


def parse(text: str, file: str) -> tuple[TraceLine, ...]:
    """The lines of a trace. Raises RequestError, with the file and the line, for the first one that is wrong."""
    rows = csv.reader(text.splitlines(), skipinitialspace=True)
    header = [cell.strip() for cell in _next_row(rows, file) or []]
    if header not in HEADERS:
        raise RequestError(f"{file}: line 1: {shown(','.join(header))} is not {TIME},from,to", hint=EXAMPLE)
    lines: list[TraceLine] = []
    while (row := _next_row(rows, file)) is not None:
        if any(cell.strip() for cell in row):
            lines.append(_line(header, row, lines[-1] if lines else None, f"{file}: line {rows.line_num}"))
        if len(lines) > LINES_MAX:
            raise RequestError(f"{file}: there are more than {LINES_MAX} lines", hint="use fewer lines")
    if not lines:
        raise RequestError(f"{file}: there are no lines after the first one", hint=EXAMPLE)
    return tuple(lines)


def _next_row(rows: Any, file: str) -> list[str] | None:
    try:
        return next(rows, None)
    except csv.Error as error:
        raise RequestError(f"{file}: line {rows.line_num}: {error}", hint=EXAMPLE) from error


def _line(header: Sequence[str], row: Sequence[str], before: TraceLine | None, place: str) -> TraceLine:
    """A line with all its limits: those that it does not name are those of the line before."""
    if len(row) > len(header):
        hint = 'put quotes around limits with commas: "rate=10mbit,queue=64KiB"'
        raise RequestError(f"{place}: there are {len(row)} fields, not {len(header)}", hint=hint)
    cells = dict(zip(header, (cell.strip() for cell in row), strict=False))
    given = {direction: cells[direction] for direction in DIRECTIONS if cells.get(direction)}
    t_s = _time(cells[TIME], before, place)
    limits = dict(before.limits if before else {})
    for direction, cell in given.items():
        if before and direction not in limits:
            raise RequestError(f"{place}: {direction} has a rate, but none in the first line", hint="add it there")
        limits[direction] = {**limits.get(direction, {}), **_limits(cell, f"{place}: {direction}")}
    if not limits:
        raise RequestError(f"{place}: there is no rate", hint=EXAMPLE)
    return TraceLine(t_s, limits)


def _time(cell: str, before: TraceLine | None, place: str) -> float:
    try:
        t_s = float(cell)
    except ValueError:
        t_s = -1.0
    if not 0 <= t_s <= TIME_MAX_S:
        raise RequestError(f"{place}: {shown(cell)} is not a time in seconds", hint=f"0 to {TIME_MAX_S:.0f}")
    if before is None and t_s != 0:
        raise RequestError(f"{place}: the first time is {shown(cell)}, not 0", hint="begin at 0")
    if before and t_s < before.t_s + GAP_MIN_S:
        raise RequestError(
            f"{place}: {shown(cell)} s is not later than {before.t_s:g} s by {GAP_MIN_S:g} s", hint="sort the lines"
        )
    return t_s


def _limits(cell: str, place: str) -> Changes:
    """The limits in a cell: a rate, or limits as in `link set`."""
    found = link_spec.parse(cell if "=" in cell else f"rate={cell}", place=place)
    if not {*found} <= _FIELDS or not all(found.values()):
        raise RequestError(f"{place}: {shown(cell)} is not a rate, with or without a queue", hint="for example 10mbit")
    return found


def last_limits(lines: Sequence[TraceLine]) -> Mapping[str, Changes]:
    """The limits at the end, by direction."""
    return lines[-1].limits


def require_period(lines: Sequence[TraceLine], file: str) -> None:
    """Raise RequestError if a trace cannot repeat."""
    if len(lines) < 2:
        raise RequestError(f"{file}: one line cannot repeat", hint="add a line, or leave out --repeat")


def period_s(lines: Sequence[TraceLine]) -> float:
    """The time after which a trace repeats: its last line lasts as long as the one before it."""
    return 2 * lines[-1].t_s - lines[-2].t_s


def steps(plan: Plan, node: str, lines: Sequence[TraceLine]) -> Steps:
    """What the queues of a node's link are at each time. Raises RequestError if a limit has no meaning."""
    own = replace(plan, links=tuple(link for link in plan.links if link.node == node))
    return [
        (line.t_s, traffic_plan.shaped_directions(traffic_plan.with_changes(own, [node], line.limits)))
        for line in lines
    ]
