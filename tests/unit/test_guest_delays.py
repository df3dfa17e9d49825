"""Delays that nodes make themselves, when a command that removes them ends early. Nodes are a dictionary here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import samples
from tests.open_context import OpenContext
from vcluster.commands.nodes import guest_delays, link
from vcluster.errors import VclusterError
from vcluster.fleet.ledger import VERSION, ClusterFiles, Ledger
from vcluster.model.plan import Node, Plan
from vcluster.model.spec import Link, LinkShape
from vcluster.model.status import RUNNING
from vcluster.planning import traffic_plan

NODES = ("node1", "node2")
LINKS = tuple(Link(node, direction, LinkShape(delay_us=1000)) for node in NODES for direction in ("from", "to"))


class KilledError(Exception):
    """The command ended here."""


class World:
    """A cluster whose nodes delay frames."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fleet: Any = {samples.plan(3).switch.server: None}
        self.context: Any = OpenContext(fleet, root)
        self.files: ClusterFiles = self.context.files("lab")
        self.files.folder.mkdir(parents=True)
        plan = replace(samples.plan(3), links=LINKS, delays_in_guest=True)
        self.files.write_ledger(Ledger(VERSION, "ready", "", plan))
        self.delays: dict[str, Any] = {node.name: traffic_plan.guest_delays(plan, node.name) for node in plan.nodes}
        self.silent: set[str] = set()
        self.change: dict[str, int] = {}  # of what the kernel of a node has
        monkeypatch.setattr(link.servers, "require_rights", lambda _: None)
        monkeypatch.setattr(link.shaping, "read", lambda *_: ([], set()))
        monkeypatch.setattr(link.shaping, "apply", lambda *_: None)
        monkeypatch.setattr(link.shaping, "end_traces", lambda *_: None)
        monkeypatch.setattr(link.shaping, "placed", lambda _, plan: replace(plan, delays_in_guest=True))
        monkeypatch.setattr(link, "_set_offloads", lambda *_, **__: None)
        monkeypatch.setattr(guest_delays, "powers_of", self._powers_of)
        monkeypatch.setattr(guest_delays, "sessions", self._sessions)
        monkeypatch.setattr(guest_delays.node_links, "apply_delays", self._apply)
        monkeypatch.setattr(guest_delays.node_links, "read_delays", self._read)

    @property
    def delaying(self) -> list[str]:
        return [name for name, delays in self.delays.items() if delays]

    def _powers_of(self, _: object, nodes: Sequence[Node]) -> dict[str, Any]:
        return {node.name: SimpleNamespace(state=RUNNING) for node in nodes}

    @contextmanager
    def _sessions(self, _: object, __: Plan, nodes: Sequence[Node], **___: object) -> Iterator[dict[str, str]]:
        if silent := [node.name for node in nodes if node.name in self.silent]:
            raise VclusterError(f"{silent[0]} does not answer")
        yield {node.name: node.name for node in nodes}

    def _apply(self, _: str, plan: Plan, node: Node) -> None:
        self.delays[node.name] = traffic_plan.guest_delays(plan, node.name)

    def _read(self, name: str) -> dict[str, dict[str, int]]:
        """What tc prints: six digits of each time."""
        counters = dict.fromkeys(traffic_plan.GUEST_FIELDS, 0)
        return {
            direction: counters
            | dict(zip(traffic_plan.GUEST_FIELDS, (round(float(f"{limit:.6g}")) for limit in limits), strict=False))
            | self.change
            for direction, limits in self.delays[name].items()
        }


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


@pytest.mark.parametrize("is_written", [False, True], ids=["before the ledger", "after the ledger"])
@pytest.mark.parametrize("chosen", [(), ("node1",)], ids=["all", "one"])
def test_a_second_reset_ends_the_work_of_a_killed_one(
    world: World, monkeypatch: pytest.MonkeyPatch, chosen: tuple[str, ...], is_written: bool
) -> None:
    write = ClusterFiles.write_ledger

    def killed(files: ClusterFiles, ledger: Ledger) -> None:
        if is_written:
            write(files, ledger)
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(ClusterFiles, "write_ledger", killed)
        with pytest.raises(KilledError):
            link.reset(world.context, "lab", chosen)
    link.reset(world.context, "lab", chosen)
    assert world.delaying == [node for node in NODES if chosen and node not in chosen]


def test_the_ledger_keeps_the_delay_of_a_node_that_does_not_answer(world: World) -> None:
    world.silent = {"node2"}
    with pytest.raises(VclusterError, match=r"^nodes still delay frames: node2: node2 does not answer$") as raised:
        link.reset(world.context, "lab", ())
    assert raised.value.hint == "vcluster link reset --name lab, when they answer"
    kept = world.files.read_ledger()
    assert kept
    assert kept.plan.links == LINKS
    world.silent = set()
    assert link.reset(world.context, "lab", ()) == NODES
    assert world.delaying == []


@pytest.mark.parametrize("delay_us", [1, 1_234_567, 9_999_999])
def test_a_delay_is_right_if_it_has_the_digits_that_tc_prints(world: World, delay_us: int) -> None:
    changes = {"from": {"delay_us": delay_us, "jitter_us": min(delay_us, 1_234_567)}}
    (found,) = [one for one in link.set_limits(world.context, "lab", ["node1"], changes) if one.direction == "from"]
    assert found.delay_us == float(f"{delay_us:.6g}")


@pytest.mark.parametrize("change", [{"delay_us": 1_234_600}, {"delay_frames": 999}, {"jitter_us": 1}])
def test_another_delay_is_an_error(world: World, change: dict[str, int]) -> None:
    world.change = change
    with pytest.raises(VclusterError, match=r"^nodes lack their delays: node1: its kernel has other delays than the"):
        link.set_limits(world.context, "lab", ["node1"], {"from": {"delay_us": 1_234_567}})
