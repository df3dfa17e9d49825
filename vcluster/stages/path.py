"""Proof by counters: a flow is sent between two nodes, and every port on the way must have counted it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vcluster.adapters.pipe import NodeConnection
from vcluster.fleet.servers import Fleet
from vcluster.model.plan import Node, Plan
from vcluster.planning.hops import Hop, hops
from vcluster.stages.check import Check
from vcluster.stages.configure import ask
from vcluster.util import parallel
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter

CHECK_PACKETS = 40
PAYLOAD_BYTES = 1000

# By server and link: packets received and sent, and the MTU.
Counters = dict[tuple[str, str], tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class Counted:
    """A hop with what it counted while the flow went: packets on the way there and on the way back.

    Both are None where the port is on a server that is not open to us.
    """

    hop: Hop
    mtu: int | None
    there: int | None
    back: int | None

    def has_seen(self, packets: int) -> bool | None:
        """Whether the whole flow passed here, both ways; None when nobody can tell."""
        if self.there is None or self.back is None:
            return None
        return self.there >= packets and self.back >= packets


@dataclass(frozen=True, slots=True)
class Path:
    """The way a flow of `packets` went; `answered` of them came back to the sender."""

    start: str
    end: str
    packets: int
    answered: int
    hops: tuple[Counted, ...]

    @property
    def crossed(self) -> bool:
        """Whether all of it went through every port on the way, the switch's among them."""
        return self.answered == self.packets and all(hop.has_seen(self.packets) is not False for hop in self.hops)

    @property
    def detail(self) -> str:
        """What is wrong, in words; empty when nothing is."""
        if self.answered < self.packets:
            return f"{self.answered} of {self.packets} packets came back"
        missed = next((one for one in self.hops if one.has_seen(self.packets) is False), None)
        if missed is None:
            return ""
        counted = min(missed.there or 0, missed.back or 0)
        return f"{missed.hop.what} ({missed.hop.link} on {missed.hop.server}) counted {counted} of {self.packets}"


def trace(
    fleet: Fleet,
    plan: Plan,
    pairs: Sequence[tuple[Node, Node]],
    sessions: Mapping[str, NodeConnection],
    *,
    packets: int,
    deadline: Deadline,
) -> tuple[Path, ...]:
    """Send a flow for each pair, all at once, and read the counters of all ports before and after."""
    before = _counters(fleet, deadline)

    def send(pair: tuple[Node, Node]) -> int:
        start, end = pair
        request = {"do": "flow", "address": str(end.address), "count": packets, "payload": PAYLOAD_BYTES}
        return int(ask(sessions[start.name], "check", request, awaited="a flow")["answered"])

    answered = parallel.each(pairs, send, deadline=deadline)
    after = _counters(fleet, deadline)
    return tuple(
        Path(start.name, end.name, packets, came, _counted(fleet, hops(plan, start, end), before, after))
        for (start, end), came in zip(pairs, answered, strict=True)
    )


def check_all(
    fleet: Fleet, plan: Plan, sessions: Mapping[str, NodeConnection], *, deadline: Deadline, report: Reporter
) -> tuple[Check, ...]:
    """A flow from each node to the next, so that every port carries one; one result for each."""
    if len(plan.nodes) == 1:
        return ()
    pairs = list(zip(plan.nodes, (*plan.nodes[1:], plan.nodes[0]), strict=True))
    with report.step("path", awaiting="flows through the switch"):
        paths = trace(fleet, plan, pairs, sessions, packets=CHECK_PACKETS, deadline=deadline)
    return tuple(Check("path", path.start, path.end, path.crossed, path.detail) for path in paths)


def _counters(fleet: Fleet, deadline: Deadline) -> Counters:
    seen = fleet.each(lambda server: server.call("interfaces"), deadline=deadline)
    return {
        (server, link["name"]): (link["rx_packets"], link["tx_packets"], link["mtu"])
        for server, links in seen.items()
        for link in links
    }


def _counted(fleet: Fleet, ports: Sequence[Hop], before: Counters, after: Counters) -> tuple[Counted, ...]:
    return tuple(_count(hop, before, after) if hop.server in fleet else Counted(hop, None, None, None) for hop in ports)


def _count(hop: Hop, before: Counters, after: Counters) -> Counted:
    key = (hop.server, hop.link)
    if key not in before or key not in after:
        return Counted(hop, None, 0, 0)
    received, sent = after[key][0] - before[key][0], after[key][1] - before[key][1]
    there, back = (received, sent) if hop.comes_in else (sent, received)
    return Counted(hop, after[key][2], there, back)
