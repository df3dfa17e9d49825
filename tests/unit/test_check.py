"""The check: who logs in to whom, what is concluded of the logins that are not made, in which order things happen."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import samples
from vcluster import guest
from vcluster.adapters.process import Completed
from vcluster.cli.output.progress import Timer
from vcluster.errors import VclusterError
from vcluster.model.plan import Plan
from vcluster.model.spec import PortRange
from vcluster.render import node_actions as rendered
from vcluster.stages import check
from vcluster.stages.check import Answer, Check
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter

HOSTS, KNOWN = "/etc/hosts", "/etc/ssh/ssh_known_hosts"

# Who logs in to whom


def tried(plan: Plan, *, pairs: bool = False) -> list[tuple[str, str]]:
    return [(node.name, to.name) for node in plan.nodes for to in check.targets(plan, node, pairs=pairs)]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [("node1", "node1")]),
        (2, [("node2", "node1")]),
        (4, [("node2", "node3"), ("node3", "node4"), ("node4", "node1")]),
    ],
)
def test_logins_make_a_ring_but_for_the_heads(count: int, expected: list[tuple[str, str]]) -> None:
    assert tried(samples.plan(count)) == expected


def test_all_pairs_begin_with_themselves() -> None:
    plan = samples.plan(3)
    made = tried(plan, pairs=True)
    assert sorted(made) == sorted(product(names(3), repeat=2))
    assert [made[number] for number in (0, 3, 6)] == [(name, name) for name in names(3)]


def test_only_those_that_came_log_in_again() -> None:
    plan = samples.plan(4)
    proven = {"node1", "node2", "node4"}
    made = [(node.name, to.name) for node in plan.nodes for to in check.targets(plan, node, pairs=False, proven=proven)]
    assert made == [("node3", "node4")]


# What is concluded


def names(count: int) -> list[str]:
    return [f"node{number}" for number in range(1, count + 1)]


def login(start: str, end: str, *, passed: bool = True) -> Check:
    return Check("ssh", start, end, passed, "" if passed else "oops")


def answers(count: int, *, failed: tuple[str, ...] = (), odd: dict[str, str] | None = None) -> list[Answer]:
    """Of a ring whose logins from `failed` did not pass, and where a path is not as it should be on the `odd`."""
    ring = dict(tried(samples.plan(count)))
    return [
        Answer(
            name,
            (login(name, ring[name], passed=name not in failed),) if name in ring else (),
            {path: "other" if (odd or {}).get(name) == path else "usual" for path in (HOSTS, KNOWN)},
        )
        for name in names(count)
    ]


def launched(count: int, *, passed: bool = True) -> list[Check]:
    return [Check("mpi", "node1", name, passed, "" if passed else "lost") for name in names(count)]


def failures(found: list[Answer], launched: list[Check]) -> dict[tuple[str, str], str]:
    verdict = check.judge(found, launched)
    logins = [one for one in verdict.checks if one.check == "ssh"]
    everyone = [answer.node for answer in found]
    assert [(one.from_node, one.to_node) for one in logins] == list(product(everyone, repeat=2))
    assert all(one.passed == (not one.detail) for one in logins)
    assert verdict.passed == (not verdict.failed)
    return {(one.from_node, one.to_node): one.detail for one in logins if not one.passed}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_when_all_went_well_every_pair_passes(count: int) -> None:
    assert failures(answers(count), launched(count)) == {}


def test_a_node_that_gets_nowhere_fails_to_all() -> None:
    why = "not tried, as the one from node2 to node3 failed"
    assert failures(answers(4, failed=("node2",)), launched(4)) == {
        **{("node2", to): why for to in names(4)},
        ("node2", "node3"): "oops",
    }


def test_a_node_that_nobody_gets_to_fails_from_all() -> None:
    found = failures(answers(3, failed=("node3",)), launched(3))
    why = "not tried, as the one from node3 to node1 failed"
    assert found == {
        ("node1", "node1"): why,
        ("node2", "node1"): why,
        ("node3", "node1"): "oops",
        ("node3", "node2"): why,
        ("node3", "node3"): why,
    }


def test_mpiexec_stands_for_the_heads_logins() -> None:
    found = failures(answers(3), launched(3, passed=False))
    why = "not tried, as the one from node1 to node2 failed"
    assert found == {
        ("node1", "node1"): why,
        ("node1", "node2"): "mpiexec: lost",
        ("node1", "node3"): "mpiexec: lost",
        ("node2", "node2"): why,
        ("node3", "node2"): why,
    }


@pytest.mark.parametrize(("node", "path"), [("node1", HOSTS), ("node3", KNOWN)])
def test_the_odd_one_fails_where_it_was_not_tried(node: str, path: str) -> None:
    found = failures(answers(4, odd={node: path}), launched(4))
    model = "node2" if node == "node1" else "node1"
    assert set(found.values()) == {f"{path} is not as on {model}"}
    untried = set(product([node], names(4))) - set(tried(samples.plan(4)))
    assert set(found) == {pair for pair in untried if pair[0] != "node1" or pair[1] == "node1"}


def test_of_two_the_head_is_right() -> None:
    found = failures(answers(2, odd={"node1": KNOWN}), launched(2))
    assert found == {("node2", "node2"): f"{KNOWN} is not as on node1"}


def test_what_was_tried_by_itself_counts_more_than_mpiexec() -> None:
    made = [Answer(name, tuple(login(name, to) for to in names(2)), {HOSTS: "one", KNOWN: "one"}) for name in names(2)]
    assert failures(made, launched(2, passed=False)) == {}


@given(count=st.integers(1, 6), data=st.data())
def test_whatever_failed_fails_the_check(count: int, data: st.DataObject) -> None:
    some = st.lists(st.sampled_from(names(count)), unique=True).map(tuple)
    failed = data.draw(some)
    odd = dict.fromkeys(data.draw(some), KNOWN)
    found = failures(answers(count, failed=failed, odd=odd), launched(count))
    ring = dict(tried(samples.plan(count)))
    is_odd = 0 < len(odd) < count
    assert bool(found) == (any(name in ring for name in failed) or is_odd)


def came(passed: bool, *, odd: dict[str, str] | None = None) -> dict[tuple[str, str], str]:
    """The failures after node3 came to two that are proven; it logged in to the head, mpiexec reached it or did not."""
    found = [Answer(name, (), (odd or {}).get(name, {}) or {HOSTS: "a"}) for name in ("node1", "node2")]
    found.append(Answer("node3", (login("node3", "node1"),), {HOSTS: "a"}))
    launch = [Check("mpi", "node1", name, passed, "" if passed else "oops") for name in ("node1", "node3")]
    verdict = check.judge(found, launch, {"node1", "node2"})
    assert {(one.from_node, one.to_node) for one in verdict.checks if one.check == "ssh"} == set(
        product(names(3), repeat=2)
    )
    return {(one.from_node, one.to_node): one.detail for one in verdict.failed if one.check == "ssh"}


def test_between_those_that_are_proven_logins_are_taken_as_they_were() -> None:
    assert not came(passed=True)


def test_who_came_and_is_not_reached_fails_from_all() -> None:
    assert set(came(passed=False)) == {(name, "node3") for name in names(3)}


def test_one_that_is_proven_and_was_changed_since_fails() -> None:
    assert set(came(passed=True, odd={"node2": {HOSTS: "b"}})) == {("node2", name) for name in names(3)}


def test_other_tries_are_told_as_they_are() -> None:
    ping = Check("ping", "node1", "node1", False, "no answer")
    (alone,) = answers(1)
    verdict = check.judge([Answer("node1", (ping, *alone.checks), alone.same)], launched(1))
    assert [one.check for one in verdict.checks] == ["ping", "ssh", "mpi"]
    assert verdict.failed == (ping,)


# The order of things


class Log:
    """What happened, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self._changed = threading.Condition()

    def add(self, node: str, what: str) -> None:
        with self._changed:
            self.events.append((node, what))
            self._changed.notify_all()

    def wait(self, node: str, what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: (node, what) in self.events, 10)


