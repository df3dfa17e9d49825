"""The process of a machine: its namespaces, with QEMU and everything that talks to it."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

from testbeds import namespaces
from testbeds.mounts import bind
from testbeds.namespaces import entering
from testbeds.programs import NamespaceError, last_lines, run, wait_until
from testbeds.servers import write_process

from . import qemu
from .emulator import Emulator
from .network import RESOLVER, ensure_network, plug_lan
from .records import MACHINE, Machine


def make_overlay(machine: Machine, base: Path, form: str) -> None:
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", form, "-b", str(base), str(machine.overlay)])


def start(machine: Machine, emulator: Emulator, memory: Path, *, keeps_memory: bool, resumes: bool) -> None:
    """Start QEMU in namespaces of its own, in the network of the machines. Its monitor answers when this returns."""
    network = ensure_network()
    machine.monitor.unlink(missing_ok=True)
    argv = [*emulator.command, *qemu.arguments(machine, memory, keeps_memory=keeps_memory, resumes=resumes)]
    (machine.directory / "argv.json").write_text(json.dumps(argv))
    kinds = [kind for kind in namespaces.KINDS if kind != "net"]
    starter = [sys.executable, str(MACHINE), "_machine", machine.name]
    namespaces.start(starter, machine.log, kinds=kinds, inside=entering(network, ["net"]))

    def answers() -> bool:
        if machine.process is None:
            raise NamespaceError(f"QEMU of {machine.name} ended: {last_lines(machine.log)}")
        return machine.monitor.exists()

    wait_until(answers, f"QEMU of {machine.name} did not start; see {machine.log}", timeout_s=30)
    with qemu.monitor(machine.monitor):  # it answers when all devices are there
        if machine.is_on_lan:
            plug_lan(machine)


def be_machine(machine: Machine) -> None:
    """Fork the first process of a machine. It ends with QEMU, and with the owner if there is one."""
    owner = None if machine.owner is None else os.pidfd_open(machine.owner.pid)
    if machine.owner is not None and not machine.owner.is_alive():
        raise NamespaceError(f"the owner, process {machine.owner.pid}, has ended")
    namespaces.fork_first_process(write_process(machine.directory), lambda: run_qemu(machine, owner), None)


def run_qemu(machine: Machine, owner: int | None) -> None:
    """Work of the first process: run QEMU until it ends or the owner ends. With this process all others end."""
    run(["mount", "-t", "proc", "proc", "/proc"])
    if Path("/etc/resolv.conf").exists():
        bind(RESOLVER, Path("/etc/resolv.conf"))
    argv = json.loads((machine.directory / "argv.json").read_text())
    with machine.log.open("a") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    poll = select.poll()
    for handle in (os.pidfd_open(process.pid), owner):
        if handle is not None:
            poll.register(handle, select.POLLIN)
    poll.poll()
    os._exit(0)


def remove(machine: Machine) -> None:
    """End a machine and remove its files. Then check that nothing is left."""
    process = machine.process
    if process is not None:
        process.kill()  # it is the first process of its namespaces, so all others in there have ended too
    shutil.rmtree(machine.directory, ignore_errors=True)
    if machine.directory.exists():
        raise NamespaceError(f"{machine.directory} is still there")
