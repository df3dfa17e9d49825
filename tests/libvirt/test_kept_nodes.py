"""A failed create with --keep, with libvirt's test driver: `repair` does not remake nodes that a user may have used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import samples
from tests.open_context import OpenContext
from vcluster.adapters.libvirt.hypervisor import Hypervisor
from vcluster.agent.client import LocalAgent
from vcluster.commands.clusters import create, lifecycle
from vcluster.commands.steps.deployment import Deployment
from vcluster.errors import VclusterError
from vcluster.fleet.ledger import VERSION, Ledger
from vcluster.fleet.servers import Fleet, Server
from vcluster.model.plan import Node
from vcluster.render.domain_xml import domain_xml
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter

pytestmark = pytest.mark.libvirt

PLAN = samples.plan(3)


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenContext]:
    """A create with --keep that failed after it had made two of three nodes."""
    node = tmp_path / "node.xml"
    node.write_text(
        "<node><cpu><mhz>2000</mhz><model>x86_64</model><active>2</active></cpu><memory>8388608</memory></node>"
    )
    monkeypatch.setattr(lifecycle.servers, "require_rights", lambda _: None)
    monkeypatch.setattr(lifecycle.interfaces, "attach", lambda *_: None)
    monkeypatch.setattr(Deployment, "create_networks", lambda _: None)
    with Hypervisor(f"test://{node}", samples.OWNER) as libvirt:
        libvirt.memory_free_mib = lambda: 8192  # type: ignore[method-assign]  # the test driver cannot tell
        for each in PLAN.nodes[:2]:
            libvirt.define_domain(domain_xml(PLAN, each).replace('type="qemu"', 'type="test"'))
        answers = {name: lambda **_: [] for name in ("interfaces", "guards", "lacking_guards", "obstacles")}
        server = Server("localhost", samples.OWNER, tmp_path, LocalAgent(answers), libvirt=libvirt)
        context = OpenContext(Fleet({"localhost": server}, {}), tmp_path)
        files = context.files("lab")
        files.folder.mkdir(parents=True)
        files.write_keys(samples.keys(3))
        files.write_ledger(Ledger(VERSION, "creating", "", PLAN, tuple(node.name for node in PLAN.nodes)))
        end = create._rollback(context, context.fleet, files, keep=True)  # type: ignore[arg-type]
        end(VclusterError, VclusterError("the cluster is not ready"), None)
        yield context


def test_a_kept_node_that_was_deleted_by_hand_is_not_made_again(
    context: OpenContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle.volumes, "reduce", lambda *_: pytest.fail("a disk with data was deleted"))
    context.fleet["localhost"].hypervisor.undefine_domain("lab.node2")
    with pytest.raises(VclusterError, match=r"^missing: node2, node3$"):
        lifecycle.repair(context, "lab", timeout_s=5)  # type: ignore[arg-type]


def test_a_node_that_the_create_did_not_reach_is_made(context: OpenContext, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def make(_: object, ledger: Ledger, absent: list[object]) -> None:
        made.extend(ledger.unfinished)
        raise VclusterError(f"stop here: {len(absent)}")

    monkeypatch.setattr(lifecycle, "_discard_unfinished", make)
    with pytest.raises(VclusterError, match=r"^stop here: 1$"):
        lifecycle.repair(context, "lab", timeout_s=5)  # type: ignore[arg-type]
    assert made == ["node3"]


def test_a_node_that_a_fault_paused_is_resumed_and_reported(context: OpenContext) -> None:
    """The process on the server that would resume the node ends too."""
    held = {"kind": "pause", "node": "node1", "is_active": True, "is_held": True, "left_s": 1000.0}
    dropped: list[str] = []
    server = context.fleet["localhost"]
    operations = {
        "read_faults": lambda **_: {"table": "", "elements": [], "held": [held]},
        "drop_pause": lambda **given: dropped.append(given["node"]),
        "prepare_domain": lambda **_: None,
    }
    server.hypervisor.start_domain("lab.node1")
    server.hypervisor._connection.lookupByName("lab.node1").suspend()  # type: ignore[union-attr]
    fleet = Fleet({"localhost": replace(server, agent=LocalAgent(operations))}, {})
    notes: list[str] = []
    context.report = Reporter((lambda event: notes.append(event.text) if event.what == "note" else None,))
    deployment = Deployment(context, fleet, PLAN, samples.keys(3), Deadline(5))  # type: ignore[arg-type]

    class Blank:
        def has_no_identity(self, node: Node) -> bool:
            raise VclusterError(f"stop here: {node.name} runs")

    with pytest.raises(VclusterError, match=r"^stop here: node1 runs$"):
        lifecycle._restore_each(deployment, Ledger(VERSION, "creating", "", PLAN), Blank())  # type: ignore[arg-type]
    assert dropped == ["node1"]
    assert notes == ["node1 was paused by a fault, which is over now"]


class Lifecycle:
    """Records what is done with each node."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def all_nodes(self, work: Any, _: object) -> None:
        for node in PLAN.nodes[:2]:
            work(node)

    def configure_running(self, node: Node) -> None:
        self.done.append(f"configure {node.name}")

    def start_again(self, node: Node) -> None:
        self.done.append(f"start {node.name}")

    def require_ready(self, _: object) -> None: ...


def test_the_taps_of_a_running_node_get_the_settings_of_this_version(context: OpenContext) -> None:
    """An earlier version, which started the node, left IPv6 on."""
    prepared: list[dict[str, Any]] = []
    agent = LocalAgent({"prepare_domain": lambda **given: prepared.append(given)})
    server = replace(context.fleet["localhost"], agent=agent)
    server.hypervisor.start_domain("lab.node1")
    plan = samples.plan(2)
    deployment = Deployment(context, Fleet({"localhost": server}, {}), plan, samples.keys(2), Deadline(5))  # type: ignore[arg-type]
    nodes = Lifecycle()
    lifecycle._restore_each(deployment, Ledger(VERSION, "ready", "", plan), nodes)  # type: ignore[arg-type]
    assert nodes.done == ["configure node1", "start node2"]
    assert [(one["domain"], one["taps"]) for one in prepared] == [("lab.node1", ["vp-lab-1", "vm-lab-1"])]
