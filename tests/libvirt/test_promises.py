"""A create or start at the same time as another, or while another cluster is stopped, with libvirt's test driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import samples
from tests.open_context import OpenContext
from vcluster.adapters.libvirt.hypervisor import Hypervisor
from vcluster.agent.client import LocalAgent
from vcluster.commands.clusters import lifecycle
from vcluster.commands.steps.deployment import Deployment
from vcluster.errors import MissingError, VclusterError
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

NO_FAULTS: dict[str, Any] = {"table": "", "elements": [], "held": []}
SEEN = {
    "disk_free_mib": 10**6, "cpus": 2, "processors": [0, 1], "tsc_mhz": 2000,
    "routes": [], "hosts": [], "is_dns_free": True, "vnis": [7],
}  # fmt: skip
FREE_MIB = 8192 - 1024  # of the machine, less what the test driver uses


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    node = tmp_path / "node.xml"
    node.write_text(
        "<node><cpu><mhz>2000</mhz><model>x86_64</model><active>2</active></cpu><memory>8388608</memory></node>"
    )
    with Hypervisor(f"test://{node}", samples.OWNER) as libvirt:
        libvirt.memory_free_mib = lambda: FREE_MIB  # type: ignore[method-assign]  # the test driver cannot tell
        answers = {name: lambda **_: [] for name in ("interfaces", "guards", "lacking_guards", "obstacles")}
        states = {
            "observe": lambda **_: SEEN,
            "read_faults": lambda **_: NO_FAULTS,
            "vcpu_times": lambda **_: {"t_ns": 0, "times": {}},
        }
        agent = LocalAgent(answers | states)
        yield Server("localhost", samples.OWNER, tmp_path, agent, libvirt=libvirt)


def write(root: Path, plan: Plan, state: str) -> ClusterFiles:
    files = ClusterFiles(root, plan.name)
    files.folder.mkdir(parents=True)
    files.write_ledger(Ledger(VERSION, state, "", plan))
    return files


def define(server: Server, plan: Plan, *, running: int) -> None:
    """The domains of the first nodes, which run."""
    for node in plan.nodes[:running]:
        server.hypervisor.define_domain(domain_xml(plan, node).replace('type="qemu"', 'type="test"'))
        server.hypervisor.start_domain(node.domain)


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
    define(server, plan, running=running)
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


@pytest.fixture
def context(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenContext:
    """A `start` that gets past the check of memory ends where it would start nodes. It makes no networks."""

    def end(*_: object) -> None:
        raise VclusterError("enough memory")

    monkeypatch.setattr(lifecycle.servers, "require_rights", lambda _: None)
    monkeypatch.setattr(Deployment, "create_networks", lambda _: None)
    monkeypatch.setattr(lifecycle.interfaces, "attach", lambda *_: None)
    monkeypatch.setattr(lifecycle, "_restore_nodes", end)
    return OpenContext(Fleet({"localhost": server}, {}), tmp_path / "state")


def stopped(context: OpenContext, plan: Plan) -> ClusterFiles:
    files = write(context.state_root, plan, "ready")
    files.write_keys(samples.keys(len(plan.nodes)))
    return files


COMMANDS = pytest.mark.parametrize("command", [lifecycle.start, lifecycle.repair])


@COMMANDS
@pytest.mark.parametrize(
    ("running", "message"),
    [
        (0, r"^the nodes need 10240 MiB of memory, 8 times 1216 .* a reserve of 512, but 7168 MiB are free$"),
        (2, r"^the nodes need 7808 MiB of memory, 6 times"),
        (3, r"^enough memory$"),
    ],
)
def test_nodes_are_started_only_with_enough_memory(
    context: OpenContext, server: Server, command: Callable[..., object], running: int, message: str
) -> None:
    plan = samples.plan(8, memory_mib=1024)
    stopped(context, plan)
    define(server, plan, running=running)
    with pytest.raises(VclusterError, match=message) as raised:
        command(context, "lab", timeout_s=20)
    assert raised.value.exit_code == (1 if running == 3 else MissingError.exit_code)
    assert raised.value.hint == (
        None if running == 3 else "free memory there, or stop another cluster: vcluster stop NAME"
    )


@COMMANDS
@pytest.mark.parametrize("does_start", [False, True])
def test_memory_that_another_command_is_about_to_use_is_not_free(
    context: OpenContext, server: Server, command: Callable[..., object], does_start: bool
) -> None:
    stopped(context, samples.plan(4, memory_mib=1024))
    other = stopped(context, replace(samples.plan(4, memory_mib=1024), name="other"))
    with ExitStack() as stack:
        stack.enter_context(other.locked())
        if does_start:
            stack.enter_context(other.starting_nodes())
        with pytest.raises(
            VclusterError, match=r"^the nodes need 5376 .*but 3072" if does_start else r"^enough memory$"
        ):
            command(context, "lab", timeout_s=20)
        free = FREE_MIB - (4 * 1024 if does_start else 0)
        assert observed(server, context.state_root).memory_free_mib == free
    assert not other.is_starting_nodes()
    assert observed(server, context.state_root).memory_free_mib == FREE_MIB


def test_a_start_holds_its_memory_until_it_ends(
    context: OpenContext, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = stopped(context, samples.plan(4, memory_mib=1024))
    free: list[int] = []

    def observe(_: Deployment) -> None:
        free.append(observed(server, context.state_root).memory_free_mib)
        raise VclusterError("enough memory")

    monkeypatch.setattr(Deployment, "create_networks", observe)
    with pytest.raises(VclusterError, match=r"^enough memory$"):
        lifecycle.start(context, "lab", timeout_s=20)  # type: ignore[arg-type]
    assert free == [FREE_MIB - 4 * 1024]
    assert not files.is_starting_nodes()
