"""The tunnels that doctor tries are removed again; nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import samples
from vcluster.agent.client import LocalAgent
from vcluster.commands.servers import doctor
from vcluster.fleet.context import Context
from vcluster.fleet.servers import Server, ServerRequest
from vcluster.images.store import ImageStore
from vcluster.model import naming
from vcluster.model.plan import Plan
from vcluster.model.spec import LOCAL, Login, ServerSpec, Spec
from vcluster.util.events import Reporter

SPEC = Spec(
    name="lab", mode="remote", node_names=("node1",), servers=(LOCAL,), switch=ServerSpec("server2", Login("server2"))
)


class Connector:
    """Opens servers with the tunnels of the user's own cluster `doctor`. Interfaces are only listed here."""

    has_libvirt = True
    owner = samples.OWNER

    def __init__(self) -> None:
        own = {"name": "vx-doctor-1", "alias": naming.alias("doctor", samples.OWNER)}
        self.interfaces: dict[str, list[dict[str, Any]]] = {name: [own] for name in ("localhost", "server2")}

    @contextmanager
    def open(self, request: ServerRequest) -> Iterator[Server]:
        found = self.interfaces[request.name]

        def destroy(alias: str, names: object = None) -> None:  # noqa: ARG001 - the agent passes it by name
            found[:] = [each for each in found if each["alias"] != alias]

        operations = {
            "obstacles": lambda port: [],  # noqa: ARG005 - the agent passes it by name
            "guards": lambda prefix: [],  # noqa: ARG005
            "guard": lambda **_: [],
            "profiles": list,
            "create_interfaces": lambda specs: found.extend(specs),  # noqa: PLW0108 - it is passed by name
            "destroy_interfaces": destroy,
        }
        yield Server(request.name, samples.OWNER, request.storage, LocalAgent(operations))

    def labels(self) -> list[str]:
        return sorted(each["alias"] for found in self.interfaces.values() for each in found)


def test_trials_at_the_same_time_leave_each_other_and_a_cluster_of_that_name_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connector = Connector()
    context = Context(tmp_path / "state", connector, ImageStore(tmp_path / "images"), Reporter())  # type: ignore[arg-type]
    own, trials, vnis = connector.labels(), [], []

    def prove(_: object, plan: Plan) -> None:
        """Frames pass. While the first trial sends its frames, another doctor does all of its trial."""
        trials.append(plan.name)
        vnis.append(plan.servers[0].tunnels[0].vni)
        before = connector.labels()
        assert set(own) < set(before)
        if len(trials) == 1:
            assert [found.level for found in doctor.check_servers(context, SPEC)] == ["ok"]
            assert connector.labels() == before

    monkeypatch.setattr(doctor.observation, "observe", lambda *_, **__: samples.shared_facts(SPEC))
    monkeypatch.setattr(doctor.tunnels, "prove", prove)
    assert [found.level for found in doctor.check_servers(context, SPEC)] == ["ok"]
    assert connector.labels() == own
    assert len({*trials}) == len({*vnis}) == 2


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
