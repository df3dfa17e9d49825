"""Measurements: what they consist of, how they are summarised and rendered, and when they are repeated."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import pytest

from vcluster.cli.output.traffic import measure_report
from vcluster.commands.nodes import measure
from vcluster.commands.nodes.measure import Measured, Precision, Reading, Traffic
from vcluster.errors import RequestError, VclusterError
from vcluster.planning import measure_plan
from vcluster.planning.measure_plan import Work, parse_sizes, summary, works

NODES = ("node1", "node2", "node3")


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("8", (8,)), ("0", (0,)), ("1:16", (1, 2, 4, 8, 16)), ("3:20", (3, 6, 12)), ("1KiB,1MiB", (1024, 2**20)),
        ("8,1:8", (8, 1, 2, 4)), ("64MiB", (2**26,)), ("5B", (5,)), ("8, 16", (8, 16)),
    ],
)  # fmt: skip
def test_sizes(text: str, sizes: tuple[int, ...]) -> None:
    assert parse_sizes(text) == sizes


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' is not a size"), ("8,", "'' is not a size"), ("1:", "'' is not a size"), ("-1", "is not a size"),
        ("65MiB", "is not a size of 0 to 64 MiB"), ("1kb", "'1kb' is not a size"), ("8:4", "a range begins with"),
        ("0:4", "a range begins with"), ("1:2:4", "'2:4' is not a size"), ("1:8," * 20 + "9", "more than 64"),
        ("٣", "is not a size"),
    ],
)  # fmt: skip
def test_wrong_sizes(text: str, reason: str) -> None:
    with pytest.raises(RequestError, match=f"--sizes .*{reason}"):
        parse_sizes(text)


def pairs_of(found: Sequence[Work]) -> list[tuple[str | None, str | None]]:
    return [(work.start, work.end) for work in found]


def test_pairs() -> None:
    latency = works("latency", NODES, [8], is_ring=False)
    assert pairs_of(latency) == [("node1", "node2"), ("node1", "node3"), ("node2", "node3")]
    assert len(works("bandwidth", NODES, [8], is_ring=False)) == 6
    assert pairs_of(works("bandwidth", NODES, [8], is_ring=True))[-1] == ("node3", "node1")
    assert pairs_of(works("latency", NODES[:2], [8], is_ring=True)) == [("node1", "node2")]
    assert [work.size_bytes for work in works("pingpong", NODES[:2], [1, 2], is_ring=False)] == [1, 2]


def test_a_ring_of_two_nodes_has_both_directions_if_they_differ() -> None:
    assert pairs_of(works("bandwidth", NODES[:2], [8], is_ring=True)) == [("node1", "node2"), ("node2", "node1")]


@pytest.mark.parametrize(
    ("kind", "sizes", "is_refused"),
    [
        ("collectives", [2**24], False),  # 2 * 3 ranks * 16 MiB
        ("collectives", [2**26], True),
        ("pingpong", [2**26], False),
        ("bandwidth", [1, 2**26], False),
    ],
)
def test_buffers_must_fit_into_half_of_the_memory(kind: str, sizes: Sequence[int], is_refused: bool) -> None:
    found = works(kind, NODES, sizes, is_ring=False)
    measure_plan.require_memory(found, 3, 768)
    with (
        pytest.raises(RequestError, match="bcast of 64 MiB between 3 nodes needs 384 MiB")
        if is_refused
        else nullcontext()
    ):
        measure_plan.require_memory(found, 3, 767)


def test_collectives_have_no_pairs_and_a_barrier_no_size() -> None:
    found = works("collectives", NODES, [8, 64], is_ring=False)
    assert [work.size_bytes for work in found if work.operation == "barrier"] == [0]
    assert [work.size_bytes for work in found if work.operation == "alltoall"] == [8, 64]
    assert {*pairs_of(found)} == {(None, None)}


def test_one_node_cannot_be_measured() -> None:
    with pytest.raises(RequestError, match="two nodes or more"):
        works("latency", NODES[:1], [8], is_ring=False)


@pytest.mark.parametrize(
    ("operation", "size", "time_ns", "value"),
    [
        ("pingpong", 8, 3000, 1.5),
        ("alltoall", 8, 3000, 3.0),
        ("stream", 2**20, 8_388_608, 1000.0),  # a MiB has 8,388,608 bits: a nanosecond for each is 1 Gbit/s
        ("stream", 1, 512, 1000.0),  # 64 messages in a row
    ],
)
def test_values(operation: str, size: int, time_ns: int, value: float) -> None:
    assert Work(operation, "node1", "node2", size).value(time_ns) == value


@pytest.mark.parametrize(("size", "window"), [(0, 64), (1, 64), (2**14, 64), (2**15, 32), (2**20, 1), (2**22, 1)])
def test_a_row_of_messages_has_a_limited_size(size: int, window: int) -> None:
    assert Work("stream", "node1", "node2", size).window == window
    assert Work("pingpong", "node1", "node2", size).window == 1


PINGPONG = Work("pingpong", "node1", "node2", 8)


def test_summary() -> None:
    row = summary(PINGPONG, [2000 * number for number in range(1, 101)], 0.25)
    assert (row.samples, row.minimum, row.median, row.p99, row.maximum) == (100, 1, 50.5, 99, 100)
    assert (row.low, row.high, row.is_reached) == (40, 61, True)
    assert not summary(PINGPONG, [2000 * number for number in range(1, 101)], 0.2).is_reached
    few = summary(PINGPONG, [2000] * 5, 1.0)
    assert (few.low, few.high, few.is_reached) == (None, None, False)


class Program:
    """A measuring program whose times are given."""

    def __init__(self, times: Sequence[int]) -> None:
        self.times, self.counts = list(times), []  # type: ignore[var-annotated]

    def times_ns(self, work: Work, count: int) -> list[int]:
        assert work == PINGPONG
        self.counts.append(count)
        return [self.times.pop(0) for _ in range(count)]


def test_a_work_is_repeated_until_its_median_is_known() -> None:
    program = Program([2000, 4000] * 40 + [2000] * 1000)
    row = measure.repeat(program, PINGPONG, Precision(0.05, 60))  # type: ignore[arg-type]
    assert row.is_reached
    assert program.counts == [10, 10, 20, 40, 80]
    assert row.samples == 160


def test_it_ends_when_the_samples_or_the_time_are_used_up() -> None:
    program = Program([2000, 4000] * 1000)
    row = measure.repeat(program, PINGPONG, Precision(0.0001, 60))  # type: ignore[arg-type]
    assert (row.samples, row.is_reached) == (1000, False)
    assert sum(program.counts) == 1000
    short = measure.repeat(Program([2000, 4000] * 100), PINGPONG, Precision(0.0001, 0.0))  # type: ignore[arg-type]
    assert (short.samples, short.is_reached) == (10, False)


def reading(frames: int, size: int, sent: int, **by_class: tuple[int, int]) -> Reading:
    return Reading(frames, size, {"arp": (0, 0), "ssh": (0, 0), "nfs": (0, 0), "options": (0, 0), **by_class}, sent)


def test_traffic_is_explained_by_what_was_sent_and_its_headers() -> None:
    before = reading(100, 5000, 300, arp=(1, 42))
    after = reading(100 + 10 + 2 + 1, 5000 + 10 * 66 + 4000 + 200 + 42, 4300, arp=(2, 84), ssh=(2, 200))
    traffic = measure.traffic_between(before, after)
    assert traffic.difference_bytes == 0
    assert traffic.by_class == {"arp": 42, "ssh": 200, "nfs": 0}
    assert traffic.caused_bytes == 4660


def test_options_of_tcp_are_explained() -> None:
    """Their frames have the usual headers too."""
    before, after = reading(0, 0, 0), reading(10, 10 * 66 + 3 * 12, 0, options=(3, 36))
    assert measure.traffic_between(before, after).difference_bytes == 0


@pytest.mark.parametrize(
    ("difference", "is_explained"), [(0, True), (99, True), (-99, True), (101, False), (-101, False)]
)
def test_one_percent_may_be_unexplained(difference: int, is_explained: bool) -> None:
    traffic = Traffic(10_000, 10_000 - difference, {})
    assert traffic.is_explained == is_explained
    if not is_explained:
        with pytest.raises(VclusterError, match="other programs used the cluster network"):
            measure.require_explained(traffic)


@pytest.mark.parametrize(
    ("work", "names"),
    [
        (Work("barrier", None, None, 0), ("node2", "node3")),
        (Work("pingpong", "node1", "node2", 8), ("node2",)),
        (Work("pingpong", "node1", "node4", 8), ()),
    ],
)
def test_nodes_that_waited_for_a_processor(work: Work, names: tuple[str, ...]) -> None:
    """Node 1 waited for 5 % of its time, nodes 2 and 3 for more; node 4 was off at the begin."""
    before = {"node1": (100, 10), "node2": (100, 10), "node3": (0, 0)}
    after = {"node1": (1050, 60), "node2": (1050, 61), "node3": (0, 1), "node4": (1, 1)}
    nodes = measure.involved(work, ("node1", "node2", "node3", "node4"))
    assert measure.starved(before, after, nodes) == names


# The report

TRAFFIC = Traffic(1_000_000, 990_000, {"ssh": 6000, "nfs": 2000, "arp": 1000})


def measured(kind: str, sizes: Sequence[int]) -> dict[str, object]:
    rows = [
        summary(work, [1000 * (number + 5) for number in range(count)], 0.5)
        for count, work in enumerate(works(kind, NODES, sizes, is_ring=False), 5)
    ]
    found = measure_report.document(kind, NODES, Measured("MPICH 4", tuple(rows), TRAFFIC), width=0.05, skipped=3)
    return dict(json.loads(json.dumps(found)))


def test_latency_is_a_matrix_with_each_pair_twice() -> None:
    lines = measure_report.text(measured("latency", [8])).splitlines()
    assert lines[0].split() == ["µs", "FROM", "TO", "node1", "TO", "node2", "TO", "node3"]
    assert lines[1].split() == ["node1", "-", "░", "3.5*", "▓", "3.75"]
    assert lines[3].split() == ["node3", "▓", "3.75", "█", "4", "-"]
    assert lines[-1] == "* not reached: its interval is wider" or "difference 1000 (0.10 %)" in lines[-1]
    assert any(line.startswith("* not reached") for line in lines)


def test_sizes_are_a_table() -> None:
    text = measure_report.text(measured("pingpong", [1, 2048, 2**22]))
    assert text.splitlines()[0].split()[:4] == ["FROM", "TO", "SIZE", "MEDIAN"]
    assert {line.split()[2] for line in text.splitlines()[1:10]} == {"1B", "2KiB", "4MiB"}


def test_equal_values_have_no_shade() -> None:
    found = measured("bandwidth", [2**20])
    for row in found["rows"]:  # type: ignore[attr-defined]
        row["median"] = 100.0
    assert {*measure_report.SHADES} & {*measure_report.text(found)} == {"░"}


def test_colors_are_around_shades_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = measure_report.text(measured("latency", [8]))
    painted = measure_report.paint(text)
    assert re.sub("\x1b\\[[0-9]+m", "", painted) == text
    assert {*re.findall("\x1b\\[[0-9]+m(.)\x1b\\[0m", painted)} == {"░", "▓", "█"}


def test_csv_has_the_rows() -> None:
    found = measured("collectives", [8])
    rows = list(csv.DictReader(measure_report.csv_text(found).splitlines()))
    assert [row["operation"] for row in rows] == list(measure_plan.OPERATIONS)
    assert rows[0]["median"] == str(found["rows"][0]["median"])  # type: ignore[index]


def test_a_measurement_that_ended_early_has_its_rows() -> None:
    rows = (summary(PINGPONG, [2000] * 10, 0.05),)
    found = measure_report.document("latency", NODES[:2], Measured(None, rows, None), width=0.05, skipped=3)
    lines = measure_report.text(found).splitlines()
    assert lines[1].split() == ["node1", "-", "░", "1"]
    assert lines[-1] == "it ended early: the bytes at the ports were not compared"
    assert (found["library"], found["traffic"]) == (None, None)


def test_rows_of_progress() -> None:
    row = summary(PINGPONG, [246_000] * 10, 0.05)
    assert measure_report.row_text(measure_report.row_document(row)) == "node1 to node2: pingpong 8B: 123 µs"
    wide = replace(row, start=None, end=None, operation="barrier", size_bytes=0, is_reached=False)
    assert measure_report.row_text(measure_report.row_document(wide)) == "barrier 0B: 123* µs"
    waiting = replace(wide, is_reached=True, starved=("node2",))
    assert measure_report.row_text(measure_report.row_document(waiting)) == "barrier 0B: 123! µs"


def test_starved_nodes_are_named() -> None:
    found = measured("latency", [8])
    found["rows"][1]["starved"] = ["node1", "node2"]  # type: ignore[index]
    lines = measure_report.text(found).splitlines()
    assert "! in 1 of 3 rows, processors waited: node[1-2]" in lines
    assert "node1 node2" in measure_report.csv_text(found).splitlines()[2]
