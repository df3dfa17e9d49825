"""`clear` without a ledger, with libvirt's test driver: the disks that storage nodes share are not deleted unasked."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import samples
from vcluster.adapters.libvirt.hypervisor import Hypervisor
from vcluster.agent import operations
from vcluster.agent.client import LocalAgent
from vcluster.cli import common, main
from vcluster.fleet.ledger import VERSION, ClusterFiles
from vcluster.fleet.servers import Server, ServerRequest
from vcluster.model.naming import libvirt_name, uuid_for
from vcluster.model.plan import Pool
from vcluster.render import network_xml

pytestmark = pytest.mark.libvirt

ANSWERS = {"identity": {"has_rights": True, "is_root": True}, "sweep_snapshots": {"removed": [], "in_use": []}}
FOLDERS = ("files", "labelled_folders", "remove_empty_folders", "remove_folder")
QUIET = (
    "identity", "interfaces", "destroy_interfaces", "guards", "profiles", "remove_profiles", "remove_traces",
    "destroy_bridge", "addresses", "sweep_snapshots", "offload_labels", "restore_offloads",
    "drop_faults", "fault_records",
)  # fmt: skip
REFUSED = "vcluster: cannot ask whether to delete data: no terminal (-y "


class Connector:
    """This machine, and a server over SSH: each with its own libvirt and folder."""

    has_libvirt = True
    owner = samples.OWNER
    uri = "test:"

    def __init__(self, root: Path, libvirts: dict[str, Hypervisor]) -> None:
        self.root, self.libvirts = root, libvirts

    def server(self, name: str) -> Server:
        agent = LocalAgent(
            {name: lambda _name=name, **_: ANSWERS.get(_name, []) for name in QUIET}
            | {
                name: operations.OPERATIONS[name]
                for name in ("files", "labelled_folders", "remove_empty_folders", "remove_folder")
            }
        )
        session: Any = SimpleNamespace(is_alive=True) if name != "localhost" else None
        return Server(name, samples.OWNER, self.root / name, agent, session, libvirt=self.libvirts[name])

    @contextmanager
    def open(self, request: ServerRequest) -> Iterator[Server]:
        yield self.server(request.name)


@pytest.fixture
def connector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connector]:
    node = tmp_path / "node.xml"
    node.write_text(
        "<node><cpu><mhz>2000</mhz><model>x86_64</model><active>2</active></cpu><memory>8388608</memory></node>"
    )
    monkeypatch.setenv("VCLUSTER_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(common, "can_ask", lambda: False)
    with Hypervisor(f"test://{node}", samples.OWNER) as here, Hypervisor(f"test://{node}", samples.OWNER) as there:
        found = Connector(tmp_path, {"localhost": here, "server1": there})
        monkeypatch.setattr(common, "_connector", lambda *_: found)
        yield found


def make_data(connector: Connector, server: str, folder: str = "clusters/lab") -> Path:
    """A served disk in the folder of a server's pool, which is inactive, as after a reboot of the server."""
    place = connector.root / server / folder
    place.mkdir(parents=True)
    disk = place / "node2.data.qcow2"
    disk.write_text("a year of results")
    pool = network_xml.pool_xml(Pool(libvirt_name("lab"), uuid_for("pool", "lab", samples.OWNER), place))
    libvirt = connector.libvirts[server]._connection
    for each in libvirt.listAllStoragePools():
        each.destroy()
        each.undefine()
    libvirt.storagePoolDefineXML(pool)
    return disk


def clear(monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str]) -> int:
    monkeypatch.setattr(sys, "argv", ["vcluster", "clear", "lab", *arguments])
    return main._run()


@pytest.mark.parametrize(("server", "on"), [("localhost", ()), ("server1", ("--on", "server1"))])
@pytest.mark.parametrize("folder", ["clusters/lab", "elsewhere/lab"])
def test_a_script_needs_an_option_to_delete_data(
    connector: Connector,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    server: str,
    on: tuple[str, ...],
    folder: str,
) -> None:
    disk = make_data(connector, server, folder)
    assert clear(monkeypatch, on) == 4
    error = capsys.readouterr().err
    where = "" if server == "localhost" else f" on {server}"
    assert f"disk {disk}{where}: its data will be deleted\n" in error
    assert REFUSED in error
    assert [pool.name for pool in connector.libvirts[server].pools()] == ["vcluster-lab"]
    assert disk.read_text() == "a year of results"
    assert clear(monkeypatch, (*on, "-y")) == 0
    assert connector.libvirts[server].pools() == ()


def test_on_a_terminal_the_question_is_about_the_data(
    connector: Connector, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = make_data(connector, "server1")
    questions: list[str] = []
    monkeypatch.setattr(common, "can_ask", lambda: True)
    monkeypatch.setattr(common, "_confirm", lambda text: not questions.append(text) and "data" not in text)
    assert clear(monkeypatch, ["--on", "server1"]) == 1
    assert questions == ["Remove lab with all nodes and their disks?", "Delete this data?"]
    assert f"{disk} on server1: its data will be deleted\n" in capsys.readouterr().err
    assert disk.exists()


def test_without_data_there_is_no_question(connector: Connector, monkeypatch: pytest.MonkeyPatch) -> None:
    make_data(connector, "server1").unlink()
    assert clear(monkeypatch, ["--on", "server1"]) == 0
    assert connector.libvirts["server1"].pools() == ()


def test_a_cluster_whose_keys_are_lost_is_cleared(
    connector: Connector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_data(connector, "localhost")
    files = ClusterFiles(tmp_path / "state", "lab")
    samples.write_files(files, samples.plan(2))
    files.keys.unlink()
    files.identity.unlink()
    assert clear(monkeypatch, ["-y"]) == 0
    assert connector.libvirts["localhost"].pools() == ()
    assert not files.folder.exists()


def test_a_cluster_with_a_ledger_of_a_newer_version_is_cleared_from_a_server(
    connector: Connector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_data(connector, "server1").unlink()
    files = ClusterFiles(tmp_path / "state", "lab")
    samples.write_files(files, samples.plan(2))
    files.ledger.write_text(files.ledger.read_text().replace(f'"version": {VERSION}', f'"version": {VERSION + 1}'))
    assert files.is_of_another_version()
    assert clear(monkeypatch, ["--on", "server1", "-y"]) == 0
    assert connector.libvirts["server1"].pools() == ()
    assert not files.folder.exists()
