"""Whose a cluster is, with libvirt's test driver: users of one machine, a lost state folder, and an earlier version."""

from __future__ import annotations

import copy
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import samples
from vcluster.adapters.libvirt.hypervisor import Hypervisor
from vcluster.agent import operations
from vcluster.agent.client import LocalAgent
from vcluster.cli import common, main
from vcluster.commands.clusters import teardown
from vcluster.commands.steps import admission
from vcluster.errors import ConflictError
from vcluster.fleet import ledger
from vcluster.fleet.ledger import VERSION, ClusterFiles, Ledger
from vcluster.fleet.servers import Connector, Fleet, Server, ServerRequest
from vcluster.model import naming
from vcluster.model.keys import make_keys
from vcluster.model.plan import Plan
from vcluster.model.spec import ServerSpec
from vcluster.planning.planner import make_plan
from vcluster.render import network_xml
from vcluster.render.domain_xml import domain_xml

pytestmark = pytest.mark.libvirt

MACHINE = "4c4c4544-0000"
MINE = naming.maker_digits(MACHINE, os.geteuid())
OTHERS = naming.owner_id(naming.maker_digits(MACHINE, os.geteuid() + 1), "00c0ffee")
FORMER = naming.former_owner_id(MACHINE)
ANSWERS = {"identity": {"has_rights": True, "is_root": True}, "sweep_snapshots": {"removed": [], "in_use": []}}
QUIET = (
    "identity", "guards", "profiles", "remove_profiles", "remove_traces", "destroy_bridge",
    "addresses", "sweep_snapshots", "offload_labels", "restore_offloads",
    "drop_faults", "fault_records",
)  # fmt: skip

FOLDERS = ("files", "folders", "label_folder", "labelled_folders", "remove_empty_folders", "remove_folder")


def plan_of(owner: str, **options: object) -> Plan:
    return make_plan(samples.spec(1, **options), {"localhost": samples.ROOMY}, image=samples.DIRECT, owner=owner)


class Machine:
    """A server with the cluster `lab` of some owner: a bridge, a pool and a node."""

    def __init__(self, shared: Hypervisor, root: Path) -> None:
        self.shared, self.root, self.links = shared, root, list[dict[str, Any]]()

    def libvirt(self, owner: str) -> Hypervisor:
        """The same connection with another owner id: each connection of the test driver has its own world."""
        found = copy.copy(self.shared)
        found.owner = owner
        return found

    def make(self, owner: str) -> None:
        plan = plan_of(owner)
        bridge = plan.servers[0].bridges[0]
        self.links.append({"name": bridge.name, "alias": bridge.alias, "remote": "", "kind": "bridge", "master": ""})
        self.shared.create_pool(network_xml.pool_xml(plan.servers[0].pool))  # type: ignore[arg-type]
        self.shared.define_domain(domain_xml(plan, plan.head).replace('type="qemu"', 'type="test"'))

    def make_part(self, owner: str, kind: str) -> None:
        """One network, pool or folder of the cluster `lab`, and nothing else of it."""
        (planned,) = plan_of(owner, servers=(ServerSpec("localhost", path=self.root),)).servers
        assert planned.network
        assert planned.pool
        if kind == "network":
            self.shared.create_network(network_xml.network_xml("lab", owner, planned.network))
            return
        if kind in ("pool", "pool without its folder"):
            self.shared.create_pool(network_xml.pool_xml(planned.pool))
        if kind in ("pool", "folder"):
            planned.pool.path.mkdir(parents=True)
            operations.label_folder(str(planned.pool.path), naming.alias("lab", owner))

    def has(self, owner: str) -> tuple[bool, bool, bool]:
        """Whether the bridge, the pool and the node of this owner exist."""
        libvirt = self.libvirt(owner)
        bridges = [link for link in self.links if link["alias"] == naming.alias("lab", owner)]
        return bool(bridges), bool(libvirt.pools()), bool(libvirt.domains())

    def destroy(self, alias: str, names: object = None) -> list[str]:  # noqa: ARG002 - the agent passes it by name
        self.links = [link for link in self.links if link["alias"] != alias]
        return []

    def server(self, owner: str, cluster_folder: Path | None = None) -> Server:
        agent = LocalAgent(
            {name: lambda _name=name, **_: ANSWERS.get(_name, []) for name in QUIET}
            | {name: operations.OPERATIONS[name] for name in FOLDERS}
            | {"interfaces": lambda: self.links, "destroy_interfaces": self.destroy}
        )
        return Server("localhost", owner, self.root, agent, libvirt=self.libvirt(owner), cluster_folder=cluster_folder)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    node = tmp_path / "node.xml"
    node.write_text(
        "<node><cpu><mhz>2000</mhz><model>x86_64</model><active>2</active></cpu><memory>8388608</memory></node>"
    )
    uri = f"test://{node}"

    @contextmanager
    def open_here(connector: Connector, request: ServerRequest) -> Iterator[Server]:
        yield found.server(request.owner or connector.owner, request.cluster_folder)

    (tmp_path / "machine-id").write_text(f"{MACHINE}\n")
    monkeypatch.setattr(ledger, "MACHINE_ID", tmp_path / "machine-id")
    monkeypatch.setattr(Connector, "open", open_here)
    monkeypatch.setattr(common, "can_ask", lambda: False)
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", uri)
    monkeypatch.setenv("VCLUSTER_STATE_DIR", str(tmp_path / "state"))
    with Hypervisor(uri, "") as shared:
        found = Machine(shared, tmp_path)
        yield found


