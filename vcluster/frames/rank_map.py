"""The map from TCP connections to pairs of MPI ranks, from the sockets that each node has. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Address = tuple[str, int]  # an IPv4 address and a port


@dataclass(frozen=True, slots=True)
class RankSocket:
    """A connection of a rank, as its node reports it: when it is open, and again when it `is_closed`."""

    node: str
    rank: int
    process: int
    local: Address
    remote: Address
    is_closed: bool = False


@dataclass(frozen=True, slots=True)
class RankEnd:
    """An end of a connection."""

    node: str
    address: str
    port: int
    rank: int


@dataclass(frozen=True, slots=True)
class RankConnection:
    """A connection between two ranks. The frames of the file have the addresses and the ports of its ends.

    It `is_brief` if it closed before another one of the same two processes: MPI keeps one of those that it opens.
    """

    first: RankEnd
    second: RankEnd
    is_brief: bool = False

    @property
    def ends(self) -> dict[str, dict[str, Any]]:
        """Both ends as JSON."""
        return {"first": asdict(self.first), "second": asdict(self.second)}


_Report = tuple[int, RankSocket]  # the last one of a socket, with its place among all reports
_Process = tuple[str, int]
_OPEN = (math.inf, math.inf)


def rank_map(sockets: Iterable[RankSocket], nodes: Mapping[str, str]) -> tuple[RankConnection, ...]:
    """The connections of which both ends are ranks, in the order of ranks. `nodes` are names by address.

    A rank also inherits the connections of the program that starts it; their other ends are not ranks. If two jobs use
    the same ports one after the other, the later one counts.
    """
    last = {(socket.local, socket.remote): (place, socket) for place, socket in enumerate(sockets)}
    by_processes: dict[tuple[_Process, ...], list[list[_Report]]] = defaultdict(list)
    for (here, there), report in last.items():
        other = last.get((there, here))
        if other and here <= there:
            pair = sorted((report, other), key=_process)
            by_processes[tuple(map(_process, pair))].append(pair)
    found = []
    for pairs in by_processes.values():
        *others, kept = sorted(pairs, key=_closing)
        found += [_connection(pair, nodes, is_brief=_closing(pair) != _OPEN) for pair in others]
        found.append(_connection(kept, nodes, is_brief=False))
    return tuple(sorted(found, key=lambda each: (_order(each.first), _order(each.second))))


def _process(report: _Report) -> _Process:
    return report[1].node, report[1].process


def _closing(pair: Sequence[_Report]) -> tuple[float, ...]:
    """When both ends closed, by the order of reports of each node."""
    return tuple(place if socket.is_closed else math.inf for place, socket in pair)


def _connection(pair: Sequence[_Report], nodes: Mapping[str, str], *, is_brief: bool) -> RankConnection:
    ends = [RankEnd(nodes.get(each.local[0], ""), *each.local, each.rank) for _, each in pair]
    first, second = sorted(ends, key=_order)
    return RankConnection(first, second, is_brief)


def _order(end: RankEnd) -> tuple[int, str, int]:
    return end.rank, end.address, end.port
