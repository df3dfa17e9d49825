"""With libvirt's test driver: our XML against its schema, owner labels, and resources of other owners."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests import samples
from vcluster.adapters.libvirt.domain_events import DESTROYED, DIED, PAUSED, DomainEvent
from vcluster.adapters.libvirt.hypervisor import Hypervisor
from vcluster.adapters.libvirt.owned_resources import owned_resources
from vcluster.errors import MissingError, VclusterError
from vcluster.model import naming
from vcluster.model.spec import Image
from vcluster.planning.planner import make_plan
from vcluster.render import network_xml
from vcluster.render.domain_xml import domain_xml

pytestmark = pytest.mark.libvirt


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[Hypervisor]:
    """An empty host for each test."""
    node = tmp_path / "node.xml"
    node.write_text(
        "<node><cpu><mhz>2000</mhz><model>x86_64</model><active>2</active></cpu><memory>8388608</memory></node>"
    )
    with Hypervisor(f"test://{node}", samples.OWNER) as opened:
        yield opened


@pytest.mark.parametrize("image", [samples.DIRECT, samples.ORDINARY])
@pytest.mark.parametrize("mtu", [576, 1450, 9216])
def test_domains_pass_the_schema_and_are_recognised(hypervisor: Hypervisor, image: Image, mtu: int) -> None:
    plan = samples.plan(2, image=image, mtu=mtu)
    for node in plan.nodes:
        xml = domain_xml(plan, node).replace("type='qemu'", "type='test'").replace('type="qemu"', 'type="test"')
        hypervisor.define_domain(xml)
    found = hypervisor.domains()
    assert {(each.name, each.cluster, each.node, each.power.state) for each in found} == {
        ("lab.node1", "lab", "node1", "stopped"),
        ("lab.node2", "lab", "node2", "stopped"),
    }
    assert hypervisor.image_users(image.digest) == {"lab"}
    assert hypervisor.image_users("sha256-" + "3" * 64) == set()
    hypervisor.start_domain("lab.node1")
    assert {domain.node for domain in hypervisor.domains() if domain.power.is_active} == {"node1"}


@pytest.mark.parametrize("options", [{"cpu_limit_percent": 1}, {"processors": (1, 0, 7)}])
def test_domains_with_limits_and_pins_pass_the_schema(hypervisor: Hypervisor, options: dict[str, object]) -> None:
    plan = samples.plan(2, vcpus=2, **options)
    for node in plan.nodes:
        hypervisor.define_domain(domain_xml(plan, node).replace('type="qemu"', 'type="test"'))
        kept = ET.fromstring(hypervisor._connection.lookupByName(node.domain).XMLDesc()).find("cputune")
        planned = ET.fromstring(domain_xml(plan, node)).find("cputune")
        assert kept is not None
        assert planned is not None
        assert [(part.tag, part.attrib, part.text) for part in kept] == [
            (part.tag, part.attrib, part.text) for part in planned
        ]


def test_the_taps_of_a_domain_are_those_of_its_plan(hypervisor: Hypervisor) -> None:
    plan = samples.plan(1)
    hypervisor.define_domain(domain_xml(plan, plan.head).replace('type="qemu"', 'type="test"'))
    hypervisor.start_domain("lab.node1")
    assert plan.head.management
    assert hypervisor.taps_of("lab.node1") == (plan.head.management.port, plan.head.port)


def test_a_domain_is_removed_twice_without_an_error(hypervisor: Hypervisor) -> None:
    plan = samples.plan(1)
    hypervisor.define_domain(domain_xml(plan, plan.head).replace('type="qemu"', 'type="test"'))
    hypervisor.start_domain("lab.node1")
    for _ in range(2):
        hypervisor.stop_domain("lab.node1")
        hypervisor.undefine_domain("lab.node1")
    assert hypervisor.domains() == ()


def test_the_run_of_a_domain_ends_with_its_power(hypervisor: Hypervisor) -> None:
    plan = samples.plan(1)
    hypervisor.define_domain(domain_xml(plan, plan.head).replace('type="qemu"', 'type="test"'))
    off = hypervisor.run_of("lab.node1", "node1")
    with pytest.raises(VclusterError, match=r"^node1 stopped running"):
        off.check("a login")
    hypervisor.start_domain("lab.node1")
    first = hypervisor.run_of("lab.node1", "node1")
    first.check("a login")
    hypervisor._connection.lookupByName("lab.node1").suspend()
    paused = hypervisor.run_of("lab.node1", "node1")
    paused.check("a login")
    hypervisor.stop_domain("lab.node1")
    for run in (paused, hypervisor.run_of("lab.node1", "node1")):
        run._next_s = 0.0
        with pytest.raises(VclusterError, match=r"^node1 stopped .* a login: another command cut its power$"):
            run.check("a login")
    hypervisor.start_domain("lab.node1")
    for _ in range(2):
        first._next_s = 0.0
        with pytest.raises(VclusterError, match=r"^node1 stopped .* a login: another command cut its power$"):
            first.check("a login")
    hypervisor.run_of("lab.node1", "node1").check("a login")


def test_the_run_of_a_removed_domain_has_ended(hypervisor: Hypervisor) -> None:
    plan = samples.plan(1)
    hypervisor.define_domain(domain_xml(plan, plan.head).replace('type="qemu"', 'type="test"'))
    hypervisor.start_domain("lab.node1")
    run = hypervisor.run_of("lab.node1", "node1")
    hypervisor.stop_domain("lab.node1")
    hypervisor.undefine_domain("lab.node1")
    expected = r"^node1 stopped running while vcluster waited for a login: another command cut its power$"
    with pytest.raises(VclusterError, match=expected):
        run.check("a login")


def test_the_events_of_domains(hypervisor: Hypervisor) -> None:
    plan = samples.plan(2)
    for node in plan.nodes:
        hypervisor.define_domain(domain_xml(plan, node).replace('type="qemu"', 'type="test"'))
        hypervisor.start_domain(node.domain)
    received: queue.SimpleQueue[DomainEvent] = queue.SimpleQueue()
    hypervisor.events.listen(plan.head.uuid, received.put)
    hypervisor.stop_domain("lab.node2")
    hypervisor._connection.lookupByName("lab.node1").suspend()
    hypervisor._connection.lookupByName("lab.node1").resume()
    hypervisor.stop_domain("lab.node1")
    cut = DomainEvent(DIED, DESTROYED)
    assert [received.get(timeout=10) for _ in range(2)] == [DomainEvent(PAUSED), cut]
    assert [hypervisor.events.ends(node.uuid) for node in plan.nodes] == [(cut,), (cut,)]
    hypervisor.events.ignore(plan.head.uuid)
    hypervisor.start_domain("lab.node1")
    hypervisor.stop_domain("lab.node1")
    hypervisor.start_domain("lab.node2")
    hypervisor.events.listen(plan.nodes[1].uuid, received.put)
    hypervisor.stop_domain("lab.node2")
    assert received.get(timeout=10) == cut
    assert received.empty()
    assert hypervisor.events.ends(plan.head.uuid) == (cut, cut)


def test_unknown_elements_are_refused(hypervisor: Hypervisor) -> None:
    plan = samples.plan(1)
    xml = (
        domain_xml(plan, plan.head)
        .replace('type="qemu"', 'type="test"')
        .replace("<memory ", "<memori ")
        .replace("</memory>", "</memori>")
    )
    with pytest.raises(VclusterError, match="defining a domain"):
        hypervisor.define_domain(xml)


def test_a_domain_without_our_label_is_not_owned(hypervisor: Hypervisor) -> None:
    hypervisor.define_domain(
        "<domain type='test'><name>lab.node1</name><memory>1024</memory><os><type>hvm</type></os></domain>"
    )
    assert hypervisor.domains() == ()


def test_networks(hypervisor: Hypervisor) -> None:
    plan = samples.plan(1)
    network = plan.servers[0].network
    hypervisor.create_network(network_xml.network_xml("lab", samples.OWNER, network))
    (found,) = hypervisor.networks()
    assert (found.name, found.cluster, found.is_active) == ("vcluster-lab", "lab", True)
    for _ in range(2):
        hypervisor.stop_network("vcluster-lab")
        hypervisor.undefine_network("vcluster-lab")
    assert hypervisor.networks() == ()


def test_what_another_command_removes_during_a_listing_is_left_out(hypervisor: Hypervisor) -> None:
    planned = samples.plan(1).servers[0]
    assert planned.pool
    hypervisor.create_network(network_xml.network_xml("lab", samples.OWNER, planned.network))
    hypervisor.create_pool(network_xml.pool_xml(planned.pool))
    networks = hypervisor._connection.listAllNetworks()
    pools = hypervisor._connection.listAllStoragePools()
    assert [each.name for each in owned_resources("network", networks, samples.OWNER)] == ["vcluster-lab"]
    assert [each.name for each in owned_resources("pool", pools, samples.OWNER)] == ["vcluster-lab"]
    hypervisor.stop_network("vcluster-lab")
    hypervisor.undefine_network("vcluster-lab")
    hypervisor.destroy_pool("vcluster-lab")
    assert owned_resources("network", networks, samples.OWNER) == ()
    assert owned_resources("pool", pools, samples.OWNER) == ()


def test_a_network_with_our_name_but_another_uuid_is_not_owned(hypervisor: Hypervisor) -> None:
    foreign = replace(samples.plan(1).servers[0].network, uuid="11111111-2222-3333-4444-555555555555")
    hypervisor.create_network(network_xml.network_xml("lab", samples.OWNER, foreign))
    assert hypervisor.networks() == ()
    assert hypervisor.labels_without_domains("0ddba11") == frozenset()


def test_pools_and_volumes(hypervisor: Hypervisor) -> None:
    plan = samples.plan(1)
    pool = plan.servers[0].pool
    hypervisor.create_pool(network_xml.pool_xml(pool))
    hypervisor.create_volume(pool.name, network_xml.blank_xml("node1.seed.iso", kind="raw", size_bytes=4096))
    assert [found.cluster for found in hypervisor.pools()] == ["lab"]
    assert hypervisor.volumes(pool.name) == ("node1.seed.iso",)


def test_versions_are_reported(hypervisor: Hypervisor) -> None:
    assert set(hypervisor.versions()) == {"libvirt", "qemu"}


@pytest.mark.parametrize(
    "uri", ["test:///no/such/file.xml", "qemu+unix:///system?socket=/no/such/socket", "nonsense:///x"]
)
def test_an_absent_libvirt(uri: str) -> None:
    with pytest.raises((MissingError, VclusterError), match="connecting to") as raised:
        Hypervisor(uri, samples.OWNER)
    assert len(raised.value.message.splitlines()) == 1


def test_a_run_on_a_lost_server_names_the_server(hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait may be the first that notices it."""
    plan = samples.plan(1)
    hypervisor.define_domain(domain_xml(plan, plan.head).replace('type="qemu"', 'type="test"'))
    hypervisor.start_domain("lab.node1")
    monkeypatch.setattr(hypervisor, "name", "four")
    run = hypervisor.run_of("lab.node1", "node1")
    monkeypatch.setattr(Hypervisor, "is_alive", False)
    monkeypatch.setattr(run._domain, "UUID", lambda: b"short")  # libvirt answers with an error
    with pytest.raises(
        VclusterError, match=r"^four: the connection to libvirt broke while asking for the power of node1$"
    ):
        run.check("a login")


