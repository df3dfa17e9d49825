"""Commands on faults: servers that do not answer, a begin that fails or is interrupted, and what `watch` shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import samples
from vcluster.agent.client import LocalAgent
from vcluster.commands.nodes import fault
from vcluster.commands.servers import watch
from vcluster.errors import ConflictError, MissingError, SeveralErrors, VclusterError
from vcluster.fleet.context import Context
from vcluster.fleet.ledger import VERSION, Ledger
from vcluster.fleet.servers import Server, ServerRequest
from vcluster.images.store import ImageStore
from vcluster.model.plan import Node, Plan
from vcluster.model.spec import PAUSE
from vcluster.model.status import Fault
from vcluster.model.traffic.port_counters import TrafficSample
from vcluster.planning.resize import shrink
from vcluster.resources import domains
from vcluster.util.events import Reporter

PLAN = samples.shared_plan(samples.RED, samples.BLUE, count=3)  # node3 is on blue
LOCAL_PLAN = samples.plan(3)
HELD = {"kind": PAUSE, "is_active": True, "is_held": True}


class Connector:
    """Opens servers with these operations of their agents, except for those that do not answer."""

    has_libvirt = True

    def __init__(self, operations: Callable[[str], dict[str, Callable[..., Any]]], *lost: str) -> None:
        self._operations, self._lost = operations, lost

    @contextmanager
    def open(self, request: ServerRequest) -> Iterator[Server]:
        if request.name in self._lost:
            raise MissingError(f"{request.name}: no answer")
        yield Server(request.name, samples.OWNER, Path("/storage"), LocalAgent(self._operations(request.name)))


def context_of(folder: Path, connector: Connector, plan: Plan) -> tuple[Context, list[str]]:
    """A context with the ledger of a cluster, and the notes that a command prints."""
    notes: list[str] = []
    report = Reporter((lambda event: notes.append(event.text) if event.what == "note" else None,))
    context = Context(folder, connector, ImageStore(folder / "images"), report)  # type: ignore[arg-type]
    files = context.files("lab")
    files.folder.mkdir(parents=True)
    files.write_ledger(Ledger(VERSION, "ready", "", plan))
    return context, notes


# Servers that do not answer


class Servers:
    """Each server has a node that is paused, and remembers what it healed."""

    def __init__(self, folder: Path, *lost: str, refusing: str = "") -> None:
        self.healed: dict[str, Any] = {}
        self._refusing = refusing
        self.context, _ = context_of(folder, Connector(self._operations, *lost), PLAN)

    def _operations(self, name: str) -> dict[str, Callable[..., Any]]:
        nodes = [node.name for node in PLAN.nodes if node.server == name]
        held = [{**HELD, "node": node, "left_s": None} for node in nodes]

        def heal(**given: Any) -> None:
            if name == self._refusing:
                raise VclusterError(f"{name}: libvirt does not answer")
            self.healed[name] = None if given["nodes"] is None else [*given["nodes"]]

        return {
            "identity": lambda: {"has_rights": True, "is_root": True},
            "read_faults": lambda **_: {"table": "", "elements": [], "held": held},
            "heal_faults": heal,
        }


def texts(errors: list[VclusterError]) -> list[str]:
    return [error.message for error in errors]


def test_heal_works_on_the_servers_that_answer(tmp_path: Path) -> None:
    servers = Servers(tmp_path, "blue")
    healed, errors = fault.heal(servers.context, "lab", [])
    assert (healed, texts(errors)) == (("node1", "node2"), ["blue: no answer"])
    assert servers.healed == {"middle": None, "red": None}


def test_a_server_that_does_not_heal_stops_no_other_one(tmp_path: Path) -> None:
    servers = Servers(tmp_path, refusing="red")
    healed, errors = fault.heal(servers.context, "lab", [])
    assert (healed, texts(errors)) == (("node3",), ["red: libvirt does not answer"])
    assert servers.healed == {"middle": None, "blue": None}


def test_servers_of_other_nodes_need_not_answer(tmp_path: Path) -> None:
    servers = Servers(tmp_path, "blue")
    assert fault.heal(servers.context, "lab", ["node1"]) == (("node1",), [])
    assert servers.healed == {"middle": ["node1"], "red": ["node1"]}
    assert [each.nodes for each in fault.show(servers.context, "lab", ["node2"])[0]] == [("node2",)]


def test_show_has_the_faults_of_servers_that_answer(tmp_path: Path) -> None:
    found, errors = fault.show(Servers(tmp_path, "red", "middle").context, "lab", [])
    assert found == [Fault(PAUSE, ("node3",))]
    assert texts(errors) == ["red: no answer", "middle: no answer"]


def test_no_server_answers(tmp_path: Path) -> None:
    with pytest.raises(SeveralErrors):
        fault.show(Servers(tmp_path, "red", "blue", "middle").context, "lab", [])


# The begin on several nodes


@pytest.mark.parametrize("error", [VclusterError("libvirt does not answer"), KeyboardInterrupt()])
def test_a_fault_that_does_not_begin_on_all_nodes_is_withdrawn_from_all(tmp_path: Path, error: BaseException) -> None:
    """An error may hide that it has begun. A conflict does not: that node has the fault of another command."""
    context, notes = context_of(tmp_path, Connector(lambda _: {}), PLAN)
    outcomes = dict(zip(("node1", "node2", "node3"), (None, error, ConflictError("it has this fault")), strict=True))
    withdrawn: list[str] = []

    def begin(node: Node) -> None:
        if found := outcomes[node.name]:
            raise found

    def withdraw(node: Node) -> None:
        withdrawn.append(node.name)
        if node.name == "node1":
            raise VclusterError("node1: libvirt does not answer")

    with pytest.raises((VclusterError, KeyboardInterrupt)) as caught:
        fault.on_all(context, PLAN.nodes, begin, withdraw)
    if isinstance(error, VclusterError):
        assert sorted(withdrawn) == ["node1", "node2"]
        assert isinstance(caught.value, SeveralErrors)
        assert "node1: libvirt does not answer" in caught.value.message
        assert notes == []
    else:
        assert caught.value is error
        assert sorted(withdrawn) == ["node1", "node2", "node3"]
        assert notes == ["a fault may be left: node1: libvirt does not answer; vcluster fault heal"]


# Nodes that are resumed


class Hypervisor:
    def __init__(self, calls: list[str], *, is_answering: bool) -> None:
        self._calls, self._is_answering = calls, is_answering

    def resume_domain(self, name: str) -> None:
        if not self._is_answering:
            raise VclusterError("libvirt does not answer")
        self._calls.append(f"resume {name}")


@pytest.mark.parametrize("is_answering", [True, False])
def test_a_node_is_resumed_before_its_fault_is_forgotten(is_answering: bool) -> None:
    calls: list[str] = []
    operations: dict[str, Callable[..., Any]] = {
        "read_faults": lambda **_: {
            "table": "", "elements": [], "held": [{**HELD, "node": "node1", "left_s": 5.0}],
        },
        "prepare_domain": lambda **given: calls.append(f"prepare {' '.join(given['taps'])}"),
        "drop_pause": lambda **given: calls.append(f"forget {given['node']}"),
    }  # fmt: skip
    server = Server("localhost", samples.OWNER, Path("/storage"), LocalAgent(operations))
    server = replace(server, libvirt=Hypervisor(calls, is_answering=is_answering))  # type: ignore[arg-type]
    if is_answering:
        assert domains.resume(server, LOCAL_PLAN, LOCAL_PLAN.nodes[0]) is True
        assert domains.resume(server, LOCAL_PLAN, LOCAL_PLAN.nodes[1]) is False
        assert calls == [
            "resume lab.node1", "prepare vp-lab-1 vm-lab-1", "forget node1",
            "resume lab.node2", "prepare vp-lab-2 vm-lab-2", "forget node2",
        ]  # fmt: skip
    else:
        with pytest.raises(VclusterError):
            domains.resume(server, LOCAL_PLAN, LOCAL_PLAN.nodes[0])
        assert calls == []


# Watch


def test_watch_has_the_plan_and_the_time_that_is_left_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another command changes the cluster while the server of the switch is opened."""
    moment = iter(range(10**6))

    def operations(_: str) -> dict[str, Callable[..., Any]]:
        context.files("lab").write_ledger(Ledger(VERSION, "ready", "", shrink(LOCAL_PLAN, ["node3"])))
        held = [{**HELD, "node": "node2", "left_s": 60.0}]
        return {"read_faults": lambda **_: {"table": "", "elements": [], "held": held}}

    def sample(*_: object) -> TrafficSample:
        return TrafficSample(next(moment), 0, [], {}, None)

    context, _ = context_of(tmp_path, Connector(operations), LOCAL_PLAN)
    monkeypatch.setattr(watch.shaping, "read", lambda *_: ([], set()))
    monkeypatch.setattr(watch.port_traffic, "sample", sample)
    (record,) = watch.records(context, "lab", every_s=0.2, with_matrix=False, for_s=0.2)
    assert [port.node for port in record.ports] == ["node1", "node2"]
    (text,) = record.ports[1].faults
    assert text.startswith("pause node2, 5")
