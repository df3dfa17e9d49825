"""Power, with libvirt's test driver."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import samples
from tests.open_context import OpenContext
from tests.results import validated
from vcluster.adapters.libvirt.domain_state import disk_errors
from vcluster.adapters.libvirt.hypervisor import Hypervisor
from vcluster.agent.client import LocalAgent
from vcluster.agent.operations import OPERATIONS
from vcluster.cli import common, main
from vcluster.commands.clusters import lifecycle
from vcluster.commands.nodes import power
from vcluster.errors import ConflictError, MissingError, VclusterError
from vcluster.fleet.ledger import VERSION, Ledger
from vcluster.fleet.servers import Fleet, Server
from vcluster.planning import link_spec, traffic_plan
from vcluster.render.domain_xml import domain_xml
from vcluster.util import parallel
from vcluster.util.events import Reporter

pytestmark = pytest.mark.libvirt

PLAN = samples.plan(3)
FREE_MIB = 512 + 3 * 704 + 703  # for three nodes


@pytest.fixture
def context(tmp_path: Path) -> Iterator[OpenContext]:
    """Three nodes, all powered off."""
    node = tmp_path / "node.xml"
    node.write_text(
        "<node><cpu><mhz>2000</mhz><model>x86_64</model><active>2</active></cpu><memory>8388608</memory></node>"
    )
    with Hypervisor(f"test://{node}", samples.OWNER) as libvirt:
        libvirt.memory_free_mib = lambda: FREE_MIB  # type: ignore[method-assign]  # the test driver cannot tell
        for each in PLAN.nodes:
            xml = domain_xml(PLAN, each).replace("type='qemu'", "type='test'").replace('type="qemu"', 'type="test"')
            libvirt.define_domain(xml)
        server = Server("localhost", samples.OWNER, tmp_path, LocalAgent(), libvirt=libvirt)
        yield OpenContext(Fleet({"localhost": server}, {}), tmp_path)


def messages(outcomes: power.Outcomes) -> list[str]:
    return [each if isinstance(each, str) else each.message for each in outcomes.values()]


def test_on_and_off_and_again(context: OpenContext) -> None:
    assert messages(power.turn_on(context, PLAN, PLAN.nodes[:2])) == ["on", "on"]  # type: ignore[arg-type]
    assert messages(power.turn_on(context, PLAN, PLAN.nodes)) == ["already on", "already on", "on"]  # type: ignore[arg-type]
    assert messages(power.turn_off(context, PLAN, PLAN.workers)) == ["off", "off"]  # type: ignore[arg-type]
    assert messages(power.turn_off(context, PLAN, PLAN.nodes)) == ["off", "already off", "already off"]  # type: ignore[arg-type]
    assert messages(power.cycle(context, PLAN, PLAN.nodes[:1])) == ["on"]  # type: ignore[arg-type]
    assert messages(power.cycle(context, PLAN, PLAN.nodes[:2])) == ["off and on", "on"]  # type: ignore[arg-type]
    states, errors = power.status(context, PLAN, PLAN.nodes)  # type: ignore[arg-type]
    assert ({node: str(power) for node, power in states.items()}, errors) == (
        {"node1": "on", "node2": "on", "node3": "off"},
        [],
    )


def test_a_paused_node_is_shown_and_resumed(context: OpenContext) -> None:
    libvirt = context.fleet["localhost"].hypervisor
    power.turn_on(context, PLAN, PLAN.nodes[:2])  # type: ignore[arg-type]
    libvirt._connection.lookupByName("lab.node2").suspend()
    states, _ = power.status(context, PLAN, PLAN.nodes)  # type: ignore[arg-type]
    assert [str(state) for state in states.values()] == ["on", "paused (paused by a user of libvirt)", "off"]
    assert messages(power.turn_on(context, PLAN, PLAN.nodes)) == ["already on", "resumed", "on"]  # type: ignore[arg-type]
    assert libvirt.power_state("lab.node2").state == "running"
    libvirt._connection.lookupByName("lab.node1").suspend()
    assert messages(power.cycle(context, PLAN, PLAN.nodes[:1])) == ["off and on"]  # type: ignore[arg-type]
    assert libvirt.power_state("lab.node1").state == "running"
    libvirt._connection.lookupByName("lab.node1").suspend()
    assert messages(power.turn_off(context, PLAN, PLAN.nodes[:1])) == ["off"]  # type: ignore[arg-type]


@pytest.mark.parametrize("turn", [power.turn_on, power.cycle])
def test_nodes_that_another_command_creates_are_refused(
    context: OpenContext, turn: Callable[..., power.Outcomes]
) -> None:
    """A clone is paused until it has received its memory. Resumed before that, it would run without it."""
    files, libvirt = context.files("lab"), context.fleet["localhost"].hypervisor
    files.folder.mkdir(parents=True)
    files.write_ledger(Ledger(VERSION, "creating", "", PLAN))
    power.turn_on(context, PLAN, PLAN.nodes)  # type: ignore[arg-type]
    libvirt._connection.lookupByName("lab.node2").suspend()
    with files.locked():
        with pytest.raises(ConflictError, match=r"^another command is creating nodes of cluster lab$"):
            turn(context, PLAN, PLAN.nodes)
        assert libvirt.power_state("lab.node2").state == "paused"
        files.write_ledger(Ledger(VERSION, "ready", "", PLAN))  # another command, for example provision
        assert len(turn(context, PLAN, PLAN.nodes)) == 3
    files.write_ledger(Ledger(VERSION, "creating", "", PLAN))  # as a killed create leaves it
    assert len(turn(context, PLAN, PLAN.nodes)) == 3


@pytest.mark.parametrize("turn", [power.turn_on, power.cycle])
def test_a_started_node_gets_the_limits_that_the_ledger_has_now(
    context: OpenContext, turn: Callable[..., power.Outcomes]
) -> None:
    """Also if `link set` changes them while the node starts."""
    files, shaped = context.files("lab"), []
    files.folder.mkdir(parents=True)

    def write(rate: str) -> None:
        limited = traffic_plan.with_changes(PLAN, ["node2"], {"to": link_spec.parse(f"rate={rate}", place="--to")})
        files.write_ledger(Ledger(VERSION, "ready", "", limited))

    def shape_links(switch_ports: list[str], directions: list[dict[str, Any]], **_: object) -> None:
        shaped.append((switch_ports, [flow["rate_bits"] for each in directions for flow in each["flows"]]))
        write("2mbit")

    operations = {"shape_links": shape_links, "prepare_domain": lambda **_: None, "turn_off_offloads": lambda **_: []}
    server = replace(context.fleet["localhost"], agent=LocalAgent({**OPERATIONS, **operations}))
    other = OpenContext(Fleet({"localhost": server}, {}), context.state_root)
    write("1mbit")
    assert messages(turn(other, PLAN, PLAN.nodes[1:2])) == ["on"]
    assert shaped == [([PLAN.nodes[1].port], [rate]) for rate in (1_000_000, 2_000_000)]


def test_stop_resumes_a_paused_node_and_shuts_it_down(context: OpenContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """A paused node does not react to its power button."""

    def press_power_button(self: Hypervisor, name: str) -> bool:
        assert self.power_state(name).state == "running"
        self.stop_domain(name)
        return True

    monkeypatch.setattr(Hypervisor, "shut_down_domain", press_power_button)
    context.files("lab").folder.mkdir(parents=True)
    context.files("lab").write_ledger(Ledger(VERSION, "ready", "", PLAN))
    libvirt, notes = context.fleet["localhost"].hypervisor, []
    context.report = Reporter((lambda event: notes.append(event.text) if event.what == "note" else None,))
    power.turn_on(context, PLAN, PLAN.nodes[:2])  # type: ignore[arg-type]
    libvirt._connection.lookupByName("lab.node2").suspend()
    assert lifecycle.stop(context, "lab", timeout_s=20) == ("node1", "node2")  # type: ignore[arg-type]
    assert notes == ["node2 was paused (paused by a user of libvirt), so vcluster resumes it for the shutdown"]
    assert {libvirt.power_state(node.domain).state for node in PLAN.nodes} == {"stopped"}


def test_a_disk_error_names_the_file(context: OpenContext) -> None:
    """The test driver invents an error for each disk: the first is unspecified, the others have no space left."""
    libvirt = context.fleet["localhost"].hypervisor
    libvirt.start_domain("lab.node1")
    folder = "/var/lib/libvirt/images/vcluster/clusters/lab"
    assert disk_errors(libvirt._connection.lookupByName("lab.node1")) == (
        f"I/O error on {folder}/node1.qcow2: unspecified error, I/O error on {folder}/node1.seed.iso: no space left"
    )
    assert disk_errors(libvirt._connection.lookupByName("lab.node2")) == ""


@pytest.mark.parametrize("turn", [power.turn_on, power.cycle])
def test_nodes_are_turned_on_only_with_enough_memory(context: OpenContext, turn: Callable[..., power.Outcomes]) -> None:
    libvirt = context.fleet["localhost"].hypervisor
    libvirt.memory_free_mib = lambda: FREE_MIB - 704  # type: ignore[method-assign]
    done = turn(context, PLAN, PLAN.nodes)
    with pytest.raises(MissingError, match=r"^the nodes need 2624 MiB of memory, 3 times 704 .* but 2623 MiB are free"):
        parallel.raise_all([each for each in done.values() if isinstance(each, VclusterError)])
    assert len(done) == 3
    assert not any(domain.power.is_active for domain in libvirt.domains())
    assert messages(turn(context, PLAN, PLAN.nodes[:2])) == ["on", "on"]
    assert messages(turn(context, PLAN, PLAN.nodes))[2] == "on"  # those that run have their memory


@pytest.mark.parametrize("turn", [power.turn_on, power.cycle])
@pytest.mark.parametrize("fault", ["no answer", "no memory"])
def test_the_fault_of_a_server_stops_only_its_own_nodes(
    context: OpenContext, tmp_path: Path, turn: Callable[..., power.Outcomes], fault: str
) -> None:
    plan = samples.shared_plan(samples.RED, samples.BLUE, count=3)
    red, blue = [plan.nodes_on(name) for name in ("red", "blue")]
    faulty = Hypervisor("test:///default", samples.OWNER)
    servers = {"red": replace(context.fleet["localhost"], name="red")}
    servers["blue"] = replace(servers["red"], name="blue", libvirt=faulty)
    libvirt = servers["red"].hypervisor
    for node in libvirt.domains():
        libvirt.undefine_domain(node.name)

    def memory_free_mib() -> int:
        if fault == "no answer":
            raise VclusterError("blue: libvirt does not answer")
        return 0

    with faulty:
        faulty.memory_free_mib = memory_free_mib  # type: ignore[method-assign]
        for node in plan.nodes:
            xml = domain_xml(plan, node).replace("type='qemu'", "type='test'").replace('type="qemu"', 'type="test"')
            servers[node.server].hypervisor.define_domain(xml)
        shared = OpenContext(Fleet(servers, {}), tmp_path)
        assert messages(turn(shared, plan, red)) == ["on"] * len(red)
        done = turn(shared, plan, plan.nodes)
    reason = "blue: libvirt does not answer" if fault == "no answer" else "but 0 MiB are free"
    assert all(reason in text for text in messages({node.name: done[node.name] for node in blue}))
    assert all(isinstance(done[node.name], str) for node in red)


def test_a_missing_node_does_not_stop_the_others(context: OpenContext) -> None:
    context.fleet["localhost"].hypervisor.undefine_domain(PLAN.nodes[1].domain)
    done = power.turn_on(context, PLAN, PLAN.nodes)  # type: ignore[arg-type]
    assert messages(done) == ["on", "node2 is missing: localhost has no domain lab.node2", "on"]
    missing = done["node2"]
    assert isinstance(missing, VclusterError)
    assert missing.hint == "vcluster repair lab"
    assert power.status(context, PLAN, PLAN.nodes)[0]["node2"].state == "gone"  # type: ignore[arg-type]


def test_a_server_that_does_not_answer(context: OpenContext) -> None:
    lost = OpenContext(Fleet({}, {"localhost": VclusterError("localhost: no answer")}), context.state_root)
    states, errors = power.status(lost, PLAN, PLAN.nodes)  # type: ignore[arg-type]
    assert {state.state for state in states.values()} == {"unknown"}
    assert [error.message for error in errors] == ["localhost: no answer"]
    assert messages(power.turn_off(lost, PLAN, PLAN.nodes)) == ["localhost: no answer"] * 3  # type: ignore[arg-type]


def test_the_command(context: OpenContext, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    context.files("lab").folder.mkdir(parents=True)
    context.files("lab").write_ledger(Ledger(VERSION, "ready", "", PLAN))
    monkeypatch.setattr(common, "context", lambda *_: context)

    def vcluster(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["vcluster", "power", *arguments, "--name", "lab"])
        return main._run()

    assert vcluster("on", "-w", "node[1,3]") == 0
    assert capsys.readouterr().out == "node[1,3]: on\n"
    context.fleet["localhost"].hypervisor.undefine_domain("lab.node2")
    assert vcluster("cycle", "-y") == 1
    printed = capsys.readouterr()
    assert printed.out == "node[1,3]: off and on\n"
    assert printed.err.startswith("vcluster: node2 is missing: localhost")
    assert vcluster("status", "-o", "json") == 0
    assert validated(["power", "status"], json.loads(capsys.readouterr().out)) == [
        {"node": "node1", "power": "on", "reason": ""},
        {"node": "node2", "power": "gone", "reason": ""},
        {"node": "node3", "power": "on", "reason": ""},
    ]