@pytest.mark.parametrize(("by", "is_ours"), [(samples.OWNER, True), ("ffffffff", False)])
def test_the_label_decides_about_a_domain_of_version_0_1_0(hypervisor: Hypervisor, by: str, is_ours: bool) -> None:
    plan = samples.plan(1)
    former = replace(plan.head, uuid=naming.uuid_for("domain", "lab", "node1"))
    hypervisor.define_domain(domain_xml(replace(plan, owner=by), former).replace('type="qemu"', 'type="test"'))
    assert [found.node for found in hypervisor.domains()] == ["node1"] * is_ours


def test_a_domain_of_another_controller_is_not_owned(hypervisor: Hypervisor) -> None:
    plan = make_plan(samples.spec(1), {"localhost": samples.ROOMY}, image=samples.DIRECT, owner="ffffffff")
    hypervisor.define_domain(domain_xml(plan, plan.head).replace('type="qemu"', 'type="test"'))
    assert hypervisor.domains() == ()


def test_the_states_of_domains(hypervisor: Hypervisor) -> None:
    plan = samples.plan(3)
    for node in plan.nodes:
        hypervisor.define_domain(domain_xml(plan, node).replace('type="qemu"', 'type="test"'))
    for name in ("lab.node2", "lab.node3"):
        hypervisor.start_domain(name)
    hypervisor._connection.lookupByName("lab.node3").suspend()
    states = {found.node: str(found.power) for found in hypervisor.domains()}
    assert states == {"node1": "stopped", "node2": "running", "node3": "paused (paused by a user of libvirt)"}
    assert {name: str(hypervisor.power_state(f"lab.{name}")) for name in states} == states