class FakePipe:
    """A node's program: it answers as guest/check.py does."""

    def __init__(self, name: str, log: Log, answer: Callable[[dict[str, object]], list[bytes]]) -> None:
        self.name, self._log, self._answer = name, log, answer
        self._lines: list[bytes] = []
        self._writes = False

    def write(self, data: bytes, deadline: Deadline, awaited: str) -> None:  # noqa: ARG002
        request = json.loads(data)
        self._writes = request["do"] == "probe_first"
        self._lines = self._answer(request)
        self._log.add(self.name, "asked")

    def read_line(self, deadline: Deadline, awaited: str) -> bytes:  # noqa: ARG002
        if not self._writes:
            self._log.wait(self.name, "ended")
        self._log.add(self.name, "answered")
        return self._lines.pop(0)

    def shut(self) -> None:
        self._log.add(self.name, "ended")

    def wait(self, timeout_s: float) -> int | None:  # noqa: ARG002
        return 0

    def close(self) -> None:
        self._log.add(self.name, "closed")


class FakeSession:
    """A session on a node."""

    def __init__(self, name: str, log: Log, *, words: bytes = b"") -> None:
        self.name, self._log, self._words = name, log, words

    def start_program(self, source: bytes, *, awaited: str, deadline: Deadline) -> FakePipe:  # noqa: ARG002
        assert source == guest.program("check")
        return FakePipe(self.name, self._log, self._lines)

    def _lines(self, request: dict[str, object]) -> list[bytes]:
        if self._words:
            return [self._words]
        results = [{"check": "ssh", "to": to, "passed": True, "detail": ""} for to in request["logins"]]  # type: ignore[attr-defined]
        answer = json.dumps({"results": results, "same": {HOSTS: "one", KNOWN: "one"}}).encode()
        return [b'{"written": true}', answer] if request["do"] == "probe_first" else [answer]

    def run_program(self, source: bytes, stdin: bytes, *, awaited: str) -> Completed:  # noqa: ARG002
        request = json.loads(stdin)
        assert request["do"] == "mpi"
        results = [
            {"check": "mpi", "to": target["name"], "passed": True, "detail": ""} for target in request["targets"]
        ]
        return Completed(0, json.dumps({"results": results}), "")


