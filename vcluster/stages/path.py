"""Proof of a path: a node sends a flow to another, and every port on the path must count it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vcluster.adapters.node_connection import NodeConnection
from vcluster.fleet.servers import Fleet
from vcluster.model.checks import Check
from vcluster.model.plan import Node, Plan
from vcluster.planning.hops import Hop, hops
from vcluster.stages.guest_answer import ask, field
from vcluster.util import parallel
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter

AWAITED = "a flow"
CHECK_PACKETS = 40
PAYLOAD_BYTES = 1000

# By server and link: packets received and sent, and the MTU.
Counters = dict[tuple[str, str], tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class Counted:
    """A hop, and the packets that its port counted during the flow, in each direction.

    Both counts are None if the port is on a server without a connection.
    """

    hop: Hop
    mtu: int | None
    there: int | None
    back: int | None

    def has_seen(self, packets: int) -> bool | None:
        """Whether the whole flow passed this port in both directions. None if the port cannot be read."""
        if self.there is None or self.back is None:
            return None
        return self.there >= packets and self.back >= packets


@dataclass(frozen=True, slots=True)
class Path:
    """The path of a flow of `packets` packets; the sender received answers to `answered` of them."""

    start: str
    end: str
    packets: int
    answered: int
    hops: tuple[Counted, ...]

    @property
    def crossed(self) -> bool:
        """Whether the whole flow went through every port on the path, the switch's ports included."""
        return not self.detail

    @property
    def detail(self) -> str:
        """The reason of a failure, as text; empty if the path passed.

        ping may send and receive more packets than asked for: with a time limit, it sends until all answers arrived.
        """
        lost = self._loss(self.start, self.end, [(hop, hop.there) for hop in self.hops])
        lost = lost or self._loss(self.end, self.start, [(hop, hop.back) for hop in reversed(self.hops)])
        if self.answered < self.packets:
            return f"{self.answered} of {self.packets} packets came back" + (f": {lost}" if lost else "")
        return lost

    def _loss(self, sender: str, receiver: str, counts: Sequence[tuple[Counted, int | None]]) -> str:
        """The first port that the flow did not reach in one direction, else the first that counted too little."""
        missed = [(hop.hop, count) for hop, count in counts if count is not None and count < self.packets]
        for hop, count in sorted(missed, key=lambda each: each[1] > 0)[:1]:
            seen = f"counted {count} of {self.packets} from {sender} to {receiver}"
            return f"{hop.what} ({hop.link} on {hop.server}) {seen}"
        return ""


def trace(
    fleet: Fleet,
    plan: Plan,
    pairs: Sequence[tuple[Node, Node]],
    sessions: Mapping[str, NodeConnection],
    *,
    packets: int,
    deadline: Deadline,
) -> tuple[Path, ...]:
    """Send a flow for each pair, all at the same time. Read the counters of all ports before and after."""
    before = _counters(fleet, deadline)

    def send(pair: tuple[Node, Node]) -> int:
        start, end = pair
        request = {"do": "flow", "address": str(end.address), "count": packets, "payload": PAYLOAD_BYTES}
        answer = ask(sessions[start.name], "check", request, awaited=AWAITED)
        return field(answer, "answered", int, f"{start.name}: {AWAITED}")

    answered = parallel.each(pairs, send, deadline=deadline)
    after = _counters(fleet, deadline)
    return tuple(
        Path(start.name, end.name, packets, count, _counted(fleet, hops(plan, start, end), before, after))
        for (start, end), count in zip(pairs, answered, strict=True)
    )


def check_all(
    fleet: Fleet, plan: Plan, sessions: Mapping[str, NodeConnection], *, deadline: Deadline, report: Reporter
) -> tuple[Check, ...]:
    """Send a flow from each node to the next, so that every port carries one. One result for each flow."""
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
