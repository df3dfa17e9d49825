"""The machines on record, and the directory that holds everything about them."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from testbeds import locks
from testbeds.namespaces import Process
from testbeds.programs import NamespaceError, as_root
from testbeds.servers import read_process

from . import cache
from .kinds import CHECKOUT, Kind

MACHINE = CHECKOUT / "scripts" / "machine"
STATE = Path("/var/lib/vcluster-machines")
NETWORK = STATE / "network"
LAN_SUBNET = ipaddress.ip_network("172.31.254.0/24")  # unlikely to be the subnet of a cluster
FIRST_ADDRESS = 10
FIRST_PORT = 2200


class ConflictError(NamespaceError):
    """Something is in the way of the request."""


@dataclass(frozen=True)
class Machine:
    """One machine as it was requested. Its directory and /proc show its present state."""

    name: str
    index: int
    kind: Kind
    is_on_lan: bool
    owner: Process | None  # the machine ends with this process
    disk: str  # its entry in the cache

    @property
    def directory(self) -> Path:
        return STATE / "machines" / self.name

    @property
    def entry(self) -> Path:
        return cache.CACHE / self.disk

    @property
    def overlay(self) -> Path:
        return self.directory / "disk.qcow2"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def console(self) -> Path:
        return self.directory / "console.log"

    @property
    def monitor(self) -> Path:
        return self.directory / "qmp"

    @property
    def connection(self) -> Path:
        """The socket of the SSH connection that carries all commands."""
        return self.directory / "ssh"

    @property
    def port(self) -> int:
        """The port that leads to its sshd, in the network namespace of the machines."""
        return FIRST_PORT + self.index

    @property
    def address(self) -> str:
        """Its address on the LAN."""
        return str(LAN_SUBNET[FIRST_ADDRESS + self.index])

    @property
    def tap(self) -> str:
        return f"lan{self.index}"

    @property
    def lan_mac(self) -> str:
        return f"02:76:63:6d:01:{self.index:02x}"

    @property
    def process(self) -> Process | None:
        return read_process(self.directory)

    @property
    def state(self) -> str:
        if self.process is None:
            return "broken"
        return "up" if (self.directory / "ready").exists() else "starting"

    @property
    def is_stale(self) -> bool:
        """Whether it is broken, or a killed run left it. Only for a caller that holds the lock."""
        return self.state != "up" or (self.owner is not None and not self.owner.is_alive())

    def save(self) -> None:
        self.directory.mkdir(parents=True)
        (self.directory / "machine.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, name: str) -> Machine:
        try:
            fields = json.loads((STATE / "machines" / name / "machine.json").read_text())
        except FileNotFoundError as error:
            raise NamespaceError(f"machine {name} does not exist; start it with: {typed(f'up {name}')}") from error
        owner, kind = fields.pop("owner"), fields.pop("kind")
        return cls(owner=None if owner is None else Process(**owner), kind=Kind(**kind), **fields)

    def require_process(self) -> Process:
        process = self.process
        if process is None:
            raise NamespaceError(f"machine {self.name} is not up; start it with: {typed(f'up {self.name}')}")
        return process


def typed(arguments: str) -> str:
    """A command of scripts/machine as the reader types it."""
    return as_root(f"scripts/machine {arguments}")


def report(text: str) -> None:
    print(f"machine: {text}", file=sys.stderr, flush=True)


def machines() -> list[Machine]:
    """Every machine on record, sorted by address."""
    found = []
    for directory in (STATE / "machines").glob("*"):
        with contextlib.suppress(NamespaceError, ValueError):
            found.append(Machine.load(directory.name))
    return sorted(found, key=lambda machine: machine.index)


def free_index() -> int:
    taken = {machine.index for machine in machines()}
    return next(index for index in range(LAN_SUBNET.num_addresses - FIRST_ADDRESS - 1) if index not in taken)


def locked() -> contextlib.AbstractContextManager[None]:
    """Let one `up`, `down` or `purge` run at a time."""
    return locks.locked(
        STATE, lambda: report("another scripts/machine starts or removes machines; waiting for its end")
    )


def remove_debris() -> None:
    """Remove directories without a record: of an `up` killed at its start, or a `down` killed near its end."""
    known = {machine.directory for machine in machines()}
    for directory in set((STATE / "machines").glob("*")) - known:
        shutil.rmtree(directory)