def run(count: int, log: Log, *, timer: Timer | None = None, **words: bytes) -> check.CheckReport:
    sessions = {name: FakeSession(name, log, words=words.get(name, b"")) for name in names(count)}
    report = Reporter((timer,) if timer else ())
    return check.run(samples.plan(count), sessions, deadline=Deadline(20), report=report)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_shared_files_are_there_while_they_are_read(count: int) -> None:
    log, timer = Log(), Timer()
    verdict = run(count, log, timer=timer)
    assert verdict.passed
    assert len(verdict.checks) == count * count + count
    order = log.events
    for worker in names(count)[1:]:
        assert order.index(("node1", "answered")) < order.index((worker, "ended"))
        assert order.index((worker, "answered")) < order.index(("node1", "ended"))
    assert [name for name, what in order if what == "asked"].count("node1") == 1
    assert {(time.stage, time.node) for time in timer.times} == {
        ("mpiexec", "node1"),
        *(("check", name) for name in names(count)),
    }


@pytest.mark.parametrize("node", ["node1", "node3"])
def test_words_that_are_no_answer_end_it_for_all(node: str) -> None:
    log = Log()
    with pytest.raises(VclusterError, match=f"{node}: check: no JSON"):
        run(3, log, **{node: b"no JSON"})
    assert {(name, "closed") for name, what in log.events if what == "asked"} <= set(log.events)


def test_mpiexec_has_the_environment_that_logins_have() -> None:
    """Without it, mpiexec would listen on a port that the packet filter closes."""
    plan = samples.plan(3, mpi_ports=PortRange(20000, 20200))
    environment = check._mpi(plan, ())["environment"]
    assert environment == rendered.mpi_environment(plan)
    assert environment["MPIEXEC_PORT_RANGE"] == "20000:20200"  # type: ignore[index]
