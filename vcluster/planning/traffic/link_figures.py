"""What the links of nodes really do: the probes that measure their limits, and the figures that follow. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from vcluster.model.plan import Plan
from vcluster.model.spec import FROM, TO
from vcluster.model.traffic.calibration_record import Calibration
from vcluster.model.traffic.link_figure import DELAY, LOSS, RATE, UNITS, LinkFigure
from vcluster.model.traffic.port_counters import TrafficSample
from vcluster.planning import traffic_plan
from vcluster.planning.hops import switch_port
from vcluster.planning.traffic_plan import LinkReading
from vcluster.util.median import median, median_interval
from vcluster.util.proportion import proportion_interval

ROUND_TRIPS, ROUND_TRIPS_MIN = 21, 3
ROUND_TRIPS_S = 10.0
PING_BYTES = 42  # Ethernet, IPv4 and ICMP
UDP_BYTES = 42  # Ethernet, IPv4 and UDP
FRAME_MIN = 60
EXCESS = 1.25  # the rate of the stream, in parts of the limit
WINDOW_S, WINDOW_FRAMES = 1.0, 50
LOSSES_AWAITED = 20  # frames that are lost, if the link does as asked
LOSS_FRAMES_MIN, LOSS_FRAMES_MAX = 500, 4000
LOSS_BITS_MAX = 4 * 10**6
LOSS_S = 10.0
_PPM = 10**6
_NS = 10**9

Reading = tuple[list[LinkReading], int, TrafficSample]  # the limits with their counters, when they were read; the ports


@dataclass(frozen=True, slots=True)
class LinkProbe:
    """A limit that is measured with the node `other`; this is empty if no node is suitable."""

    row: LinkReading
    figure: str
    asked: int
    other: str

    @property
    def sender(self) -> str:
        """The node that sends its frames. The other end only answers pings, and discards datagrams."""
        return self.row.node if self.figure == DELAY or self.row.direction == FROM else self.other

    @property
    def receiver(self) -> str:
        """The node that gets its frames."""
        return self.other if self.sender == self.row.node else self.row.node

    def missing(self, reason: str, frames: int = 0, size: int = 0) -> LinkFigure:
        """The figure that was not measured."""
        unit = UNITS[self.figure]
        return LinkFigure(self.figure, self.other or None, unit, self.asked, None, None, None, reason, frames, size)


@dataclass(frozen=True, slots=True)
class Stream:
    """Datagrams: `first` ones at once, then up to `count` ones at a rate of frames, for so many seconds at most."""

    payload: int
    first: int
    count: int
    bits_s: float
    seconds: float

    @property
    def frame_bytes(self) -> int:
        """The size of its frames."""
        return self.payload + UDP_BYTES


@dataclass(frozen=True, slots=True)
class Baseline:
    """The round trip of two nodes without delays: its median and its 95 % interval. `reason` is why there is none."""

    about: str
    round_trip_us: float
    interval_us: tuple[float, float] | None
    reason: str = ""


# Which probes


def probes(
    plan: Plan, rows: Sequence[LinkReading], chosen: Collection[str], running: Collection[str]
) -> list[LinkProbe]:
    """The probes for the limits of the chosen nodes: first those that leave no frames waiting.

    `rows` are those of all nodes. A round trip has the delays of both directions, so it is a figure of one row.
    """
    found: list[LinkProbe] = []
    for row in rows:
        if row.node not in chosen:
            continue
        other = _other(plan, rows, row, running)
        has_pair = any((each.figure, each.row.node, each.other) == (DELAY, row.node, other) for each in found)
        if row.delay_us and not has_pair:
            found.append(LinkProbe(row, DELAY, round_trip_us(rows, row.node, other), other))
        if asked := _loss_ppm(row):
            found.append(LinkProbe(row, LOSS, asked, other))
        if row.rate_bits:
            found.append(LinkProbe(row, RATE, row.rate_bits, other))
    return sorted(found, key=lambda each: each.figure == RATE)


def _loss_ppm(row: LinkReading) -> int:
    """Both kinds of losses of a link."""
    passed = (1 - (row.loss_ppm or 0) / _PPM) * (1 - (row.burst_loss_ppm or 0) / _PPM)
    return round((1 - passed) * _PPM)


def _other(plan: Plan, rows: Sequence[LinkReading], row: LinkReading, running: Collection[str]) -> str:
    """The node at the other end: the peer, or the one with the fewest limits that has no own queue."""
    peers = {each.peer for each in rows if each.node == row.node}
    limits = [each.node for each in rows]
    names = [node.name for node in plan.nodes if node.name in running and node.name != row.node]
    suitable = [name for name in names if (name == row.peer if row.peer else name not in peers)]
    return min(suitable, key=limits.count, default="")


def round_trip_us(rows: Sequence[LinkReading], start: str, end: str) -> int:
    """The delays that a round trip between two nodes has by the limits."""
    ways = ((start, FROM, end), (end, TO, start), (end, FROM, start), (start, TO, end))
    return sum(_delay_us(rows, *each) for each in ways)


def _delay_us(rows: Sequence[LinkReading], node: str, direction: str, peer: str) -> int:
    """A queue of the peer has its own delay, and that of all frames if it has none."""
    own = [each for each in rows if (each.node, each.direction) == (node, direction) and each.peer in (None, peer)]
    delays = [(each.peer is not None, each.delay_us) for each in own if each.delay_us]
    return max(delays, default=(False, 0))[1] or 0


def baseline_pair(
    plan: Plan, rows: Sequence[LinkReading], running: Collection[str], probe: LinkProbe
) -> tuple[str, str] | None:
    """Two nodes whose frames are not delayed, on the same servers as those of a probe; first those with few limits."""
    servers = {node.name: node.server for node in plan.nodes}
    limits = [each.node for each in rows]
    pairs = [
        (start, end)
        for start, end in combinations([node.name for node in plan.nodes if node.name in running], 2)
        if {servers[start], servers[end]} == {servers[probe.row.node], servers[probe.other]}
        and not round_trip_us(rows, start, end)
    ]
    return min(pairs, key=lambda pair: sum(map(limits.count, pair)), default=None)


# What they send


def rate_stream(plan: Plan, row: LinkReading) -> tuple[Stream, float]:
    """The stream that keeps frames waiting for their rate, and the time to count those that leave."""
    rate, largest = row.rate_bits or 0, traffic_plan.frame_bytes(plan)
    frame = min(largest, max(FRAME_MIN, int(rate * WINDOW_S / 8 / WINDOW_FRAMES)))
    window_s = max(WINDOW_S, WINDOW_FRAMES * frame * 8 / rate)
    # A burst passes without waiting.
    first = max(2 * largest, rate * traffic_plan.BURST_MS // 8000) // frame + 8
    return Stream(frame - UDP_BYTES, first, 10**9, EXCESS * rate, window_s + 5.0), window_s


def loss_stream(rows: Sequence[LinkReading], probe: LinkProbe) -> Stream:
    """Small frames at half of the slowest rate, so that a queue drops none."""
    passed = ((probe.sender, FROM), (probe.receiver, TO))
    rates = [each.rate_bits / 2 for each in rows if (each.node, each.direction) in passed and each.rate_bits]
    bits_s = min([LOSS_BITS_MAX, *rates])
    wanted = min(LOSS_FRAMES_MAX, max(LOSS_FRAMES_MIN, LOSSES_AWAITED * _PPM // probe.asked))
    count = min(wanted, int(LOSS_S * bits_s / (8 * FRAME_MIN)))
    return Stream(FRAME_MIN - UDP_BYTES, 0, max(count, 1), bits_s, LOSS_S + 2.0)


# Figures


def row_of(rows: Sequence[LinkReading], row: LinkReading) -> LinkReading | None:
    """The same limits in a later reading."""
    place = (row.node, row.direction, row.peer, row.where)
    return next((each for each in rows if (each.node, each.direction, each.peer, each.where) == place), None)


def is_saturated(row: LinkReading | None) -> bool:
    """Whether frames wait."""
    return row is not None and row.waiting_bytes > 0


def rate_figure(probe: LinkProbe, begin: Reading, end: Reading, sent: int, frame_bytes: int) -> LinkFigure:
    """The bytes of frames that left the queue, by the time between two readings. Frames waited at both."""
    before, after = row_of(begin[0], probe.row), row_of(end[0], probe.row)
    size, elapsed_ns = sent * frame_bytes, end[1] - begin[1]
    if before is None or after is None or after.sent_bytes < before.sent_bytes or elapsed_ns <= 0:
        return probe.missing("its queue was changed meanwhile", sent, size)
    left = after.sent_bytes - before.sent_bytes
    value = left * 8 * _NS / elapsed_ns
    if not _has_waited(before, after):
        reason = f"{probe.sender} sent {value / 1e6:.3g} Mbit/s only, so no frames waited"
        return probe.missing(reason, sent, size)
    detail = f"{left} bytes of frames left the queue in {elapsed_ns / _NS:.2f} s"
    return LinkFigure(RATE, probe.other, UNITS[RATE], probe.asked, round(value, 1), None, None, detail, sent, size)


def _has_waited(before: LinkReading, after: LinkReading) -> bool:
    """Whether frames waited for their rate. Delayed frames wait too, so then the queue must have been full."""
    dropped = after.dropped_packets - before.dropped_packets
    frames = after.sent_packets - before.sent_packets + dropped
    was_full = dropped > 2 * frames * _loss_ppm(after) / _PPM
    return was_full or (is_saturated(before) and is_saturated(after) and not after.delay_us)


def measured_baseline(pair: tuple[str, str], times_ns: Sequence[int]) -> Baseline:
    """The baseline of two nodes without delays."""
    if len(times_ns) < ROUND_TRIPS_MIN:
        return Baseline("", 0.0, None, f"{pair[1]} answered {len(times_ns)} pings only")
    ordered = sorted(times_ns)
    middle, interval = median(ordered) / 1000, median_interval(ordered)
    about = f"{pair[0]} to {pair[1]} takes {middle:.0f} us"
    return Baseline(about, middle, (interval[0] / 1000, interval[1] / 1000) if interval else None)


def calibrated_baseline(plan: Plan, probe: LinkProbe, calibration: Calibration | None) -> Baseline | None:
    """The baseline of nodes on the same servers as those of a probe, when the cluster was calibrated."""
    servers = {plan.node(name).server for name in (probe.row.node, probe.other)}
    path = calibration.path_of(servers) if calibration else None
    if calibration is None or path is None:
        return None
    about = f"{path.start} to {path.end} took {path.round_trip_us:.0f} us, calibrated at {calibration.at}"
    return Baseline(about, path.round_trip_us, (path.low_us, path.high_us))


def delay_figure(probe: LinkProbe, times_ns: Sequence[int], frames: int, baseline: Baseline) -> LinkFigure:
    """The median of round trips, minus the baseline. `frames` are those of all pings."""
    reason = baseline.reason
    if len(times_ns) < ROUND_TRIPS_MIN:
        reason = f"{probe.receiver} answered {len(times_ns)} pings only"
    if reason:
        return probe.missing(reason, frames, frames * PING_BYTES)
    times = sorted(times_ns)
    low, high = _difference(median_interval(times), baseline.interval_us)
    detail = f"{len(times)} round trips; {baseline.about}"
    value = median(times) / 1000 - baseline.round_trip_us
    return LinkFigure(
        DELAY, probe.other, UNITS[DELAY], probe.asked, value, low, high, detail, frames, frames * PING_BYTES
    )


def _difference(
    times_ns: tuple[float, float] | None, base_us: tuple[float, float] | None
) -> tuple[float, float] | tuple[None, None]:
    """The widest difference of two intervals, in microseconds."""
    if times_ns is None or base_us is None:
        return None, None
    return times_ns[0] / 1000 - base_us[1], times_ns[1] / 1000 - base_us[0]


def loss_figure(plan: Plan, probe: LinkProbe, begin: Reading, end: Reading, sent: int) -> LinkFigure:
    """The frames that the switch dropped, of those that arrived. Those of one peer are the frames that were sent."""
    size = sent * FRAME_MIN
    before, after = row_of(begin[0], probe.row), row_of(end[0], probe.row)
    passed = arrived(plan, probe, end) - arrived(plan, probe, begin)
    if before is None or after is None or after.dropped_packets < before.dropped_packets or passed < 0:
        return probe.missing("its counters began again meanwhile", sent, size)
    dropped = after.dropped_packets - before.dropped_packets
    total = sent if probe.row.peer else passed + (dropped if probe.row.direction == TO else 0)
    if not total or dropped > total:
        return probe.missing(f"no frame of {probe.sender} arrived at the switch", sent, size)
    low, high = (part * _PPM for part in proportion_interval(dropped, total))
    detail = f"{dropped} of {total} frames dropped"
    found = LinkFigure(
        LOSS, probe.other, UNITS[LOSS], probe.asked, dropped * _PPM / total, low, high, detail, sent, size
    )
    # Frames of a burst depend on each other.
    return replace(found, low=None, high=None) if probe.row.burst_loss_ppm else found


def arrived(plan: Plan, probe: LinkProbe, reading: Reading) -> int:
    """The frames that arrived at the port from its node, or left it to its node."""
    port = switch_port(plan, plan.node(probe.row.node))
    found = next((each for each in reading[2].interfaces if each.name == port), None)
    if found is None:
        return -1
    return found.received_packets if probe.row.direction == FROM else found.sent_packets


def with_figures(rows: Sequence[LinkReading], figures: Mapping[LinkProbe, LinkFigure]) -> Iterator[LinkReading]:
    """The rows with what was measured of them."""
    for row in rows:
        yield replace(row, measured=tuple(figure for probe, figure in figures.items() if probe.row == row))
