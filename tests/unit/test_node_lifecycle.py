"""Logins through the head, and clones that are given up for a boot."""

from __future__ import annotations

import io
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import samples
from vcluster.adapters.libvirt.domain_events import DESTROYED, DIED, REBOOTED
from vcluster.agent.client import LocalAgent
from vcluster.cli.output.progress import ProgressLines
from vcluster.commands.steps import node_lifecycle, node_login
from vcluster.commands.steps.deployment import Deployment
from vcluster.commands.steps.node_lifecycle import NodeLifecycle
from vcluster.commands.steps.node_login import JumpHosts
from vcluster.commands.steps.node_watch import NodeStoppedError, NodeWatch
from vcluster.errors import DeadlineError, VclusterError
from vcluster.fleet.servers import Fleet, Server
from vcluster.model.plan import Node, Plan
from vcluster.model.spec import PRIVATE
from vcluster.resources import domains
from vcluster.snapshots.memory_access import WRITABLE
from vcluster.snapshots.template import REFUSED, Snapshot, template_of
from vcluster.util.deadline import Cancelled, Deadline
from vcluster.util.events import Reporter

PLAN = samples.plan(3, layout=PRIVATE)
HEAD, WORKER, OTHER = PLAN.nodes


class Session:
    """A session on a node."""

    is_closed = False

    def __init__(self, name: str = HEAD.name) -> None:
        self.name = name

    def close(self) -> None:
        self.is_closed = True


# Jump hosts


def test_this_machine_reaches_the_head_directly() -> None:
    assert JumpHosts(PLAN, {"localhost": None}).to(HEAD, Deadline(1)) is None


def test_other_nodes_wait_for_the_session_on_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_login, "POLL_S", 0.001)
    jump_hosts, session = JumpHosts(PLAN, {"localhost": None}), Session()
    with pytest.raises(DeadlineError, match="a login to node1, the jump host of node2"):
        jump_hosts.to(WORKER, Deadline(0.01))
    jump_hosts.set_head(session)  # type: ignore[arg-type]
    assert jump_hosts.to(WORKER, Deadline(1)) is session
    jump_hosts.close()
    assert not session.is_closed


def test_the_first_login_that_needs_the_head_logs_in_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_login, "POLL_S", 0.001)
    jump_hosts, opened = JumpHosts(PLAN, {"localhost": None}), []

    def log_in() -> Any:
        opened.append(Session())
        return opened[-1]

    jump_hosts.set_head_later(log_in)
    assert opened == []
    assert jump_hosts.to(WORKER, Deadline(1)) is jump_hosts.to(OTHER, Deadline(1)) is opened[0]
    assert len(opened) == 1
    jump_hosts.close()
    assert opened[0].is_closed


# All nodes


def test_connections_are_closed_when_another_node_fails(world: World) -> None:
    """The rollback opens them again, and a serial port takes one connection."""
    connections: list[Session] = []

    def work(node: Node) -> Any:
        if node is OTHER:
            while len(connections) < 2:
                world.deadline.pause(0.001, "the other connections")
            raise VclusterError("no answer")
        connections.append(Session(node.name))
        return connections[-1]

    with pytest.raises(VclusterError, match="no answer"), ExitStack() as stack:
        world.lifecycle.all_nodes(work, stack)
    assert [connection.is_closed for connection in connections] == [True, True]


# Configuration


