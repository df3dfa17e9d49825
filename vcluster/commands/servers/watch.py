"""Watch the traffic at the ports of a cluster's switch, and what its nodes do."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext

from vcluster.commands.nodes.retransmit_watch import RetransmitWatch
from vcluster.commands.steps.inventory import accessible_fleet, read_ledger, switch_server
from vcluster.errors import RequestError, VclusterError
from vcluster.fleet.context import Context
from vcluster.fleet.ledger import ClusterFiles
from vcluster.fleet.servers import Fleet, Server
from vcluster.model.naming import folded
from vcluster.model.plan import Plan
from vcluster.planning import fault_plan, traffic_plan
from vcluster.planning.traffic import watch_record
from vcluster.planning.traffic.node_activity import NodeReadings, ProcessorTimes
from vcluster.planning.traffic.watch_record import WatchRecord
from vcluster.planning.traffic_plan import LinkReading
from vcluster.resources import faults, port_traffic, shaping
from vcluster.util import parallel
from vcluster.util.deadline import Deadline

FAULTS_EVERY_S = 5.0  # they begin and end without a change of the ledger; a server reads them slowly
LIMITS_EVERY_S = 60.0  # another program may change limits; vcluster writes the ledger when it does
ANSWER_S = 1.0  # for the times of processors: a server that does not answer delays one record in SKIPPED_S
SKIPPED_S = 30.0
BEGIN_S = 10.0  # for the first operation of an agent


class _Watched:
    """The plan and the limits of the cluster. Both are read again when another command changes the cluster."""

    def __init__(self, files: ClusterFiles, server: Server) -> None:
        self._files, self._server = files, server
        self._stamp = self._ledger_stamp()  # before the ledger is read, so no change of it is missed
        self.plan = _plan(files)
        self.limits: list[LinkReading] = []
        self._read_limits()
        self._read_faults()

    def refresh(self) -> None:
        """Read what has changed. Raises VclusterError if the cluster was removed."""
        stamp = self._ledger_stamp()
        if stamp != self._stamp:
            self.plan, self._stamp = _plan(self._files), stamp
            self._read_limits()
        elif time.monotonic() >= self._limits_until_s:
            self._read_limits()
        if time.monotonic() >= self._faults_until_s:
            self._read_faults()

    def faults(self) -> dict[str, tuple[str, ...]]:
        """The faults of each node that has some, with the time that is left now."""
        return fault_plan.texts_of(fault_plan.after(self._faults, time.monotonic() - self._faults_read_s))

    def _read_faults(self) -> None:
        self._faults_read_s = time.monotonic()
        self._faults = faults.read_found(self._server, self.plan)
        self._faults_until_s = time.monotonic() + FAULTS_EVERY_S

    def _read_limits(self) -> None:
        self.limits, _ = shaping.read(self._server, self.plan)
        self._limits_until_s = time.monotonic() + LIMITS_EVERY_S

    def _ledger_stamp(self) -> int:
        """When the ledger was written; 0 if it does not exist."""
        try:
            return self._files.ledger.stat().st_mtime_ns
        except FileNotFoundError:
            return 0


class _Nodes:
    """Reads what the nodes of a cluster do. `fleet` has the servers of nodes that are open."""

    def __init__(self, fleet: Fleet, retransmits: RetransmitWatch) -> None:
        self._fleet, self._retransmits = fleet, retransmits
        self._skipped_until_s: dict[str, float] = {}

    def read(self, plan: Plan) -> NodeReadings:
        """Their counters now. A node or a server that does not answer has none."""
        self._retransmits.follow(plan)
        processors: dict[str, ProcessorTimes] = {}
        for server in self._fleet.servers.values():
            processors |= self._processors(server, plan)
        return NodeReadings(self._retransmits.counts(), processors)

    def _processors(self, server: Server, plan: Plan) -> dict[str, ProcessorTimes]:
        names = {node.domain: node.name for node in plan.nodes_on(server.name)}
        if not names or time.monotonic() < self._skipped_until_s.get(server.name, 0.0):
            return {}
        try:
            found = server.call("vcpu_times", deadline=Deadline(ANSWER_S), domains=[*names])
        except VclusterError:
            self._skipped_until_s[server.name] = time.monotonic() + SKIPPED_S
            return {}
        times = found["times"]
        return {
            node: ProcessorTimes(found["t_ns"], *times[domain]) for domain, node in names.items() if domain in times
        }


def _load_agent(server: Server) -> None:
    """Let the agent load its modules, which may take longer than a reading may."""
    server.call("vcpu_times", deadline=Deadline(BEGIN_S), domains=[])


@contextmanager
def _node_reader(context: Context, plan: Plan, switch: Server, every_s: float) -> Iterator[_Nodes]:
    """Reads nodes during the block. Nodes that cannot be reached are named in a note, at the begin and at the end."""
    others = [node for node in plan.nodes if node.server != switch.name]
    opening = accessible_fleet(context, plan, others, uses_libvirt=False) if others else nullcontext(Fleet({}, {}))
    with opening as fleet:
        for name, error in fleet.unreachable.items():
            context.report.note(f"processors and retransmits of nodes on {name} are not read: {error.message}")
        parallel.outcomes([*fleet.servers.values()], _load_agent)
        opened = Fleet({switch.name: switch, **fleet.servers}, fleet.unreachable)
        retransmits = RetransmitWatch(context, opened, every_s)
        try:
            yield _Nodes(opened, retransmits)
        finally:
            failures = retransmits.failures()
            retransmits.close()
            if failures:
                first = next(iter(failures.values()))
                context.report.note(f"retransmits of {folded([*failures])} are not counted: {first.message}")


def records(
    context: Context, name: str, *, every_s: float, with_matrix: bool, for_s: float | None = None
) -> Generator[WatchRecord, None, None]:
    """A record after each interval of `every_s`, without an end or for a time.

    A node that is added or removed meanwhile is in the next record, or not in it any more. Raises ConflictError for a
    switch that its administrator made: vcluster has no access to its ports.
    """
    files = context.files(name)
    plan = read_ledger(files).plan
    traffic_plan.require_own_switch(plan)
    with (
        switch_server(context, plan) as server,
        port_traffic.counted_pairs(server, plan) if with_matrix else nullcontext(),
        _node_reader(context, plan, server, every_s) as nodes,
    ):
        watched = _Watched(files, server)
        before, nodes_before = port_traffic.sample(server, watched.plan), nodes.read(watched.plan)
        for _ in _ticks(every_s, for_s):
            watched.refresh()
            after = port_traffic.sample(server, watched.plan)
            if with_matrix and after.pairs is None:
                raise VclusterError(
                    f"{server.name}: the agent ended, so the counters of the matrix are lost", hint="vcluster watch"
                )
            nodes_after = nodes.read(watched.plan)
            readings = (nodes_before, nodes_after)
            yield watch_record.record(watched.plan, before, after, watched.limits, watched.faults(), readings)
            before, nodes_before = after, nodes_after


def _ticks(every_s: float, for_s: float | None) -> Iterator[None]:
    """Wait for the end of each interval. One that is late does not shift the others; those that passed are left out."""
    began_s, number, never = time.monotonic(), 0, threading.Event()
    while for_s is None or (number + 1) * every_s <= for_s + 1e-9:  # 3 * 0.1 is more than 0.3
        number = max(number + 1, int((time.monotonic() - began_s) / every_s))
        never.wait(max(0.0, began_s + number * every_s - time.monotonic()))
        yield


def _plan(files: ClusterFiles) -> Plan:
    try:
        return read_ledger(files).plan
    except RequestError as error:
        raise VclusterError(f"cluster {files.name} was removed while it was watched", hint="vcluster list") from error
