"""The calculations and the table of `scripts/bench instrument`."""

from __future__ import annotations

import math
from array import array
from pathlib import Path
from typing import Any

import pytest

from scripts.instrument import captures, frame_stream, links, outcomes
from scripts.instrument.figures import Change, binomial_interval, change_window, ideal_goodput
from scripts.instrument.outcomes import NotRun, Row, report
from vcluster.frames import pcapng


def test_the_ideal_goodput_leaves_out_the_headers() -> None:
    assert ideal_goodput(1464) == 1398
    assert ideal_goodput(1514e6, mtu=1500) == 1448e6


@pytest.mark.parametrize(
    ("count", "probability", "interval"),
    [
        (10, 0.5, (1, 9)),  # of 1024 cases, 1 has no success, and 11 have at most one: 0.5 % are 5.12 cases
        (1, 0.5, (0, 1)),
        (20, 0.001, (0, 1)),
    ],
)
def test_the_binomial_interval_is_exact(count: int, probability: float, interval: tuple[int, int]) -> None:
    assert binomial_interval(count, probability) == interval


@pytest.mark.parametrize("probability", [0.001, 0.01, 0.1])
def test_the_binomial_interval_of_many_frames_is_that_of_a_normal_distribution(probability: float) -> None:
    count = 600_000
    mean, width = count * probability, 2.576 * math.sqrt(count * probability * (1 - probability))
    low, high = binomial_interval(count, probability)
    assert abs(low - (mean - width)) < 3
    assert abs(high - (mean + width)) < 3


def test_pairs_that_can_have_changed_together_have_a_window_from_zero() -> None:
    assert change_window([Change(1000, 5000), Change(3000, 4000)]) == (0, 4e-6)


def test_pairs_that_changed_one_after_the_other_have_a_least_window() -> None:
    assert change_window([Change(1000, 2000), Change(7000, 9000)]) == (5e-6, 8e-6)


A, B, C = ("a", "b"), ("b", "a"), ("a", "c")  # C is a control


def test_a_control_follows_each_pair() -> None:
    assert frame_stream.turns([A, B], [C]) == [A, C, B, C]


def stream(*passed: int) -> dict[Any, Change]:
    """Three turns of four frames, one each 10 ns. A frame arrives 3 ns later."""
    sent = array("q", range(0, 120, 10))
    arrived = {number: number * 10 + 3 for number in passed}
    return frame_stream.changes([A, C, B, C], [C], sent, arrived)


def test_a_change_is_between_the_last_frame_that_passed_and_a_control_after_the_first_dropped_one() -> None:
    controls = (1, 3, 5, 7, 9, 11)
    assert stream(0, 2, 6, *controls) == {A: Change(0, 53), B: Change(60, 113)}


@pytest.mark.parametrize(
    ("passed", "message"), [((2, 8), "no frame of .* passed"), ((0, 8, 2), "after one was dropped")]
)
def test_frames_that_do_not_stop_once_are_refused(passed: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stream(*passed, 1, 3, 5, 7, 9, 11)


@pytest.mark.parametrize("names", [("node2", "node1"), ("", "")])
def test_frames_of_a_file_have_their_ports(tmp_path: Path, names: tuple[str, str]) -> None:
    """By their names, or, without names, in the order of the interfaces."""
    file = tmp_path / "run.pcapng"
    blocks = [pcapng.section_header("test", [])]
    blocks += [pcapng.interface_description(pcapng.FileInterface(name, "", 128)) for name in names]
    blocks += [pcapng.packet(1, 7, b"abc", 90, pcapng.INBOUND), pcapng.packet(0, 8, b"defgh", 5, pcapng.INBOUND)]
    file.write_bytes(b"".join(blocks))
    first, second = names if all(names) else ("node1", "node2")
    assert list(captures.frames(file)) == [(second, 90, b"abc"), (first, 5, b"defgh")]


def row(judge: Any, *rounds: dict[str, Any]) -> tuple[str, ...]:
    """The cells RESULT and REACHED of these rounds."""
    left = list(rounds)
    made = Row("figure", "side", "goal", "1 command", lambda: left.pop(0), judge)
    for _ in rounds:
        made.measure()
    return made.cells()[2], made.cells()[4]


def test_a_rate_is_judged_by_its_median() -> None:
    found = [{"goodput_bit_s": each, "ideal_bit_s": 100.0} for each in (90.0, 99.5, 99.2)]
    assert row(outcomes.judge_rate, *found) == ("-0.80 % (-10.00 to -0.50)", "yes")
    assert row(outcomes.judge_rate, found[0])[1] == "no"


def test_the_losses_of_all_rounds_are_judged_together() -> None:
    found = {"frames": 100_000, "lost": 1050, "probability": 0.01}
    assert row(outcomes.judge_loss, found)[1] == "yes"
    assert row(outcomes.judge_loss, *[found] * 10) == ("10500 of 1000000 (chance: 9745 to 10257)", "no")


@pytest.mark.parametrize(
    ("seconds", "lost", "counted", "reached"),
    [(1.9, 0, 400_000, "yes"), (2.1, 0, 400_000, "-"), (1.9, 1, 400_000, "no"), (2.1, 0, 399_999, "no")],
)
def test_a_capture_needs_all_frames_and_the_rate(seconds: float, lost: int, counted: int, reached: str) -> None:
    found = {"frames": 400_000, "lost": lost, "unordered": 0, "seconds": seconds}
    ports = {"counters": {"node1": 400_000}, "in_file": {"node1": counted}}
    assert row(outcomes.judge_capture, found | ports)[1] == reached


def test_a_side_that_cannot_run_gives_its_reason_once() -> None:
    def fail() -> dict[str, Any]:
        raise NotRun("the kernel lacks netem")

    rows = [Row(figure, "tc", "-", "1 command", fail, outcomes.judge_delay) for figure in ("delay", "loss")]
    for each in rows * 2:
        each.measure()
    assert report(rows).splitlines()[1:] == [
        "delay   tc    not run (1)  -     -        1 command",
        "loss    tc    not run (1)  -     -        1 command",
        "(1) the kernel lacks netem",
    ]
    assert rows[0].document()["result"] == "not run: the kernel lacks netem"


def test_the_rate_of_iperf3_is_that_of_the_receiver() -> None:
    assert links.goodput('{"end": {"sum_sent": {"bits_per_second": 2}, "sum_received": {"bits_per_second": 1}}}') == 1.0


def test_a_round_that_fails_does_not_reach_the_goal() -> None:
    """The other rounds still count."""
    left = [{"goodput_bit_s": 100.0, "ideal_bit_s": 100.0}]

    def work() -> dict[str, Any]:
        assert left, "no answer"
        return left.pop()

    made = Row("rate", "tc", "-", "1 command", work, outcomes.judge_rate)
    for _ in range(3):
        made.measure()
    assert made.cells()[2:5] == ("2 rounds failed; 0.00 % (0.00 to 0.00)", "-", "no")
    assert made.document()["failures"][0].startswith("AssertionError: no answer")
