"""Faults of nodes on their server: records, the order in which a fault ends, and what an interrupt leaves."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from vcluster.adapters.network.faults import fault_table
from vcluster.adapters.network.nftables_messages import NoTablesError
from vcluster.adapters.network.shaping import link_lock
from vcluster.adapters.process import Completed
from vcluster.agent.faults import fault_holder, fault_operations, node_faults
from vcluster.agent.faults.node_faults import FaultRecord
from vcluster.agent.survey import libvirt_records
from vcluster.errors import ConflictError, DeadlineError, SeveralErrors, VclusterError
from vcluster.model.spec import FLAP, PAUSE, UNPLUG

MAC, TABLE = "02:00:00:00:00:01", "vcluster-lab-faults"
XML = f"<domain><devices><interface type='bridge'><mac address='{MAC}'/></interface></devices></domain>"


class Libvirt:
    """The virsh of a server: it knows the state of its domains, and changes their links."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "qemu"
        self.folder.mkdir(parents=True)
        self.calls: list[str] = []
        self.refused: set[str] = set()  # beginnings of calls that fail
        self.late: list[Callable[[], object]] = []  # calls that it carries out after their virsh was killed
        self.definitions_changed: list[str] = []

    def set(self, domain: str, state: str, *, link: str = "up", pid: int | None = None) -> None:
        """A domain that has this state; without one it is off."""
        if not state:
            (self.folder / f"{domain}.xml").unlink()
            return
        root = ET.fromstring(XML)
        interface = root.find("devices/interface")
        assert interface is not None
        ET.SubElement(interface, "link", state=link)
        status = ET.Element("domstatus", state=state, pid=str(pid or os.getpid()))
        status.append(root)
        (self.folder / f"{domain}.xml").write_bytes(ET.tostring(status))

    def state(self, domain: str) -> tuple[str, str]:
        found = libvirt_records.run_of(domain)
        return ("off", "") if found is None else (found.state, "down" if MAC in found.unplugged else "up")

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", **options: Any) -> Completed:
        assert options["has_own_session"], "a Ctrl-C must not reach virsh"
        command, domain = argv[len(node_faults.VIRSH) :][:2]
        self.calls.append(f"{command} {domain}")
        while self.late:
            self.late.pop(0)()
        if any(f"{command} {domain}".startswith(each) for each in self.refused):
            raise VclusterError(f"virsh failed: {command} {domain}")
        if command == "dumpxml":
            return Completed(0, XML, "")
        if command == "update-device":
            if self.state(domain)[0] == "off":
                raise VclusterError("virsh failed: domain is not running")
            link = ET.fromstring(stdin).find("link")
            assert link is not None
            self.set(domain, self.state(domain)[0], link=link.get("state", ""))
        elif command == "domif-setlink":
            if self.state(domain)[0] == "off":
                self.definitions_changed.append(domain)
            else:
                self.set(domain, self.state(domain)[0], link=argv[-1])
        else:
            self.set(domain, {"suspend": "paused", "resume": "running"}[command])
        return Completed(0, "", "")


