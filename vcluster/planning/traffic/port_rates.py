"""The traffic of the links of a cluster, computed from two samples of its switch's counters. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vcluster.model.naming import shaper_name
from vcluster.model.plan import Plan
from vcluster.model.spec import FROM, TO
from vcluster.model.traffic.port_counters import InterfaceCounters, TrafficSample
from vcluster.planning import traffic_plan
from vcluster.planning.hops import switch_port

NS = 10**9
ETHERNET_BYTES = 14  # the header of a frame, which the kernel's packet filter and tunnels (VXLAN) do not count


@dataclass(frozen=True, slots=True)
class PortTraffic:
    """The traffic of a node's port between two samples; the field names are a contract with scripts.

    `from` and `to` mean frames that the node sends and receives. All numbers are None if the port does not exist, or
    if a counter began again meanwhile: the interval then has no number. `waiting_bytes` is that of the second sample.
    """

    node: str
    port: str
    is_present: bool
    from_bytes: int | None = None
    to_bytes: int | None = None
    from_packets: int | None = None
    to_packets: int | None = None
    from_rate_bits: int | None = None
    to_rate_bits: int | None = None
    waiting_bytes: int | None = None
    dropped_packets: int | None = None


@dataclass(frozen=True, slots=True)
class PairTraffic:
    """The frames from one node to another between two samples, after rules of links dropped theirs."""

    from_node: str
    to_node: str
    packets: int
    bytes: int


def interfaces_of(plan: Plan) -> list[str]:
    """The interfaces whose counters show the traffic: the ports of the switch, and the shapers of limited links."""
    ports = [switch_port(plan, node) for node in plan.nodes]
    return ports + sorted(traffic_plan.shapers(plan, plan.switch.server))


def traffic(plan: Plan, before: TrafficSample, after: TrafficSample) -> list[PortTraffic]:
    """The traffic of each node's port between two samples, in the order of nodes."""
    old, new = _by_name(before), _by_name(after)
    interval_ns = after.t_ns - before.t_ns
    found = []
    for node in plan.nodes:
        port, shaper = switch_port(plan, node), shaper_name(plan.name, node.index)
        one = PortTraffic(node.name, port, port in new)
        counted = _difference(old.get(port), new.get(port))
        if counted is not None and interval_ns > 0:
            received, sent, received_packets, sent_packets, _ = counted
            header = ETHERNET_BYTES if node.vni is not None else 0
            received, sent = received + header * received_packets, sent + header * sent_packets
            one = PortTraffic(
                node.name, port, True, received, sent, received_packets, sent_packets,
                received * 8 * NS // interval_ns, sent * 8 * NS // interval_ns,
                waiting_bytes=sum(max(0, new[name].waiting_bytes) for name in (port, shaper) if name in new),
                dropped_packets=_dropped(port, shaper, before, after, old, new),
            )  # fmt: skip
        found.append(one)
    return found


def pairs(plan: Plan, before: TrafficSample, after: TrafficSample) -> list[PairTraffic] | None:
    """The traffic from node to node between two samples, only pairs that had some; None if it is not counted.

    A pair without a counter before had no frame until then. Ports of other clusters are left out.
    """
    if before.pairs is None or after.pairs is None:
        return None
    nodes = {switch_port(plan, node): node.name for node in plan.nodes}
    old = {(one.from_port, one.to_port): one for one in before.pairs}
    found = []
    for one in after.pairs:
        former = old.get((one.from_port, one.to_port))
        packets = one.packets - (former.packets if former else 0)
        in_filter = one.bytes - (former.bytes if former else 0)
        if packets > 0 and in_filter >= 0 and one.from_port in nodes and one.to_port in nodes:
            whole = in_filter + ETHERNET_BYTES * packets
            found.append(PairTraffic(nodes[one.from_port], nodes[one.to_port], packets, whole))
    order = {node.name: number for number, node in enumerate(plan.nodes)}
    return sorted(found, key=lambda one: (order[one.from_node], order[one.to_node]))


def _by_name(sample: TrafficSample) -> dict[str, InterfaceCounters]:
    return {one.name: one for one in sample.interfaces}


def _difference(old: InterfaceCounters | None, new: InterfaceCounters | None) -> tuple[int, ...] | None:
    """The differences of bytes, packets and drops; None if it is not the same interface, or a counter went back."""
    if old is None or new is None or old.interface_index != new.interface_index:
        return None
    found = (
        new.received_bytes - old.received_bytes,
        new.sent_bytes - old.sent_bytes,
        new.received_packets - old.received_packets,
        new.sent_packets - old.sent_packets,
        new.dropped - old.dropped,
    )
    return found if min(found) >= 0 else None


def _dropped(
    port: str,
    shaper: str,
    before: TrafficSample,
    after: TrafficSample,
    old: Mapping[str, InterfaceCounters],
    new: Mapping[str, InterfaceCounters],
) -> int | None:
    """The frames that the port, its queues and the rules of its link dropped; None if one of the counters went back.

    A queue or a rule that is new has counted since it was made.
    """
    found = 0
    for name in (port, shaper):
        one, former = new.get(name), old.get(name)
        if one is None:
            continue
        is_same = former is not None and former.interface_index == one.interface_index
        found += max(0, one.dropped - (former.dropped if former and is_same else 0))
        waited = former.queue_dropped if former and is_same else 0
        if one.queue_dropped < waited:
            return None
        found += one.queue_dropped - waited
    for direction in (FROM, TO):
        place = f"{direction}-{port}"
        lost = after.losses.get(place, 0) - before.losses.get(place, 0)
        if place in after.losses and lost < 0:
            return None
        found += max(0, lost)
    return found
