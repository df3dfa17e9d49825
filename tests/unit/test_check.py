"""The check: the logins that it makes, the logins that it derives, and the order of events on the nodes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import samples
from vcluster import guest
from vcluster.adapters.process import Completed
from vcluster.cli.output.progress import Timer
from vcluster.errors import VclusterError
from vcluster.model.checks import Check, CheckReport
from vcluster.model.spec import PortRange
from vcluster.render import node_actions as rendered
from vcluster.stages import check, clocks
from vcluster.stages.clocks import Clock, compare
from vcluster.stages.logins import all_pairs, chosen, derive, differences, doubtful
from vcluster.util.deadline import Deadline
from vcluster.util.events import Event, Listener, Reporter

HOSTS, KNOWN = "/etc/hosts", "/etc/ssh/ssh_known_hosts"

# Logins that the check makes


@pytest.mark.parametrize(("count", "first"), [(1, "node1"), (2, "node2"), (4, "node2")])
def test_the_first_worker_logs_in_to_the_head(count: int, first: str) -> None:
    assert chosen(samples.plan(count)) == [(first, "node1")]


def test_all_pairs_begin_with_themselves() -> None:
    logins = all_pairs(samples.plan(3))
    assert sorted(logins) == sorted(product(names(3), repeat=2))
    assert [logins[number] for number in (0, 3, 6)] == [(name, name) for name in names(3)]


@pytest.mark.parametrize("proven", [{"node1", "node2", "node3"}, {"node1", "node2", "node3", "node4"}])
def test_no_node_logs_in_to_a_proven_head(proven: set[str]) -> None:
    assert chosen(samples.plan(4), proven=proven) == []


# Logins that the check derives

FAILED = "Permission denied"


def names(count: int) -> list[str]:
    return [f"node{number}" for number in range(1, count + 1)]


def login(start: str, end: str, *, passed: bool = True) -> Check:
    return Check("ssh", start, end, passed, "" if passed else FAILED)


def usual(count: int, **odd: str) -> dict[str, dict[str, str]]:
    """Digests of nodes that differ only as `odd` says: the name of what differs, by node."""
    return {
        name: {path: "odd" if odd.get(name) == path else "usual" for path in (HOSTS, KNOWN)} for name in names(count)
    }


def ordinary(count: int, *failing: tuple[str, str]) -> list[Check]:
    """The logins of an ordinary check, of which some fail."""
    return [login(*pair, passed=pair not in failing) for pair in chosen(samples.plan(count))]


def failures(
    same: dict[str, dict[str, str]], logins: list[Check], proven: Collection[str] = ()
) -> dict[tuple[str, str], str]:
    found = list(derive(same, logins, proven))
    assert [(one.from_node, one.to_node) for one in found] == list(product(same, repeat=2))
    assert all(one.passed == (not one.detail) for one in found)
    return {(one.from_node, one.to_node): one.detail for one in found if not one.passed}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_pair_passes_after_few_logins(count: int) -> None:
    entered = names(count)
    assert doubtful(usual(count), ordinary(count), entered) == []
    assert failures(usual(count), ordinary(count)) == {}


def test_a_node_that_refuses_logins_fails_from_all() -> None:
    logins, entered = ordinary(4), {"node1", "node2", "node4"}
    assert doubtful(usual(4), logins, entered) == [("node4", "node3")]
    expected = {(name, "node3"): "not tried, as the one from node4 to node3 failed" for name in names(4)}
    found = failures(usual(4), [*logins, login("node4", "node3", passed=False)])
    assert found == {**expected, ("node4", "node3"): FAILED}


def test_a_node_that_only_refuses_this_machine_passes() -> None:
    assert failures(usual(4), [*ordinary(4), login("node4", "node3")]) == {}


def test_a_head_that_refuses_logins_fails_from_all() -> None:
    found = failures(usual(3), ordinary(3, ("node2", "node1")))
    assert {end for _, end in found} >= {"node1"}
    assert {(name, "node1") for name in names(3)} <= set(found)


def test_after_a_failed_login_the_first_node_tries_all() -> None:
    """So that a node that no other can enter does not count as one that cannot leave."""
    logins, entered = ordinary(3, ("node2", "node1")), names(3)
    todo = doubtful(usual(3), logins, entered)
    assert todo == [("node1", name) for name in names(3)]
    logins += [login(*pair, passed=pair != ("node1", "node1")) for pair in todo]
    assert set(failures(usual(3), logins)) == {(name, "node1") for name in names(3)}


def test_without_any_login_nothing_is_derived() -> None:
    nowhere = [login("node1", "node2", passed=False), login("node2", "node1", passed=False)]
    assert set(failures(usual(2), nowhere)) == set(product(names(2), repeat=2))


@pytest.mark.parametrize(("node", "name"), [("node1", HOSTS), ("node3", KNOWN)])
def test_logins_of_a_node_that_differs_are_made(node: str, name: str) -> None:
    same, logins, entered = usual(3, **{node: name}), ordinary(3), names(3)
    todo = doubtful(same, logins, entered)
    known = {(one.from_node, one.to_node) for one in logins}
    of_node = {pair for pair in product(names(3), repeat=2) if node in pair}
    assert set(todo) == of_node - known
    assert failures(same, [*logins, *(login(*pair) for pair in todo)]) == {}
    model = "node2" if node == "node1" else "node1"
    failing = failures(same, [*logins, *(login(*pair, passed=node not in pair) for pair in todo)])
    assert set(failing) >= of_node - known
    assert {failing[pair] for pair in of_node - known} == {f"{FAILED} ({name} of {node} differs from that of {model})"}


def test_a_node_that_cannot_enter_one_that_differs_can_still_leave() -> None:
    same, logins = usual(3, node2=HOSTS), ordinary(3)
    todo = doubtful(same, logins, names(3))
    logins += [login(*pair, passed=pair != ("node1", "node2")) for pair in todo]
    assert set(failures(same, logins)) == {("node1", "node2")}


def test_of_two_nodes_the_first_is_the_model() -> None:
    assert differences(usual(2, node1=KNOWN)) == {"node2": f"{KNOWN} of node2 differs from that of node1"}


@given(count=st.integers(1, 6), data=st.data())
def test_a_login_that_fails_fails_the_check(count: int, data: st.DataObject) -> None:
    """For any nodes that cannot be entered or left, and any that differ, each of their logins fails."""
    some = st.lists(st.sampled_from(names(count)), unique=True)
    shut, odd = data.draw(some), data.draw(some)
    lost = [name for name in data.draw(some) if name in odd]  # a node with usual files can be left
    same = usual(count, **dict.fromkeys(odd, KNOWN))
    differing = differences(same)
    entered = [name for name in names(count) if name not in shut]

    def really(start: str, end: str) -> Check:
        return login(start, end, passed=end not in shut and not (start in lost and start in differing))

    logins = [really(one.from_node, one.to_node) for one in ordinary(count)]
    logins += [really(*pair) for pair in doubtful(same, logins, entered)]
    found = failures(same, logins)
    expected = {pair for pair in product(names(count), repeat=2) if not really(*pair).passed}
    assert expected <= set(found)
    assert expected or not found


PROVEN = {"node1", "node2"}


def added(*, enters: bool = True, **odd: str) -> dict[tuple[str, str], str]:
    """The failures after node3 was added to two proven nodes; node3 lets logins in or not."""
    same, logins = usual(3, **odd), list[Check]()
    entered = {*PROVEN, *(["node3"] if enters else [])}
    todo = doubtful(same, logins, entered)
    logins += [login(*pair, passed=enters or pair[1] != "node3") for pair in todo]
    return failures(same, logins, PROVEN)


def test_logins_between_proven_nodes_pass() -> None:
    assert not added()


def test_an_added_node_that_refuses_logins_fails_from_all() -> None:
    assert set(added(enters=False)) == {(name, "node3") for name in names(3)}


def test_the_logins_of_a_proven_node_that_was_changed_are_made() -> None:
    todo = doubtful(usual(3, node2=HOSTS), [], names(3))
    assert set(todo) == {pair for pair in product(names(3), repeat=2) if "node2" in pair}


# The order of events


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
        self._waits = False

    def write(self, data: bytes, deadline: Deadline, awaited: str) -> None:  # noqa: ARG002
        request = json.loads(data)
        self._waits = request["do"] == "probe"
        self._lines = self._answer(request)
        self._log.add(self.name, request["do"])

    def read_line(self, deadline: Deadline, awaited: str) -> bytes:
        deadline.check(awaited)
        if self._waits:
            self._log.wait(self.name, "ended")
        self._log.add(self.name, "answered")
        return self._lines.pop(0)

    def has_more(self) -> bool:
        return bool(self._lines)

    @property
    def is_alive(self) -> bool:
        return bool(self._lines)

    def shut(self) -> None:
        self._log.add(self.name, "ended")

    def wait(self, timeout_s: float) -> int | None:  # noqa: ARG002
        return 0

    def close(self) -> None:
        self._log.add(self.name, "closed")


class FakeSession:
    """A session on a node."""

    def __init__(
        self, name: str, log: Log, *, output: bytes = b"", known: str = "one", program: str = "mpi-check",
        ahead_s: float = 0, slow_s: float = 0, **identity: str,
    ) -> None:  # fmt: skip
        self.name, self._log, self._output, self._known, self._program = name, log, output, known, program
        self._ahead_s, self._slow_s = ahead_s, slow_s
        own = {"host_name": name, "machine_id": f"id of {name}", "host_key": f"key of {name}"}
        self._identity = {what.replace("_", " "): value for what, value in (own | identity).items()}
        self.deadline = Deadline(20)
        self.check: Callable[[str], None] = lambda _: None

    def start_program(self, source: bytes, *, awaited: str) -> FakePipe:  # noqa: ARG002
        assert source == guest.program("check")
        return FakePipe(self.name, self._log, self._lines)

    def _lines(self, request: dict[str, Any]) -> list[bytes]:
        if self._output:
            return [self._output]
        if request["do"] == "proxy":
            return []
        if request["do"] == "mpi":
            return self._mpi(names_of(request["targets"]))
        same, time_s = {HOSTS: "one", KNOWN: self._known}, time.time() + self._ahead_s
        times = {"began_s": time_s, "ended_s": time_s}
        answer = json.dumps({"results": [], "same": same, "identity": self._identity} | times).encode()
        time.sleep(self._slow_s)
        return [b'{"written": true}', answer] if request["do"] == "probe_first" else [answer]

    def _mpi(self, ends: list[str]) -> list[bytes]:
        results = [{"check": "mpi", "to": to, "passed": True, "detail": ""} for to in ends]
        proxies = [["/usr/bin/hydra_pmi_proxy", "--proxy-id", str(number)] for number, _ in enumerate(ends)]
        return [
            json.dumps(one).encode() for one in ({"proxies": proxies}, {"results": results, "program": self._program})
        ]

    def run_program(self, source: bytes, stdin: bytes, *, awaited: str) -> Completed:  # noqa: ARG002
        request = json.loads(stdin)
        self._log.add(self.name, request["do"])
        results = [{"check": "ssh", "to": to, "passed": True, "detail": ""} for to in request["logins"]]
        return Completed(0, json.dumps({"results": results}), "")


def names_of(targets: list[dict[str, str]]) -> list[str]:
    return [target["name"] for target in targets]


def run(count: int, log: Log, *listeners: Listener, **differing: FakeSession) -> CheckReport:
    sessions = {name: differing.get(name) or FakeSession(name, log) for name in names(count)}
    deadline = Deadline(20)
    for session in sessions.values():
        session.deadline = deadline.with_check(session.check)
    plan, report = samples.plan(count), Reporter(listeners)
    return check.run(
        plan,
        sessions,
        deadline=deadline,
        report=report,
        enter=lambda node: log.add(node.name, "entered"),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", ["node1", "node2"])
def test_a_node_that_stops_ends_the_check(name: str) -> None:
    def stop(awaited: str) -> None:
        raise VclusterError(f"{name} stopped running while vcluster waited for {awaited}")

    log = Log()
    stopped = FakeSession(name, log)
    stopped.check = stop
    with pytest.raises(VclusterError, match=f"{name} stopped running while vcluster waited for "):
        run(3, log, **{name: stopped})


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_shared_files_are_there_while_they_are_read(count: int) -> None:
    log, timer = Log(), Timer()
    verdict = run(count, log, timer)
    assert verdict.passed
    assert len(verdict.checks) == count * count + count + count + count
    assert [name for name, what in log.events if what == "logins"] == [names(count)[:2][-1]]
    order = log.events
    for worker in names(count)[1:]:
        assert order.index(("node1", "answered")) < order.index((worker, "ended"))
        assert order.index((worker, "answered")) < order.index(("node1", "ended"))
    assert sorted(name for name, what in order if what == "entered") == sorted(names(count))
    assert sorted(name for name, what in order if what == "proxy") == sorted(names(count))
    assert [name for name, what in order if what == "mpi"] == ["node1"]
    assert {(time.stage, time.node) for time in timer.times} == {
        ("mpiexec", "node1"),
        *(("check", name) for name in names(count)),
    }


@pytest.mark.parametrize("node", ["node1", "node3"])
def test_output_that_is_not_an_answer_ends_the_check(node: str) -> None:
    log = Log()
    with pytest.raises(VclusterError, match=f"{node}: the (check|MPI program) printed no result: no JSON"):
        run(3, log, **{node: FakeSession(node, log, output=b"no JSON")})
    assert {(name, "closed") for name, what in log.events if what.startswith("probe")} <= set(log.events)


RESULT = {"check": "ssh", "to": "node1", "passed": True, "detail": ""}


@pytest.mark.parametrize(
    "answer",
    [
        {"results": [RESULT | {"to": "node9"}]},
        {"results": [RESULT | {"check": "other"}]},
        {"results": [RESULT | {"passed": 1}]},
        {"results": [{"check": "ssh"}]},
        {"results": "none"},
        {"results": [], "same": []},
        {"began_s": None},
        {"began_s": float("-inf")},
        {"ended_s": "now"},
        {"ended_s": float("nan")},
        {"ended_s": float("inf")},
        {"ended_s": -1e300},
        {"identity": None},
        {"identity": {}},
        {"identity": {"host name": "node2", "machine id": "1", "host key": 1}},
        {},
    ],
)
def test_an_answer_with_something_unknown_ends_the_check(answer: dict[str, object]) -> None:
    log = Log()
    times = {"began_s": time.time(), "ended_s": time.time()}
    identity = {"host name": "node2", "machine id": "1", "host key": "1"}
    answer = {"results": [], "same": {}, "identity": identity} | times | answer if answer else answer
    with pytest.raises(VclusterError, match="node2: the check printed a result that vcluster does not know"):
        run(2, log, node2=FakeSession("node2", log, output=json.dumps(answer).encode()))


def test_the_missing_logins_of_a_node_that_differs_are_made() -> None:
    log = Log()
    assert run(3, log, node2=FakeSession("node2", log, known="other")).passed
    assert sorted(name for name, what in log.events if what == "logins") == ["node1", "node2", "node2", "node3"]


def test_without_a_compiler_the_check_reports_that_no_data_was_exchanged() -> None:
    log, events = Log(), list[Event]()
    assert run(2, log, events.append, node1=FakeSession("node1", log, program="hostname")).passed
    assert any("exchanges no data" in event.text for event in events)


def test_mpiexec_has_the_environment_that_logins_have() -> None:
    """Without it, mpiexec would listen on ports that the packet filter closes."""
    plan = samples.plan(3, mpi_ports=PortRange(20000, 20200))
    environment = check._mpi(plan, names(3))["environment"]
    assert environment == {**rendered.mpi_environment(plan), **check.QUICK_START}
    assert environment["MPIEXEC_PORT_RANGE"] == "20000:20200"  # type: ignore[index]


def test_a_failure_is_never_printed_as_ok() -> None:
    assert str(Check("path", "node1", "node2", False, "")) == "path from node1 to node2: failed without a reason"
    assert str(Check("path", "node1", "node2", True, "")) == "path from node1 to node2: ok"


# Identities


@pytest.mark.parametrize(
    ("identity", "failed"),
    [
        ({"host_name": "template"}, ("node3", "its host name is template")),
        ({"host_name": ""}, ("node3", "its host name is empty")),
        ({"machine_id": "id of node2"}, ("node2", "its machine id is that of node2 too")),
        (
            {"machine_id": "id of node1", "host_key": "key of node1", "host_name": "node1"},
            ("node1", "its machine id is that of node1 too; its host key is that of node1 too; its host name is node1"),
        ),
    ],
)
def test_a_node_without_its_own_identity_fails(identity: dict[str, str], failed: tuple[str, str]) -> None:
    log = Log()
    verdict = run(3, log, node3=FakeSession("node3", log, **identity))
    assert [(one.check, one.from_node, one.to_node, one.detail) for one in verdict.failed] == [
        ("identity", "node3", *failed)
    ]


def test_what_no_node_has_is_not_double() -> None:
    log = Log()
    nodes = {name: FakeSession(name, log, host_key="") for name in names(2)}
    assert run(2, log, **nodes).passed


# Clocks


BEHIND, AHEAD = "behind that of node1", "ahead of that of node1"


@pytest.mark.parametrize(
    ("name", "ahead_s", "failed"),
    [
        ("node2", -600, {"node2": BEHIND}),
        ("node3", 3600, {"node3": AHEAD}),
        ("node3", 3, {}),
        ("node1", -60, {"node1": "behind that of this machine", "node2": AHEAD, "node3": AHEAD}),
    ],
)
def test_a_clock_that_is_wrong_fails(name: str, ahead_s: float, failed: dict[str, str]) -> None:
    log = Log()
    verdict = run(3, log, **{name: FakeSession(name, log, ahead_s=ahead_s)})
    assert {(one.check, one.to_node) for one in verdict.failed} <= {("clock", "node1")}
    found = {one.from_node: one.detail.removeprefix("its clock is ").split(" s ", 1) for one in verdict.failed}
    assert {node: side for node, (_, side) in found.items()} == {
        node: f"{side}; to set it: vcluster repair lab" for node, side in failed.items()
    }
    # The time that the check itself takes counts as an error.
    assert all(abs(ahead_s) - 30 < int(seconds) <= abs(ahead_s) for seconds, _ in found.values())


@pytest.mark.parametrize(("time_s", "ahead_s"), [(100.0, 88.0), (13.0, 1.0), (12.0, 0.0), (10.0, 0.0), (4.0, -6.0)])
def test_the_time_between_question_and_answer_makes_a_clock_uncertain(time_s: float, ahead_s: float) -> None:
    clock = Clock.of(time_s, time_s, 10.0, 12.0)
    assert clock
    assert clock.ahead_of_s(Clock(0.0, 0.0)) == ahead_s
    assert Clock(0.0, 0.0).ahead_of_s(clock) == -ahead_s


def test_the_time_that_the_tests_of_a_node_take_does_not_hide_a_wrong_clock() -> None:
    """The tests of the head take 4 s, and its clock is 9 s behind."""
    head, worker = Clock.of(91.0, 95.0, 0.0, 4.0), Clock.of(104.0, 104.25, 4.0, 4.25)
    assert head
    assert worker
    assert worker.ahead_of_s(head) == 9


def test_an_answer_of_the_head_that_arrives_late_is_not_a_wrong_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "APART_MAX_S", 0.01)
    log = Log()
    verdict = run(2, log, node1=FakeSession("node1", log, slow_s=0.2))
    assert [one for one in verdict.failed if one.from_node == "node1"] == []


@pytest.mark.parametrize("head_s", [0.0, 600.0])
def test_the_clock_of_a_head_on_another_server_is_not_compared_with_this_machine(head_s: float) -> None:
    found = dict.fromkeys(names(3), Clock(head_s, head_s))
    assert all(one.passed for one in compare(samples.shared_plan(), found))
