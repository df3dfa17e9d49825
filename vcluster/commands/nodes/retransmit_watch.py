"""Watch how many TCP segments the kernels of nodes send again, until it is closed. A node that fails stops nothing."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, closing, suppress

from vcluster import guest
from vcluster.adapters.node_connection import NodeConnection
from vcluster.adapters.pipe import Pipe
from vcluster.commands.nodes.access import sessions
from vcluster.errors import VclusterError
from vcluster.fleet.context import Context
from vcluster.fleet.servers import Fleet
from vcluster.model.plan import Node, Plan
from vcluster.planning.traffic.node_activity import RetransmitCount
from vcluster.stages.guest_answer import count, parsed, unknown_result
from vcluster.util import parallel
from vcluster.util.deadline import Cancelled, Deadline

AWAITED = "the count of retransmits"
READ_MAX_S = 1.0  # between two readings in a node
FOREVER_S = 1e9
LOGIN_S = 20.0
SILENCE_S = 10.0  # the program of a node prints more often
RETRY_S = 15.0
END_S = 2.0
# Nodes are not trusted.
SEGMENTS_MAX = 10**12
LINE_MAX = 1 << 10
LINES_SPARE = 20  # so many lines of a session may be more than the readings that it had time for

_LOGINS = threading.Semaphore(parallel.WORKERS_MAX)  # at the same time


class RetransmitWatch:
    """Counts the retransmits of nodes, each by a session and a thread. The servers of the nodes are open."""

    def __init__(self, context: Context, fleet: Fleet, every_s: float) -> None:
        self._context, self._fleet, self._every_s = context, fleet, min(every_s, READ_MAX_S)
        self._counters: dict[Node, _NodeCounter] = {}

    def follow(self, plan: Plan) -> None:
        """Count those of the nodes of this plan from now on, and of no others."""
        for node in self._counters.keys() - {*plan.nodes}:
            self._counters.pop(node).close()
        for node in plan.nodes:
            if node not in self._counters:
                self._counters[node] = _NodeCounter(self._context, self._fleet, plan, node, self._every_s)

    def counts(self) -> dict[str, RetransmitCount]:
        """The last count of each node that answers."""
        found = {node.name: counter.count for node, counter in self._counters.items()}
        return {name: count for name, count in found.items() if count}

    def failures(self) -> dict[str, VclusterError]:
        """Why nodes have no count now, by node."""
        found = {node.name: counter.failure for node, counter in self._counters.items() if not counter.count}
        return {name: error for name, error in found.items() if error}

    def close(self) -> None:
        """End the sessions. A login that goes on is left to itself."""
        for counter in self._counters.values():
            counter.close()


class _NodeCounter:
    """Reads the count of a node in a thread. Some time after a failure, it logs in again."""

    def __init__(self, context: Context, fleet: Fleet, plan: Plan, node: Node, every_s: float) -> None:
        self.count: RetransmitCount | None = None
        self.failure: VclusterError | None = None
        self._context, self._fleet, self._plan, self._node, self._every_s = context, fleet, plan, node, every_s
        self._deadline = Deadline(FOREVER_S)
        self._pipe: Pipe | None = None
        self._thread = threading.Thread(target=self._run, name=f"retransmits of {node.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._deadline.cancel()
        if pipe := self._pipe:
            pipe.close()
            self._thread.join(END_S)

    def _run(self) -> None:
        with suppress(Cancelled):
            for number in itertools.count():
                self._try_session(number)
                self._deadline.pause(RETRY_S, AWAITED)

    def _try_session(self, number: int) -> None:
        try:
            with ExitStack() as stack:
                with _LOGINS:
                    opened = stack.enter_context(self._opening())
                self._read(number, opened[self._node.name])
        except VclusterError as error:
            self.failure = error
        except KeyError:  # another command removes the node, and has removed its key
            return
        finally:
            self._pipe = self.count = None

    def _opening(self) -> AbstractContextManager[Mapping[str, NodeConnection]]:
        login = Deadline(LOGIN_S).with_check(self._deadline.check)
        return sessions(self._context, self._plan, [self._node], user="root", deadline=login, fleet=self._fleet)

    def _read(self, number: int, session: NodeConnection) -> None:
        """Read counts until the session ends. Raises VclusterError then, and when the node prints something else."""
        with closing(session.start_program(guest.program("tcp_retransmits"), awaited=AWAITED)) as pipe:
            self._pipe = pipe
            pipe.write(json.dumps({"every_s": self._every_s}).encode() + b"\n", session.deadline, AWAITED)
            began_s, segments = time.monotonic(), 0
            for lines in itertools.count(1):
                silence = Deadline(SILENCE_S).with_check(self._deadline.check)
                line = pipe.read_line(silence, AWAITED, limit=LINE_MAX)
                if lines > LINES_SPARE + (time.monotonic() - began_s) / self._every_s:
                    raise VclusterError(f"{self._node.name}: {AWAITED}: there are too many lines")
                segments = segments_of(self._node.name, line, segments)
                self.count = RetransmitCount(number, segments)


def segments_of(node: str, line: bytes, former: int) -> int:
    """The count in a line of a node. Raises VclusterError for other lines, and for a count below the former one."""
    where = f"{node}: {AWAITED}"
    segments = count(parsed(line.decode(errors="replace"), where).get("retransmits"), where, SEGMENTS_MAX)
    if segments < former:
        raise unknown_result(where)
    return segments