def vcluster(monkeypatch: pytest.MonkeyPatch, line: str) -> int:
    monkeypatch.setattr(sys, "argv", ["vcluster", *line.split()])
    return main._run()


def test_the_owner_id_of_a_state_folder_stays(tmp_path: Path) -> None:
    assert ledger.read_owner(tmp_path / "state") != ledger.read_owner(tmp_path / "state")
    assert not (tmp_path / "state").exists()
    made = ledger.make_owner(tmp_path / "state")
    assert ledger.make_owner(tmp_path / "state") == ledger.read_owner(tmp_path / "state") == made
    assert made != ledger.make_owner(tmp_path / "other")
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["owner"]


def test_a_command_that_was_killed_while_it_made_the_owner_id_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def die(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        with pytest.raises(KilledError):
            ledger.make_owner(tmp_path / "state")
    assert [path.name for path in (tmp_path / "state").iterdir()] == [".owner.new"]
    ClusterFiles(tmp_path / "state", "lab").destroy()
    assert not (tmp_path / "state").exists()
    ledger.make_owner(tmp_path / "state")
    ClusterFiles(tmp_path / "state", "lab").destroy()
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["owner"]


def test_commands_at_the_same_time_make_one_owner_id(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from vcluster.fleet import ledger; "
    code += "print(ledger.make_owner(Path(sys.argv[1])))"
    argv = [sys.executable, "-c", code, str(tmp_path / "state")]
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    made = {each.communicate(timeout=20)[0] for each in running}
    assert [each.returncode for each in running] == [0] * 6
    assert len(made) == 1


def test_a_state_folder_that_another_process_keeps_locked_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each user may lock a folder that each user may read."""
    monkeypatch.setattr(ledger, "OWNER_TIMEOUT_S", 0.5)
    held = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(ConflictError, match=f"^another process keeps {tmp_path} locked$"):
        ledger.make_owner(tmp_path)
    os.close(held)
    assert ledger.make_owner(tmp_path) == ledger.read_owner(tmp_path)


@pytest.mark.parametrize("command", ["clear lab -y", "clear lab --lost -y", "clear --all -y"])
def test_a_cluster_of_another_user_of_the_machine_stays(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    machine.make(OTHERS)
    assert vcluster(monkeypatch, command) == 0
    assert "nothing to clear" in capsys.readouterr().out
    assert machine.has(OTHERS) == (True, True, True)
    assert vcluster(monkeypatch, "list") == 0
    assert capsys.readouterr().out == "no clusters\n"
    assert machine.libvirt(ledger.read_owner(tmp_path / "state")).image_users(samples.DIRECT.digest) == {"lab"}


def test_a_create_is_refused_without_a_command_that_would_remove_the_cluster_of_another_user(
    machine: Machine, tmp_path: Path
) -> None:
    machine.make(OTHERS)
    own = ledger.make_owner(tmp_path / "state")
    fleet = Fleet({"localhost": machine.server(own)}, {})
    admission.refuse_existing(fleet, ClusterFiles(tmp_path / "state", "lab"))
    with pytest.raises(ConflictError, match=r"exists and does not belong to this cluster$") as raised:
        admission.refuse_foreign(fleet, plan_of(own))
    assert raised.value.hint == "use another --name"


def is_lost(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> bool:
    """Whether `list` shows the cluster `lab` as lost."""
    assert vcluster(monkeypatch, "list -o json") == 0
    return [(row["name"], row["is_lost"]) for row in json.loads(capsys.readouterr().out)] == [("lab", True)]


@pytest.mark.parametrize("owner", [naming.owner_id(MINE, "00c0ffee"), FORMER])
def test_a_cluster_of_a_lost_state_folder_needs_an_option(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], owner: str
) -> None:
    machine.make(owner)
    assert is_lost(monkeypatch, capsys)
    assert vcluster(monkeypatch, "clear lab -y") == 0
    printed = capsys.readouterr()
    assert "lab: nothing to clear" in printed.out
    assert "cluster lab is of another state folder, perhaps of another user" in printed.err
    assert machine.has(owner) == (True, True, True)
    machine.links.clear()  # as after a reboot
    assert vcluster(monkeypatch, "clear lab --lost -y") == 0
    assert capsys.readouterr().out == "lab: cleared\n"
    assert machine.has(owner) == (False, False, False)


@pytest.mark.parametrize(
    ("owner", "kind"),
    [
        *((naming.owner_id(MINE, "00c0ffee"), kind) for kind in ("network", "pool", "folder")),
        *((FORMER, kind) for kind in ("network", "pool", "folder", "pool without its folder")),
    ],
)
def test_one_part_that_is_left_of_a_lost_cluster_is_found(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], owner: str, kind: str
) -> None:
    machine.make_part(owner, kind)
    assert is_lost(monkeypatch, capsys)
    assert vcluster(monkeypatch, "clear lab -y") == 0
    assert "vcluster clear lab --lost" in capsys.readouterr().err
    assert is_lost(monkeypatch, capsys)
    assert vcluster(monkeypatch, "clear lab --lost -y") == 0
    assert capsys.readouterr().out == "lab: cleared\n"
    assert not is_lost(monkeypatch, capsys)
    libvirt = machine.libvirt(owner)
    assert (libvirt.networks(), libvirt.pools(), (machine.root / "clusters/lab").exists()) == ((), (), False)


@pytest.mark.parametrize("owner", [naming.owner_id(MINE, "00c0ffee"), FORMER])
def test_what_is_left_of_a_lost_cluster_is_found(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], owner: str
) -> None:
    machine.make(owner)
    assert vcluster(monkeypatch, "clear lab --lost --verify -y") == 0
    assert capsys.readouterr().out == "lab: cleared\nnothing left\n"
    machine.make(owner)
    monkeypatch.setattr(teardown, "remove", lambda _, __, files: files.destroy())
    assert vcluster(monkeypatch, "clear lab --lost --verify -y") == 1
    printed = capsys.readouterr()
    assert "left: domain lab.node1 of cluster lab" in printed.out
    assert printed.err.replace("sudo ", "").endswith(
        "3 items are left on this machine (vcluster clear lab --lost)\n"
    ), printed.err


@pytest.mark.parametrize("kind", ["network", "pool", "folder", "pool without its folder"])
def test_a_part_of_a_cluster_of_another_user_stays(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    machine.make_part(OTHERS, kind)
    assert not is_lost(monkeypatch, capsys)
    assert vcluster(monkeypatch, "clear lab --lost -y") == 0
    assert capsys.readouterr().out == "lab: nothing to clear\n"
    libvirt = machine.libvirt(OTHERS)
    assert libvirt.networks() or libvirt.pools() or (machine.root / "clusters/lab").exists()


@pytest.mark.parametrize("machine_id", ["", "\n", "uninitialized\n"])
def test_a_machine_without_a_machine_id_has_no_lost_clusters(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], machine_id: str
) -> None:
    """All machines without a machine-id have the same former owner id, so the cluster may be of another one."""
    former = naming.former_owner_id(machine_id)
    (machine.root / "machine-id").write_text(machine_id)
    machine.make(former)
    assert vcluster(monkeypatch, "list") == 0
    assert capsys.readouterr().out == "no clusters\n"
    assert vcluster(monkeypatch, "clear lab --lost -y") == 0
    assert capsys.readouterr().out == "lab: nothing to clear\n"
    assert machine.has(former) == (True, True, True)


def make_earlier(machine: Machine, state: Path) -> None:
    """A cluster of an earlier version, with its ledger in a state folder that has an owner id by now."""
    machine.make(FORMER)
    ledger.make_owner(state)
    files = ClusterFiles(state, "lab")
    files.folder.mkdir(parents=True)
    files.write_ledger(Ledger(VERSION, "ready", "", plan_of(FORMER)))


def test_a_cluster_with_a_ledger_of_an_earlier_version_is_not_lost(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make_earlier(machine, tmp_path / "state")
    assert vcluster(monkeypatch, "list -o json") == 0
    assert [(row["name"], row["nodes"], row["is_lost"]) for row in json.loads(capsys.readouterr().out)] == [
        ("lab", 1, False)
    ]
    assert vcluster(monkeypatch, "clear lab --lost -y") == 4
    assert "is in this state folder, so it is not lost" in capsys.readouterr().err
    assert vcluster(monkeypatch, "clear lab -y") == 0
    assert machine.has(FORMER) == (False, False, False)


@pytest.mark.parametrize("command", ["clear lab -y --verify", "clear --all -y --verify"])
def test_what_is_left_of_a_cluster_of_an_earlier_version_is_found(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    make_earlier(machine, tmp_path / "state")
    monkeypatch.setattr(teardown, "remove", lambda _, __, files: files.destroy())
    assert vcluster(monkeypatch, command) == 1
    assert "left: domain lab.node1 of cluster lab" in capsys.readouterr().out


NEWER = {
    "version": {"version": VERSION + 1},
    "unknown field": {"shape": 1},
    "another format": {"version": 9, "plan": {"owner": FORMER}},
}


@pytest.mark.parametrize("newer", NEWER)
def test_a_ledger_of_a_newer_version_is_refused_and_cleared(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, newer: str
) -> None:
    make_earlier(machine, tmp_path / "state")
    files = ClusterFiles(tmp_path / "state", "lab")
    written = json.loads(files.ledger.read_text())
    files.ledger.write_text(json.dumps(written | NEWER[newer]))
    before = files.ledger.read_text()
    for command in ("status", "start", "repair", "stop", "add 1", "check", "exec -- true", "ssh-config", "power on"):
        monkeypatch.setenv("VCLUSTER_NAME", "lab")
        assert vcluster(monkeypatch, command) == 1
        assert capsys.readouterr().err == (
            "vcluster: cluster lab was made by another version of vcluster, and this version cannot read its ledger "
            "(use that version, or vcluster clear lab)\n"
        )
    assert vcluster(monkeypatch, "local create -n 1 --name lab") != 0
    assert files.ledger.read_text() == before
    assert machine.has(FORMER) == (True, True, True)
    assert vcluster(monkeypatch, "clear lab -y --verify") == 0
    assert machine.has(FORMER) == (False, False, False)
    assert not files.folder.exists()


@pytest.mark.parametrize("damage", ["another version", "lost"])
def test_a_cluster_of_an_earlier_version_whose_ledger_cannot_be_read_is_cleared(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str
) -> None:
    machine.make(FORMER)
    ledger.make_owner(tmp_path / "state")
    files = ClusterFiles(tmp_path / "state", "lab")
    files.folder.mkdir(parents=True)
    if damage == "lost":
        files.write_keys(make_keys("lab", ("node1",), label=naming.alias("lab", FORMER)))
    else:
        files.write_ledger(Ledger(1, "ready", "", plan_of(FORMER)))
    assert vcluster(monkeypatch, "clear lab -y") == 0
    assert machine.has(FORMER) == (False, False, False)
    assert not files.folder.exists()


def test_a_folder_with_the_right_label_is_not_written_to(tmp_path: Path) -> None:
    """Its file system may be full: then nodes are paused, and a start that comes too early must say so."""
    label = naming.alias("lab", OTHERS)
    operations.label_folder(str(tmp_path), label)
    before = (tmp_path / ".vcluster-owner").stat()
    operations.label_folder(str(tmp_path), label)
    assert os.path.samestat((tmp_path / ".vcluster-owner").stat(), before)
    operations.label_folder(str(tmp_path), naming.alias("lab", FORMER))
    assert (tmp_path / ".vcluster-owner").read_text() == f"{naming.alias('lab', FORMER)}\n"


def make_folder(machine: Machine) -> Path:
    """A folder with data that has the place of a cluster's folder."""
    data = machine.root / "clusters" / "lab" / "thesis" / "results.csv"
    data.parent.mkdir(parents=True)
    data.write_text("a year of results")
    return data


@pytest.mark.parametrize("command", ["clear lab -y", "clear lab --lost -y"])
def test_a_folder_that_only_has_the_place_of_a_cluster_stays(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    data = make_folder(machine)
    operations.label_folder(str(machine.root / "clusters" / "lab"), naming.alias("lab", OTHERS))
    assert vcluster(monkeypatch, command) == 0
    assert capsys.readouterr().out == "lab: nothing to clear\n"
    assert data.read_text() == "a year of results"
    (machine.root / "clusters/lab/.vcluster-owner").unlink()
    assert vcluster(monkeypatch, command) == 0
    assert data.read_text() == "a year of results"


def test_a_create_is_refused_when_the_folder_exists(machine: Machine, tmp_path: Path) -> None:
    make_folder(machine)
    own = ledger.make_owner(tmp_path / "state")
    fleet = Fleet({"localhost": machine.server(own)}, {})
    admission.refuse_existing(fleet, ClusterFiles(tmp_path / "state", "lab"))
    expected = f"^folder {machine.root}/clusters/lab exists and does not belong to this cluster$"
    with pytest.raises(ConflictError, match=expected):
        admission.refuse_foreign(fleet, plan_of(own, servers=(ServerSpec("localhost", path=machine.root),)))


@pytest.mark.parametrize("proof", ["label", "ledger"])
def test_our_folder_without_a_pool_is_removed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, proof: str
) -> None:
    data = make_folder(machine)
    owner = ledger.make_owner(tmp_path / "state") if proof == "label" else FORMER
    if proof == "label":
        operations.label_folder(str(machine.root / "clusters" / "lab"), naming.alias("lab", owner))
    else:
        files = ClusterFiles(tmp_path / "state", "lab")
        files.folder.mkdir(parents=True)
        plan = plan_of(owner, servers=(ServerSpec("localhost", path=machine.root),))
        files.write_ledger(Ledger(VERSION, "ready", "", plan))
    assert vcluster(monkeypatch, "clear lab -y") == 0
    assert not data.exists()
    assert not (machine.root / "clusters").exists()


def test_the_target_of_a_link_in_the_place_of_our_folder_stays(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = make_folder(machine)
    operations.label_folder(str(data.parent.parent), naming.alias("lab", ledger.make_owner(tmp_path / "state")))
    place = machine.root / "clusters" / "lab"
    place.rename(tmp_path / "other")
    place.symlink_to(tmp_path / "other")
    assert vcluster(monkeypatch, "clear lab -y") == 4
    printed = capsys.readouterr().err
    assert f"{place} is a link, so vcluster does not remove the folder {tmp_path}/other" in printed
    assert (tmp_path / "other/thesis/results.csv").read_text() == "a year of results"


def test_a_label_is_the_last_file_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A removal that is interrupted can then be repeated."""
    for name in ("a", "z", "sub"):
        (tmp_path / "clusters/lab" / name).mkdir(parents=True)
        (tmp_path / "clusters/lab" / name / "file").touch()
        (tmp_path / "clusters/lab" / f"{name}.qcow2").touch()
    operations.label_folder(str(tmp_path / "clusters/lab"), "vcluster:lab:00000000")
    (tmp_path / "clusters/link").symlink_to(tmp_path / "clusters/lab/.vcluster-owner")
    seen: list[list[str]] = []
    remove = shutil.rmtree

    def watch(path: str, **more: Any) -> None:
        if str(path).endswith("/lab"):
            seen.append([entry.name for entry in Path(path).iterdir()])
        remove(path, **more)

    monkeypatch.setattr(shutil, "rmtree", watch)
    assert operations.labelled_folders(str(tmp_path / "clusters")) == {"lab": "vcluster:lab:00000000"}
    operations.remove_folder(str(tmp_path / "clusters/lab"))
    assert seen == [[".vcluster-owner"]]
    assert not (tmp_path / "clusters/lab").exists()


def test_a_damaged_owner_id_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("VCLUSTER_STATE_DIR", str(tmp_path))
    (tmp_path / "owner").write_text("nonsense\n")
    assert vcluster(monkeypatch, "list") == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"vcluster: {tmp_path}/owner does not contain an owner id (remove this file")
