"""The cluster on disk: its plan, its keys, and the files that users and ssh read.

The plan is written and synced before the first effect. The ledger lists the resources of a cluster, and the owner
labels on the resources prove that they are ours. Teardown works without either one of the two.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from vcluster.config.environment_folders import folder_of
from vcluster.errors import ConflictError, MissingError, VclusterError
from vcluster.fleet import state_rights
from vcluster.model import codec, json_text, naming
from vcluster.model.keys import Keys
from vcluster.model.plan import Plan
from vcluster.model.plan_check import find_defect
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter, timed_call

VERSION = 3
OWNER = "owner"  # the file with the owner id of a state folder
MACHINE_ID = Path("/etc/machine-id")
LOCK_POLL_S, OWNER_TIMEOUT_S = 0.2, 10.0


@dataclass(frozen=True, slots=True)
class Ledger:
    """The content of the ledger file. `state` is "creating" until the check passes, then "ready".

    `unfinished` are the nodes that the present command creates, or that a killed one did: they hold no users' data.
    """

    version: int
    state: str
    created: str
    plan: Plan
    unfinished: tuple[str, ...] = ()

    @property
    def as_ready(self) -> Ledger:
        """The same ledger after a passed check."""
        return replace(self, state="ready", unfinished=())


@dataclass(frozen=True, slots=True)
class StageTime:
    """The time that a node spent in a stage, in seconds. The node is empty for a stage of the whole cluster.

    `started_s` counts from the start of the command.
    """

    stage: str
    node: str
    started_s: float
    seconds: float


def state_root(environment: dict[str, str]) -> Path:
    """The folder of all state: VCLUSTER_STATE_DIR, /var/lib/vcluster for root, else in the XDG state directory.

    Raises RequestError if a variable names an unusable folder, MissingError if the user has no home.
    """
    if chosen := folder_of(environment, "VCLUSTER_STATE_DIR"):
        return chosen
    if os.geteuid() == 0:
        return Path("/var/lib/vcluster")
    return (folder_of(environment, "XDG_STATE_HOME") or state_rights.home() / ".local/state") / "vcluster"


def read_owner(root: Path) -> str:
    """The owner id of a state folder; a new one, which is not written, if the folder has none."""
    path = root / OWNER
    try:
        found = path.read_text(errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return naming.owner_id(maker(), secrets.token_hex(4))
    except OSError as error:
        raise MissingError(f"this user cannot read {path}", hint=state_rights.fix(path)) from error
    if not naming.is_owner(found):
        hint = "remove this file; clear --lost then finds the clusters"
        raise VclusterError(f"{path} does not contain an owner id", hint=hint)
    return found


def make_owner(root: Path) -> str:
    """The owner id of a state folder, which gets one if it has none. Of several commands at once, one makes it.

    Raises ConflictError if another process keeps the folder locked.
    """
    deadline = Deadline(OWNER_TIMEOUT_S)
    while not _has_owner(root):
        if deadline.remaining_s() == 0:
            raise ConflictError(f"another process keeps {root} locked", hint="end the process that lslocks shows")
        time.sleep(LOCK_POLL_S)
    return read_owner(root)


def _has_owner(root: Path) -> bool:
    """Whether a state folder has an owner id. It gets one if it has none, unless another process has the lock."""
    with _writing(root / OWNER):
        if not (root / OWNER).exists():
            root.mkdir(parents=True, exist_ok=True)
            with locked_file(root) as is_ours:
                if is_ours and not (root / OWNER).exists():
                    _write_file(root / OWNER, naming.owner_id(maker(), secrets.token_hex(4)) + "\n", mode=0o644)
        return (root / OWNER).exists()


def maker() -> str:
    """The digits of this user of this machine in owner ids."""
    return naming.maker_digits(machine_id(), os.geteuid())


def machine_id() -> str:
    """The machine-id(5) of this machine; empty if it has none."""
    return MACHINE_ID.read_text(errors="replace") if MACHINE_ID.exists() else ""


def cluster_names(root: Path) -> tuple[str, ...]:
    """The clusters that have files in the state folder, complete or not."""
    folder = root / "clusters"
    return tuple(sorted(path.name for path in folder.iterdir() if _has_files(path))) if folder.is_dir() else ()


def _has_files(folder: Path) -> bool:
    """Whether a folder is a cluster's; an empty folder is what the lock of a killed command left."""
    try:
        return folder.is_dir() and any(folder.iterdir())
    except PermissionError:  # the cluster of another user
        return True


