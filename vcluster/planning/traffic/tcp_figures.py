"""A TCP flow between two nodes: its command lines, and the figures of its samples. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from vcluster.errors import RequestError
from vcluster.model.quoting import shown
from vcluster.model.spec import PortRange
from vcluster.util.median import median, median_interval

WARM_UP_S = 1.0  # of a flow, from its first data on; the goodput and the round trips leave it out
INTERVALS = 20  # of the goodput, after the warm-up
END_S, END_READ_S = 60.0, 0.1  # a limit for the begin and the end of a flow, and the time between samples at its end
SAMPLES_MAX = 200_000  # of a flow
PORT = 5201  # of iperf3
ESTABLISHED = "established"
CONGESTION_HINT = "vcluster exec -- sysctl -a --pattern congestion_control"  # it lists those that a kernel has
# By their numbers in linux/tcp_states.h.
STATES = {
    1: ESTABLISHED, 4: "fin-wait-1", 5: "fin-wait-2", 8: "close-wait", 9: "last-ack", 11: "closing",
}  # fmt: skip
_CONGESTION = re.compile(r"[a-z][a-z0-9_-]{0,14}")  # TCP_CA_NAME_MAX is 16


@dataclass(frozen=True, slots=True)
class FlowChoice:
    """How data flow: the time after the warm-up, the connections at a time, and the time between samples.

    Without `congestion`, both nodes use the congestion control of their kernels.
    """

    seconds: float
    streams: int
    every_s: float
    congestion: str | None

    @property
    def interval_s(self) -> float:
        """The time for which each value of the goodput is counted."""
        return self.seconds / INTERVALS

    @property
    def flow_s(self) -> float:
        """A limit for the whole flow."""
        return WARM_UP_S + self.seconds + END_S

    @property
    def samples_max(self) -> int:
        """More samples than a flow can have, with those of the connection that controls it."""
        readings = self.flow_s / self.every_s + END_S / END_READ_S
        return round(readings * (self.streams + 1))


@dataclass(frozen=True, slots=True)
class FlowEnds:
    """The addresses of the sender and the receiver, and the sender's port."""

    sender: IPv4Address
    receiver: IPv4Address
    port: int


@dataclass(frozen=True, slots=True)
class TcpSample:
    """What the kernel of the sender knew of a connection at a moment of its monotonic clock.

    `port` is that of the receiver. `ssthresh` and `min_rtt_us` are None until the kernel knows them. The field names
    are a contract with scripts.
    """

    t_ns: int
    port: int
    state: str
    cwnd: int
    ssthresh: int | None
    rtt_us: int
    rttvar_us: int
    min_rtt_us: int | None
    retransmits: int
    unacked: int
    acked_bytes: int
    delivery_rate_bits: int


@dataclass(frozen=True, slots=True)
class TcpConnection:
    """A connection at its end."""

    port: int
    congestion: str
    retransmits: int
    min_rtt_us: int | None
    sent_bytes: int
    received_bytes: int


@dataclass(frozen=True, slots=True)
class SeenFlow:
    """A flow that has ended: the sender's samples and connections.

    `mean_bits` is the mean rate of the data that the receiver read. `exchanged_bytes` are all bytes that were sent over
    its connections in both directions, also those sent again.
    """

    mean_bits: float
    samples: tuple[TcpSample, ...]
    connections: tuple[TcpConnection, ...]
    exchanged_bytes: int


@dataclass(frozen=True, slots=True)
class TcpRow:
    """The figures of a flow: the median of the goodput with its interval, retransmits, and round trips.

    `samples` is the number of values of the goodput. `mean_bits` is the mean of iperf3, with the warm-up. `starved` are
    the nodes that waited for a processor of their server.
    """

    start: str
    end: str
    congestion: str
    samples: int
    goodput_bits: float
    low_bits: float | None
    high_bits: float | None
    mean_bits: float
    retransmits: int
    rtt_us: float
    min_rtt_us: int | None
    starved: tuple[str, ...] = ()


