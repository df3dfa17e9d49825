"""Measure times and rates of MPI between nodes, and prove that only the measurement used the switch."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from vcluster.commands.nodes.access import require_running, sessions
from vcluster.errors import VclusterError
from vcluster.fleet.context import Context
from vcluster.fleet.servers import Fleet, Server
from vcluster.model.plan import Node, Plan
from vcluster.planning import traffic_plan
from vcluster.planning.hops import switch_port
from vcluster.planning.measure_plan import MeasuredRow, Work, summary
from vcluster.stages.measuring import measure as stage
from vcluster.stages.measuring.measure import MeasuringProgram
from vcluster.util.deadline import Deadline
from vcluster.util.median import SAMPLES_MAX

SAMPLES_FIRST = 10
# An Ethernet header of 14 bytes, and IPv4 and TCP with the option for time stamps: 20 and 32. The switch counts other
# options.
HEADERS_BYTES = 66
FRAME_HEADER_BYTES = 14
DIFFERENCE_MAX = 0.01  # of the bytes at the ports
STARVED = 0.05  # of the time in which a node's processors could run, they waited for one of the server
CLASSES, OPTIONS = ("arp", "ssh", "nfs"), "options"


@dataclass(frozen=True, slots=True)
class Precision:
    """When to end the repetition of a work: its interval is within `width` of its median, or the time is over."""

    width: float
    time_max_s: float


@dataclass(frozen=True, slots=True)
class Traffic:
    """The bytes of frames that entered the switch's ports, in total and by class. `caused_bytes` are ours."""

    port_bytes: int
    caused_bytes: int
    by_class: Mapping[str, int]

    @property
    def difference_bytes(self) -> int:
        """The bytes at the ports that the measurement does not explain."""
        return self.port_bytes - self.caused_bytes - sum(self.by_class.values())

    @property
    def is_explained(self) -> bool:
        """Whether the difference is small."""
        return abs(self.difference_bytes) <= DIFFERENCE_MAX * self.port_bytes


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of a measurement. `library` and `traffic` are None if it ended early."""

    library: str | None
    rows: tuple[MeasuredRow, ...]
    traffic: Traffic | None


@dataclass(frozen=True, slots=True)
class Reading:
    """What had entered the ports, and what we had sent."""

    frames: int
    bytes: int
    by_class: Mapping[str, Sequence[int]]
    sent_bytes: int


def measure(
    context: Context,
    plan: Plan,
    nodes: Sequence[Node],
    works: Sequence[Work],
    precision: Precision,
    on_row: Callable[[MeasuredRow], None],
    *,
    timeout_s: float,
) -> Measured:
    """Carry out works with one rank on each of the nodes. `on_row` gets each row when it is complete.

    Raises ConflictError if a node does not run, or if the switch was set up by hand.
    """
    traffic_plan.require_own_switch(plan, "count frames at its ports")
    require_running(context, plan, nodes)
    deadline = Deadline(timeout_s)
    head, names = plan.head, [node.name for node in nodes]
    rows: list[MeasuredRow] = []
    with (
        context.fleet_of(plan) as fleet,
        sessions(context, plan, [head], user=plan.user, deadline=deadline, fleet=fleet) as opened,
        stage.started(opened[head.name], plan, names, deadline) as program,
        counted(fleet[plan.switch.server], plan) as read,
    ):
        before = read(_sent_bytes(program, plan))
        for work in works:
            times = vcpu_times(fleet, nodes)
            row = repeat(program, work, precision)
            rows.append(replace(row, starved=starved(times, vcpu_times(fleet, nodes), involved(work, names))))
            on_row(rows[-1])
        after = read(_sent_bytes(program, plan))
    return Measured(program.library, tuple(rows), traffic_between(before, after))


def repeat(program: MeasuringProgram, work: Work, precision: Precision) -> MeasuredRow:
    """Repeat a work until its median is known well enough, or the time or the number of samples is used up.

    The number of samples doubles, as far as the time allows.
    """
    times: list[int] = []
    began_s, count = time.monotonic(), SAMPLES_FIRST
    while True:
        times += program.times_ns(work, count)
        row = summary(work, times, precision.width)
        used_s = time.monotonic() - began_s
        left = int((precision.time_max_s - used_s) * len(times) / used_s)  # of samples, at this speed
        count = min(len(times), SAMPLES_MAX - len(times), left)
        if row.is_reached or count <= 0:
            return row


def vcpu_times(fleet: Fleet, nodes: Sequence[Node]) -> dict[str, tuple[int, int]]:
    """By node, the nanoseconds that its processors ran, and that they waited for one of the server."""

    def read(server: Server) -> Mapping[str, tuple[int, int]]:
        domains = [node.domain for node in nodes if node.server == server.name]
        return server.call("vcpu_times", domains=domains)["times"] if domains else {}

    found = {domain: times for each in fleet.each(read).values() for domain, times in each.items()}
    return {node.name: found[node.domain] for node in nodes if node.domain in found}


def involved(work: Work, nodes: Sequence[str]) -> tuple[str, ...]:
    """The nodes that take part in a work, of all nodes of the measurement. Pure."""
    return tuple(name for name in nodes if not work.start or name in (work.start, work.end))


def starved(
    before: Mapping[str, Sequence[int]], after: Mapping[str, Sequence[int]], names: Sequence[str]
) -> tuple[str, ...]:
    """Those of the nodes whose processors waited for more than the part STARVED of their time. Pure."""
    waited = {}
    for name in names:
        if name in before and name in after:
            ran, wait = (last - first for first, last in zip(before[name], after[name], strict=True))
            waited[name] = wait > STARVED * (ran + wait)
    return tuple(name for name, is_starved in waited.items() if is_starved)


def _sent_bytes(program: MeasuringProgram, plan: Plan) -> int:
    """The bytes that the ranks have sent so far, and mpiexec on the head, which passes commands and answers on."""
    is_passed_on = program.nodes[0] != plan.head.name
    return program.sent_bytes() + (program.control_bytes if is_passed_on else 0)


@contextmanager
def counted(server: Server, plan: Plan) -> Iterator[Callable[[int], Reading]]:
    """A function that reads the counters of the switch's ports. It gets the bytes that we have sent so far."""
    ports = [switch_port(plan, node) for node in plan.nodes]
    present = {link["name"] for link in server.call("interfaces")} & {*ports}
    table = f"measured-{secrets.token_hex(8)}"
    server.call("count_frames", table=table, ports=sorted(present))

    def read(sent_bytes: int) -> Reading:
        by_class = server.call("counted_frames", table=table)
        links = [link for link in server.call("interfaces") if link["name"] in present]
        frames, size = sum(link["rx_packets"] for link in links), sum(map(_received_bytes, links))
        return Reading(frames, size, by_class, sent_bytes)

    try:
        yield read
    finally:
        server.call("end_frame_count", table=table)


