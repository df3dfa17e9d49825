"""How nodes are reached that only the head reaches, and when a copy is given up for a boot."""

from __future__ import annotations

import io
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import samples
from vcluster.agent.client import LocalAgent
from vcluster.cli.output.progress import ProgressLines
from vcluster.commands import node_lifecycle
from vcluster.commands.node_lifecycle import JumpHosts, NodeLifecycle
from vcluster.errors import DeadlineError, VclusterError
from vcluster.fleet.servers import Fleet, Server
from vcluster.model.plan import Node
from vcluster.model.spec import PRIVATE
from vcluster.resources import domains
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


# Ways


def test_the_head_is_reached_by_its_server() -> None:
    assert JumpHosts(PLAN, {"localhost": None}).to(HEAD, Deadline(1)) is None


def test_the_others_wait_for_the_heads_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_lifecycle, "LOOK_S", 0.001)
    ways, session = JumpHosts(PLAN, {"localhost": None}), Session()
    with pytest.raises(DeadlineError, match="node1, through which node2 is reached"):
        ways.to(WORKER, Deadline(0.01))
    ways.set_head(session)  # type: ignore[arg-type]
    assert ways.to(WORKER, Deadline(1)) is session
    ways.close()
    assert not session.is_closed


def test_a_head_that_was_not_logged_in_to_is_once_somebody_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_lifecycle, "LOOK_S", 0.001)
    ways, opened = JumpHosts(PLAN, {"localhost": None}), []

    def log_in() -> Any:
        opened.append(Session())
        return opened[-1]

    ways.set_head_later(log_in)
    assert opened == []
    assert ways.to(WORKER, Deadline(1)) is ways.to(OTHER, Deadline(1)) is opened[0]
    assert len(opened) == 1
    ways.close()
    assert opened[0].is_closed


# All of them


def test_doors_are_closed_when_another_node_fails(world: World) -> None:
    """The way back from it opens them again, and a serial port has room for one."""
    connections: list[Session] = []

    def work(node: Node) -> Any:
        if node is OTHER:
            while len(connections) < 2:
                world.deadline.pause(0.001, "the other doors")
            raise VclusterError("no word")
        connections.append(Session(node.name))
        return connections[-1]

    with pytest.raises(VclusterError, match="no word"), ExitStack() as stack:
        world.work.all_nodes(work, stack)
    assert [connection.is_closed for connection in connections] == [True, True]


# Copies


class World:
    """Nodes of which each wakes as it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.wakes: Any = None
        self.said = io.StringIO()
        self.deadline = Deadline(60)
        self.refused = ""
        here = LocalAgent({"drop_snapshot": self._drop, "identity": lambda: {"cpus": 2}})
        server = Server("localhost", samples.OWNER, Path("/storage"), here)
        kept = {
            ("localhost", template_of(PLAN, node)): Snapshot("key", "/root", "", Path("/ram"), {})
            for node in PLAN.nodes
        }
        context: Any = type("Context", (), {"report": Reporter((ProgressLines(self.said),))})
        fleet = Fleet({"localhost": server}, {})
        self.work = NodeLifecycle(context, fleet, PLAN, samples.keys(3), self.deadline, image_password=str, kept=kept)
        monkeypatch.setattr(node_lifecycle.domains, "discard", lambda *_: self.asked.append("domain"))
        monkeypatch.setattr(node_lifecycle.volumes, "discard", lambda *_: self.asked.append("disks"))
        monkeypatch.setattr(NodeLifecycle, "_restore_clone", lambda *_: self._restore_clone())

    def _drop(self, refused: str, **_: str) -> None:
        self.asked.append("drop")
        self.refused = refused

    def _restore_clone(self) -> Any:
        if isinstance(self.wakes, BaseException):
            raise self.wakes
        return self.wakes

    @property
    def notes(self) -> list[str]:
        return [line.split(" s  ", 1)[1] for line in self.said.getvalue().splitlines()]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_where_copies_were_refused_nodes_do_not_take_turns(world: World) -> None:
    refused = {("localhost", template_of(PLAN, node)): REFUSED for node in PLAN.nodes}
    work = NodeLifecycle(
        world.work._site, world.work._fleet, PLAN, samples.keys(3), world.deadline, image_password=str, kept=refused
    )
    assert not work._kept
    assert work._copy(WORKER) is None


@pytest.mark.parametrize("error", [VclusterError("QEMU refuses"), DeadlineError("node2: its identity did not come")])
def test_what_does_not_wake_is_booted_and_so_are_all_that_come_later(world: World, error: Exception) -> None:
    world.wakes = error
    assert world.work._copy(WORKER) is None
    assert world.asked == ["drop", "domain", "disks"]
    assert world.notes == [f"node2 is booted, as it could not be made from the snapshot: {error}"]
    world.wakes = "a door"
    assert world.work._copy(OTHER) is None
    assert len(world.asked) == 3


@pytest.mark.parametrize(
    ("error", "refused"),
    [(domains.CloneRefusedError("may not open it"), "may not open it"), (VclusterError("no word"), "")],
)
def test_only_what_qemu_does_not_take_is_not_tried_again(world: World, error: Exception, refused: str) -> None:
    world.wakes = error
    assert world.work._copy(WORKER) is None
    assert world.refused == refused


def test_when_time_is_up_nothing_is_booted_instead(world: World) -> None:
    world.wakes, world.deadline._ends_s = DeadlineError("node2: its identity did not come"), 0.0
    with pytest.raises(DeadlineError, match="its identity"):
        world.work._copy(WORKER)
    assert world.asked == []


def test_nor_when_it_is_called_off(world: World) -> None:
    world.wakes = Cancelled("stopped")
    with pytest.raises(Cancelled):
        world.work._copy(WORKER)
    world.wakes = VclusterError("the connection broke")
    world.deadline.cancel()
    with pytest.raises(Cancelled):
        world.work._copy(WORKER)
    assert world.asked == []
