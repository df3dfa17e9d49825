"""Faults of nodes that have records on this server: nodes that are paused or unplugged, and links that flap.

A link whose rates change over time has a record too, and the same process.

A record is a file below /run, so no record outlives a boot of the server. A process holds the end of a fault that has
one (fault_holder.py). It is independent of the controller and of the agent.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from vcluster.adapters.network.shaping import link_lock
from vcluster.adapters.process import has_ended, python, run, started
from vcluster.agent import request_loop
from vcluster.agent.survey import libvirt_records
from vcluster.errors import ConflictError, MissingError, VclusterError
from vcluster.model import json_text, json_types
from vcluster.model.spec import FLAP, PAUSE, TRACE, UNPLUG
from vcluster.model.survey_answer import HeldFault

FOLDER = Path("/run/vcluster/faults")
VIRSH = ("virsh", "--quiet", "--connect", "qemu:///system")
VIRSH_TIMEOUT_S = 30.0
KILL_AFTER_S = 10.0
_OF_LINKS = (FLAP, TRACE)  # what the process of the record does; libvirt has no part in it
_PROGRAM = """
from vcluster.adapters.network import load_less_of_pyroute2
load_less_of_pyroute2()
from vcluster.agent.faults import fault_holder
fault_holder.main()
"""


@dataclass(frozen=True, slots=True)
class FaultRecord:
    """A fault of a node. `mac` is that of its lab0; a kind that needs no domain and no MAC has empty ones.

    `qemu` is the process of the node at the begin, `holder` the process that ends the fault, each with its start; the
    numbers are 0 without one. `ends_s` is on the monotonic clock, and None without an end.
    """

    kind: str
    label: str
    node: str
    domain: str = ""
    mac: str = ""
    qemu: tuple[int, int] = (0, 0)
    holder: tuple[int, int] = (0, 0)
    ends_s: float | None = None

    @property
    def path(self) -> Path:
        """Its file."""
        return FOLDER / self.label / f"{self.kind}-{self.node}.json"

    @property
    def is_held(self) -> bool:
        """Whether the process that ends it is there."""
        return is_alive(self.holder)

    @property
    def is_active(self) -> bool:
        """Whether the node has the fault now: it ends when the node is off, or when it was ended by hand."""
        if self.kind in _OF_LINKS:
            return self.is_held
        found = libvirt_records.run_of(self.domain)
        if found is None or not self.is_same_run:
            return False
        return found.state == "paused" if self.kind == PAUSE else self.mac in found.unplugged

    @property
    def is_same_run(self) -> bool:
        """Whether the node has not been off since the begin."""
        found = libvirt_records.run_of(self.domain)
        return found is not None and found.pid == self.qemu[0] and is_alive(self.qemu)


def is_alive(process: tuple[int, int]) -> bool:
    """Whether the process with this number and start is there."""
    return process[0] > 0 and started(process[0]) == process[1]


def identity_of(pid: int) -> tuple[int, int]:
    """The number and the start of a process."""
    return pid, started(pid) or 0


# Records


def write(record: FaultRecord) -> None:
    """Write a record. A reader sees the one before, or this one."""
    record.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = record.path.with_suffix(".new")
    draft.write_text(json.dumps(asdict(record)))
    draft.replace(record.path)


def forget(record: FaultRecord) -> None:
    """Remove a record, and the folders that are empty."""
    record.path.unlink(missing_ok=True)
    _remove_empty_folders(record.label)


def remove_rest(label: str) -> None:
    """Remove the files that are no records, and the folders of records that are empty."""
    for path in (FOLDER / label).glob("*"):
        path.unlink(missing_ok=True)
    _remove_empty_folders(label)


def has_records(label: str) -> bool:
    """Whether there may be records of a cluster."""
    return (FOLDER / label).exists()


def can_read(label: str) -> bool:
    """Whether there may be records of a cluster that this user can read."""
    return os.access(FOLDER / label, os.R_OK)


def _remove_empty_folders(label: str) -> None:
    with suppress(OSError):
        for folder in (FOLDER / label, FOLDER, FOLDER.parent):
            folder.rmdir()


def records(label: str) -> Iterator[FaultRecord]:
    """The records of a cluster, given by its owner label. Those that this version does not know are left out."""
    for path in sorted((FOLDER / label).glob("*.json")):
        record = _read_record(path)
        if record and record.path == path:
            yield record


def _read_record(path: Path) -> FaultRecord | None:
    try:
        return record_of(json_text.parse(path.read_bytes()))
    except (OSError, ValueError):
        return None


def record_of(fields: object) -> FaultRecord:
    """The record from JSON. Raises ValueError if the fields are not those of this version."""
    wrong = "it is not an object"
    if not isinstance(fields, dict) or (wrong := json_types.require_fields(FaultRecord, fields, "the record")):
        raise ValueError(wrong)
    found: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return FaultRecord(**found)


def is_recorded(record: FaultRecord) -> bool:
    """Whether the record is there: another process may have removed it, or replaced it by a newer one."""
    return _read_record(record.path) == record


def labels() -> list[tuple[str, str]]:
    """The owner label and the name of each record; none for users who cannot read them."""
    with suppress(OSError):
        return [(path.parent.name, path.stem) for path in sorted(FOLDER.glob("*/*.json"))]
    return []


def read(label: str) -> list[HeldFault]:
    """The records of a cluster, with what is left of the faults."""
    return [
        HeldFault(each.kind, each.node, each.is_active, each.is_held, _left_s(each) if each.is_held else None)
        for each in records(label)
    ]


def _left_s(record: FaultRecord) -> float | None:
    return None if record.ends_s is None else max(0.0, record.ends_s - time.monotonic())


# Begin and end


def require_virsh() -> None:
    """Raise MissingError if this server lacks the program that pauses and unplugs nodes."""
    if shutil.which(VIRSH[0]) is None:
        raise MissingError(f"{VIRSH[0]} is not installed", hint="apt-get install libvirt-clients")


def begun(record: FaultRecord) -> FaultRecord:
    """The record with the process of its node. Raises ConflictError if the node has the fault, or does not run."""
    for other in records(record.label):
        if other.path != record.path:
            continue
        if other.is_active:
            hint = f"vcluster fault heal {record.node}"
            raise ConflictError(f"{record.node} has this fault already: {record.kind}", hint=hint)
        end(other, undoing=False)  # the node was off meanwhile, for example, so the fault is over
    if not record.domain:
        return record
    found = libvirt_records.run_of(record.domain)
    if found is None or found.state != "running":
        state = found.state if found else "off"
        raise ConflictError(f"{record.node} is {state}, so it gets no fault", hint="vcluster start")
    if record.kind == UNPLUG and record.mac in found.unplugged:
        raise ConflictError(f"lab0 of {record.node} was unplugged by another program", hint=_plug_command(record))
    return replace(record, qemu=identity_of(found.pid))


def _plug_command(record: FaultRecord) -> str:
    return f"virsh domif-setlink {record.domain} {record.mac} up"


def start_holder(order: Mapping[str, object], node: str) -> None:
    """Start the process that begins a fault and ends it. Returns when it has begun. Raises the error of the begin.

    The process inherits the lock, so the fault does not begin after another process has ended all faults.
    """
    with link_lock.handing_over() as lock:
        process = subprocess.Popen(
            python(_PROGRAM, str(lock)), pass_fds=[lock], start_new_session=True, cwd="/",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        answer = json_text.parse(_answer(process, json.dumps(order).encode()))
    except ValueError as error:
        raise VclusterError(f"{node}: the process that holds the fault ended early") from error
    if isinstance(answer, dict) and "error" in answer:
        process.wait(KILL_AFTER_S)
        raise request_loop.error_from_json(answer["error"], node)


def _answer(process: subprocess.Popen[bytes], order: bytes) -> bytes:
    """The first line that a process writes after it has read its order."""
    assert process.stdin is not None  # noqa: S101 - they are pipes
    assert process.stdout is not None  # noqa: S101
    with process.stdout as output:
        with suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(order)
        return output.readline()


def apply(record: FaultRecord) -> None:
    """Pause or unplug the node. The record is there before the fault, so each fault has one.

    libvirt may still carry out a call that was interrupted. So the opposite follows, and the record stays as long as
    the fault is there.
    """
    write(record)
    try:
        _make(record)
    except BaseException:
        with suppress(VclusterError):  # the error of the begin explains it
            _unmake(record)
        if not record.is_active:
            forget(record)
        raise


def undo(record: FaultRecord) -> None:
    """Resume or plug the node, if it has not been off meanwhile."""
    if record.kind not in _OF_LINKS and record.is_active:
        _unmake(record)


def _make(record: FaultRecord) -> None:
    if record.kind == PAUSE:
        _virsh("suspend", record.domain)
    else:
        _set_link(record, "down")


def _unmake(record: FaultRecord) -> None:
    if record.kind == PAUSE:
        _virsh("resume", record.domain)
    else:
        _set_link(record, "up")


def _set_link(record: FaultRecord, state: str) -> None:
    """Set the link of lab0, only of the node that runs: `domif-setlink` changes the definition of one that is off."""
    root = ET.fromstring(_virsh("dumpxml", record.domain))  # noqa: S314 - libvirt wrote it
    for interface in root.iterfind("devices/interface"):
        mac, link = interface.find("mac"), interface.find("link")
        if mac is not None and mac.get("address") == record.mac:
            (ET.SubElement(interface, "link") if link is None else link).set("state", state)
            _virsh("update-device", record.domain, "/dev/stdin", "--live", stdin=ET.tostring(interface))
            return
    raise VclusterError(f"{record.node} has no interface {record.mac}", hint="vcluster verify")


def _virsh(*command: str, stdin: bytes = b"") -> str:
    """The output of virsh. A Ctrl-C on the terminal does not reach it."""
    return run([*VIRSH, *command], timeout_s=VIRSH_TIMEOUT_S, stdin=stdin, has_own_session=True).stdout


def end(record: FaultRecord, *, undoing: bool) -> None:
    """End a fault, unless the node ends anyway; then the process that holds it; and remove its record.

    While libvirt does not answer, the process and the record stay, so the fault still ends after its time.
    """
    if undoing:
        undo(record)
    if record.is_held and not any(
        has_ended(*record.holder, number, KILL_AFTER_S) for number in (signal.SIGTERM, signal.SIGKILL)
    ):
        raise VclusterError(f"process {record.holder[0]}, which holds the fault of {record.node}, does not end")
    forget(record)
