"""Flows of TCP: what is asked for, the answers of nodes, the figures of a row, and how they are rendered."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from tests.answering_pipe import AnsweringPipe
from tests.results import validated
from vcluster.cli.output.traffic import tcp_report
from vcluster.commands.nodes.measure import Traffic
from vcluster.commands.nodes.tcp_flow import MeasuredTcp
from vcluster.errors import DeadlineError, RequestError, VclusterError
from vcluster.model.spec import PortRange
from vcluster.planning.traffic import tcp_figures
from vcluster.planning.traffic.tcp_figures import FlowChoice, FlowEnds, SeenFlow, TcpConnection, TcpSample
from vcluster.stages.measuring.tcp_flow import read_result, read_samples
from vcluster.util.deadline import Deadline

CHOICE = FlowChoice(2.0, 1, 0.1, None)
ENDS = FlowEnds(IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2"), 5201)
PORTS = frozenset([40000])
UNKNOWN = "node1: the samples of TCP printed a result that vcluster does not know"


# What is asked for


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        (FlowChoice(2.9, 1, 0.1, None), "--for 2.9: iperf3 sends for whole seconds"),
        (FlowChoice(2.0, 1, 0.11, None), "--every 0.11: the goodput is counted in 20 intervals of 0.1 s"),
        (FlowChoice(600.0, 16, 0.01, None), "--every 0.01: a flow may have 1133900 samples"),
        (FlowChoice(2.0, 1, 0.1, "; reboot"), "--congestion '; reboot' is not the name"),
        (FlowChoice(2.0, 1, 0.1, ""), "--congestion '' is not the name"),
        (FlowChoice(2.0, 1, 0.1, "a" * 16), "--congestion 'a+' is not the name"),
    ],
)
def test_flows_that_cannot_be_measured(choice: FlowChoice, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        tcp_figures.check(choice)


def test_flows_that_cannot_end_in_time() -> None:
    choice = FlowChoice(600.0, 1, 1.0, None)
    tcp_figures.require_time(choice, 6, 3606)
    with pytest.raises(RequestError, match=r"^6 flows of 601 s need more than --timeout 3600$"):
        tcp_figures.require_time(choice, 6, 3600)


def test_the_receiver_asks_for_the_warm_up_too() -> None:
    tcp_figures.check(replace(CHOICE, congestion="reno"))
    line = " ".join(tcp_figures.receiver_command(replace(CHOICE, congestion="reno"), ENDS))
    assert "--client 10.0.0.1 --port 5201 --reverse --json --time 3 --interval 0 --parallel 1" in line
    assert line.endswith("--congestion reno")
    assert "--congestion" not in tcp_figures.receiver_command(CHOICE, ENDS)


def test_nodes_that_accept_only_ports_of_mpi_use_one_of_them() -> None:
    assert tcp_figures.sender_port(PortRange(20000, 20200)) == 20200
    assert tcp_figures.sender_port(None) == 5201


@pytest.mark.parametrize("every_s", [0.03, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("phase_s", [0.0, 0.01, 0.099])
def test_a_flow_has_about_twenty_values_of_the_goodput(every_s: float, phase_s: float) -> None:
    choice = FlowChoice(10.0, 1, every_s, None)
    tcp_figures.check(choice)
    times = [phase_s + number * every_s for number in range(int(11 / every_s) + 1)]
    assert 16 <= len(tcp_figures.goodputs(choice, [sample(t_s, acked=round(t_s * 1e6) + 1) for t_s in times])) <= 21


# The answer of iperf3


def result(**differences: Any) -> dict[str, Any]:
    received = {"sum_received": {"bits_per_second": 19.1e6, "bytes": 5}}
    return {"start": {"connected": [{"local_port": 40000}]}, "intervals": [], "end": received, **differences}


def rate(value: object) -> dict[str, Any]:
    return {"end": {"sum_received": {"bits_per_second": value}}}


def test_a_result_of_iperf3() -> None:
    assert read_result(result(), CHOICE, "node2: iperf3") == (PORTS, 19.1e6)


@pytest.mark.parametrize(
    "differences",
    [
        {"start": None}, {"start": {}}, {"start": {"connected": {}}}, {"start": {"connected": []}},
        {"start": {"connected": [{"local_port": 1}, {"local_port": 2}]}}, {"start": {"connected": [5]}},
        {"start": {"connected": [{"local_port": 65536}]}}, {"start": {"connected": [{"local_port": "5"}]}},
        {"end": None}, {"end": {}}, {"end": {"sum_received": 5}}, rate(None), rate(-1), rate("5"), rate(float("nan")),
        rate(float("inf")), rate(10**400),
    ],
)  # fmt: skip
def test_other_results_are_refused(differences: dict[str, Any]) -> None:
    with pytest.raises(VclusterError, match=r"^node2: iperf3 printed a result that vcluster does not know$"):
        read_result(result(**differences), CHOICE, "node2: iperf3")


def test_an_unknown_congestion_control_has_the_command_that_lists_them() -> None:
    choice = replace(CHOICE, congestion="bbrr")
    with pytest.raises(VclusterError, match="node2: iperf3: unable to set TCP_CONGESTION") as raised:
        read_result(result(error="unable to set TCP_CONGESTION"), choice, "node2: iperf3")
    assert raised.value.hint == tcp_figures.CONGESTION_HINT


def test_the_error_of_iperf3_is_shown() -> None:
    with pytest.raises(VclusterError, match="node2: iperf3: unable to connect to server: Connection refused"):
        read_result(result(error="unable to connect to server: Connection refused"), CHOICE, "node2: iperf3")


# The samples

CONNECTION = {
    "port": 40000, "congestion": "cubic", "retransmits": 3, "min_rtt_us": 90, "sent_bytes": 7000, "received_bytes": 37
}  # fmt: skip
CONTROL = {**CONNECTION, "port": 40001, "retransmits": 1, "sent_bytes": 400, "received_bytes": 600}
SAMPLE = {
    "t_ns": 5, "port": 40000, "state": 1, "cwnd": 10, "ssthresh": None, "rtt_us": 100, "rttvar_us": 50,
    "min_rtt_us": 90, "retransmits": 0, "unacked": 2, "acked_bytes": 100, "delivery_rate": 1000,
}  # fmt: skip


def seen(head: object, *samples: object, ports: frozenset[int] = PORTS) -> SeenFlow:
    lines = b"".join(json.dumps(line).encode() + b"\n" for line in (head, *samples))
    return read_samples(AnsweringPipe(lines), CHOICE, ports, 19e6, Deadline(10))


def test_samples_of_the_connection_that_controls_iperf3_are_left_out() -> None:
    """But its bytes are explained: those in both directions."""
    lines = [{**SAMPLE, "t_ns": t_ns, "port": port} for t_ns in (5, 10**9 + 5, 2 * 10**9) for port in (40000, 40001)]
    found = seen({"connections": [CONNECTION, CONTROL], "samples": 6}, *lines)
    assert [each.t_ns for each in found.samples] == [5, 10**9 + 5, 2 * 10**9]
    assert found.samples[0] == TcpSample(5, 40000, "established", 10, None, 100, 50, 90, 0, 2, 100, 8000)
    assert found.connections == (TcpConnection(40000, "cubic", 3, 90, 7000, 37),)
    assert found.mean_bits == 19e6
    assert found.exchanged_bytes == 7000 + 37 + 400 + 600


@pytest.mark.parametrize(
    "head",
    [
        {}, {"connections": [CONNECTION]}, {"connections": {}, "samples": 0}, {"connections": [5], "samples": 0},
        {"connections": [], "samples": 0}, {"connections": [CONTROL], "samples": 0},
        {"connections": [CONNECTION, CONNECTION], "samples": 0},
        {"connections": [CONNECTION], "samples": -1}, {"connections": [CONNECTION], "samples": CHOICE.samples_max + 1},
        *(
            {"connections": [{**CONNECTION, **each}], "samples": 0}
            for each in (
                {"port": 65536}, {"congestion": "\x1b[2J"}, {"congestion": ""}, {"congestion": "a" * 16},
                {"congestion": 5}, {"retransmits": -1}, {"min_rtt_us": 2**32}, {"sent_bytes": 2**61},
                {"received_bytes": None},
            )
        ),
    ],
)  # fmt: skip
def test_other_connections_are_refused(head: object) -> None:
    with pytest.raises(VclusterError, match=f"^{UNKNOWN}$"):
        seen(head)


@pytest.mark.parametrize(
    "differences",
    [
        {"t_ns": -1}, {"port": None}, {"state": 10}, {"state": "1"}, {"cwnd": 2**32}, {"cwnd": 1.0}, {"rtt_us": True},
        {"rttvar_us": None}, {"ssthresh": "x"}, {"min_rtt_us": -1}, {"retransmits": []}, {"unacked": {}},
        {"delivery_rate": 2**61}, {"acked_bytes": -1},
    ],
)  # fmt: skip
def test_other_samples_are_refused(differences: dict[str, Any]) -> None:
    with pytest.raises(VclusterError, match=f"^{UNKNOWN}$"):
        seen({"connections": [CONNECTION], "samples": 1}, {**SAMPLE, **differences})


@pytest.mark.parametrize("name", ["ssthresh", "min_rtt_us"])
def test_a_value_that_may_be_unknown_must_be_there(name: str) -> None:
    with pytest.raises(VclusterError, match=f"^{UNKNOWN}$"):
        seen({"connections": [CONNECTION], "samples": 1}, {key: SAMPLE[key] for key in SAMPLE.keys() - {name}})


def test_a_connection_that_has_not_ended_is_an_error() -> None:
    with pytest.raises(VclusterError, match="a connection of iperf3 did not end in time"):
        seen({"connections": [CONNECTION, {"port": 40001, "congestion": "cubic"}], "samples": 0})


@pytest.mark.parametrize("times_s", [[], [0.0], [0.0, 0.5], [0.0, 1.0], [0.0, 1.0, 1.01]])
def test_a_flow_must_last_longer_than_its_warm_up(times_s: Sequence[float]) -> None:
    lines = [{**SAMPLE, "t_ns": round(time_s * 1e9)} for time_s in times_s]
    with pytest.raises(VclusterError, match="node1: the samples of TCP: the flow ended in its warm-up"):
        seen({"connections": [CONNECTION], "samples": len(lines)}, *lines)


def test_acknowledged_data_do_not_become_fewer() -> None:
    lines = [{**SAMPLE, "t_ns": number * 10**9, "acked_bytes": 100 - number} for number in range(3)]
    with pytest.raises(VclusterError, match=f"^{UNKNOWN}$"):
        seen({"connections": [CONNECTION], "samples": 3}, *lines)


def test_a_flow_has_a_limited_number_of_rates() -> None:
    choice = replace(CHOICE, streams=16)
    lines = [{**SAMPLE, "t_ns": number * 10**9} for number in range(1003)]
    head = {"connections": [CONNECTION], "samples": len(lines)}
    text = b"".join(json.dumps(line).encode() + b"\n" for line in (head, *lines))
    with pytest.raises(VclusterError, match=f"^{UNKNOWN}$"):
        read_samples(AnsweringPipe(text), choice, PORTS, 19e6, Deadline(10))


def test_lines_have_a_limited_length() -> None:
    with pytest.raises(VclusterError, match="the answer is longer than 8 KiB"):
        seen({"connections": ["x" * 20_000]})
    with pytest.raises(VclusterError, match="the answer is longer than 1 KiB"):
        seen({"connections": [CONNECTION], "samples": 1}, {**SAMPLE, "more": "x" * 1000})
    with pytest.raises(VclusterError, match="the answer is longer than 1 KiB"):
        seen({"connections": [CONNECTION], "samples": 1}, {**SAMPLE, "more": "x" * 20_000})


def test_a_node_that_always_has_more_to_read_is_left_when_the_time_is_up() -> None:
    lines = b"".join(
        json.dumps(each).encode() + b"\n" for each in ({"connections": [CONNECTION], "samples": 1}, SAMPLE)
    )
    with pytest.raises(DeadlineError):
        read_samples(AnsweringPipe(lines), CHOICE, PORTS, 19e6, Deadline(0))


def test_the_error_of_the_program_is_shown() -> None:
    with pytest.raises(VclusterError, match="node1: the samples of TCP: sock_diag: EPERM"):
        seen({"error": "sock_diag: EPERM"})


# The row


def sample(t_s: float, *, rtt_us: int = 9, state: str = "established", acked: int = 0, port: int = 40000) -> TcpSample:
    return TcpSample(round(t_s * 1e9), port, state, 10, None, rtt_us, 5, 4, 0, 0, acked, 1)


def flow(*samples: TcpSample) -> SeenFlow:
    connections = (TcpConnection(40000, "reno", 3, 90, 1, 1), TcpConnection(40001, "reno", 4, 80, 1, 1))
    return SeenFlow(19e6, samples, connections, 0)


def rates(*values_mbit: int) -> list[TcpSample]:
    """Samples each 0.1 s with these rates between them, after a fast warm-up of 1 s."""
    found = [sample(5 + number / 10, acked=number * 10**8 + 1) for number in range(11)]
    for value in values_mbit:
        found.append(sample(found[-1].t_ns / 1e9 + 0.1, acked=found[-1].acked_bytes + value * 12_500))
    return found


def test_a_row_has_the_median_of_the_rates_after_the_warm_up() -> None:
    row = tcp_figures.summary("node1", "node2", CHOICE, flow(*rates(*range(1, 21))))
    assert row.samples == 20
    assert (row.goodput_bits, row.low_bits, row.high_bits) == pytest.approx((10.5e6, 6e6, 15e6))
    assert (row.retransmits, row.min_rtt_us, row.congestion, row.mean_bits) == (7, 80, "reno", 19e6)
    few = tcp_figures.summary("node1", "node2", CHOICE, flow(*rates(5, 5)))
    assert few.goodput_bits == pytest.approx(5e6)
    assert (few.low_bits, few.high_bits) == (None, None)


def test_an_interval_may_have_several_samples() -> None:
    found = tcp_figures.goodputs(FlowChoice(4.0, 1, 0.1, None), rates(1, 3, 5, 7, 9))
    assert found == pytest.approx([2e6, 6e6])


def test_the_warm_up_begins_with_the_first_data() -> None:
    silent = [sample(3 + number / 10) for number in range(20)]
    assert tcp_figures.goodputs(CHOICE, [*silent, *rates(5, 5)]) == pytest.approx([5e6, 5e6])


def test_connections_are_counted_together_while_all_are_established() -> None:
    one, other = rates(*[4] * 10), [replace(each, port=40001) for each in rates(*[6] * 10)]
    early, late = sample(4, port=40001), sample(9, acked=10**10)
    found = tcp_figures.goodputs(replace(CHOICE, streams=2), [early, *one, *other, late])
    assert found == pytest.approx([10e6] * 10)


def test_round_trips_are_those_of_established_connections_after_the_warm_up() -> None:
    samples = [
        sample(7.0, rtt_us=1, state="close-wait"), sample(8.0, rtt_us=900, acked=1), sample(8.9, rtt_us=900),
        sample(9.0, rtt_us=20), sample(9.1, rtt_us=30), sample(9.2, rtt_us=70),
        sample(9.3, rtt_us=1, state="fin-wait-1"),
    ]  # fmt: skip
    assert tcp_figures.summary("node1", "node2", CHOICE, flow(*samples)).rtt_us == 30


# The report

TRAFFIC = Traffic(1_000_000, 990_000, {"ssh": 6000, "nfs": 2000, "arp": 1000})


def document(*, traffic: Traffic | None = TRAFFIC) -> dict[str, Any]:
    row = tcp_figures.summary("node1", "node2", CHOICE, flow(*rates(*range(1, 21))))
    row = replace(row, rtt_us=1500.0)
    rows = (row, replace(row, start="node2", end="node1", starved=("node2",), low_bits=None, high_bits=None))
    found = tcp_report.document(["node1", "node2"], CHOICE, MeasuredTcp(rows, traffic))
    return dict(validated(["measure", "tcp"], json.loads(json.dumps(found))))


def test_the_table() -> None:
    lines = tcp_report.text(document()).splitlines()
    assert lines[1].split() == ["node1", "node2", "10.5", "6", "15", "7", "1.5", "ms", "0.08", "ms", "reno"]
    assert lines[2].split()[:5] == ["node2", "node1", "10.5!", "-", "-"]
    assert "over 1 connection; the median of 20 intervals" in lines[4]
    assert "! in 1 of 2 rows, processors waited: node2" in lines
    assert "TCP 990000, ssh 6000, NFS 2000, ARP 1000, difference 1000 (0.10 %)" in lines[-1]


@pytest.mark.parametrize(("bits", "shown"), [(9_500_000, "9.5"), (999_940_000, "999.9"), (23_450_000_000, "23450")])
def test_rates_have_no_exponent(bits: int, shown: str) -> None:
    row = document()["rows"][0] | {"goodput_bits": bits}
    assert tcp_report.row_text(row) == f"node1 to node2: tcp: {shown} Mbit/s"


def test_round_trips_have_no_exponent() -> None:
    found = document()
    found["rows"][0]["rtt_us"] = 1_234_000.0
    assert "  1234 ms  " in tcp_report.text(found)


def test_a_measurement_that_ended_early_has_its_rows() -> None:
    lines = tcp_report.text(document(traffic=None)).splitlines()
    assert lines[-1] == "it ended early: the bytes at the ports were not compared"


def test_csv_has_the_rows() -> None:
    rows = list(csv.DictReader(tcp_report.csv_text(document()).splitlines()))
    assert [(row["from"], row["goodput_bits"], row["starved"]) for row in rows] == [
        ("node1", "10500000", ""),
        ("node2", "10500000", "node2"),
    ]


def test_a_sample_is_a_line_with_its_nodes() -> None:
    row = tcp_figures.summary("node1", "node2", CHOICE, flow(*rates(5)))
    line = json.loads(tcp_report.sample_line(row, sample(1)))
    assert line == {
        "from": "node1", "to": "node2", "t_ns": 10**9, "port": 40000, "state": "established", "cwnd": 10,
        "ssthresh": None, "rtt_us": 9, "rttvar_us": 5, "min_rtt_us": 4, "retransmits": 0, "unacked": 0,
        "acked_bytes": 0, "delivery_rate_bits": 1,
    }  # fmt: skip


def test_rows_of_progress() -> None:
    assert tcp_report.row_text(document()["rows"][1]) == "node2 to node1: tcp: 10.5! Mbit/s"
