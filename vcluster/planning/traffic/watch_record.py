"""What `vcluster watch` shows and records of an interval: the ports of a switch, their traffic, and the nodes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vcluster.model.plan import Plan
from vcluster.model.traffic.port_counters import TrafficSample
from vcluster.planning import traffic_plan
from vcluster.planning.traffic import node_activity, port_rates
from vcluster.planning.traffic.node_activity import NOTHING_READ, NodeActivity, NodeReadings
from vcluster.planning.traffic.port_rates import PairTraffic
from vcluster.planning.traffic_plan import LinkReading


@dataclass(frozen=True, slots=True)
class WatchedPort:
    """The port of a node; the field names are a contract with scripts.

    The counts are those of the interval, as in `PortTraffic`. `limits` are the directions of the link that have limits,
    `faults` what disturbs it on purpose.
    """

    node: str
    port: str
    present: bool
    from_bytes: int | None
    to_bytes: int | None
    from_packets: int | None
    to_packets: int | None
    from_rate_bits: int | None
    to_rate_bits: int | None
    waiting_bytes: int | None
    dropped_packets: int | None
    limits: tuple[str, ...]
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WatchRecord:
    """An interval of `interval_ns` that ended at `t_ns` of the monotonic clock of the switch's server.

    `unix_ns` is the same moment since 1970. `matrix` has the pairs of nodes that had traffic, and is null if it was not
    counted.
    """

    name: str
    t_ns: int
    unix_ns: int
    interval_ns: int
    ports: tuple[WatchedPort, ...]
    nodes: tuple[NodeActivity, ...]
    matrix: tuple[PairTraffic, ...] | None


def record(
    plan: Plan,
    before: TrafficSample,
    after: TrafficSample,
    limits: Sequence[LinkReading],
    faults: Mapping[str, tuple[str, ...]] | None = None,
    nodes: tuple[NodeReadings, NodeReadings] = (NOTHING_READ, NOTHING_READ),
) -> WatchRecord:
    """The record of the time between two samples. `faults` are texts about links, by node.

    `nodes` are two readings at about the same moments as the samples.
    """
    texts = traffic_plan.texts_of(traffic_plan.found_limits(limits))
    ports = tuple(
        WatchedPort(
            one.node, one.port, one.is_present, one.from_bytes, one.to_bytes, one.from_packets, one.to_packets,
            one.from_rate_bits, one.to_rate_bits, one.waiting_bytes, one.dropped_packets,
            limits=tuple(
                f"{direction} {texts[one.node, direction]}"
                for direction in traffic_plan.DIRECTIONS
                if (one.node, direction) in texts
            ),
            faults=(faults or {}).get(one.node, ()),
        )
        for one in port_rates.traffic(plan, before, after)
    )  # fmt: skip
    matrix = port_rates.pairs(plan, before, after)
    return WatchRecord(
        plan.name,
        after.t_ns,
        after.unix_ns,
        after.t_ns - before.t_ns,
        ports,
        node_activity.activity(plan, *nodes),
        None if matrix is None else tuple(matrix),
    )
