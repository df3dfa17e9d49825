"""What nodes do in an interval, and the sessions that read it. Nodes are not trusted."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests import samples
from vcluster.commands.nodes import retransmit_watch
from vcluster.commands.nodes.retransmit_watch import RetransmitWatch, segments_of
from vcluster.errors import VclusterError
from vcluster.fleet.servers import Fleet
from vcluster.guest import tcp_retransmits
from vcluster.model.plan import Node, Plan
from vcluster.planning.resize import shrink
from vcluster.planning.traffic.node_activity import (
    NOTHING_READ,
    NodeActivity,
    NodeReadings,
    ProcessorTimes,
    RetransmitCount,
    activity,
)
from vcluster.util.deadline import Deadline

S = 10**9
PLAN = samples.plan(1, vcpus=2)
SNMP = """\
Ip: Forwarding DefaultTTL
Ip: 1 64
Tcp: RtoAlgorithm MaxConn ActiveOpens InSegs OutSegs RetransSegs InErrs
Tcp: 1 -1 22 3077 3078 41 0
TcpExt: SyncookiesSent
"""


# Values in, values out


def retransmits(old: RetransmitCount | None, new: RetransmitCount | None) -> int | None:
    before, after = (NodeReadings({"node1": count} if count else {}) for count in (old, new))
    return activity(PLAN, before, after)[0].retransmits


def processors(old: ProcessorTimes, new: ProcessorTimes) -> NodeActivity:
    before, after = (NodeReadings(processors={"node1": times}) for times in (old, new))
    return activity(PLAN, before, after)[0]


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (RetransmitCount(1, 5), RetransmitCount(1, 12), 7),
        (RetransmitCount(1, 5), RetransmitCount(1, 5), 0),
        (RetransmitCount(1, 5), RetransmitCount(2, 12), None),
        (RetransmitCount(1, 5), None, None),
        (None, RetransmitCount(1, 5), None),
        (None, None, None),
    ],
)
def test_retransmits_are_those_of_one_session(
    old: RetransmitCount | None, new: RetransmitCount | None, found: int | None
) -> None:
    """Between two sessions, the node may have booted."""
    assert retransmits(old, new) == found


def test_shares_are_those_of_all_processors() -> None:
    found = processors(ProcessorTimes(10 * S, S, 0), ProcessorTimes(12 * S, 4 * S, S // 2))
    assert (found.cpu_ns, found.waited_ns) == (3 * S, S // 2)
    assert (found.cpu_percent, found.waited_percent) == (75.0, 12.5)


@pytest.mark.parametrize(
    "new",
    [ProcessorTimes(12 * S, 0, 9 * S), ProcessorTimes(12 * S, 9 * S, 0), ProcessorTimes(10 * S, 9 * S, 9 * S)],
    ids=["a new process", "another new process", "no time between"],
)
def test_times_that_began_again_have_no_share(new: ProcessorTimes) -> None:
    assert processors(ProcessorTimes(10 * S, S, S), new) == NodeActivity("node1")


def test_a_node_that_is_off_has_no_numbers() -> None:
    assert activity(PLAN, NOTHING_READ, NOTHING_READ) == (NodeActivity("node1"),)


# The program in a node


def test_the_count_of_the_kernel_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.open", lambda *_: io.StringIO(SNMP))
    assert tcp_retransmits.retransmits() == 41


# The lines of a node


@pytest.mark.parametrize(
    "answer",
    [
        {"retransmits": -1}, {"retransmits": 4}, {"retransmits": 10**12 + 1}, {"retransmits": 10**30},
        {"retransmits": 5.0}, {"retransmits": "5"}, {"retransmits": True}, {"retransmits": None}, {}, [5], 5,
    ],
)  # fmt: skip
def test_another_line_of_a_node_is_refused(answer: object) -> None:
    with pytest.raises(VclusterError, match=r"^node1: the count of retransmits printed "):
        segments_of("node1", json.dumps(answer).encode(), 5)


@pytest.mark.parametrize("line", [b"", b"\xff", b"5" * 1000, b"9" * 5000, b'{"retransmits": ' + b"9" * 5000 + b"}"])
def test_a_line_that_is_not_an_answer_is_refused(line: bytes) -> None:
    with pytest.raises(VclusterError, match=r"^node1: the count of retransmits printed ") as caught:
        segments_of("node1", line, 0)
    assert len(caught.value.message) < 600


# The sessions


class Pipe:
    """A program in a node that prints these lines, each when it is given, and ends with its input."""

    def __init__(self, *lines: bytes) -> None:
        self.given, self.closed = threading.Semaphore(len(lines)), threading.Event()
        self.lines, self.written = [*lines], b""

    def write(self, data: bytes, *_: object) -> None:
        self.written += data

    def give(self, line: bytes) -> None:
        self.lines.append(line)
        self.given.release()

    def read_line(self, _: object, __: object, *, limit: int) -> bytes:
        self.given.acquire()
        if self.closed.is_set() or len(self.lines[0]) > limit:
            raise VclusterError("node1: the connection broke")
        return self.lines.pop(0)

    def close(self) -> None:
        self.closed.set()
        self.given.release()


def line(segments: int) -> bytes:
    return json.dumps({"retransmits": segments}).encode()


class Nodes:
    """Nodes whose sessions have these pipes, one after the other, by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **pipes: list[Pipe]) -> None:
        self._pipes = pipes
        self.changed = threading.Condition()
        monkeypatch.setattr(retransmit_watch, "sessions", self._sessions)
        monkeypatch.setattr(retransmit_watch, "RETRY_S", 0.01)

    @contextmanager
    def _sessions(self, _: object, __: object, nodes: list[Node], **___: object) -> Iterator[dict[str, Any]]:
        (node,) = nodes
        if not self._pipes.get(node.name):
            raise VclusterError(f"{node.name}: nothing answers")
        pipe = self._pipes[node.name].pop(0)

        class Session:
            deadline = Deadline(20)

            def start_program(self, *_: object, **__: object) -> Pipe:
                return pipe

        yield {node.name: Session()}


