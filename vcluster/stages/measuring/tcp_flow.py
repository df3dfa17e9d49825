"""A TCP flow between two nodes: iperf3 makes it, and a guest program of the sender samples its connections."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from vcluster import guest
from vcluster.adapters.pipe import Pipe
from vcluster.adapters.ssh.attached_command import without_input
from vcluster.adapters.ssh.ssh_session import Session
from vcluster.errors import DeadlineError, VclusterError
from vcluster.model.naming import folded
from vcluster.model.quoting import quoted
from vcluster.planning.traffic.tcp_figures import (
    CONGESTION_HINT,
    STATES,
    FlowChoice,
    FlowEnds,
    SeenFlow,
    TcpConnection,
    TcpSample,
    goodputs,
    receiver_command,
    sender_command,
)
from vcluster.stages.guest_answer import count, field, parsed, receive, require_success, unknown_result
from vcluster.util.deadline import Deadline
from vcluster.util.median import SAMPLES_MAX as RATES_MAX

AWAITED, SAMPLES = "iperf3", "the samples of TCP"
LISTENING, IN_USE = b"listening", "Address already in use"  # of iperf3
LINES_MAX, LINE_MAX = 10, 1 << 12  # what iperf3 prints until it listens
SAMPLE_MAX, CONNECTIONS_MAX = 1 << 10, 1 << 13  # bytes of a line
# Nodes are not trusted.
PORT_MAX, VALUE_MAX, BYTES_MAX, TIME_MAX_NS = 0xFFFF, 2**32 - 1, 2**60, 2**63
RATE_MAX, NAME_MAX = 1e15, 15


def flow(sender: Session, receiver: Session, ends: FlowEnds, choice: FlowChoice, deadline: Deadline) -> SeenFlow:
    """Send data from one node to another, and return what was seen of it.

    Raises DeadlineError if it has not ended long after its time, for example because a link was cut.
    """
    limited = deadline.sooner(choice.flow_s)
    try:
        return _flow(sender, receiver, ends, choice, limited)
    except DeadlineError as error:
        if deadline.remaining_s():
            raise DeadlineError(error.message, hint="vcluster check") from error
        raise


def _flow(sender: Session, receiver: Session, ends: FlowEnds, choice: FlowChoice, deadline: Deadline) -> SeenFlow:
    with _sampling(sender, ends, choice, deadline) as pipe, _serving(sender, ends, deadline):
        command = without_input(receiver_command(choice, ends))
        done = receiver.run(command, stdin=None, awaited=AWAITED, deadline=deadline)
        where = f"{receiver.name}: {AWAITED}"
        ports, mean_bits = read_result(parsed(done.stdout, where, done.stderr), choice, where)
        pipe.shut()
        return read_samples(pipe, choice, ports, mean_bits, deadline)


@contextmanager
def _sampling(session: Session, ends: FlowEnds, choice: FlowChoice, deadline: Deadline) -> Iterator[Pipe]:
    """The program that samples the connections of a flow. It has begun when the block begins."""
    request = {
        "port": ends.port, "address": str(ends.receiver), "every_s": choice.every_s, "samples_max": choice.samples_max
    }  # fmt: skip
    with closing(session.start_program(guest.program("tcp_samples"), awaited=SAMPLES, deadline=deadline)) as pipe:
        pipe.write(json.dumps(request).encode() + b"\n", deadline, SAMPLES)
        require_success(receive(pipe, deadline, SAMPLES), f"{session.name}: {SAMPLES}")
        yield pipe


@contextmanager
def _serving(session: Session, ends: FlowEnds, deadline: Deadline) -> Iterator[None]:
    """iperf3 on the sender. It listens when the block begins, and ends with the block at the latest."""
    command = without_input(sender_command(ends))
    with closing(session.start(command, deadline=deadline, awaited=AWAITED)) as pipe:
        _await_listening(pipe, ends, deadline)
        yield


def _await_listening(pipe: Pipe, ends: FlowEnds, deadline: Deadline) -> None:
    try:
        for _ in range(LINES_MAX):
            if LISTENING in pipe.read_line(deadline, AWAITED, limit=LINE_MAX):
                return
    except VclusterError as error:
        if IN_USE in f"{error.message} {pipe.error_output}":
            raise VclusterError(
                f"{pipe.name}: another program uses port {ends.port}",
                hint=f"vcluster exec -l root -w {folded([pipe.name])} -- ss -tlnp",
            ) from error
        raise
    raise unknown_result(f"{pipe.name}: {AWAITED}")


def read_result(answer: Mapping[str, Any], choice: FlowChoice, where: str) -> tuple[frozenset[int], float]:
    """The receiver's ports and its mean rate in iperf3's JSON. Raises VclusterError for other answers."""
    if choice.congestion and "CONGESTION" in str(answer.get("error", "")):
        raise VclusterError(f"{where}: {quoted(answer['error'])}", hint=CONGESTION_HINT)
    require_success(answer, where)
    connected = field(field(answer, "start", dict, where), "connected", list, where)
    ports = frozenset(count(_part(each, "local_port", where), where, PORT_MAX) for each in connected)
    received = field(field(answer, "end", dict, where), "sum_received", dict, where)
    rate = received.get("bits_per_second")
    if len(ports) == choice.streams and isinstance(rate, int | float) and 0 <= rate <= RATE_MAX:  # nan is neither
        return ports, float(rate)
    raise unknown_result(where)


def _part(value: object, name: str, where: str) -> object:
    if not isinstance(value, dict):
        raise unknown_result(where)
    return value.get(name)


def read_samples(
    pipe: Pipe, choice: FlowChoice, ports: frozenset[int], mean_bits: float, deadline: Deadline
) -> SeenFlow:
    """The samples and the connections to these ports, as the guest program prints them at its end.

    Raises VclusterError for other answers, and if a connection has not ended.
    """
    where = f"{pipe.name}: {SAMPLES}"

    def line(limit: int) -> dict[str, Any]:
        deadline.check(where)  # a node that always has more to read must not go on for ever
        answer = parsed(pipe.read_line(deadline, SAMPLES, limit=limit).decode(errors="replace"), where)
        require_success(answer, where)
        return answer

    head = line(CONNECTIONS_MAX)
    found = [_connection(each, where) for each in field(head, "connections", list, where)]
    connections = tuple(each for each in found if each.port in ports)
    if {each.port for each in connections} != ports or len(connections) != len(ports):
        raise unknown_result(where)
    number = count(head.get("samples"), where, choice.samples_max)
    samples = [read_sample(line(SAMPLE_MAX), where) for _ in range(number)]
    exchanged = sum(each.sent_bytes + each.received_bytes for each in found)
    seen = tuple(each for each in samples if each.port in ports)
    rates = goodputs(choice, seen)
    if len(rates) > RATES_MAX or min(rates, default=0) < 0:
        raise unknown_result(where)
    if not rates:
        raise VclusterError(f"{where}: the flow ended in its warm-up", hint="vcluster check")
    return SeenFlow(mean_bits, seen, connections, exchanged)


def _connection(value: object, where: str) -> TcpConnection:
    if not isinstance(value, dict):
        raise unknown_result(where)
    if "sent_bytes" not in value:
        raise VclusterError(f"{where}: a connection of iperf3 did not end in time", hint="run the command again")
    congestion = field(value, "congestion", str, where)
    if not (congestion.isprintable() and congestion.isascii() and 0 < len(congestion) <= NAME_MAX):
        raise unknown_result(where)
    return TcpConnection(
        count(value.get("port"), where, PORT_MAX), congestion, count(value.get("retransmits"), where, VALUE_MAX),
        _optional(value, "min_rtt_us", where), count(value.get("sent_bytes"), where, BYTES_MAX),
        count(value.get("received_bytes"), where, BYTES_MAX),
    )  # fmt: skip


def read_sample(answer: Mapping[str, Any], where: str) -> TcpSample:
    """The sample in a line. Raises VclusterError for other values."""
    state = STATES.get(count(answer.get("state"), where, PORT_MAX))
    if state is None:
        raise unknown_result(where)
    cwnd, rtt, rttvar, retransmits, unacked = (
        count(answer.get(name), where, VALUE_MAX) for name in ("cwnd", "rtt_us", "rttvar_us", "retransmits", "unacked")
    )
    return TcpSample(
        count(answer.get("t_ns"), where, TIME_MAX_NS), count(answer.get("port"), where, PORT_MAX), state, cwnd,
        _optional(answer, "ssthresh", where), rtt, rttvar, _optional(answer, "min_rtt_us", where), retransmits, unacked,
        count(answer.get("acked_bytes"), where, BYTES_MAX), 8 * count(answer.get("delivery_rate"), where, BYTES_MAX),
    )  # fmt: skip


def _optional(answer: Mapping[str, Any], name: str, where: str) -> int | None:
    """A number, or None until the kernel knows it."""
    return None if name in answer and answer[name] is None else count(answer.get(name), where, VALUE_MAX)


def has_iperf3(session: Session) -> bool:
    """Whether a node has iperf3."""
    return session.run(["sh", "-c", "command -v iperf3"], awaited=AWAITED).exit_code == 0
