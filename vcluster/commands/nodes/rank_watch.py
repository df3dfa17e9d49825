"""Watch which TCP connections the MPI ranks on nodes have, until it is stopped."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import AddressValueError, IPv4Address
from typing import Any

from vcluster import guest
from vcluster.adapters.node_connection import NodeConnection
from vcluster.adapters.pipe import Pipe
from vcluster.errors import VclusterError
from vcluster.frames.rank_map import Address, RankSocket
from vcluster.stages.guest_answer import count, find, receive, unknown_result
from vcluster.util import parallel
from vcluster.util.deadline import Deadline

AWAITED = "the connections of ranks"
SOCKETS_MAX = 100_000  # of a node: it is not trusted to end
END_TIMEOUT_S = 30.0
PORT_MAX, NUMBER_MAX = 0xFFFF, 2**31


class RankWatch:
    """The guest programs that watch, each read by a thread."""

    def __init__(self, pipes: Mapping[str, Pipe], sessions: Mapping[str, NodeConnection]) -> None:
        self._pipes, self._sessions = pipes, sessions
        self._sockets: dict[str, list[RankSocket]] = {name: [] for name in pipes}
        self._errors: list[VclusterError] = []
        self._is_stopped = False
        self._threads = [threading.Thread(target=self._read, args=(name,), daemon=True) for name in pipes]
        for thread in self._threads:
            thread.start()

    def stop(self) -> list[RankSocket]:
        """The sockets of ranks, each once. With a `failure`, some may be missing."""
        self._is_stopped = True
        for pipe in self._pipes.values():
            pipe.shut()
        for thread in self._threads:
            thread.join(END_TIMEOUT_S)
        return [socket for found in self._sockets.values() for socket in found]

    @property
    def failure(self) -> VclusterError | None:
        """Why nodes were not watched to the end; None if all were."""
        return parallel.joined(self._errors)

    def _read(self, name: str) -> None:
        found = self._sockets[name]
        try:
            for line in self._lines(name):
                found.append(_socket(name, find(line.decode(errors="replace"))))
        except VclusterError as error:
            self._errors.append(error)

    def _lines(self, name: str) -> Iterator[bytes]:
        """The lines of a node. Raises VclusterError if they end before `stop`, or if they do not end."""
        pipe, deadline = self._pipes[name], self._sessions[name].deadline
        for _ in range(SOCKETS_MAX):
            try:
                line = pipe.read_line(deadline, AWAITED)
            except VclusterError:
                if self._is_stopped and pipe.wait(END_TIMEOUT_S) == 0:
                    return
                raise
            yield line
        raise VclusterError(f"{name}: {AWAITED}: there are more than {SOCKETS_MAX}")


@contextmanager
def watched(sessions: Mapping[str, NodeConnection], deadline: Deadline) -> Iterator[RankWatch]:
    """Watch on all nodes. The watch has begun on each of them when the block begins."""
    pipes: dict[str, Pipe] = {}

    def start(name: str) -> None:
        session = sessions[name]
        pipes[name] = session.start_program(guest.program("rank_sockets"), awaited=AWAITED)
        receive(pipes[name], session.deadline, AWAITED)

    try:
        parallel.each([*sessions], start, deadline=deadline)
        yield RankWatch(pipes, sessions)
    finally:
        for pipe in pipes.values():
            pipe.close()


def _socket(node: str, answer: Mapping[str, Any] | None) -> RankSocket:
    """The socket in an answer. Raises VclusterError for other values: nodes are not trusted."""
    answer = answer or {}
    where = f"{node}: {AWAITED}"
    rank, process = (count(answer.get(name), where, NUMBER_MAX) for name in ("rank", "process"))
    local, remote, is_closed = _address(answer.get("local")), _address(answer.get("remote")), answer.get("closed")
    if local is None or remote is None or not isinstance(is_closed, bool):
        raise unknown_result(where)
    return RankSocket(node, rank, process, local, remote, is_closed)


def _address(value: object) -> Address | None:
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int):
        return None
    try:
        return (str(IPv4Address(value[0])), value[1]) if 0 <= value[1] <= PORT_MAX else None
    except AddressValueError:
        return None
