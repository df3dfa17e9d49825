"""QEMU: the command line of a machine, and its monitor."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from testbeds.programs import NamespaceError, wait_until

from .kinds import CPUS
from .records import Machine

KERNEL_ARGUMENTS = "root=LABEL=vcluster-machine rw console=ttyS0 mitigations=off net.ifnames=0"
OUTSIDE_SUBNET = "172.30.253.0/24"  # customize.sh has its addresses; unlikely to be the subnet of a cluster
ANSWER_TIMEOUT_S = 120
IGNORE_SHARED = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}


def arguments(machine: Machine, memory: Path, *, keeps_memory: bool, resumes: bool) -> list[str]:
    """The arguments of a machine's QEMU, with the machine's memory in a file.

    With `keeps_memory` the file gets what the machine writes, and is part of a snapshot later. Without it, the machine
    reads the file and keeps what it writes for itself. With `resumes` it awaits the rest of a snapshot.
    """
    size = f"{machine.kind.memory_mib}M"
    share = "on" if keeps_memory else "off"
    return [
        *("-name", machine.name, "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", "pc,memory-backend=ram", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max"),
        *("-smp", str(CPUS), "-m", size),
        *("-object", f"memory-backend-file,id=ram,size={size},mem-path={memory},share={share}"),
        *("-kernel", str(machine.entry / "vmlinuz"), "-initrd", str(machine.entry / "initrd.img")),
        *("-append", KERNEL_ARGUMENTS),
        # Written data survives the end of the machine in the page cache of its host. More is not needed.
        *("-drive", f"file={machine.overlay},format=qcow2,if=virtio,cache=unsafe,discard=unmap"),
        *("-netdev", f"user,id=outside,ipv6=off,net={OUTSIDE_SUBNET},hostfwd=tcp:127.0.0.1:{machine.port}-:22"),
        *("-device", "virtio-net-pci,netdev=outside,romfile=,mac=02:76:63:6d:00:01"),
        *("-netdev", f"tap,id=lan,ifname={machine.tap},script=no,downscript=no"),
        *("-device", f"virtio-net-pci,netdev=lan,romfile=,mac={machine.lan_mac}"),
        # The second one makes the kernel draw new random numbers when it resumes.
        *("-device", "virtio-rng-pci", "-device", "vmgenid,guid=auto"),
        *("-serial", f"file:{machine.console}", "-qmp", f"unix:{machine.monitor},server=on,wait=off"),
        *(("-incoming", "defer") if resumes else ()),
    ]


@dataclass
class Monitor:
    """A connection to the monitor of a QEMU."""

    _stream: socket.SocketIO

    def execute(self, command: str, **arguments: object) -> object:
        """Run a command and return its result. Raises NamespaceError with QEMU's reason."""
        text = json.dumps({"execute": command, "arguments": arguments})
        self._stream.write(f"{text}\n".encode())
        while True:
            answer = self.read()
            if "error" in answer:
                raise NamespaceError(f"QEMU refused {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def read(self) -> dict[str, dict[str, str]]:
        line = self._stream.readline()
        if not line:
            raise NamespaceError("QEMU ended while its monitor was used")
        return dict(json.loads(line))

    def save(self, state: Path) -> None:
        """Stop the machine and write its state, without its memory, to a file."""
        self.execute("stop")
        self.execute("migrate-set-capabilities", **IGNORE_SHARED)
        self.execute("migrate", uri=f"exec:cat > '{state}'")
        self.wait_for_migration()

    def resume(self, state: Path) -> None:
        """Continue a machine from the state that `save` wrote."""
        self.execute("migrate-set-capabilities", **IGNORE_SHARED)
        self.execute("migrate-incoming", uri=f"exec:cat '{state}'")
        self.wait_for_migration()
        self.execute("cont")

    def wait_for_migration(self) -> None:
        while True:
            answer = self.execute("query-migrate")
            status = answer.get("status") if isinstance(answer, dict) else None
            if status == "completed":
                return
            if status == "failed":
                raise NamespaceError(f"QEMU could not move the state of the machine: {answer}")
            time.sleep(0.02)


@contextlib.contextmanager
def monitor(path: Path) -> Iterator[Monitor]:
    """A connection to the monitor behind this socket, until the `with` ends."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(ANSWER_TIMEOUT_S)
        wait_until(lambda: connection.connect_ex(str(path)) == 0, "QEMU's monitor did not answer", timeout_s=30)
        result = Monitor(connection.makefile("rwb", buffering=0))
        result.read()  # the greeting
        result.execute("qmp_capabilities")
        yield result
