"""Booted machines that are kept: a disk, a memory and the rest of a QEMU's state. New machines resume from them.

A machine maps the memory of its snapshot and keeps only what it writes for itself, as the clones of vcluster do.
"""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from testbeds.namespaces import Process

from . import cache, checkout, qemu
from .connection import BOOT_TIMEOUT_S, connect, disconnect, run_as_root, unpack
from .emulator import Emulator
from .kinds import Kind, digest, installation
from .processes import make_overlay, remove, start
from .records import Machine, free_index, report

CLONE = "/home/student/vcluster"
SNAPSHOT_CODE = ("qemu.py", "snapshots.py")
INSTALL_TIMEOUT_S = 1200
# The checkout, without what scripts/install has made in it.
ERASE = f"find {CLONE} -mindepth 1 -maxdepth 1 ! -name .venv ! -name build ! -name '*.egg-info' -exec rm -r {{}} +"
BOOTED = """\
systemctl is-system-running --wait || { systemctl --failed --no-legend >&2; exit 1; }
"""
# libvirt asks each QEMU for its features at the first start of a domain, which takes half a minute under emulation.
# The snapshot of a node takes two minutes. With it, nodes are clones. Its boot can hang, as QEMU emulates the KVM.
WARM = "vcluster image warm --timeout 400"
INSTALLED = f"""\
{CLONE}/scripts/install </dev/null || exit 1
virsh --connect qemu:///system domcapabilities --virttype kvm >/dev/null
virsh --connect qemu:///system domcapabilities --virttype qemu >/dev/null
[ ! -d /var/lib/libvirt/images/vcluster/images/names ] || {WARM} || {WARM}
"""


@dataclass(frozen=True)
class Snapshot:
    """The files of a machine that was booted and stopped."""

    directory: Path

    @property
    def disk(self) -> Path:
        return self.directory / "disk.qcow2"

    @property
    def memory(self) -> Path:
        return self.directory / "ram"

    @property
    def state(self) -> Path:
        return self.directory / "state"


def ensure_snapshot(kind: Kind, entry: Path, emulator: Emulator) -> Snapshot:
    """The snapshot of a kind. The machine is booted and stopped if it is not there."""
    parts = {name: Path(__file__).with_name(name).read_bytes() for name in SNAPSHOT_CODE}
    name = digest({**parts, **installation(kind), "qemu": emulator.version.encode()})
    directory = entry / f"booted-{kind.memory_mib}-{name}"
    if not directory.exists():
        report(f"booting a machine of {kind}, to keep it (a few minutes, once)")
        remove_old(entry)
        with cache.unfinished(directory) as draft:
            boot(kind, entry, emulator, Snapshot(draft))
    cache.touch(directory)
    return Snapshot(directory)


def remove_old(entry: Path) -> None:
    """Remove the snapshots of a disk, but not the last one: another checkout, or another memory size, may use it."""
    for path in sorted(entry.glob("booted-*"), key=lambda path: path.stat().st_mtime)[:-1]:
        cache.remove(path)


def boot(kind: Kind, entry: Path, emulator: Emulator, snapshot: Snapshot) -> None:
    """Boot a machine, install vcluster unless it is bare, and keep it. It ends with this process."""
    machine = Machine("_snapshot", free_index(), kind, False, Process.of(os.getpid()), entry.name)
    machine.save()
    try:
        make_overlay(machine, entry / "disk.raw", "raw")
        start(machine, emulator, snapshot.memory, keeps_memory=True, resumes=False)
        connect(machine)
        bring_checkout(machine, (entry / "commit").read_text())
        settle(machine)
        run_as_root(machine, "sync")
        disconnect(machine)
        with qemu.monitor(machine.monitor) as monitor:
            monitor.save(snapshot.state)
        machine.require_process().kill()
        shutil.move(machine.overlay, snapshot.disk)
        (snapshot.directory / "commit").write_text(checkout.commit())
    finally:
        remove(machine)


def settle(machine: Machine) -> None:
    """Wait for the end of the boot, and install vcluster unless the machine is bare."""
    run_as_root(machine, BOOTED, timeout_s=BOOT_TIMEOUT_S)
    if not machine.kind.is_bare:
        run_as_root(machine, INSTALLED, timeout_s=INSTALL_TIMEOUT_S)


def bring_checkout(machine: Machine, base: str) -> None:
    """Bring the last commit to a machine that has the commit `base`. Only the files that differ are sent."""
    difference = checkout.difference(base)
    if difference is None:  # `base` was made in another clone
        run_as_root(machine, ERASE)
        difference = checkout.Difference((".",), ())
    if difference.removed:
        run_as_root(machine, f"cd {CLONE} && rm -f -- {shlex.join(difference.removed)}")
    if difference.changed:
        with checkout.archive(difference.changed) as archive:
            unpack(machine, archive, CLONE)
