"""The tunnels that doctor tries have the name of a cluster, which a user may have too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import samples
from vcluster.agent.client import LocalAgent
from vcluster.commands.servers import doctor
from vcluster.commands.servers.doctor import Finding
from vcluster.fleet.context import Context
from vcluster.fleet.servers import Server, ServerRequest
from vcluster.images.store import ImageStore
from vcluster.model import naming
from vcluster.model.spec import LOCAL, Login, ServerSpec, Spec
from vcluster.util.events import Reporter

SPEC = Spec(
    name="lab", mode="remote", node_names=("node1",), servers=(LOCAL,), switch=ServerSpec("server2", Login("server2"))
)


class Connector:
    """Opens servers on which only the user's own cluster `doctor` exists; every other operation is an error."""

    has_libvirt = True
    owner = samples.OWNER

    @contextmanager
    def open(self, request: ServerRequest) -> Iterator[Server]:
        bridge = {"name": "vc-doctor", "alias": naming.alias("doctor", samples.OWNER)}
        operations = {
            "obstacles": lambda port: [],  # noqa: ARG005 - the agent passes it by name
            "guards": lambda prefix: [],  # noqa: ARG005
            "profiles": list,
            "interfaces": lambda: [bridge],
        }
        yield Server(request.name, samples.OWNER, request.storage, LocalAgent(operations))


def test_a_cluster_with_the_name_of_the_trial_is_left_alone(tmp_path: Path) -> None:
    context = Context(tmp_path / "state", Connector(), ImageStore(tmp_path / "images"), Reporter())  # type: ignore[arg-type]
    assert doctor.check_servers(context, SPEC) == (
        Finding(
            "warning",
            "tunnel localhost to server2",
            "not tried: localhost already has parts of a cluster with the name doctor, which the test uses",
            "vcluster clear doctor",
        ),
    )


def test_versions_older_than_those_of_debian_12_are_errors() -> None:
    assert list(doctor._old({"libvirt": "9.0.0", "qemu": "7.2.22"})) == []
    assert list(doctor._old({"libvirt": "11.3.0", "qemu": "10.0.13"})) == []
    libvirt, qemu = doctor._old({"libvirt": "8.10.0", "qemu": "6.2.0"})
    assert (libvirt.level, libvirt.what, qemu.what) == ("error", "libvirt", "qemu")
    assert qemu.detail == "6.2.0 is too old: vcluster needs 7.2 or newer"


@pytest.mark.parametrize("obstacle", ["", "clones were never tried under SELinux"])
def test_a_server_that_can_make_no_clones(obstacle: str) -> None:
    asked = []

    def clone_obstacle(root: str) -> str:
        asked.append(root)
        return obstacle

    server = Server("localhost", samples.OWNER, Path("/storage"), LocalAgent({"clone_obstacle": clone_obstacle}))
    found = [(each.level, each.what, each.detail) for each in doctor._clones(server)]
    warning = ("warning", "clones", f"none can be made, so nodes boot: {obstacle}")
    assert found == ([warning] if obstacle else [])
    assert asked == ["/storage/snapshots"]