def check(choice: FlowChoice) -> None:
    """Raise RequestError for a flow that would have too few samples or too many, or for a name of no kernel."""
    if choice.seconds % 1:
        raise RequestError(
            f"--for {choice.seconds:g}: iperf3 sends for whole seconds", hint=f"--for {math.ceil(choice.seconds)}"
        )
    if choice.every_s > choice.interval_s:
        raise RequestError(
            f"--every {choice.every_s:g}: the goodput is counted in {INTERVALS} intervals of {choice.interval_s:g} s",
            hint=f"--every {choice.interval_s:g}, or a longer --for",
        )
    if choice.samples_max > SAMPLES_MAX:
        raise RequestError(
            f"--every {choice.every_s:g}: a flow may have {choice.samples_max} samples, more than {SAMPLES_MAX}",
            hint="use a longer --every, or a shorter --for",
        )
    if choice.congestion is not None and not _CONGESTION.fullmatch(choice.congestion):
        raise RequestError(
            f"--congestion {shown(choice.congestion)} is not the name of a congestion control", hint=CONGESTION_HINT
        )


def require_time(choice: FlowChoice, flows: int, timeout_s: float) -> None:
    """Raise RequestError if so many flows, one after another, cannot end in time."""
    least_s = flows * (WARM_UP_S + choice.seconds)
    if least_s > timeout_s:
        raise RequestError(
            f"{flows} flows of {WARM_UP_S + choice.seconds:g} s need more than --timeout {timeout_s:g}",
            hint=f"--timeout {math.ceil(1.5 * least_s)}, a shorter --for, --ring, or fewer nodes by -w",
        )


def sender_port(mpi_ports: PortRange | None) -> int:
    """A port that nodes accept connections at: that of iperf3, unless they accept only those of MPI."""
    return mpi_ports.last if mpi_ports else PORT


def receiver_command(choice: FlowChoice, ends: FlowEnds) -> tuple[str, ...]:
    """The command of the receiver, which asks the sender for data."""
    congestion = ("--congestion", choice.congestion) if choice.congestion else ()
    return (
        "iperf3", "--client", str(ends.sender), "--port", str(ends.port), "--reverse", "--json",
        "--time", f"{WARM_UP_S + choice.seconds:g}", "--interval", "0",
        "--parallel", str(choice.streams), "--connect-timeout", "10000", *congestion,
    )  # fmt: skip


def sender_command(ends: FlowEnds) -> tuple[str, ...]:
    """The command of the sender, which waits for one receiver."""
    return ("iperf3", "--server", "--one-off", "--bind", str(ends.sender), "--port", str(ends.port), "--forceflush")


def summary(start: str, end: str, choice: FlowChoice, seen: SeenFlow) -> TcpRow:
    """The row of a flow, without its warm-up."""
    counted = _after_warm_up(seen.samples)
    values = goodputs(choice, seen.samples)
    low, high = median_interval(values) or (None, None)
    round_trips = sorted(each.rtt_us for each in counted)
    least = [each.min_rtt_us for each in seen.connections if each.min_rtt_us is not None]
    return TcpRow(
        start, end, ",".join(sorted({each.congestion for each in seen.connections})), len(values), median(values),
        low, high, seen.mean_bits, sum(each.retransmits for each in seen.connections), median(round_trips),
        min(least, default=None),
    )  # fmt: skip


def goodputs(choice: FlowChoice, samples: Sequence[TcpSample]) -> list[float]:
    """The rates at which data were acknowledged, in ascending order: one for each interval after the warm-up.

    They are not those of iperf3, which counts whole blocks of 128 KiB.
    """
    acked: dict[int, int] = {}  # by time, on all connections
    for each in _after_warm_up(samples):
        acked[each.t_ns] = acked.get(each.t_ns, 0) + each.acked_bytes
    rates, times = [], sorted(acked)
    begin_ns = times[0] if times else 0
    for t_ns in times:
        if t_ns - begin_ns >= (choice.interval_s - choice.every_s / 2) * 1e9:  # the sample next to the end
            rates.append(8e9 * (acked[t_ns] - acked[begin_ns]) / (t_ns - begin_ns))
            begin_ns = t_ns
    return sorted(rates)


def _after_warm_up(samples: Sequence[TcpSample]) -> list[TcpSample]:
    """The samples of moments when all connections were established, without those of the warm-up."""
    established = [each for each in samples if each.state == ESTABLISHED]
    connections = Counter(each.t_ns for each in established)
    most = max(connections.values(), default=0)
    complete = [each for each in established if connections[each.t_ns] == most]
    # Streams connect before iperf3 exchanges what it needs, and only then sends.
    first_ns = min((each.t_ns for each in complete if each.acked_bytes), default=0)
    begin_ns = first_ns + WARM_UP_S * 1e9
    return [each for each in complete if each.t_ns >= begin_ns]
