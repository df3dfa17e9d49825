"""Traffic that a node makes to measure a link. The guest program sends it; the other node runs no program."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address

from vcluster import guest
from vcluster.adapters.node_connection import NodeConnection
from vcluster.adapters.pipe import Pipe
from vcluster.planning.traffic.link_figures import ROUND_TRIPS, ROUND_TRIPS_S, Stream
from vcluster.stages.guest_answer import ask, count, field, receive, require_success, unknown_result

AWAITED = "the traffic that measures a link"
FRAMES_MAX = 2**40
TIME_MAX_NS = 10**12


def round_trips(session: NodeConnection, address: IPv4Address, number: int = ROUND_TRIPS) -> tuple[int, list[int]]:
    """Ping an address, one ping after the other. Returns the number of pings, and the times of those answered."""
    request = {"do": "round_trips", "address": str(address), "count": number, "seconds": ROUND_TRIPS_S}
    answer = ask(session, "link_probe", dict(request), awaited=AWAITED)
    where = f"{session.name}: {AWAITED}"
    require_success(answer, where)
    times, sent = field(answer, "times_ns", list, where), count(answer.get("sent"), where, FRAMES_MAX)
    if len(times) > number or sent > number:
        raise unknown_result(where)
    return sent, [count(time, where, TIME_MAX_NS) for time in times]


@dataclass(slots=True)
class RunningStream:
    """Datagrams that a node sends. `sent` is their number when the stream has ended."""

    pipe: Pipe
    session: NodeConnection
    sent: int = 0

    def end(self) -> None:
        """End the stream early."""
        self.pipe.shut()

    def wait(self) -> None:
        """Wait for the end of the stream."""
        sent = _answer(self.pipe, self.session).get("sent")
        self.sent = count(sent, f"{self.session.name}: {AWAITED}", FRAMES_MAX)


@contextmanager
def streaming(session: NodeConnection, address: IPv4Address, stream: Stream) -> Iterator[RunningStream]:
    """A stream that has begun. The end of the block ends it in any case."""
    request = {"do": "stream", "address": str(address), **asdict(stream)}
    with closing(session.start_program(guest.program("link_probe"), awaited=AWAITED)) as pipe:
        pipe.write(_line(request), session.deadline, AWAITED)
        _answer(pipe, session)
        yield RunningStream(pipe, session)


def _line(request: dict[str, object]) -> bytes:
    return json.dumps(request).encode() + b"\n"


def _answer(pipe: Pipe, session: NodeConnection) -> dict[str, object]:
    answer = receive(pipe, session.deadline, AWAITED)
    require_success(answer, f"{session.name}: {AWAITED}")
    return answer
