"""Starting and removing machines."""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from collections.abc import Callable, Sequence

from testbeds.namespaces import Process
from testbeds.programs import UPLINK_PROGRAMS, NamespaceError, require, require_tun
from testbeds.servers import read_process

from . import cache, checkout, qemu
from .connection import BOOT_TIMEOUT_S, connect, disconnect, run_as_root
from .disks import ensure_disk
from .emulator import Emulator, ensure_emulator
from .identity import hosts_script, identity_script
from .kinds import Kind
from .network import end_network
from .processes import make_overlay, remove, start
from .records import (
    NETWORK,
    STATE,
    ConflictError,
    Machine,
    free_index,
    locked,
    machines,
    remove_debris,
    report,
    typed,
)
from .snapshots import Snapshot, bring_checkout, ensure_snapshot, settle

PROGRAMS = ("qemu-img", "unshare", "nsenter", "mount", "ip", "ssh", "ssh-keygen", "tar")


def up(
    names: Sequence[str], kind: Kind, *, is_on_lan: bool, owner: Process | None, boots: bool, mirrors: Sequence[str]
) -> None:
    """Start the machines that are not up. With `boots` they boot, instead of resuming from a snapshot."""
    require([*PROGRAMS, *UPLINK_PROGRAMS])
    require_tun()
    if checkout.has_changes():
        report("the checkout has changes that are not committed; the machines do not get them")
    with locked():
        remove_stale()
        missing = [name for name in dict.fromkeys(names) if not is_up(name, kind, is_on_lan=is_on_lan)]
        begun: list[Machine] = []
        try:
            if missing:
                emulator = ensure_emulator(mirrors)
                entry = ensure_disk(kind, mirrors)
                snapshot = None if boots else ensure_snapshot(kind, entry, emulator)
            for name in missing:
                begun.append(Machine(name, free_index(), kind, is_on_lan, owner, entry.name))
                begin(begun[-1], emulator, snapshot)
            for machine in begun:
                finish(machine, snapshot)
            if begun and is_on_lan:
                write_hosts()
        except BaseException:
            for machine in begun:
                remove(machine)
            tidy()
            raise
        for removed in cache.enforce_limit({machine.disk for machine in machines()}):
            report(f"removed a disk from the cache, to keep its limit: {removed.name}")


def is_up(name: str, kind: Kind, *, is_on_lan: bool) -> bool:
    """Whether a machine of this name runs. Raises ConflictError if it is another kind of machine."""
    for machine in machines():
        if machine.name == name:
            if (machine.kind, machine.is_on_lan) != (kind, is_on_lan):
                raise ConflictError(f"machine {name} is another kind; remove it first: {typed(f'down {name}')}")
            return True
    return False


def begin(machine: Machine, emulator: Emulator, snapshot: Snapshot | None) -> None:
    """Make the files of a machine and start its QEMU, without waiting for its sshd."""
    machine.save()
    if snapshot is None:
        make_overlay(machine, machine.entry / "disk.raw", "raw")
        start(machine, emulator, machine.directory / "ram", keeps_memory=False, resumes=False)
    else:
        make_overlay(machine, snapshot.disk, "qcow2")
        start(machine, emulator, snapshot.memory, keeps_memory=False, resumes=True)
        with qemu.monitor(machine.monitor) as monitor:
            monitor.resume(snapshot.state)


def finish(machine: Machine, snapshot: Snapshot | None) -> None:
    """Wait until a machine answers, and give it its identity and the last commit."""
    connect(machine)
    run_as_root(machine, identity_script(machine, now=time.time(), machine_id=uuid.uuid4().hex))
    folder = machine.entry if snapshot is None else snapshot.directory
    bring_checkout(machine, (folder / "commit").read_text())
    if snapshot is None:
        settle(machine)
    (machine.directory / "ready").touch()


def write_hosts() -> None:
    """Make the machines of the LAN know each other's names."""
    on_lan = [machine for machine in machines() if machine.is_on_lan and machine.state == "up"]
    for machine in on_lan:
        run_as_root(machine, hosts_script(on_lan))


def down(chosen: Callable[[Machine], bool]) -> list[str]:
    """Remove machines, and with the last one their network. Returns the names of the removed machines."""
    if not STATE.exists():
        return []
    with locked():
        gone = remove_stale(is_silent=True)
        for machine in machines():
            if chosen(machine):
                remove(machine)
                gone.append(machine.name)
        tidy()
    return gone


def remove_stale(*, is_silent: bool = False) -> list[str]:
    """Remove what killed runs left: machines, directories without a record, unfinished disks and snapshots."""
    gone = []
    has_network = read_process(NETWORK) is not None
    for machine in machines():
        if machine.is_stale or not has_network:
            remove(machine)
            gone.append(machine.name)
            if not is_silent:
                report(f"removed {machine.name}, which had ended or was left by a killed run")
    remove_debris()
    cache.remove_unfinished()
    return gone


def tidy() -> None:
    """If no machine is left, remove their network and the state directory."""
    if not machines():
        end_network()
        shutil.rmtree(STATE)


def purge() -> int:
    """Remove all disks and snapshots. Returns the number of bytes that were freed."""
    with locked():
        try:
            remove_stale()
            if used := [machine.name for machine in machines()]:
                raise ConflictError(f"machines use the cache: {', '.join(used)}; remove them: {typed('down --all')}")
            freed = cache.size_bytes(cache.CACHE) if cache.CACHE.exists() else 0
            cache.remove(cache.CACHE)
            return freed
        finally:
            tidy()


def reboot(machine: Machine) -> None:
    """Reboot a machine in order, and wait until it answers."""
    restart(machine, lambda: run_as_root(machine, "systemctl reboot --no-block"))


def reset(machine: Machine) -> None:
    """Restart a machine as after a power cut, and wait until it answers."""

    def power_cut() -> None:
        with qemu.monitor(machine.monitor) as monitor:
            monitor.execute("system_reset")

    restart(machine, power_cut)


def restart(machine: Machine, begin_: Callable[[], object]) -> None:
    before = boot_id(machine)
    begin_()
    disconnect(machine)
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(NamespaceError):  # it may go down at any moment
            if boot_id(machine) != before:
                return
        time.sleep(1)
    raise NamespaceError(f"within {BOOT_TIMEOUT_S} s {machine.name} did not boot again; see {machine.console}")


def boot_id(machine: Machine) -> str:
    return run_as_root(machine, "cat /proc/sys/kernel/random/boot_id")
