"""Files with rates over time: their lines, the steps of queues, and the times of a trace that repeats."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from tests import samples
from vcluster.agent.faults import fault_holder
from vcluster.cli.nodes import link
from vcluster.errors import RequestError
from vcluster.planning import traffic_plan
from vcluster.planning.traffic import rate_trace
from vcluster.planning.traffic.rate_trace import LINES_MAX, TraceLine

LAB = samples.plan(3)
FILE = 't_s,from,to\n0,10mbit,"rate=20mbit,queue=30KiB"\n\n0.5, 20mbit,\n1.5,,1mbit\n'


def test_a_line_keeps_what_it_does_not_name() -> None:
    assert rate_trace.parse(FILE, "x.csv") == (
        TraceLine(0.0, {"from": {"rate_bits": 10**7}, "to": {"rate_bits": 2 * 10**7, "queue_bytes": 30 * 1024}}),
        TraceLine(0.5, {"from": {"rate_bits": 2 * 10**7}, "to": {"rate_bits": 2 * 10**7, "queue_bytes": 30 * 1024}}),
        TraceLine(1.5, {"from": {"rate_bits": 2 * 10**7}, "to": {"rate_bits": 10**6, "queue_bytes": 30 * 1024}}),
    )


def test_one_direction_is_enough() -> None:
    assert rate_trace.parse("t_s,to\n0,8kbit\n", "x.csv") == (TraceLine(0.0, {"to": {"rate_bits": 8000}}),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: '' is not t_s,from,to"),
        ("time,from\n0,1mbit\n", "line 1: 'time,from' is not t_s,from,to"),
        ("t_s,from,from\n0,1mbit,1mbit\n", "line 1: 't_s,from,from' is not t_s,from,to"),
        ("t_s,from\n", "there are no lines after the first one"),
        ("t_s,from\n0,1mbit,2mbit\n", "line 2: there are 3 fields, not 2"),
        ("t_s,from\nx,1mbit\n", "line 2: 'x' is not a time in seconds"),
        ("t_s,from\nnan,1mbit\n", "line 2: 'nan' is not a time in seconds"),
        ("t_s,from\n1,1mbit\n", "line 2: the first time is '1', not 0"),
        ("t_s,from\n0,1mbit\n\n2,1mbit\n1,1mbit\n", "line 5: '1' s is not later than 2 s by 0.01 s"),
        ("t_s,from\n0,fast\n", "line 2: from: rate: 'fast' is not a number with a unit"),
        ("t_s,from\n0,1mbit\n1,1bit\n", "line 3: from: rate: '1bit' is out of range"),
        ("t_s,from\n0,none\n", "line 2: from: 'none' is not a rate, with or without a queue"),
        ("t_s,from\n0,loss=1%\n", "line 2: from: 'loss=1%' is not a rate, with or without a queue"),
        ("t_s,from,to\n0,,\n", "line 2: there is no rate"),
        ("t_s,from,to\n0,1mbit\n1,,2mbit\n", "line 3: to has a rate, but none in the first line"),
        ('t_s,from\n0,1mbit\n1,"2mbit\0', "line 3: "),
    ],
)  # fmt: skip
def test_a_wrong_line_is_one_clear_error(text: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        rate_trace.parse(text, "x.csv")
    assert caught.value.message.startswith(f"x.csv: {message}")
    assert caught.value.hint


def test_a_file_has_a_largest_length() -> None:
    text = "t_s,from\n" + "".join(f"{number},1mbit\n" for number in range(LINES_MAX + 1))
    with pytest.raises(RequestError, match="there are more than 10000 lines"):
        rate_trace.parse(text, "x.csv")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A pipe is not opened: nothing may ever write to it."""
    (tmp_path / "big.csv").write_bytes(bytes(2**21 + 1))
    os.mkfifo(tmp_path / "pipe.csv")
    for name, reason in (
        ("none.csv", "does not exist"),
        ("big.csv", "is larger than 2048 KiB, so it is not a list of rates"),
        ("pipe.csv", "is not a regular file"),
        ("\0", "does not exist|is not a path"),
    ):
        with pytest.raises(RequestError, match=reason):
            link.trace.callback("node1", tmp_path / name, None, False, "text")  # type: ignore[misc]


def test_steps_are_the_queues_of_the_node() -> None:
    """With the limits that the plan has; a queue without a size follows the rate. Other nodes are left out."""
    plan = traffic_plan.with_changes(LAB, ["node1", "node2"], {"from": {"rate_bits": 8000, "loss_ppm": 5}})
    lines = rate_trace.parse("t_s,from\n0,1mbit\n2,100mbit\n", "x.csv")
    found = rate_trace.steps(plan, "node2", lines)
    assert [at_s for at_s, _ in found] == [0, 2]
    flows = [directions[0]["flows"][0] for _, directions in found]
    assert all(len(directions) == 1 for _, directions in found)
    assert [(flow["rate_bits"], flow["queue_bytes"], flow["loss_ppm"]) for flow in flows] == [
        (10**6, 2**16, 5),
        (10**8, 244 * 1024, 5),
    ]


def test_a_limit_without_a_meaning_is_refused() -> None:
    lines = rate_trace.parse('t_s,from\n0,"rate=1mbit,queue=9B"\n', "x.csv")
    with pytest.raises(RequestError, match="a queue of 9 bytes cannot hold a frame"):
        rate_trace.steps(LAB, "node1", lines)


def test_the_last_line_lasts_as_long_as_the_one_before() -> None:
    lines = rate_trace.parse(FILE, "x.csv")
    assert rate_trace.period_s(lines) == 2.5
    with pytest.raises(RequestError, match="one line cannot repeat"):
        rate_trace.require_period(lines[:1], "x.csv")


def test_the_times_of_a_trace() -> None:
    steps: list[tuple[float, list[dict[str, str]]]] = [(0.0, [{"a": "x"}]), (1.5, [{"b": "x"}])]
    assert [*fault_holder._later(steps, None)] == [(1.5, [{"b": "x"}])]
    assert [at_s for at_s, _ in itertools.islice(fault_holder._later(steps, 3.0), 5)] == [1.5, 3, 4.5, 6, 7.5]