@pytest.fixture
def libvirt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Libvirt]:
    monkeypatch.setattr(node_faults, "FOLDER", tmp_path / "run/vcluster/faults")
    monkeypatch.setattr(link_lock, "PATH", tmp_path / "run/vcluster/links.lock")
    monkeypatch.setattr(libvirt_records, "RUNNING", tmp_path / "libvirt")
    found = Libvirt(tmp_path / "libvirt")
    monkeypatch.setattr(node_faults, "run", found.run)
    for node in ("node1", "node2"):
        found.set(f"lab.{node}", "running")
    yield found
    assert not link_lock.PATH.exists()


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that were ended."""
    found: list[int] = []

    def end(pid: int, *_: object) -> bool:
        found.append(pid)
        return True

    monkeypatch.setattr(node_faults, "has_ended", end)
    return found


def paused(node: str = "node1", *, is_held: bool = True) -> FaultRecord:
    """A node that a fault paused; this process holds the fault."""
    own = node_faults.identity_of(os.getpid())
    record = FaultRecord(PAUSE, "label", node, f"lab.{node}", MAC, qemu=own, holder=own if is_held else (0, 0))
    node_faults.apply(record)
    return record


def recorded() -> list[FaultRecord]:
    return list(node_faults.records("label"))


def heal(nodes: list[str] | None = None, table: str = "") -> None:
    fault_operations.heal_faults("label", nodes, table, [])


# The end of a fault


def test_a_fault_that_libvirt_does_not_end_keeps_its_process(libvirt: Libvirt, ended: list[int]) -> None:
    record = paused()
    libvirt.refused = {"resume"}
    with pytest.raises(VclusterError, match=r"^virsh failed: resume lab.node1$"):
        heal()
    assert (recorded(), ended) == ([record], [])
    libvirt.refused = set()
    heal()
    assert (recorded(), ended, libvirt.state("lab.node1")) == ([], [os.getpid()], ("running", "up"))


def test_heal_ends_all_other_faults_when_one_does_not_end(
    libvirt: Libvirt, ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [paused(node) for node in ("node1", "node2")]
    removed: list[str] = []
    monkeypatch.setattr(fault_table, "remove_all", removed.append)
    libvirt.refused = {"resume lab.node1"}
    with pytest.raises(VclusterError, match=r"lab\.node1"):
        heal(table=TABLE)
    assert removed == [TABLE]
    assert recorded() == records[:1]
    assert libvirt.state("lab.node2") == ("running", "up")
    paused("node2")
    libvirt.refused = {"resume"}
    with pytest.raises(SeveralErrors) as caught:
        heal()
    assert len(caught.value.errors) == 2
    assert ended == [os.getpid()]


def test_the_table_of_a_kernel_without_tables_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(subject: str) -> None:
        raise NoTablesError(f"{subject}: the kernel has no nf_tables")

    monkeypatch.setattr(fault_table, "open_socket", refuse)
    fault_table.remove_all(TABLE)


def test_the_end_of_a_flap_removes_what_the_kernel_still_drops(
    libvirt: Libvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[tuple[Any, ...]] = []
    monkeypatch.setattr(fault_table, "remove_ports", lambda *given, kinds: removed.append((*given, kinds)))
    node_faults.write(FaultRecord(FLAP, "label", "node1"))
    fault_operations.end_node_fault(FLAP, "label", "node1", TABLE, "vp-lab-1")
    assert removed == [(TABLE, ["vp-lab-1"], [FLAP])]
    assert recorded() == libvirt.calls == []


# The begin of a fault


@pytest.mark.parametrize("error", [KeyboardInterrupt, DeadlineError])
def test_an_interrupted_begin_leaves_no_fault(
    libvirt: Libvirt, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """libvirt carries the call out after its virsh was killed."""

    def run(argv: Sequence[str], **given: Any) -> Completed:
        if "suspend" in argv:
            libvirt.late.append(lambda: libvirt.set("lab.node1", "paused"))
            raise error("timed out")
        return libvirt.run(argv, **given)

    monkeypatch.setattr(node_faults, "run", run)
    with pytest.raises(error):
        fault_operations.begin_node_fault(PAUSE, "label", "node1", "lab.node1", MAC, None)
    assert (libvirt.late, recorded()) == ([], [])
    assert libvirt.state("lab.node1") == ("running", "up")


def test_a_begin_that_libvirt_does_not_take_back_keeps_its_record(
    libvirt: Libvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(argv: Sequence[str], **given: Any) -> Completed:
        libvirt.run(argv, **given)
        raise DeadlineError("timed out")

    monkeypatch.setattr(node_faults, "run", run)
    libvirt.refused = {"resume"}
    with pytest.raises(DeadlineError):
        fault_operations.begin_node_fault(PAUSE, "label", "node1", "lab.node1", MAC, None)
    assert [record.kind for record in recorded()] == [PAUSE]


def test_unplug_and_plug_change_only_the_node_that_runs(libvirt: Libvirt, ended: list[int]) -> None:
    fault_operations.begin_node_fault(UNPLUG, "label", "node1", "lab.node1", MAC, None)
    assert libvirt.state("lab.node1") == ("running", "down")
    heal()
    assert libvirt.state("lab.node1") == ("running", "up")
    record = node_faults.begun(FaultRecord(UNPLUG, "label", "node1", "lab.node1", MAC))
    libvirt.set("lab.node1", "")
    with pytest.raises(VclusterError, match="domain is not running"):
        node_faults.apply(record)
    assert (libvirt.definitions_changed, recorded(), ended) == ([], [], [])


def test_a_node_that_was_off_gets_the_fault_again(libvirt: Libvirt, ended: list[int]) -> None:
    """`show` prints no fault of it, although the process of the one before still waits."""
    record = paused()
    with pytest.raises(ConflictError, match=r"^node1 has this fault already: pause$"):
        node_faults.begun(record)
    libvirt.set("lab.node1", "running", pid=1)
    fault_operations.begin_node_fault(PAUSE, "label", "node1", "lab.node1", MAC, None)
    assert ended == [os.getpid()]
    assert [each.qemu[0] for each in recorded()] == [1]


# Records


FIELDS = {"kind": PAUSE, "label": "label", "node": "node2", "qemu": [0, 0], "holder": [0, 0]}


@pytest.mark.parametrize(
    "fields",
    [
        {**FIELDS, "port": "vp-lab-2"},
        {name: value for name, value in FIELDS.items() if name != "node"},
        {**FIELDS, "qemu": 5},
        {**FIELDS, "holder": [1, 2, 3]},
        {**FIELDS, "label": "other"},
        {**FIELDS, "ends_s": "soon"},
        [],
        5,
    ],
)
def test_a_record_of_another_version_is_left_out_and_removed(libvirt: Libvirt, ended: list[int], fields: Any) -> None:
    record = paused()
    (record.path.parent / "pause-node2.json").write_text(json.dumps(fields))
    assert recorded() == [record]
    assert [each.node for each in node_faults.read("label")] == ["node1"]
    fault_operations.drop_faults("label")
    assert not node_faults.FOLDER.exists()
    assert ended == [os.getpid()]
    assert libvirt.state("lab.node1") == ("paused", "up")


def test_a_record_without_optional_fields_is_read(libvirt: Libvirt) -> None:
    record = FaultRecord(PAUSE, "label", "node2")
    node_faults.write(record)
    record.path.write_text(json.dumps({name: FIELDS[name] for name in ("kind", "label", "node")}))
    assert recorded() == [record]
    heal()
    assert recorded() == libvirt.calls == []


# The lock


def is_free() -> bool:
    """Whether another process could get the lock."""
    descriptor = os.open(link_lock.PATH, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def test_the_lock_that_is_handed_over_is_held_until_the_other_process_releases_it(libvirt: Libvirt) -> None:
    with link_lock.handing_over() as lock:
        inherited = os.dup(lock)
    with link_lock.inherited(inherited):
        assert not is_free()
    assert not link_lock.PATH.exists()
    with link_lock.locked():
        assert not is_free()
    assert libvirt.calls == []


def test_faults_are_dropped_under_the_lock_without_a_record_too(
    libvirt: Libvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that begins a fault may not have written its record yet."""
    free: list[bool] = []
    monkeypatch.setattr(node_faults, "remove_rest", lambda _: free.append(is_free()))
    link_lock.PATH.parent.mkdir(parents=True)
    fault_operations.drop_faults("label")
    assert free == [False]
    assert libvirt.calls == []


