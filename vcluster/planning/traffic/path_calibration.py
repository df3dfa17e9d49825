"""Which paths of a cluster are calibrated, and what follows from their measurement. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations

from vcluster.model.plan import Plan
from vcluster.model.traffic.calibration_record import CalibratedPath
from vcluster.model.traffic.port_counters import TrafficSample
from vcluster.planning import link_spec, traffic_plan
from vcluster.planning.traffic import port_rates
from vcluster.planning.traffic.link_figures import UDP_BYTES, Stream
from vcluster.planning.traffic_plan import LinkReading
from vcluster.util.median import median, median_interval

ROUND_TRIPS = 101
BEGIN_S, WINDOW_S = 0.3, 1.0
Pair = tuple[str, str]


def pairs(plan: Plan, rows: Sequence[LinkReading], running: Collection[str]) -> dict[tuple[str, ...], Pair]:
    """By their servers, two running nodes without limits. One pair stands for all pairs of the same servers."""
    limited = {row.node for row in rows}
    free = [node for node in plan.nodes if node.name in running and node.name not in limited]
    found: dict[tuple[str, ...], Pair] = {}
    for start, end in combinations(free, 2):
        found.setdefault(tuple(sorted({start.server, end.server})), (start.name, end.name))
    return found


def stream(plan: Plan) -> Stream:
    """Full-size datagrams, faster than any node sends them."""
    payload = traffic_plan.frame_bytes(plan) - UDP_BYTES
    return Stream(payload, 0, 10**9, link_spec.RATE_MAX, BEGIN_S + WINDOW_S + 5.0)


def path(
    plan: Plan,
    servers: tuple[str, ...],
    pair: Pair,
    times_ns: Sequence[int],
    before: TrafficSample,
    after: TrafficSample,
) -> CalibratedPath | None:
    """The path of a pair; None with too few answers for an interval, or if a port was made again meanwhile."""
    ordered = sorted(times_ns)
    interval = median_interval(ordered)
    rate = next(each.to_rate_bits for each in port_rates.traffic(plan, before, after) if each.node == pair[1])
    if interval is None or rate is None:
        return None
    low, high = interval
    return CalibratedPath(servers, *pair, median(ordered) / 1000, low / 1000, high / 1000, rate)
