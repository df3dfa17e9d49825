"""Nodes that come and go: the order of what is done, what is written meanwhile, and the way back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import samples
from vcluster.agent.client import LocalAgent
from vcluster.cli import main
from vcluster.commands import create, scale
from vcluster.errors import ConflictError, RequestError, SeveralErrors, VclusterError
from vcluster.fleet.context import Context
from vcluster.fleet.ledger import VERSION, ClusterFiles, Ledger
from vcluster.fleet.servers import Server, ServerRequest
from vcluster.images.store import ImageStore
from vcluster.model.plan import Node, Plan
from vcluster.model.spec import LOCAL
from vcluster.planning.resize import shrink
from vcluster.resources import interfaces, rules
from vcluster.util.events import Reporter

PLAN = samples.plan(3)
KEPT = Ledger(VERSION, "ready", "then", PLAN)


class Connector:
    """Opens this machine, on which nothing is done."""

    @contextmanager
    def open(self, request: ServerRequest) -> Iterator[Server]:
        yield Server(request.name, samples.OWNER, request.storage, LocalAgent({}))


@dataclass
class World:
    """What is done, in words, with what the ledger says at that moment; what is to go wrong, and how."""

    files: ClusterFiles
    states: dict[str, str] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)
    failing: dict[str, BaseException] = field(default_factory=dict)

    def take(self, step: str) -> None:
        kept = self.files.read_ledger()
        assert kept
        nodes = [node.name for node in kept.plan.nodes]
        assert set(nodes) <= set(self.files.read_keys().hosts), "a node without keys"
        self.steps.append(f"{step}: {kept.state} {len(nodes)}")
        if error := self.failing.pop(step, None):
            raise error

    def ends(self, state: str, *names: str) -> None:
        """The ledger, the keys and what ssh reads agree in the end."""
        kept = self.files.read_ledger()
        assert kept
        assert (kept.state, kept.created) == (state, "then")
        assert [node.name for node in kept.plan.nodes] == list(names)
        assert sorted(self.files.read_keys().hosts) == sorted(names)
        for text in (self.files.ssh_config.read_text(), self.files.known_hosts.read_text()):
            assert [name for name in ("node1", "node2", "node3", "node4", "node5") if name in text] == list(names)
        assert not self.files.is_locked()


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(tmp_path, Connector(), ImageStore(tmp_path / "images"), Reporter())  # type: ignore[arg-type]


@pytest.fixture
def world(context: Context, monkeypatch: pytest.MonkeyPatch) -> World:
    """A cluster of three nodes that are up, where nodes and links are made in words only."""
    world = World(context.files("lab"))
    world.files.folder.mkdir(parents=True)
    world.files.write_ledger(KEPT)
    world.files.write_keys(samples.keys(3))

    def observe(_: object, files: ClusterFiles) -> SimpleNamespace:
        kept = files.read_ledger()
        assert kept
        nodes = [SimpleNamespace(name=one.name, state=world.states.get(one.name, "running")) for one in kept.plan.nodes]
        return SimpleNamespace(name="lab", state=kept.state, nodes=nodes)

    def step(name: str) -> Callable[..., None]:
        return lambda *_, **__: world.take(name)

    class Work:
        """Says what becomes of each node."""

        def __init__(self, _: object, __: object, plan: Plan, *___: object, **____: object) -> None:
            self.plan = plan

        def all_nodes(self, work: Callable[[Node], str], stack: ExitStack) -> list[str]:
            assert stack
            did = [work(node) for node in self.plan.nodes]
            world.take("work " + ", ".join(did))
            return did

        def configure_via_serial(self, node: Node) -> str:
            return f"settle {node.name}"

        def bring_up_during_add(self, node: Node) -> str:
            world.take("bring up")
            return f"make {node.name}"

    def remove_nodes(_: object, __: object, before: Plan, after: Plan) -> None:
        world.take("remove " + ",".join(node.name for node in before.nodes if node not in after.nodes))

    monkeypatch.setattr(scale, "observe_status", observe)
    monkeypatch.setattr(scale.servers, "require_rights", lambda _: None)
    monkeypatch.setattr(scale.observation, "observe", lambda *_, **__: {LOCAL.name: samples.ROOMY})
    monkeypatch.setattr(scale.teardown, "remove_nodes", remove_nodes)
    monkeypatch.setattr(scale, "NodeLifecycle", Work)
    for name in ("refuse_foreign", "deliver_image", "create_networks", "prove_ready"):
        monkeypatch.setattr(create, name, step(name))
    monkeypatch.setattr(create, "require_passed", lambda _: None)
    return world


# Adding


@pytest.mark.parametrize(("state", "proven"), [("ready", {"node1", "node2", "node3"}), ("creating", set())])
def test_logins_are_taken_as_proven_where_the_cluster_was_ready(
    context: Context, world: World, monkeypatch: pytest.MonkeyPatch, state: str, proven: set[str]
) -> None:
    """Those of nodes that a killed command has left were never tried."""
    seen = []
    monkeypatch.setattr(create, "prove_ready", lambda *_, proven: seen.append(proven))
    world.files.write_ledger(replace(KEPT, state=state))
    scale.add(context, "lab", timeout_s=5)
    world.files.write_ledger(replace(KEPT, state=state))
    scale.remove(context, "lab", ["node3"], timeout_s=5)
    assert seen == [proven, proven]


def test_what_is_done_to_add_nodes(context: Context, world: World) -> None:
    scale.add(context, "lab", number=2, timeout_s=5)
    assert world.steps == [
        "refuse_foreign: ready 3",
        "deliver_image: creating 5",
        "create_networks: creating 5",
        "bring up: creating 5",
        "bring up: creating 5",
        "work settle node1, settle node2, settle node3, make node4, make node5: creating 5",
        "prove_ready: creating 5",
    ]
    world.ends("ready", "node1", "node2", "node3", "node4", "node5")
    assert world.files.read_keys().hosts["node3"] == samples.keys(3).hosts["node3"]


@pytest.mark.parametrize(
    "error", [VclusterError("it failed"), ConflictError("in the way"), KeyboardInterrupt(), RuntimeError("a mistake")]
)
@pytest.mark.parametrize("where", ["deliver_image", "create_networks", "bring up", "prove_ready"])
def test_the_way_back(context: Context, world: World, where: str, error: BaseException) -> None:
    world.failing[where] = error
    with pytest.raises(type(error)) as raised:
        scale.add(context, "lab", number=1, timeout_s=5)
    assert raised.value is error
    assert world.steps[-2:] == ["remove node4: creating 4", "work settle node1, settle node2, settle node3: creating 3"]
    world.ends("ready", "node1", "node2", "node3")


def test_what_could_not_be_taken_back_is_told_and_written(context: Context, world: World) -> None:
    world.failing |= {"prove_ready": VclusterError("it failed"), "remove node4": VclusterError("red is gone")}
    with pytest.raises(SeveralErrors) as raised:
        scale.add(context, "lab", timeout_s=5)
    assert [(one.message, one.hint) for one in raised.value.errors] == [
        ("it failed", None),
        ("lab is not yet as it was: red is gone", "vcluster repair lab"),
    ]
    kept = world.files.read_ledger()
    assert kept
    assert (kept.state, len(kept.plan.nodes)) == ("creating", 4)
    scale.remove(context, "lab", ["node4"], timeout_s=5)
    world.ends("ready", "node1", "node2", "node3")


def test_nodes_that_were_not_brought_back_are_for_repair(context: Context, world: World) -> None:
    world.failing["work settle node1, settle node2, settle node3"] = VclusterError("node2 is silent")
    world.failing["create_networks"] = KeyboardInterrupt()
    with pytest.raises(VclusterError, match="lab is not yet as it was: node2 is silent"):
        scale.add(context, "lab", timeout_s=5)
    world.ends("creating", "node1", "node2", "node3")


@pytest.mark.parametrize(
    ("states", "words", "hint"),
    [
        ({"node2": "stopped", "node3": "stopped"}, r"not running: node\[2-3\]", "vcluster start lab"),
        (
            {"node2": "stopped", "node3": "missing"},
            "not there: node3",
            "vcluster repair lab, or vcluster remove node3 --name lab",
        ),
    ],
)
def test_only_what_is_up_grows(context: Context, world: World, states: dict[str, str], words: str, hint: str) -> None:
    world.states = states
    with pytest.raises(ConflictError, match=words) as raised:
        scale.add(context, "lab", timeout_s=5)
    assert str(raised.value.hint).startswith(hint)
    assert world.steps == []
    assert world.files.read_ledger() == KEPT


def test_nobody_changes_it_meanwhile(context: Context, world: World) -> None:
    with world.files.locked():
        for work in (
            lambda: scale.add(context, "lab", timeout_s=5),
            lambda: scale.remove(context, "lab", ["node2"], timeout_s=5),
        ):
            with pytest.raises(ConflictError, match="is changing cluster lab"):
                work()
    assert world.steps == []


# Removing


def test_what_is_done_to_remove_nodes(context: Context, world: World) -> None:
    world.states = {"node3": "missing"}  # it is no matter what the node itself is like
    scale.remove(context, "lab", ["node3"], timeout_s=5)
    assert world.steps == [
        "remove node3: ready 3",
        "work settle node1, settle node2: creating 2",
        "prove_ready: creating 2",
    ]
    world.ends("ready", "node1", "node2")


def test_a_removal_that_failed_is_given_again(context: Context, world: World) -> None:
    world.failing["remove node2"] = VclusterError("left")
    with pytest.raises(VclusterError, match="left"):
        scale.remove(context, "lab", ["node2"], timeout_s=5)
    assert world.files.read_ledger() == KEPT
    scale.remove(context, "lab", ["node2"], timeout_s=5)
    world.ends("ready", "node1", "node3")


def test_the_others_must_be_up(context: Context, world: World) -> None:
    world.states = {"node2": "stopped"}
    with pytest.raises(ConflictError, match="not running: node2"):
        scale.remove(context, "lab", ["node3"], timeout_s=5)
    world.states = {"node2": "missing", "node3": "missing"}
    with pytest.raises(ConflictError, match="not there: node2") as raised:
        scale.remove(context, "lab", ["node3"], timeout_s=5)
    assert raised.value.hint == "vcluster repair lab, or vcluster remove node[2-3] --name lab"
    with pytest.raises(RequestError, match="is the head"):
        scale.remove(context, "lab", ["node1"], timeout_s=5)
    assert world.steps == []


def test_links_and_rules_of_those_that_stay() -> None:
    before = samples.shared_plan(samples.RED, samples.BLUE, count=3)
    asked: dict[str, list[tuple[str, object]]] = {}
    for names in (["node3"], ["node2"], ["node2", "node3"]):
        after = shrink(before, names)
        for planned in before.servers:
            did = asked.setdefault(f"{planned.name} {' '.join(names)}", [])
            server = Server(planned.name, samples.OWNER, planned.storage, LocalAgent(_operations(did)))
            interfaces.reduce(server, before, after)
            rules.reduce(server, before, after)
    table = f"vcluster-lab-{samples.OWNER}"
    assert asked == {
        "red node3": [],
        "blue node3": [("destroy_interfaces", ["vb-lab-3", "vx-lab-3"]), ("remove_guard", table)],
        "middle node3": [("destroy_interfaces", ["vx-lab-3"]), ("guard", [40, 41])],
        "red node2": [("destroy_interfaces", ["vb-lab-2", "vx-lab-2"]), ("guard", [40])],
        "blue node2": [],
        "middle node2": [("destroy_interfaces", ["vx-lab-2"]), ("guard", [40, 42])],
        "red node2 node3": [("destroy_interfaces", ["vb-lab-2", "vx-lab-2"]), ("guard", [40])],
        "blue node2 node3": [("destroy_interfaces", ["vb-lab-3", "vx-lab-3"]), ("remove_guard", table)],
        "middle node2 node3": [("destroy_interfaces", ["vx-lab-2", "vx-lab-3"]), ("guard", [40])],
    }


def _operations(did: list[tuple[str, object]]) -> dict[str, Callable[..., object]]:
    """An agent that notes what it is asked."""

    def destroy_interfaces(alias: str, names: list[str]) -> None:
        assert alias == f"vcluster:lab:{samples.OWNER}"
        did.append(("destroy_interfaces", names))

    return {
        "destroy_interfaces": destroy_interfaces,
        "guard": lambda table, tunnels, port: did.append(("guard", [vni for vni, _ in tunnels])),  # noqa: ARG005
        "guards": lambda prefix: [prefix],
        "remove_guard": lambda table: did.append(("remove_guard", table)),
    }


# What repair makes of a command that was killed


@pytest.mark.parametrize(
    ("state", "lost", "hint"),
    [
        ("ready", ("node3",), "vcluster remove node3 --name lab, or vcluster clear lab, and create it again"),
        ("creating", ("node1", "node3"), "vcluster clear lab, and create it again"),
    ],
)
def test_what_is_gone_for_good(state: str, lost: tuple[str, ...], hint: str) -> None:
    kept = Ledger(VERSION, state, "", PLAN)
    with pytest.raises(VclusterError, match="gone for good") as raised:
        create._discard_unfinished(None, None, kept, [PLAN.node(name) for name in lost], None)  # type: ignore[arg-type]
    assert raised.value.hint == hint


def test_what_was_never_made_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    did: list[Any] = []
    fleet = SimpleNamespace(each=lambda work, **_: work("server"))
    for kind in ("domains", "volumes"):
        reduce = lambda *plans, kind=kind: did.append((kind, *(len(one.nodes) for one in plans[1:])))  # noqa: E731
        monkeypatch.setattr(getattr(create, kind), "reduce", reduce)
    monkeypatch.setattr(create, "deliver_image", lambda *_: did.append("image"))
    kept = Ledger(VERSION, "creating", "", PLAN)
    create._discard_unfinished(None, fleet, kept, PLAN.nodes[1:], None)  # type: ignore[arg-type]
    assert did == [("domains", 3, 1), ("volumes", 3, 1), "image"]


# Requests that are wrong as written


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["add", "0"], 2, "0 is not in the range"),
        (["add", "many"], 2, "'many' is not a valid integer"),
        (["add", "5000"], 2, "5000 more nodes are too many"),
        (["add", "2", "--names", "a"], 2, "--names gives 1 names, N is 2"),
        (["add", "--names", ""], 2, "gives no name"),
        (["add", "--names", "a["], 2, "is not a nodeset"),
        (["add", "--names", "a,a"], 2, "'a' is given twice"),
        (["add", "--names", "node[3-4]"], 2, "cluster lab has node3 already"),
        (["add", "--names", "A"], 2, "is not a name"),
        (["add", "--timeout", "0"], 2, "--timeout"),
        (["add", "--name", "none"], 2, "there is no cluster none"),
        (["remove"], 2, "Missing argument"),
        (["remove", "node1"], 2, "node1 is the head"),
        (["remove", "node[2-3]", "node1", "-y"], 2, "node1 is the head"),
        (["remove", "node9"], 2, "cluster lab has no node 'node9'"),
        (["remove", "node2", "node2"], 2, "'node2' is given twice"),
        (["remove", "node["], 2, "is not a nodeset"),
        (["remove", "node2", "--name", "none"], 2, "there is no cluster none"),
        (["remove", "node[2-3]"], 4, "the disk of node[2-3] would be deleted and there is no terminal to ask (-y"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    exit_code: int,
    words: str,
) -> None:
    ClusterFiles(tmp_path, "lab").folder.mkdir(parents=True)
    ClusterFiles(tmp_path, "lab").write_ledger(KEPT)
    monkeypatch.setenv("VCLUSTER_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["vcluster", *arguments])
    assert main._run() == exit_code
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert ClusterFiles(tmp_path, "lab").read_ledger() == KEPT


def test_what_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], context: Context, world: World
) -> None:
    from vcluster.cli import common
    from vcluster.cli.output import text_output

    monkeypatch.setattr(common, "context", lambda *_: context)
    monkeypatch.setattr(text_output, "status", lambda found: f"{len(found.nodes)} nodes")
    for arguments, said in (
        (["add", "2"], "lab: added node[4-5]\n5 nodes\n"),
        (["remove", "node[2,4]", "-y"], "lab: removed node[2,4]\n3 nodes\n"),
        (["add", "--names", "gpu"], "lab: added gpu\n4 nodes\n"),
    ):
        monkeypatch.setattr(sys, "argv", ["vcluster", *arguments])
        assert main._run() == 0
        assert capsys.readouterr().out == said
    assert world.files.read_ledger() is not None