@contextmanager
def planning(root: Path, deadline: Deadline, report: Reporter) -> Iterator[None]:
    """Let one command at a time choose names and subnets, until it has written its own ledger.

    Reports that it waits for another command. Raises DeadlineError if that takes too long.
    """
    folder, is_reported = root / "clusters", False
    try:
        while True:
            with _writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            with locked_file(folder) as is_ours:
                if is_ours:
                    yield
                    return
            if folder.exists() and not is_reported:
                report.note("waiting for another command that plans a cluster")
                is_reported = True
            deadline.pause(LOCK_POLL_S, "another command to plan its cluster")
    finally:
        remove_empty_folders(root)


@contextmanager
def locked_file(path: Path) -> Iterator[bool]:
    """Lock a folder or file by its own descriptor. Yields False if another process holds it, or if it was removed."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        yield _flock(descriptor) and path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())
    finally:
        os.close(descriptor)


def _flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove_empty_folders(root: Path) -> None:
    """Remove the parent folders of the clusters' folders if they are empty and no command is planning or makes them.

    A command that was killed while it planned leaves them.
    """
    folder = root / "clusters"
    with suppress(OSError), locked_file(folder) as is_ours:
        if is_ours:
            folder.rmdir()
    with suppress(OSError), locked_file(root) as is_ours:
        if is_ours:
            _draft(root / OWNER).unlink(missing_ok=True)  # of a killed command
            root.rmdir()


class ClusterFiles:
    """The folder of one cluster."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.name = name
        self.folder = root / "clusters" / name
        self.ledger = self.folder / "ledger.json"
        self.keys = self.folder / "keys.json"
        self.identity = self.folder / "id_ed25519"
        self.known_hosts = self.folder / "known_hosts"
        self.ssh_config = self.folder / "ssh_config"
        self.timing = self.folder / "timing.json"
        self.setup = self.folder / "setup"  # the script and the payload of the create

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let only this command change the cluster. A killed command leaves no lock. Raises ConflictError."""
        with _writing(self.folder):
            self.folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        with locked_file(self.folder) as is_ours:
            if not is_ours:
                raise ConflictError(
                    f"another command is changing cluster {self.name}", hint="wait for that command, or interrupt it"
                )
            yield

    def is_locked(self) -> bool:
        """True if a command is changing this cluster now."""
        if not self.folder.is_dir():
            return False
        with locked_file(self.folder) as is_ours:
            return not is_ours

    @contextmanager
    def starting_nodes(self) -> Iterator[None]:
        """Show other commands that this one is about to start nodes, for which they must leave memory.

        It is a lock on the file of the keys, so a killed command leaves none. The caller has locked the cluster.
        """
        with self.keys.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # another command may hold it for a moment, to find out
            yield

    def is_starting_nodes(self) -> bool:
        """True if a command that has the cluster already starts nodes of it now."""
        if not self.keys.exists():
            return False
        with locked_file(self.keys) as is_ours:
            return not is_ours

    def write_ledger(self, ledger: Ledger) -> None:
        """Write the ledger. It is complete and synced to disk when this function returns."""
        self.write(self.ledger, codec.to_json(ledger))

    def read_ledger(self) -> Ledger | None:
        """The ledger, or None if it is missing, broken or of another version. Raises MissingError without access.

        A ledger with a value that no command can use is broken.
        """
        try:
            ledger = codec.from_json(self.ledger.read_text(), Ledger, is_strict=True)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        except PermissionError as error:
            raise MissingError(f"this user cannot read {self.ledger}", hint=state_rights.fix(self.ledger)) from error
        is_usable = ledger.version == VERSION and not find_defect(ledger.plan, self.name)
        return ledger if is_usable else None

    def find_owner(self) -> str:
        """The owner id of a cluster whose ledger cannot be read: from its text, or from the cluster's key; else empty.

        A cluster of an earlier version has another one than the state folder.
        """
        try:
            found = str(json_text.parse(self.ledger.read_text())["plan"]["owner"])
        except (OSError, ValueError, KeyError, TypeError):
            found = ""
        if naming.is_owner(found):
            return found
        keys = self.find_keys()
        label = naming.parse_alias(keys.admin.public.rpartition(" ")[2]) if keys else None
        return label[1] if label else ""

    def is_of_another_version(self) -> bool:
        """True if another version of vcluster wrote the ledger: it has another number, or unknown fields."""
        try:
            text = self.ledger.read_text()
            return json_text.parse(text)["version"] != VERSION or codec.has_unknown_fields(text, Ledger)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def write_keys(self, keys: Keys) -> None:
        """Write all keys of the cluster, and the key that ssh uses to its own file."""
        self.write(self.keys, codec.to_json(keys))
        self.write(self.identity, keys.admin.private)

    def read_keys(self) -> Keys:
        """The keys of the cluster. Raises VclusterError if they cannot be read: nothing can make them again."""
        try:
            return codec.from_json(self.keys.read_text(), Keys)
        except (OSError, ValueError) as error:
            what = "is lost" if isinstance(error, FileNotFoundError) else "is damaged or cannot be read"
            text = f"{self.keys} {what}, so no command can log in to the nodes of cluster {self.name} any more"
            raise VclusterError(text, hint=f"vcluster clear {self.name}") from error

    def find_keys(self) -> Keys | None:
        """The keys of the cluster, or None if they cannot be read."""
        try:
            return self.read_keys()
        except VclusterError:
            return None

    def server_key(self) -> str | None:
        """The private key for servers that the user first logged in to by password."""
        keys = self.find_keys()
        return keys.admin.private if keys else None

    def write_ssh(self, *, config: str, known_hosts: str) -> None:
        """Write the files that plain ssh needs."""
        self.write(self.known_hosts, known_hosts)
        self.write(self.ssh_config, config)

    def read_ssh(self) -> tuple[str, dict[str, str]]:
        """The private key that ssh uses, and the texts that `write_ssh` wrote; empty if they cannot be read."""
        return _text(self.identity), {"config": _text(self.ssh_config), "known_hosts": _text(self.known_hosts)}

    def write_timing(self, times: tuple[StageTime, ...]) -> None:
        """Write the times of the last create."""
        self.write(self.timing, codec.to_json(times))

    def read_timing(self) -> tuple[StageTime, ...]:
        """The times of the last create, or none if the file cannot be read."""
        try:
            return codec.from_json(self.timing.read_text(), tuple[StageTime, ...])
        except (OSError, ValueError):
            return ()

    def make_logs(self, name: str) -> Path:
        """Make the folder for the logs of that name. It is removed with the cluster."""
        folder = self.folder / "logs" / name
        with _writing(folder):
            folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        return folder

    def destroy(self) -> None:
        """Remove the folder, and its parents if they are empty."""
        if self.folder.exists():
            # Remove the ledger first: a folder without a ledger counts as removed in part.
            self.ledger.unlink(missing_ok=True)
            shutil.rmtree(self.folder)
        remove_empty_folders(self.root)

    def write(self, path: Path, text: str) -> None:
        _write_file(path, text, mode=0o600)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _write_file(path: Path, text: str, *, mode: int) -> None:
    """Replace a file at once. It is complete and synced to disk when this function returns."""
    with timed_call("ledger", f"write {path}"), _writing(path):
        new = _draft(path)
        try:
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except OSError:  # the disk is full, for example
            new.unlink(missing_ok=True)
            raise
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _draft(path: Path) -> Path:
    """The new version of a file until it is complete."""
    return path.with_name(f".{path.name}.new")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise MissingError(f"this user cannot write {path}", hint=state_rights.fix(path)) from error
    except OSError as error:
        raise MissingError(
            f"cannot write {path}: {error.strerror}", hint="set VCLUSTER_STATE_DIR to another folder"
        ) from error