def test_the_clock_of_a_node_is_set_before_its_files_are_written(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(node_lifecycle.ServerClocks, "ahead_s", lambda *_: 7)
    monkeypatch.setattr(node_lifecycle.configure, "apply", lambda _, __, actions, **___: asked.extend(actions))
    world.lifecycle.configure(WORKER, Session())  # type: ignore[arg-type]
    assert asked[0] == {"do": "clock", "ahead_s": 7}
    assert len(asked) > 1


# Clones


class World:
    """Nodes whose clones resume with a given result or error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.resumed: Any = None
        self.printed = io.StringIO()
        self.deadline = Deadline(60)
        self.refused = ""
        self.cause: NodeStoppedError | None = None
        here = LocalAgent({"drop_snapshot": self._drop, "identity": lambda: {"cpus": 2}})
        server = Server("localhost", samples.OWNER, Path("/storage"), here)
        snapshots = {
            ("localhost", template_of(PLAN, node)): Snapshot(
                "key", "/root", "", Path("/ram"), Path("/state"), WRITABLE, {}
            )
            for node in PLAN.nodes
        }
        context: Any = type("Context", (), {"report": Reporter((ProgressLines(self.printed),))})
        fleet = Fleet({"localhost": server}, {})
        self.cluster = Deployment(context, fleet, PLAN, samples.keys(3), self.deadline)
        self.watch = NodeWatch(fleet, PLAN, context.report, hint="")
        monkeypatch.setattr(self.watch, "cause_of", lambda error, _: self.cause or error)
        monkeypatch.setattr(self.watch, "end", lambda _: self.asked.append("watch"))
        self.lifecycle = NodeLifecycle(self.cluster, self.watch, image_password=str, snapshots=snapshots)
        monkeypatch.setattr(node_lifecycle.domains, "discard", lambda *_: self.asked.append("domain"))
        monkeypatch.setattr(node_lifecycle.volumes, "discard", lambda *_: self.asked.append("disks"))
        monkeypatch.setattr(NodeLifecycle, "_restore_clone", lambda *_: self._restore_clone())

    def _drop(self, refused: str, **_: str) -> None:
        assert self.notes == [], "a user who reads the note may end the command, and the snapshot would stay"
        self.asked.append("drop")
        self.refused = refused

    def _restore_clone(self) -> Any:
        if isinstance(self.resumed, BaseException):
            raise self.resumed
        return self.resumed

    @property
    def notes(self) -> list[str]:
        return [line.split(" s  ", 1)[1] for line in self.printed.getvalue().splitlines()]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_refused_snapshots_are_not_used(world: World) -> None:
    refused = {("localhost", template_of(PLAN, node)): REFUSED for node in PLAN.nodes}
    lifecycle = NodeLifecycle(world.cluster, world.watch, image_password=str, snapshots=refused)
    assert not lifecycle._snapshots
    assert lifecycle._clone(WORKER) is None


@pytest.mark.parametrize("error", [VclusterError("QEMU refuses"), DeadlineError("node2: its identity did not come")])
def test_a_node_whose_clone_fails_boots_and_so_do_all_later_nodes(world: World, error: Exception) -> None:
    world.resumed = error
    assert world.lifecycle._clone(WORKER) is None
    assert world.asked == ["drop", "watch", "domain", "disks"]
    assert world.notes == [f"node2 boots, because it cannot be cloned: {error}"]
    world.resumed = "a connection"
    assert world.lifecycle._clone(OTHER) is None
    assert len(world.asked) == 4


@pytest.mark.parametrize(
    ("error", "refused"),
    [(domains.CloneRefusedError("may not open it"), "may not open it"), (VclusterError("no answer"), "")],
)
def test_only_a_snapshot_that_qemu_refuses_is_not_tried_again(world: World, error: Exception, refused: str) -> None:
    world.resumed = error
    assert world.lifecycle._clone(WORKER) is None
    assert world.refused == refused


def test_the_note_gives_the_reason_why_a_clone_stopped(world: World) -> None:
    world.resumed = VclusterError("node2: the connection broke during the new identity")
    world.cause = NodeStoppedError("node2 rebooted during identity", what=REBOOTED, reason="", hint="")
    assert world.lifecycle._clone(WORKER) is None
    assert world.notes == ["node2 boots, because it cannot be cloned: node2 rebooted during identity"]


def test_a_clone_whose_power_a_user_cuts_does_not_boot(world: World) -> None:
    """The snapshot is not the reason, so it stays."""
    world.resumed = domains.CloneRefusedError("QEMU ended during migrate-incoming")
    world.cause = NodeStoppedError("node2 died during clone", what=DIED, reason=DESTROYED, hint="")
    with pytest.raises(NodeStoppedError, match=r"^node2 died during clone$"):
        world.lifecycle._clone(WORKER)
    assert world.asked == []


def test_no_node_boots_after_the_deadline(world: World) -> None:
    world.resumed, world.deadline._ends_s = DeadlineError("node2: its identity did not come"), 0.0
    with pytest.raises(DeadlineError, match="its identity"):
        world.lifecycle._clone(WORKER)
    assert world.asked == []


def test_no_node_boots_after_a_cancellation(world: World) -> None:
    world.resumed = Cancelled("stopped")
    with pytest.raises(Cancelled):
        world.lifecycle._clone(WORKER)
    world.resumed = VclusterError("the connection broke")
    world.deadline.cancel()
    with pytest.raises(Cancelled):
        world.lifecycle._clone(WORKER)
    assert world.asked == []


# Boots


@pytest.mark.parametrize(
    ("what", "features", "boots"),
    [(REBOOTED, (), 2), (REBOOTED, ("clone",), 1), (DIED, (), 1)],
    ids=["an image of other origin", "our image", "a node that died"],
)
def test_only_an_image_of_other_origin_may_reboot_at_its_first_boot(
    world: World, monkeypatch: pytest.MonkeyPatch, what: str, features: tuple[str, ...], boots: int
) -> None:
    monkeypatch.setattr(Plan, "image_of", lambda *_: replace(samples.DIRECT, features=features))
    world.cause = NodeStoppedError(f"node2 {what} during boot", what=what, reason="", hint="")
    waits = [VclusterError("node2 rebooted while vcluster waited for node2 to boot"), None]

    def wait_ready(*_: object) -> None:
        if error := waits.pop(0):
            raise error

    monkeypatch.setattr(NodeLifecycle, "_wait_ready", wait_ready)
    monkeypatch.setattr(NodeLifecycle, "_configure_by_ssh", lambda *_: Session())
    monkeypatch.setattr(world.watch, "begin", lambda _: world.asked.append("watch again"))
    if boots == 2:
        world.lifecycle._await_boot(WORKER)
        assert world.asked == ["watch", "watch again"]
        assert world.notes == ["node2 rebooted during boot"]
    else:
        with pytest.raises(VclusterError):
            world.lifecycle._await_boot(WORKER)
    assert len(waits) == 2 - boots


def test_a_second_reboot_is_an_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "image_of", lambda *_: samples.ORDINARY)
    world.cause = NodeStoppedError("node2 rebooted during boot", what=REBOOTED, reason="", hint="")

    def wait_ready(*_: object) -> None:
        raise VclusterError("node2 rebooted while vcluster waited for node2 to boot")

    monkeypatch.setattr(NodeLifecycle, "_wait_ready", wait_ready)
    monkeypatch.setattr(world.watch, "begin", lambda _: None)
    with pytest.raises(VclusterError, match="rebooted while"):
        world.lifecycle._await_boot(WORKER)
    assert len(world.notes) == 1
