"""The clocks of servers, compared with the one of the head's server."""

from __future__ import annotations

import threading
import time

from vcluster.fleet.servers import Fleet, Server

SAMPLES = 3


class ServerClocks:
    """How far the clocks of servers are ahead of the one of the head's server. Each server is asked once.

    A server is asked only for its own nodes, so one that is lost disturbs no node of another server.
    """

    def __init__(self, fleet: Fleet, head: str) -> None:
        self._fleet, self._head = fleet, head
        self._lock = threading.Lock()
        self._known_s: dict[str, float] = {}

    def ahead_s(self, name: str) -> int:
        """How far the clock of a server is ahead, in whole seconds."""
        if name == self._head:
            return 0
        with self._lock:  # nodes are configured at once
            return round(self._of(name) - self._of(self._head))

    def _of(self, name: str) -> float:
        """How far the clock of a server is ahead of the one of this machine."""
        if name not in self._known_s:
            self._known_s[name] = _ahead_s(self._fleet[name])
        return self._known_s[name]


def _ahead_s(server: Server) -> float:
    """How far the clock of a server is ahead of the one of this machine, by its quickest answer."""
    _, ahead_s = min(_sample(server) for _ in range(SAMPLES))
    return ahead_s


def _sample(server: Server) -> tuple[float, float]:
    """How long a server took to answer, and how far its clock is ahead of the one of this machine.

    The second is wrong by at most half of the first.
    """
    asked, there, answered = time.time(), float(server.call("clock")), time.time()
    return answered - asked, there - (asked + answered) / 2
