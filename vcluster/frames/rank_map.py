"""The map from TCP connections to pairs of MPI ranks, from the sockets that each node has. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

Address = tuple[str, int]  # an IPv4 address and a port


@dataclass(frozen=True, slots=True)
class RankSocket:
    """A connection of a rank, as its node reports it: when it is open, and again if it `is_closed` before its rank."""

    node: str
    rank: int
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

    It `is_brief` if it closed while its ranks ran on: the start of MPI opens more connections than it keeps.
    """

    first: RankEnd
    second: RankEnd
    is_brief: bool = False

    @property
    def ends(self) -> dict[str, dict[str, Any]]:
        """Both ends as JSON."""
        return {"first": asdict(self.first), "second": asdict(self.second)}


def rank_map(sockets: Iterable[RankSocket], nodes: Mapping[str, str]) -> tuple[RankConnection, ...]:
    """The connections of which both ends are ranks, in the order of ranks. `nodes` are names by address.

    A rank also inherits the connections of the program that starts it; their other ends are not ranks. If two jobs use
    the same ports one after the other, the later one counts.
    """
    last = {(socket.local, socket.remote): socket for socket in sockets}
    found = []
    for (here, there), socket in last.items():
        other = last.get((there, here))
        if other and here <= there:
            ends = [RankEnd(nodes.get(each.local[0], ""), *each.local, each.rank) for each in (socket, other)]
            first, second = sorted(ends, key=_order)
            found.append(RankConnection(first, second, socket.is_closed or other.is_closed))
    return tuple(sorted(found, key=lambda each: (_order(each.first), _order(each.second))))


def _order(end: RankEnd) -> tuple[int, str, int]:
    return end.rank, end.address, end.port
