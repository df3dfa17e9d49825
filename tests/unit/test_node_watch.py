"""A node that reboots, ends or is paused during a command: every wait ends with the node, the stage and the reason."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests import samples
from tests.unit.test_stopped_nodes import Libvirt
from vcluster.adapters.libvirt.domain_events import DESTROYED, DIED, PAUSED, REBOOTED, DomainEvent, DomainEvents
from vcluster.adapters.libvirt.domain_state import OwnedDomain
from vcluster.agent.client import LocalAgent
from vcluster.commands.steps import node_console, node_watch
from vcluster.commands.steps.node_watch import NodeStoppedError, NodeWatch
from vcluster.errors import SeveralErrors, VclusterError
from vcluster.fleet.servers import Fleet, Server
from vcluster.model import status
from vcluster.model.plan import Node
from vcluster.model.status import PowerState
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter

PLAN = samples.plan(3)
NODE, OTHER, _ = PLAN.nodes
CUT = DomainEvent(DIED, DESTROYED)


class Hypervisor:
    """The libvirt of a server: it sends events of domains, and knows their power."""

    def __init__(self) -> None:
        self.events = DomainEvents(Libvirt())  # type: ignore[arg-type]
        self.powers: dict[str, PowerState] = {}

    def power_state(self, domain: str) -> PowerState:
        return self.powers.get(domain, PowerState(status.RUNNING))

    def domains(self) -> list[OwnedDomain]:
        return [
            OwnedDomain(node.domain, PLAN.name, node.name, self.power_state(node.domain), node.uuid)
            for node in PLAN.nodes
        ]


class World:
    """A command that watches nodes."""

    def __init__(self) -> None:
        self.libvirt, self.report, self.console = Hypervisor(), Reporter(), "a line\n"
        agent = LocalAgent({"tail": lambda **_: self.console})
        server = Server("localhost", samples.OWNER, Path("/storage"), agent, libvirt=self.libvirt)  # type: ignore[arg-type]
        self.watch = NodeWatch(Fleet({"localhost": server}, {}), PLAN, self.report, hint="vcluster repair lab")
        self.deadline = Deadline(20).with_check(self.watch.check)

    def send(self, event: DomainEvent, node: Node = NODE) -> None:
        """Let libvirt send an event, in a thread of its own."""
        listener = self.libvirt.events._listeners.get(node.uuid, lambda _: None)
        thread = threading.Thread(target=listener, args=(event,))
        thread.start()
        thread.join()

    def run(self, work: Callable[[], Any]) -> VclusterError:
        """The error of a block of the command."""
        with pytest.raises(VclusterError) as raised, self.watch.explained():
            work()
        return raised.value

    def wait(self) -> None:
        while True:
            self.deadline.pause(0.01, "the check on other nodes")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(node_watch, "CONSOLE_S", 0.0)
    monkeypatch.setattr(node_watch, "EVENT_S", 0.01)
    made = World()
    for node in PLAN.nodes:
        made.watch.begin(node)
        made.watch.promote(node)
    return made


TAIL = "\n  the last lines of node1's console:\n  | a line"


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (CUT, "node1 died during nfs: another command cut its power" + TAIL),
        (DomainEvent(REBOOTED), "node1 rebooted during nfs" + TAIL),
    ],
)
def test_a_wait_for_another_node_ends_with_the_node_and_the_stage(
    world: World, event: DomainEvent, message: str
) -> None:
    def work() -> None:
        with world.report.step("nfs", NODE.name):
            world.send(event)
        world.wait()

    error = world.run(work)
    assert isinstance(error, NodeStoppedError)
    assert error.message == message
    assert error.hint == "vcluster repair lab"


def test_a_panic_is_the_reason_of_a_reboot(world: World) -> None:
    world.console = "[ 9.1] Kernel panic - not syncing: sysrq triggered crash\n"
    world.send(DomainEvent(REBOOTED))
    assert world.run(world.wait).message.startswith("node1 rebooted during the command: its kernel panicked\n")


def test_a_pause_has_the_reason_of_libvirt(world: World) -> None:
    world.libvirt.powers[NODE.domain] = PowerState(status.PAUSED, "I/O error on /a: no space left")
    world.send(DomainEvent(PAUSED))
    error = world.run(world.wait)
    assert error.message == "node1 was paused during the command: I/O error on /a: no space left"
    assert error.hint == "remove the reason, then vcluster repair lab"


def test_a_pause_that_is_over_is_no_error(world: World) -> None:
    with world.watch.explained():
        world.send(DomainEvent(PAUSED))


def test_a_loading_clone_is_paused_only_by_an_error_of_its_disk(world: World) -> None:
    world.libvirt.powers[NODE.domain] = PowerState(status.PAUSED, "starting")
    with world.watch.starting(NODE):
        world.send(DomainEvent(PAUSED))
        world.watch._settle()
        world.watch.deadline_of(NODE, world.deadline).check("the clone")
        world.send(DomainEvent(PAUSED, is_error=True))
        world.watch._settle()
    world.watch.promote(NODE)
    assert world.run(world.wait).message == "node1 was paused during the command: starting"


def test_the_error_of_a_stage_is_replaced_by_its_cause(world: World) -> None:
    def work() -> None:
        world.send(CUT)
        raise VclusterError("node1: the connection broke during nfs")

    assert world.run(work).message.startswith("node1 died during the command: another command cut its power")


def test_a_command_does_not_succeed_when_a_node_stopped(world: World) -> None:
    assert world.run(lambda: world.send(CUT)).message.startswith("node1 died")


def test_another_error_stays(world: World) -> None:
    def work() -> None:
        raise VclusterError("the cluster is not ready")

    assert world.run(work).message == "the cluster is not ready"


def test_a_stop_without_an_event_is_found_after_an_error(world: World) -> None:
    def work() -> None:
        world.libvirt.powers[NODE.domain] = PowerState(status.STOPPED)
        raise VclusterError("node1: the connection broke during nfs")

    assert world.run(work).message == "node1 died during the command" + TAIL


def test_a_node_that_cannot_be_started_did_not_stop(world: World) -> None:
    def work() -> None:
        world.libvirt.powers[NODE.domain] = PowerState(status.STOPPED)
        with world.watch.starting(NODE):
            raise VclusterError("starting lab.node1: no memory")

    assert world.run(work).message == "starting lab.node1: no memory"


def test_several_nodes_stop(world: World) -> None:
    for node in (NODE, OTHER):
        world.send(CUT, node)
    world.watch._settle()
    error = world.run(world.wait)
    assert isinstance(error, SeveralErrors)
    assert [each.message.split(" ")[0] for each in error.errors] == ["node1", "node2"]


def test_the_first_event_of_a_node_counts(world: World) -> None:
    world.send(DomainEvent(REBOOTED))
    world.watch._settle()
    world.send(CUT)
    assert world.run(world.wait).message.startswith("node1 rebooted")


def test_a_node_in_its_trial_ends_only_its_own_waits(world: World) -> None:
    world.watch.begin(NODE)
    world.send(CUT)
    world.watch._settle()
    world.deadline.check("another node")
    with pytest.raises(NodeStoppedError, match="node1 died"):
        world.watch.deadline_of(NODE, world.deadline).check("its identity")
    cause = world.watch.cause_of(VclusterError("the connection broke"), NODE)
    assert cause.message.startswith("node1 died")
    world.watch.end(NODE)
    with world.watch.explained():
        world.send(CUT)


def test_connections_to_a_node_that_stops_are_closed(world: World) -> None:
    closed: list[str] = []
    for node in (NODE, OTHER):
        world.watch.call_on_stop(node, lambda node=node: closed.append(node.name))  # type: ignore[misc]
    world.send(CUT)
    world.run(world.wait)
    assert closed == ["node1"]


def test_events_after_the_end_are_ignored(world: World) -> None:
    listener = world.libvirt.events._listeners[NODE.uuid]
    with world.watch.explained():
        pass
    listener(CUT)
    world.watch.check()


# The events of libvirt


class Domain:
    def UUIDString(self) -> str:  # noqa: N802 - libvirt's name
        return NODE.uuid


@pytest.mark.parametrize(
    ("event", "detail", "expected"),
    [
        (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED, CUT),
        (
            libvirt.VIR_DOMAIN_EVENT_STOPPED,
            libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED,
            DomainEvent(DIED, "QEMU crashed or was killed"),
        ),
        (
            libvirt.VIR_DOMAIN_EVENT_STOPPED,
            libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN,
            DomainEvent(DIED, "its operating system powered off"),
        ),
        (
            libvirt.VIR_DOMAIN_EVENT_CRASHED,
            libvirt.VIR_DOMAIN_EVENT_CRASHED_PANICKED,
            DomainEvent(DIED, "its kernel panicked"),
        ),
        (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED, DomainEvent(PAUSED)),
        (
            libvirt.VIR_DOMAIN_EVENT_SUSPENDED,
            libvirt.VIR_DOMAIN_EVENT_SUSPENDED_IOERROR,
            DomainEvent(PAUSED, is_error=True),
        ),
        (libvirt.VIR_DOMAIN_EVENT_RESUMED, libvirt.VIR_DOMAIN_EVENT_RESUMED_UNPAUSED, None),
    ],
)
def test_events_of_libvirt(event: int, detail: int, expected: DomainEvent | None) -> None:
    connection, received = Libvirt(), list[DomainEvent]()
    events = DomainEvents(connection)  # type: ignore[arg-type]
    events.listen(NODE.uuid, received.append)
    connection.callbacks[libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE](None, Domain(), event, detail, None)
    assert received == ([expected] if expected else [])
    events.close()
    assert not connection.callbacks


# The stage


def test_the_stage_of_a_node() -> None:
    report = Reporter()
    stage = report.stages.of
    assert stage("node1") == ""
    report.emit("start", "boot", "node1")
    report.emit("start", "clone", "node2")
    assert (stage("node1"), stage("node2"), stage("node3")) == ("boot", "clone", "clone")
    report.emit("fail", "clone", "node2")
    assert stage("node2") == "clone"
    report.emit("start", "create", "node2")
    report.emit("end", "create", "node2")
    assert stage("node2") == "boot"  # that of the command
    report.emit("start", "check", "node1")
    report.emit("start", "mpiexec", "node1")
    report.emit("end", "mpiexec", "node1")
    assert stage("node1") == "check"
    report.emit("end", "check", "node1")
    report.emit("end", "boot", "node1")
    assert stage("node1") == "mpiexec"  # the latest one


# The console


def test_lines_of_a_console_are_limited_and_printable() -> None:
    console = "first\r\n" * 20 + "\x1b[0;32m  OK  \x1b[0m\x07 started\n\n" + "x" * 999
    lines = node_console.described("node1", console).splitlines()
    assert len(lines) == 2 + node_console.LINES_MAX
    assert lines[1] == "  the last lines of node1's console:"
    assert lines[-2] == "  |   OK  ? started"
    assert lines[-1] == f"  | {'x' * (node_console.COLUMNS_MAX - 1)}…"
    assert node_console.described("node1", "\n \r\n") == "\n  node1 printed nothing on its console"


def test_after_a_panic_its_reason_is_the_first_line() -> None:
    reason = "[ 9.1] Kernel panic - not syncing: sysrq triggered crash"
    trace = "".join(f"[ 9.2] RBP: {number}\n" for number in range(30))
    lines = node_console.described("node1", f"a line\n{reason}\n{trace}").splitlines()
    assert lines[2:4] == [f"  | {reason}", "  | [ 9.2] RBP: 0"]
    assert len(lines) == 2 + node_console.LINES_MAX
    booted_again = f"{reason}\n{trace}vcluster: ready 5.6\nlogin:\n"
    assert not node_console.has_panicked(booted_again)
    assert node_console.described("node1", booted_again).endswith("| vcluster: ready 5.6\n  | login:")
