"""Faults of nodes that have records on this server: nodes that are paused or unplugged, and links that flap.

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

from vcluster.adapters.process import has_ended, python, run, started
from vcluster.agent import request_loop
from vcluster.agent.survey import libvirt_records
from vcluster.errors import ConflictError, MissingError, VclusterError
from vcluster.model import json_text, json_types
from vcluster.model.survey_answer import HeldFault

FOLDER = Path("/run/vcluster/faults")
FLAP, UNPLUG, PAUSE = "flap", "unplug", "pause"
VIRSH = ("virsh", "--quiet", "--connect", "qemu:///system")
VIRSH_TIMEOUT_S = 30.0
KILL_AFTER_S = 10.0
_PROGRAM = """
from vcluster.adapters.network import load_less_of_pyroute2
load_less_of_pyroute2()
from vcluster.agent.faults import fault_holder
fault_holder.main()
"""


@dataclass(frozen=True, slots=True)
class FaultRecord:
    """A fault of a node. `mac` is that of its lab0, `port` that of the switch; what a kind does not need is empty.

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
        if self.kind == FLAP:
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
    """The records of a cluster, given by its owner label."""
    for path in sorted((FOLDER / label).glob("*.json")):
        with suppress(OSError, ValueError):
            fields = json_text.parse(path.read_bytes())
            if not json_types.misfit(fields, FaultRecord, "the record"):
                pairs = {name: tuple(fields[name]) for name in ("qemu", "holder")}
                yield FaultRecord(**{**fields, **pairs})


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
    heal = f"vcluster fault heal {record.node}"
    for other in records(record.label):
        if (other.kind, other.node) == (record.kind, record.node) and (other.is_active or other.is_held):
            raise ConflictError(f"{record.node} has this fault already: {record.kind}", hint=heal)
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
    """Start the process that begins a fault and ends it. Returns when it has begun. Raises the error of the begin."""
    process = subprocess.Popen(
        python(_PROGRAM, json.dumps(order)),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",
    )  # fmt: skip
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    with process.stdout as output:
        line = output.readline()
    try:
        answer = json_text.parse(line)
    except ValueError as error:
        raise VclusterError(f"{node}: the process that holds the fault ended early") from error
    if isinstance(answer, dict) and "error" in answer:
        process.wait(KILL_AFTER_S)
        raise request_loop.error_from_json(answer["error"], node)


def apply(record: FaultRecord) -> None:
    """Pause or unplug the node. The record is there before the fault, so each fault has one."""
    write(record)
    try:
        _virsh(record, {PAUSE: ("suspend",), UNPLUG: ("domif-setlink",)}[record.kind], "down")
    except BaseException:
        if not record.is_active:
            forget(record)
        raise


def undo(record: FaultRecord) -> None:
    """Resume or plug the node, if it has not been off meanwhile."""
    if record.kind != FLAP and record.is_active:
        _virsh(record, {PAUSE: ("resume",), UNPLUG: ("domif-setlink",)}[record.kind], "up")


def _virsh(record: FaultRecord, command: tuple[str, ...], link: str) -> None:
    more = (record.mac, link) if record.kind == UNPLUG else ()
    run([*VIRSH, *command, record.domain, *more], timeout_s=VIRSH_TIMEOUT_S)


def end(record: FaultRecord, *, undoing: bool) -> None:
    """End the process that holds a fault, and the fault unless the node ends anyway, and remove its record."""
    if record.is_held and not any(
        has_ended(*record.holder, number, KILL_AFTER_S) for number in (signal.SIGTERM, signal.SIGKILL)
    ):
        raise VclusterError(f"process {record.holder[0]}, which holds the fault of {record.node}, does not end")
    if undoing:
        undo(record)
    forget(record)