def _received_bytes(link: Mapping[str, Any]) -> int:
    """The bytes of the frames that entered a port. A tunnel counts them without the Ethernet header (vxlan_rcv)."""
    received, frames = int(link["rx_bytes"]), int(link["rx_packets"])
    return received + (FRAME_HEADER_BYTES * frames if link["kind"] == "vxlan" else 0)


def traffic_between(before: Reading, after: Reading) -> Traffic:
    """The traffic between two readings. Pure.

    The bytes that we caused are those that we sent by TCP, and the headers of all frames of no other class:
    acknowledgements have headers too, with more options after a loss. Frames that were joined on their way are counted
    as the ports count them.
    """
    counted = {name: [last - first for first, last in zip(before.by_class[name], after.by_class[name], strict=True)]
               for name in (*CLASSES, OPTIONS)}  # fmt: skip
    _, options = counted.pop(OPTIONS)
    others = sum(frames for frames, _ in counted.values())
    headers = (after.frames - before.frames - others) * HEADERS_BYTES + options
    return Traffic(
        after.bytes - before.bytes,
        after.sent_bytes - before.sent_bytes + headers,
        {name: size for name, (_, size) in counted.items()},
    )


def require_explained(traffic: Traffic | None) -> None:
    """Raise VclusterError if something else used the cluster network during the measurement."""
    if traffic and not traffic.is_explained:
        raise VclusterError(
            f"the ports of the switch counted {traffic.port_bytes} bytes, and the measurement explains "
            f"{traffic.port_bytes - traffic.difference_bytes} of them: other programs used the cluster network",
            hint="measure again while nothing else runs on the nodes",
        )
