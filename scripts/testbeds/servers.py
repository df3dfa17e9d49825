"""The servers on record, and the directory that holds everything about them."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from . import locks, namespaces
from .namespaces import Process
from .programs import NamespaceError, as_root, wait_until

CHECKOUT = Path(__file__).resolve().parent.parent.parent
TESTBED = CHECKOUT / "scripts" / "testbed"
STATE = Path("/var/lib/vcluster-testbed")
SUBNET = ipaddress.ip_network("172.31.255.0/24")  # unlikely to be the subnet of a cluster
FIRST_SERVER = 10


@dataclass(frozen=True)
class Server:
    """One server as it was requested. Its directory and /proc show its present state."""

    name: str
    index: int
    owner: Process | None  # the server ends with this process
    has_uplink: bool
    password: str = ""  # of its user student, until it is changed

    @property
    def directory(self) -> Path:
        return STATE / "servers" / self.name

    @property
    def address(self) -> str:
        return str(SUBNET[FIRST_SERVER + self.index])

    @property
    def port(self) -> str:
        return f"vctb-{self.index}"

    @property
    def mac(self) -> str:
        """The MAC of eth0, the same after a restart."""
        return f"02:76:63:74:62:{self.index:02x}"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def own(self, path: str) -> Path:
        """The place of the server's own version of a path."""
        return self.directory / "own" / path.lstrip("/")

    @property
    def process(self) -> Process | None:
        return read_process(self.directory)

    @property
    def state(self) -> str:
        if self.process is None:
            return "broken"
        return "up" if (self.directory / "ready").exists() else "starting"

    def save(self) -> None:
        self.directory.mkdir(parents=True)
        (self.directory / "server.json").touch(mode=0o600)
        (self.directory / "server.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, name: str) -> Server:
        try:
            fields = json.loads((STATE / "servers" / name / "server.json").read_text())
        except FileNotFoundError as error:
            raise NamespaceError(f"server {name} does not exist; start it with: {typed(f'up {name}')}") from error
        owner = fields.pop("owner")
        return cls(owner=None if owner is None else Process(**owner), **fields)


def typed(arguments: str) -> str:
    """A command of scripts/testbed as the reader types it."""
    return as_root(f"scripts/testbed {arguments}")


def read_process(directory: Path) -> Process | None:
    """The first process that a directory records, if it still runs."""
    with contextlib.suppress(FileNotFoundError):
        process = Process(**json.loads((directory / "process.json").read_text()))
        return process if process.is_alive() else None
    return None


def write_process(directory: Path) -> Callable[[Process], None]:
    def record(process: Process) -> None:
        draft = directory / "process.json.new"
        draft.write_text(json.dumps(process.as_dict()))
        draft.rename(directory / "process.json")

    return record


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Let one `up` or `down` run at a time."""
    with locks.locked(STATE):
        remove_debris()
        yield


def servers() -> list[Server]:
    """Every server on record, sorted by address."""
    found = []
    for directory in (STATE / "servers").glob("*"):
        with contextlib.suppress(NamespaceError, ValueError):
            found.append(Server.load(directory.name))
    return sorted(found, key=lambda server: server.index)


def remove_debris() -> None:
    """Remove directories without a record: of an `up` killed at its start, or a `down` killed near its end."""
    known = {server.directory for server in servers()}
    for directory in set((STATE / "servers").glob("*")) - known:
        shutil.rmtree(directory)


def make_directory(path: Path) -> None:
    """Make a directory of the machine that servers mount on. It is removed with the last server."""
    missing = [parent for parent in (path, *path.parents) if not parent.exists()]
    if missing:
        made = STATE / "made.json"
        before = json.loads(made.read_text()) if made.exists() else []
        made.write_text(json.dumps([*before, *map(str, reversed(missing))]))
        path.mkdir(parents=True)


def tidy() -> None:
    """If no server is left, remove the underlay, the state directory, and the directories made (if they are empty)."""
    if servers():
        return
    underlay = read_process(STATE / "underlay")
    if underlay is not None:
        end(underlay)
    made = STATE / "made.json"
    for path in reversed(json.loads(made.read_text()) if made.exists() else []):
        with contextlib.suppress(OSError):
            Path(path).rmdir()
    shutil.rmtree(STATE)


def end(process: Process) -> None:
    """End a first process, and wait for the end of all processes in its namespaces, also those of `exec`."""
    companions = namespaces.members(process.pid)
    process.kill()
    wait_until(
        lambda: not any(companion.is_alive() for companion in companions),
        f"the processes of namespace {process.pid} did not end",
        timeout_s=20,
    )
