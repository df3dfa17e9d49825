"""A create at the same time as another, or while another cluster is stopped, with libvirt's test driver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests import samples
from vcluster.adapters.libvirt.hypervisor import Hypervisor
from vcluster.agent.client import LocalAgent
from vcluster.errors import MissingError
from vcluster.fleet import observation
from vcluster.fleet.ledger import VERSION, ClusterFiles, Ledger
from vcluster.fleet.servers import Fleet, Server
from vcluster.model.facts import Facts
from vcluster.model.plan import Plan
from vcluster.model.spec import LOCAL
from vcluster.planning.planner import make_plan
from vcluster.render.domain_xml import domain_xml
from vcluster.util.deadline import Deadline

pytestmark = pytest.mark.libvirt

SEEN = {"disk_free_mib": 10**6, "cpus": 2, "routes": [], "hosts": [], "is_dns_free": True, "vnis": [7]}
FREE_MIB = 8192 - 1024  # of the machine, less what the test driver uses


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    node = tmp_path / "node.xml"
    node.write_text(
        "<node><cpu><mhz>2000</mhz><model>x86_64</model><active>2</active></cpu><memory>8388608</memory></node>"
    )
    with Hypervisor(f"test://{node}", samples.OWNER) as libvirt:
        libvirt.memory_free_mib = lambda: FREE_MIB  # type: ignore[method-assign]  # the test driver cannot tell
        yield Server("localhost", samples.OWNER, tmp_path, LocalAgent({"observe": lambda **_: SEEN}), libvirt=libvirt)


def write(root: Path, plan: Plan, state: str) -> ClusterFiles:
    files = ClusterFiles(root, plan.name)
    files.folder.mkdir(parents=True)
    files.write_ledger(Ledger(VERSION, state, "", plan))
    return files


def observed(server: Server, root: Path) -> Facts:
    fleet = Fleet({"localhost": server}, {})
    facts = observation.observe(fleet, [LOCAL], LOCAL, root, accel="tcg", kernel=None, deadline=Deadline(20))
    return facts["localhost"]


@pytest.mark.parametrize("state", ["creating", "ready"])
def test_the_vnis_of_a_cluster_without_tunnels_are_taken(server: Server, tmp_path: Path, state: str) -> None:
    """Its create makes them later, or a reboot has removed them."""
    plan = samples.shared_plan(LOCAL, samples.RED, count=4)
    write(tmp_path / "state", plan, state)
    own = {tunnel.vni for tunnel in plan.server("localhost").tunnels}
    assert own < {40, 41, 42, 43}
    assert observed(server, tmp_path / "state").vnis == {7, *own}


@pytest.mark.parametrize(
    ("state", "is_being_made", "running", "promised"),
    [("creating", True, 0, 3), ("creating", True, 1, 2), ("creating", False, 0, 0), ("ready", True, 0, 0)],
)
def test_the_memory_of_a_cluster_that_is_being_made_is_promised(
    server: Server, tmp_path: Path, state: str, is_being_made: bool, running: int, promised: int
) -> None:
    plan = samples.plan(3, memory_mib=1024)
    files = write(tmp_path / "state", plan, state)
    for node in plan.nodes[:running]:
        server.hypervisor.define_domain(domain_xml(plan, node).replace('type="qemu"', 'type="test"'))
        server.hypervisor.start_domain(node.domain)
    with files.locked() if is_being_made else nullcontext():
        found = observed(server, tmp_path / "state")
    assert found.memory_free_mib == FREE_MIB - promised * 1024


def test_the_second_of_two_creates_is_refused_for_lack_of_memory(server: Server, tmp_path: Path) -> None:
    spec = samples.spec(4, memory_mib=1024)
    first = make_plan(spec, {"localhost": observed(server, tmp_path / "state")}, image=samples.DIRECT, owner="00c0ffee")
    with write(tmp_path / "state", first, "creating").locked():
        facts = observed(server, tmp_path / "state")
    with pytest.raises(MissingError, match="MiB are free"):
        make_plan(spec, {"localhost": facts}, image=samples.DIRECT, owner="00c0ffee")