@contextmanager
def watching(plan: Plan, every_s: float = 1.0) -> Iterator[RetransmitWatch]:
    found = RetransmitWatch(None, Fleet({}, {}), every_s)  # type: ignore[arg-type]
    found.follow(plan)
    try:
        yield found
    finally:
        found.close()


def until(watch: RetransmitWatch, *segments: int | None) -> None:
    """Wait until the nodes have these counts."""
    deadline, pause = Deadline(20), threading.Event()
    names = [f"node{number}" for number, _ in enumerate(segments, start=1)]
    while True:
        counts = watch.counts()
        if [counts[name].segments if name in counts else None for name in names] == [*segments]:
            return
        deadline.check(f"{segments}, not {counts}")
        pause.wait(0.01)


def test_the_last_line_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(line(5))
    Nodes(monkeypatch, node1=[pipe])
    with watching(PLAN, 60.0) as watch:
        until(watch, 5)
        pipe.give(line(9))
        until(watch, 9)
    assert json.loads(pipe.written) == {"every_s": 1.0}
    assert pipe.closed.is_set()


def test_a_node_that_fails_does_not_disturb_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(line(5))
    Nodes(monkeypatch, node1=[pipe])
    with watching(samples.plan(2)) as watch:
        until(watch, 5, None)
        deadline = Deadline(20)
        while not watch.failures():
            deadline.check("the failure of node2")
        assert {name: error.message for name, error in watch.failures().items()} == {"node2": "node2: nothing answers"}
        pipe.give(line(6))
        until(watch, 6, None)


def test_a_session_that_breaks_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Pipe(line(5)), Pipe()
    Nodes(monkeypatch, node1=[first, second])
    with watching(PLAN) as watch:
        until(watch, 5)
        session = watch.counts()["node1"].session
        first.close()
        until(watch, None)
        second.give(line(0))
        until(watch, 0)
        assert watch.counts()["node1"].session != session


@pytest.mark.parametrize(
    "wrong",
    [line(4), line(-1), line(10**15), b"{}", b" " * 2000],
    ids=["falling", "negative", "huge", "no count", "long"],
)
def test_a_node_that_prints_something_else_has_no_count(wrong: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(line(5))
    Nodes(monkeypatch, node1=[pipe])
    with watching(PLAN) as watch:
        until(watch, 5)
        pipe.give(wrong)
        until(watch, None)
        assert pipe.closed.is_set()


def test_a_node_that_prints_without_end_has_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line more than it may have printed by then ends the session."""
    lines = [line(number) for number in range(10_000)]
    pipe = Pipe(*lines)
    Nodes(monkeypatch, node1=[pipe])
    with watching(PLAN) as watch:
        assert pipe.closed.wait(20)
        until(watch, None)
        assert 10_000 - len(pipe.lines) < 100
        assert [*watch.failures()] == ["node1"]


def test_nodes_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    both, pipes = samples.plan(2), [Pipe(line(1)), Pipe(line(2))]
    Nodes(monkeypatch, node1=pipes[:1], node2=pipes[1:])
    with watching(both) as watch:
        until(watch, 1, 2)
        watch.follow(shrink(both, ["node2"]))
        assert pipes[1].closed.is_set()
        until(watch, 1, None)
        assert not pipes[0].closed.is_set()