def test_a_flap_ends_when_its_record_is_removed(libvirt: Libvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it would make the table of a cluster that was removed."""
    cuts: list[str] = []

    def add(table: str, *_: object) -> None:
        cuts.append(table)
        if len(cuts) == 2:
            node_faults.forget(record)

    record = FaultRecord(FLAP, "label", "node1")
    monkeypatch.setattr(fault_table, "add", add)
    monkeypatch.setattr(fault_holder, "_answer", lambda _: None)
    with link_lock.handing_over() as lock:
        inherited = os.dup(lock)
    fault_holder._flap(record, TABLE, "vp-lab-1", [(0.001, 0.001)] * 5, inherited)
    assert cuts == [TABLE, TABLE]
    assert libvirt.calls == []


def test_a_process_that_ends_late_leaves_the_record_of_a_later_fault(
    libvirt: Libvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node was off meanwhile, and another fault has paused it."""
    later = FaultRecord(PAUSE, "label", "node1", "lab.node1", MAC, qemu=(1, 2))

    def pause_again(_: float) -> None:
        libvirt.set("lab.node1", "paused", pid=1)
        node_faults.write(later)

    monkeypatch.setattr(fault_holder, "_answer", lambda _: None)
    monkeypatch.setattr(fault_holder, "_wait_until", pause_again)
    with link_lock.handing_over() as lock:
        inherited = os.dup(lock)
    fault_holder._hold(FaultRecord(PAUSE, "label", "node1", "lab.node1", MAC), 5.0, inherited)
    assert recorded() == [later]
    assert libvirt.calls == ["suspend lab.node1"]
