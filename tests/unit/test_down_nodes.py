"""Commands look at the power of nodes before they log in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import samples
from vcluster.adapters.process import Completed
from vcluster.commands.nodes import access
from vcluster.commands.steps import inventory
from vcluster.commands.steps.inventory import describe_down
from vcluster.errors import ConflictError, MissingError
from vcluster.fleet.context import Context
from vcluster.fleet.servers import Connector, Server, ServerRequest
from vcluster.images.store import ImageStore
from vcluster.model.plan import Node, Plan
from vcluster.model.spec import PRIVATE
from vcluster.model.status import MISSING, PAUSED, RUNNING, STOPPED, UNKNOWN, PowerState
from vcluster.util.events import Reporter

PLAN, PRIVATE_PLAN = samples.plan(3), samples.plan(3, layout=PRIVATE)
UP, DOWN, FULL = PowerState(RUNNING), PowerState(STOPPED), PowerState(PAUSED, "I/O error on /x: no space left")


@pytest.mark.parametrize(
    ("powers", "text"),
    [
        ({"node1": UP, "node2": PowerState(UNKNOWN)}, ""),
        ({"node1": DOWN, "node2": PowerState(MISSING)}, "not running: node[1-2]"),
        ({"node1": UP, "node2": FULL}, "node2 is paused: I/O error on /x: no space left"),
        ({"node1": DOWN, "node2": FULL}, "not running: node1; node2 is paused: I/O error on /x: no space left"),
    ],
)
def test_down_nodes_are_described(powers: dict[str, PowerState], text: str) -> None:
    assert describe_down(powers) == text


class Session:
    """A session on a node that is up."""

    def __init__(self, node: Node) -> None:
        self.name = node.name

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, *_: object, **__: object) -> Completed:
        return Completed(0, self.name, "")


def run(monkeypatch: pytest.MonkeyPatch, plan: Plan, **powers: PowerState) -> tuple[dict[str, Any], list[str]]:
    """The outcomes of a command on all nodes, and the nodes that jump hosts were opened for."""
    opened: list[str] = []

    @contextmanager
    def jump_hosts(_: Context, __: Plan, nodes: Sequence[Node], *___: object) -> Iterator[Any]:
        opened.extend(node.name for node in nodes)
        yield lambda node, _: Session(node)

    monkeypatch.setattr(access, "_jump_hosts", jump_hosts)
    monkeypatch.setattr(access, "node_powers", lambda *_: powers)
    return access.run_everywhere(None, plan, plan.nodes, ["true"], user="root", timeout_s=5), opened  # type: ignore[arg-type]


def test_a_command_runs_on_the_nodes_that_are_up(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes, opened = run(monkeypatch, PLAN, node1=DOWN, node2=UP, node3=DOWN)
    assert opened == ["node2"]
    assert outcomes["node2"] == Completed(0, "node2", "")
    assert outcomes["node1"] is outcomes["node3"]
    assert isinstance(outcomes["node1"], ConflictError)
    assert (outcomes["node1"].message, outcomes["node1"].hint) == ("not running: node[1,3]", "vcluster start lab")
    assert list(outcomes) == ["node1", "node2", "node3"]


def test_nodes_behind_a_head_that_is_down_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes, opened = run(monkeypatch, PRIVATE_PLAN, node1=FULL, node2=UP, node3=UP)
    assert opened == []
    assert {outcome.message for outcome in outcomes.values()} == {f"node1 is paused: {FULL.reason}"}


def test_a_worker_of_the_private_layout_needs_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(
        access, "node_powers", lambda _, __, nodes: asked.append([node.name for node in nodes]) or {"node1": DOWN}
    )
    with pytest.raises(ConflictError, match="not running: node1"):
        access.require_running(None, PRIVATE_PLAN, [PRIVATE_PLAN.node("node2")])  # type: ignore[arg-type]
    with pytest.raises(ConflictError, match="not running: node1"):
        access.require_running(None, PLAN, [PLAN.node("node2")])  # type: ignore[arg-type]
    assert asked == [["node1", "node2"], ["node2"]]


def test_the_power_is_unknown_to_a_user_without_libvirt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also, the user is never asked for a password."""

    @contextmanager
    def refuse(self: Connector, request: ServerRequest) -> Iterator[Server]:
        assert (self.ask, self.confirm) == (None, None)
        raise MissingError(f"{request.name}: no access")
        yield

    monkeypatch.setattr(Connector, "open", refuse)
    connector = Connector(samples.OWNER, confirm=lambda _: True, ask=lambda _: "secret")
    context = Context(tmp_path, connector, ImageStore(tmp_path), Reporter())
    powers = inventory.node_powers(context, PLAN, PLAN.nodes)
    assert powers == dict.fromkeys(("node1", "node2", "node3"), PowerState(UNKNOWN))
