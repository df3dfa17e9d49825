"""What links do: which probes measure their limits, and the figures that follow from what they saw."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests import samples
from tests.printing_node import PrintingNode
from vcluster.cli.output.traffic import link_report
from vcluster.commands.nodes.link_probe import _Prober
from vcluster.errors import VclusterError
from vcluster.fleet import calibrations
from vcluster.fleet.ledger import ClusterFiles
from vcluster.model.traffic.calibration_record import CalibratedPath, Calibration
from vcluster.model.traffic.port_counters import InterfaceCounters, TrafficSample
from vcluster.planning.hops import switch_port
from vcluster.planning.traffic import link_figures, path_calibration
from vcluster.planning.traffic.link_figures import LinkProbe, Reading
from vcluster.planning.traffic_plan import LinkReading
from vcluster.stages.measuring import link_probe as stage
from vcluster.util.proportion import proportion_interval

LAB = samples.plan(4)
NAMES = [node.name for node in LAB.nodes]
reading = samples.reading


def chosen(*rows: LinkReading, running: Any = NAMES) -> list[tuple[str, str, int, str, str]]:
    """The probes: node, figure, what was asked, sender and receiver."""
    found = link_figures.probes(LAB, rows, NAMES, running)
    return [(one.row.node, one.figure, one.asked, one.sender, one.receiver) for one in found]


# Which probes


def test_each_limit_has_a_probe_and_rates_come_last() -> None:
    rows = (
        reading("node1", "from", rate_bits=8000, loss_ppm=1000),
        reading("node1", "to", burst_loss_ppm=100_000, burst_frames=4, loss_ppm=500_000),
    )
    assert chosen(*rows) == [
        ("node1", "loss", 1000, "node1", "node2"),
        ("node1", "loss", 550_000, "node2", "node1"),
        ("node1", "rate", 8000, "node1", "node2"),
    ]


def test_a_round_trip_is_measured_once_with_all_its_delays() -> None:
    rows = (
        reading("node1", "from", delay_us=100),
        reading("node1", "to", delay_us=20),
        reading("node2", "to", delay_us=3),
        reading("node3", "from", delay_us=7),
        reading("node4", "from", rate_bits=8000),
    )
    assert chosen(*rows)[:3] == [
        ("node1", "delay", 123, "node1", "node2"),
        ("node2", "delay", 10, "node2", "node3"),
        ("node3", "delay", 10, "node3", "node2"),
    ]


def test_a_peer_is_the_other_end_and_others_are_not_peers() -> None:
    rows = (reading("node1", "to", rate_bits=9000), reading("node1", "to", "node2", rate_bits=8000, delay_us=5))
    assert chosen(*rows) == [
        ("node1", "delay", 5, "node1", "node2"),
        ("node1", "rate", 9000, "node3", "node1"),
        ("node1", "rate", 8000, "node2", "node1"),
    ]
    assert [each[-2:] for each in chosen(*rows, running=["node1", "node2"])] == [
        ("node1", "node2"), ("", "node1"), ("node2", "node1"),
    ]  # fmt: skip


def test_a_baseline_has_no_delays_and_the_same_servers() -> None:
    rows = [reading("node1", "from", delay_us=5), reading("node2", "from", rate_bits=8000)]
    probe = LinkProbe(rows[0], "delay", 5, "node3")
    assert link_figures.baseline_pair(LAB, rows, NAMES, probe) == ("node3", "node4")
    assert link_figures.baseline_pair(LAB, rows, NAMES[:3], probe) == ("node2", "node3")
    assert link_figures.baseline_pair(LAB, rows, NAMES[:2], probe) is None
    nodes = (*LAB.nodes[:3], replace(LAB.nodes[3], server="other"))
    elsewhere = replace(LAB, nodes=nodes)
    assert link_figures.baseline_pair(elsewhere, rows, NAMES, replace(probe, other="node4")) == ("node3", "node4")


def test_streams_fit_the_limits() -> None:
    """A slow rate has small frames and more time; a lossy link has enough frames, at half of the rate."""
    slow, window_s = link_figures.rate_stream(LAB, reading("node1", "from", rate_bits=8000))
    assert (slow.frame_bytes, slow.bits_s, window_s) == (60, 10_000, 3.0)
    assert slow.first * slow.frame_bytes > 2 * 1464
    fast, window_s = link_figures.rate_stream(LAB, reading("node1", "from", rate_bits=10**9))
    assert (fast.frame_bytes, window_s) == (1464, 1.0)
    assert fast.first * fast.frame_bytes > 500_000
    row = reading("node1", "from", loss_ppm=10_000)
    probe = LinkProbe(row, "loss", 10_000, "node2")
    assert link_figures.loss_stream([row], probe).count == 2000
    limited = link_figures.loss_stream([row, reading("node2", "to", rate_bits=96_000)], probe)
    assert (limited.bits_s, limited.count) == (48_000, 1000)


# Figures


def at(t_s: float, row: LinkReading, received: int = 0, sent: int = 0) -> Reading:
    port = switch_port(LAB, LAB.node(row.node))
    counters = InterfaceCounters(port, 1, received, sent, 0, 0, 0, 0, 0)
    return [row], int(t_s * 10**9), TrafficSample(0, 0, [counters], {}, None)


RATE = reading("node1", "from", rate_bits=8000, sent_bytes=500, waiting_bytes=100)


def test_a_rate_is_that_of_the_bytes_that_left_the_queue() -> None:
    after = replace(RATE, sent_bytes=2500)
    found = link_figures.rate_figure(LinkProbe(RATE, "rate", 8000, "node2"), at(1, RATE), at(3, after), 60, 60)
    assert (found.value, found.unit, found.frames, found.bytes) == (8000, "bit/s", 60, 3600)
    assert found.detail == "2000 bytes of frames left the queue in 2.00 s"


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ({}, {"waiting_bytes": 0}, "node1 sent 0.008 Mbit/s only, so no frames waited"),
        ({"delay_us": 9}, {"delay_us": 9}, "node1 sent 0.008 Mbit/s only, so no frames waited"),
        ({}, {"sent_bytes": 0}, "its queue was changed meanwhile"),
        ({"node": "node2"}, {}, "its queue was changed meanwhile"),
    ],
)
def test_a_rate_without_frames_that_wait_is_not_measured(
    before: dict[str, Any], after: dict[str, Any], reason: str
) -> None:
    end = replace(RATE, **{"sent_bytes": 2500, **after})
    probe = LinkProbe(replace(RATE, delay_us=before.get("delay_us")), "rate", 8000, "node2")
    found = link_figures.rate_figure(probe, at(1, replace(RATE, **before)), at(3, end), 60, 60)
    assert (found.value, found.detail) == (None, reason)


def test_a_full_queue_shows_that_delayed_frames_wait_for_the_rate() -> None:
    begin = replace(RATE, delay_us=9, loss_ppm=100_000)
    end = replace(begin, sent_bytes=2500, sent_packets=80, dropped_packets=20)
    found = link_figures.rate_figure(LinkProbe(begin, "rate", 8000, "node2"), at(1, begin), at(3, end), 60, 60)
    assert found.value is None
    end = replace(end, dropped_packets=25)
    found = link_figures.rate_figure(LinkProbe(begin, "rate", 8000, "node2"), at(1, begin), at(3, end), 60, 60)
    assert found.value == 8000


def test_a_delay_is_the_difference_of_medians() -> None:
    probe = LinkProbe(reading("node1", "from", delay_us=5000), "delay", 5000, "node2")
    times, base = [6_000_000 + 1000 * n for n in range(9)], [1_000_000 + 2000 * n for n in range(9)]
    baseline = link_figures.measured_baseline(("node2", "node3"), base)
    found = link_figures.delay_figure(probe, times, 36, baseline)
    assert (found.value, found.low, found.high) == (4996.0, 4987.0, 5005.0)
    assert found.detail == "9 round trips; node2 to node3 takes 1008 us"
    silent = link_figures.delay_figure(probe, times[:2], 36, baseline)
    assert (silent.value, silent.detail) == (None, "node2 answered 2 pings only")
    silent = link_figures.delay_figure(probe, times, 36, link_figures.measured_baseline(("node2", "node3"), base[:1]))
    assert (silent.value, silent.detail) == (None, "node3 answered 1 pings only")


def test_a_calibration_has_the_baseline_of_the_same_servers() -> None:
    probe = LinkProbe(reading("node1", "from", delay_us=5000), "delay", 5000, "node2")
    path = CalibratedPath((LAB.nodes[0].server,), "node1", "node3", 900.0, 800.0, 1000.0, 10**9)
    baseline = link_figures.calibrated_baseline(LAB, probe, Calibration("2026-01-02T03:04:05Z", (path,)))
    assert baseline
    found = link_figures.delay_figure(probe, [6_000_000] * 9, 36, baseline)
    assert (found.value, found.low, found.high) == (5100, 5000, 5200)
    assert found.detail == "9 round trips; node1 to node3 took 900 us, calibrated at 2026-01-02T03:04:05Z"
    elsewhere = replace(LAB, nodes=(replace(LAB.nodes[0], server="other"), *LAB.nodes[1:]))
    for plan, calibration in ((elsewhere, Calibration("", (path,))), (LAB, None)):
        assert link_figures.calibrated_baseline(plan, probe, calibration) is None


def test_a_pair_of_each_pair_of_servers_is_calibrated() -> None:
    """Its nodes are on, and have no limits."""
    nodes = (*LAB.nodes[:2], *(replace(node, server="other") for node in LAB.nodes[2:]))
    plan, here = replace(LAB, nodes=nodes), LAB.nodes[0].server
    assert path_calibration.pairs(plan, [], NAMES) == {
        (here,): ("node1", "node2"),
        (here, "other"): ("node1", "node3"),
        ("other",): ("node3", "node4"),
    }
    rows = [reading("node1", "from", rate_bits=8000)]
    assert path_calibration.pairs(plan, rows, NAMES[:3]) == {(here, "other"): ("node2", "node3")}


def test_a_calibrated_path_has_the_rate_at_the_port_of_its_end() -> None:
    port = switch_port(LAB, LAB.nodes[1])
    samples_at = [
        TrafficSample(t_ns, 0, [InterfaceCounters(port, 1, 0, 10, 0, size, 0, 0, 0)], {}, None)
        for t_ns, size in ((0, 1000), (10**9, 126_000))
    ]
    pair = ("node1", "node2")
    found = path_calibration.path(LAB, ("x",), pair, [1000 * n for n in range(9)], *samples_at)
    assert found == CalibratedPath(("x",), "node1", "node2", 4.0, 1.0, 7.0, 10**6)
    assert path_calibration.path(LAB, ("x",), pair, [1, 2], *samples_at) is None


def test_the_text_of_a_calibration_has_a_line_for_each_pair_of_servers() -> None:
    path = CalibratedPath(("blue", "red"), "node1", "node2", 3622.4, 3100.0, 3999.5, 54_321_000)
    document = link_report.calibration_document("lab", Calibration("2026-01-02T03:04:05Z", (path,)))
    assert [line.rstrip() for line in link_report.calibration_text(document).splitlines()] == [
        "lab: calibrated at 2026-01-02T03:04:05Z",
        "SERVERS       FROM   TO     ROUND TRIP              HIGHEST RATE",
        "blue and red  node1  node2  3622 us (3100 to 4000)  54.32 Mbit/s",
    ]


def test_a_calibration_is_read_back(tmp_path: Path) -> None:
    files = ClusterFiles(tmp_path, "lab")
    assert calibrations.read(files) is None
    found = Calibration("now", (CalibratedPath(("x",), "node1", "node2", 4.0, 1.0, 7.0, 10**6),))
    files.folder.mkdir(parents=True)
    calibrations.write(files, found)
    assert calibrations.read(files) == found
    (files.folder / calibrations.NAME).write_text("{}")
    assert calibrations.read(files) is None


@pytest.mark.parametrize(
    ("direction", "peer", "counted", "total"),
    [("from", None, (1000, 0), 1000), ("to", None, (0, 900), 1000), ("from", "node2", (5000, 0), 990)],
)
def test_a_loss_is_a_part_of_the_frames_that_arrived(
    direction: str, peer: str | None, counted: tuple[int, int], total: int
) -> None:
    """Frames to a node arrived too if they were dropped. Those of a peer are counted where they are sent."""
    row = reading("node1", direction, peer, loss_ppm=100_000, dropped_packets=7)
    end = at(2, replace(row, dropped_packets=107), *counted)
    found = link_figures.loss_figure(LAB, LinkProbe(row, "loss", 100_000, "node2"), at(1, row), end, 990)
    assert found.detail == f"100 of {total} frames dropped"
    assert found.value == 100 * 10**6 / total
    assert found.low and found.high and found.low < found.value < found.high


def test_a_loss_without_frames_is_not_measured() -> None:
    row = reading("node1", "from", loss_ppm=100_000)
    probe = LinkProbe(row, "loss", 100_000, "node2")
    found = link_figures.loss_figure(LAB, probe, at(1, row), at(2, row), 0)
    assert (found.value, found.detail) == (None, "no frame of node1 arrived at the switch")
    found = link_figures.loss_figure(LAB, probe, at(1, row, 50), at(2, row, 20), 9)
    assert (found.value, found.detail) == (None, "its counters began again meanwhile")


def test_losses_in_bursts_have_no_interval() -> None:
    row = reading("node1", "from", burst_loss_ppm=100_000, burst_frames=4)
    end = at(2, replace(row, dropped_packets=90), 1000)
    found = link_figures.loss_figure(LAB, LinkProbe(row, "loss", 100_000, "node2"), at(1, row), end, 1000)
    assert (found.value, found.low, found.high) == (90_000, None, None)


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),  # without hits, its end is z² / (trials + z²)
    [(10, 100, 0.05523, 0.17437), (0, 50, 0.0, 0.07135), (50, 50, 0.92865, 1.0)],
)
def test_the_interval_of_a_part(hits: int, trials: int, low: float, high: float) -> None:
    assert proportion_interval(hits, trials) == pytest.approx((low, high), abs=1e-5)


@pytest.mark.parametrize(
    ("row", "running", "other", "reason"),
    [
        (reading("node1", "from", rate_bits=8000), ["node2"], "node2", "node1 is off"),
        (reading("node1", "from", "node2", rate_bits=8000), ["node1"], "", "node2 is off"),
        (reading("node1", "from", rate_bits=8000), ["node1"], "", "no other node is suitable"),
        (reading("node1", "from", rate_bits=8000), NAMES, "node2", "node1: no login"),
    ],
)
def test_a_probe_that_cannot_be_made_has_its_reason(
    row: LinkReading, running: list[str], other: str, reason: str
) -> None:
    opened: Any = {"node1": VclusterError("node1: no login")}
    found = _Prober(None, LAB, [row], opened, {}, None).figure(LinkProbe(row, "rate", 8000, other), running)  # type: ignore[arg-type]
    assert (found.value, found.detail, found.frames) == (None, reason, 0)


def test_a_delay_without_a_baseline_has_its_reason() -> None:
    probe = LinkProbe(reading("node1", "from", delay_us=5), "delay", 5, "node2")
    found = _Prober(None, LAB, [probe.row], {}, {probe: None}, None).figure(probe, NAMES)  # type: ignore[arg-type]
    assert found.detail == "no two nodes without delays run on the same servers, for a baseline"


# Answers of nodes


@pytest.mark.parametrize(
    "answer",
    [{}, {"sent": 1}, {"sent": -1, "times_ns": []}, {"sent": 3, "times_ns": [1.5]}, {"sent": 3, "times_ns": [1] * 99}],
)
def test_a_wrong_answer_of_a_node_is_refused(answer: dict[str, object]) -> None:
    with pytest.raises(VclusterError, match="printed a result that vcluster does not know"):
        stage.round_trips(PrintingNode(json.dumps(answer)), LAB.nodes[0].address)  # type: ignore[arg-type]


def test_an_error_of_a_node_is_reported() -> None:
    with pytest.raises(VclusterError, match="Network is unreachable"):
        stage.round_trips(PrintingNode('{"error": "Network is unreachable"}'), LAB.nodes[0].address)  # type: ignore[arg-type]


# What is shown


def test_the_text_has_a_line_for_each_figure_with_units() -> None:
    rate = LinkProbe(reading("node1", "from", rate_bits=10**7), "rate", 10**7, "node2")
    delay = LinkProbe(reading("node1", "to", delay_us=5000), "delay", 5000, "node3")
    loss = LinkProbe(reading("node2", "to", loss_ppm=5000), "loss", 5000, "node1")
    figures = {
        rate: rate.missing("node1 sent 3 Mbit/s only, so no frames waited", 10, 1000),
        delay: link_figures.delay_figure(
            delay, [6 * 10**6] * 9, 36, link_figures.measured_baseline(("node2", "node3"), [10**6] * 9)
        ),
        loss: replace(loss.missing("14 of 3000 frames dropped", 3000, 180_000), value=4666.7, low=2782.0, high=7816.0),
    }
    rows = [asdict(row) for row in link_figures.with_figures([rate.row, delay.row, loss.row], figures)]
    measured = link_report.measured_text(rows).split("\n\n")
    assert [line.rstrip() for line in measured[1].splitlines()] == [
        "NODE   DIRECTION   PEER  OTHER END  FIGURE  ASKED      MEASURED                     HOW",
        "node1  from        -     node2      rate    10 Mbit/s  not measured                 "
        "node1 sent 3 Mbit/s only, so no frames waited",
        "node1  round trip  -     node3      delay   5 ms       5 ms (5 to 5)                "
        "9 round trips; node2 to node3 takes 1000 us",
        "node2  to          -     node1      loss    0.5 %      0.4667 % (0.2782 to 0.7816)  14 of 3000 frames dropped",
    ]
    assert measured[2] == "made 3046 frames of 182512 bytes to measure"
    assert link_report.measured_text([]) == "no limits"
