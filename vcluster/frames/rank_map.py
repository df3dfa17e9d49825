"""The map from TCP connections to pairs of MPI ranks, from the sockets that each node has. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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
    """An end of a connection. `rank` is None if no rank was seen to have it, as at the end of mpiexec."""

    node: str
    address: str
    port: int
    rank: int | None


@dataclass(frozen=True, slots=True)
class RankConnection:
    """A connection of ranks. The frames of the file have the addresses and the ports of its ends.

    It `is_brief` if it closed while its ranks ran on: the start of MPI opens more connections than it keeps.
    """

    first: RankEnd
    second: RankEnd
    is_brief: bool = False


def rank_map(sockets: Iterable[RankSocket], nodes: Mapping[str, str]) -> tuple[RankConnection, ...]:
    """The connections of which at least one end is a rank, in the order of ranks. `nodes` are names by address.

    If two jobs use the same ports one after the other, the later one counts.
    """
    last = {(socket.local, socket.remote): socket for socket in sockets}
    ranks = {ends: socket.rank for ends, socket in last.items()}
    closed = {ends for ends, socket in last.items() if socket.is_closed}
    pairs = {tuple(sorted(ends)) for ends in ranks}
    found = []
    for one, other in pairs:
        ends = [
            RankEnd(nodes.get(here[0], ""), here[0], here[1], ranks.get((here, there)))
            for here, there in ((one, other), (other, one))
        ]
        is_brief = (one, other) in closed or (other, one) in closed
        first, second = sorted(ends, key=_order)
        found.append(RankConnection(first, second, is_brief))
    return tuple(sorted(found, key=lambda each: (_order(each.first), _order(each.second))))


def _order(end: RankEnd) -> tuple[bool, int, str, int]:
    return end.rank is None, end.rank or 0, end.address, end.port
