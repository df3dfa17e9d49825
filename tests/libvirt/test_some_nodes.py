"""Some nodes of a cluster are removed, with libvirt's test driver; the others keep everything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import samples
from vcluster.adapters.libvirt.hypervisor import Hypervisor
from vcluster.agent.client import LocalAgent
from vcluster.commands.clusters import teardown
from vcluster.errors import VclusterError
from vcluster.fleet.servers import Fleet, Server
from vcluster.model import naming
from vcluster.model.plan import Plan
from vcluster.model.spec import StorageNode
from vcluster.planning.resize import shrink
from vcluster.render import network_xml
from vcluster.render.domain_xml import domain_xml
from vcluster.resources import domains, networks, volumes
from vcluster.util.events import Reporter

pytestmark = pytest.mark.libvirt

PLAN = samples.plan(3, stores=(StorageNode("node3", 1),))
FOREIGN = "<domain type='test'><name>lab.node2</name><memory>1024</memory><os><type>hvm</type></os></domain>"


class World:
    """A server with the nodes of a plan. Requests to the agent are recorded and not executed."""

    def __init__(self, libvirt: Hypervisor, root: Path) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.libvirt = libvirt
        names = (
            "remove_traces",
            "destroy_bridge",
            "destroy_interfaces",
            "interfaces",
            "guard",
            "guards",
            "labelled_folders",
            "profiles",
            "remove_profiles",
            "offload_labels",
            "restore_offloads",
            "heal_faults",
            "fault_records",
        )
        agent = LocalAgent({name: self._operation(name) for name in names})
        self.server = Server("localhost", samples.OWNER, root, agent, libvirt=libvirt)
        self.fleet = Fleet({"localhost": self.server}, {})

    def _operation(self, name: str) -> Any:
        def work(**arguments: Any) -> list[Any] | dict[str, Any]:
            self.requests.append((name, arguments))
            return {} if name == "labelled_folders" else []

        return work

    def make(self, plan: Plan) -> None:
        pool = plan.servers[0].pool
        assert pool
        self.libvirt.create_pool(network_xml.pool_xml(pool))
        for node in plan.nodes:
            self.libvirt.define_domain(domain_xml(plan, node).replace('type="qemu"', 'type="test"'))
            self.libvirt.start_domain(node.domain)
            # Logs, also rotated ones, are volumes of the pool too.
            for suffix in ("qcow2", "seed.iso", "console.log", "console.log.0", *["data.qcow2"] * bool(node.data_gib)):
                xml = network_xml.blank_xml(f"{node.name}.{suffix}", kind="raw", size_bytes=512)
                self.libvirt.create_volume(pool.name, xml)

    def volume_counts(self) -> dict[str, int]:
        """The number of volumes of each node."""
        owners = [volume.split(".")[0] for volume in self.libvirt.volumes("vcluster-lab")]
        return {owner: owners.count(owner) for owner in sorted(set(owners))}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    node = tmp_path / "node.xml"
    node.write_text(
        "<node><cpu><mhz>2000</mhz><model>x86_64</model><active>2</active></cpu><memory>8388608</memory></node>"
    )
    with Hypervisor(f"test://{node}", samples.OWNER) as libvirt:
        yield World(libvirt, tmp_path)


def test_one_node_is_removed_twice_without_an_error(world: World) -> None:
    world.make(PLAN)
    rest = shrink(PLAN, ["node2"])
    for _ in range(2):
        domains.reduce(world.server, PLAN, rest)
        volumes.reduce(world.server, PLAN, rest)
    found = sorted(world.libvirt.domains(), key=lambda each: each.node)
    assert [(each.node, each.power.is_active) for each in found] == [
        ("node1", True), ("node3", True),
    ]  # fmt: skip
    assert world.volume_counts() == {"node1": 4, "node3": 5}
    assert world.requests == [
        ("remove_traces", {"networks": [], "domains": ["lab.node2"]}),
        ("remove_profiles", {"uuids": [PLAN.nodes[1].uuid]}),
    ]


def test_everything_of_a_node_is_removed_from_its_server(world: World) -> None:
    grown = samples.plan(12)
    world.make(grown)
    teardown.remove_nodes(_context(), world.fleet, grown, shrink(grown, ["node1" + str(at) for at in range(3)]))  # type: ignore[arg-type]
    assert "node1" in world.volume_counts()
    assert len(world.volume_counts()) == len(world.libvirt.domains()) == 9
    assert not [name for name, _ in world.requests if name in ("destroy_interfaces", "remove_guard")]


def test_resources_of_other_owners_stay(world: World) -> None:
    world.libvirt.define_domain(FOREIGN)
    foreign = network_xml.pool_xml(PLAN.servers[0].pool).replace(  # type: ignore[arg-type]
        naming.uuid_for("pool", "lab", samples.OWNER), "11111111-2222-3333-4444-555555555555"
    )
    world.libvirt.create_pool(foreign)
    world.libvirt.create_volume("vcluster-lab", network_xml.blank_xml("node2.qcow2", kind="raw", size_bytes=512))
    teardown.remove_nodes(_context(), world.fleet, PLAN, shrink(PLAN, ["node2"]))  # type: ignore[arg-type]
    assert world.libvirt.names("domain") >= {"lab.node2"}
    assert world.volume_counts() == {"node2": 1}


def test_a_stopped_or_missing_pool(world: World) -> None:
    world.make(PLAN)
    rest = shrink(PLAN, ["node2"])
    world.libvirt._connection.storagePoolLookupByName("vcluster-lab").destroy()
    volumes.reduce(world.server, PLAN, rest)
    world.libvirt.destroy_pool("vcluster-lab")
    volumes.reduce(world.server, PLAN, rest)
    assert world.libvirt.pools() == ()


def test_leftovers_are_reported(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.make(PLAN)
    monkeypatch.setattr(Hypervisor, "undefine_domain", lambda *_: None)
    with pytest.raises(VclusterError, match=r"parts of cluster lab are left: domain lab\.node2"):
        teardown.remove_nodes(_context(), world.fleet, PLAN, shrink(PLAN, ["node2"]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "last", "removed"),
    [
        (domains, "undefine_domain", ["remove_traces", "remove_profiles"]),
        (networks, "undefine_network", ["remove_traces", "destroy_bridge"]),
    ],
)
def test_definitions_are_removed_last(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: Any, last: str, removed: list[str]
) -> None:
    """After a command that was killed, they show that files are left."""

    def fail(*_: object) -> None:
        raise VclusterError("killed")

    world.make(PLAN)
    networks.create(world.server, PLAN.servers[0], "lab")
    monkeypatch.setattr(Hypervisor, last, fail)
    with pytest.raises(VclusterError, match="killed"):
        kind.destroy(world.server, "lab")
    assert [name for name, _ in world.requests] == removed
    assert kind.observe(world.server)


class _Context:
    report = Reporter()


def _context() -> _Context:
    return _Context()
