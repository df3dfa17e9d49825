"""A tree of files for all nodes: read on the controller, and stored once in the shared folder."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcluster import guest
from vcluster.adapters.pipe import Pipe
from vcluster.adapters.ssh.ssh_session import Session
from vcluster.errors import RequestError, VclusterError
from vcluster.guest.unpack import FOLDER
from vcluster.model.quoting import path_shown
from vcluster.stages.guest_answer import field, receive, require_success
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter

AWAITED = "the payload"
CHUNK = 1 << 18
DIGEST_LENGTH = 16  # earlier versions used 12 digits, and ran scripts in that folder, so it may contain their results
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class PayloadEntry:
    """A file, a folder (its name ends with /) or a link (`target`) of a payload; `path` is its place on the controller.

    `mode` is its mode on the nodes: all users may read it, and only its owner may write it.
    """

    name: str
    path: Path
    mode: int
    size_bytes: int = 0
    target: str = ""


@dataclass(frozen=True, slots=True)
class Payload:
    """A file, or the contents of a folder. The digest covers names, modes and contents."""

    source: Path
    entries: tuple[PayloadEntry, ...]
    digest: str

    @property
    def name(self) -> str:
        """The name of its folder on the nodes."""
        return f"payload-{self.digest[:DIGEST_LENGTH]}"

    @property
    def size_bytes(self) -> int:
        """The approximate number of bytes to send."""
        return sum(entry.size_bytes + tarfile.BLOCKSIZE for entry in self.entries)


# Reading


def read(source: Path) -> Payload:
    """Read the payload at a path. Raises RequestError if it is missing, unreadable or not a file, folder or link."""
    with _reading(source):
        if source.is_dir():
            entries = tuple(_entry(path, path.relative_to(source)) for path in _below(source))
        else:
            entries = (_entry(source.resolve(strict=True), Path(source.name)),)
        digest = hashlib.sha256()
        for entry in entries:
            fields = (os.fsencode(entry.name).hex(), entry.mode, os.fsencode(entry.target).hex(), _digest(entry))
            digest.update(json.dumps(fields).encode())
    return Payload(source, entries, digest.hexdigest())


@contextmanager
def _reading(source: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RequestError(f"--payload {path_shown(error.filename or source)}: {error.strerror or error}") from error


def _below(folder: Path) -> Iterator[Path]:
    """All paths below a folder in a fixed order, each folder before its contents."""
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _below(path)


def _entry(path: Path, name: Path) -> PayloadEntry:
    state = path.lstat()
    if stat.S_ISLNK(state.st_mode):
        return PayloadEntry(str(name), path, 0o777, target=str(path.readlink()))
    if stat.S_ISDIR(state.st_mode):
        return PayloadEntry(f"{name}/", path, 0o755)
    if not stat.S_ISREG(state.st_mode):
        raise RequestError(f"--payload: {path} is not a file, folder or link", hint="remove it from the payload")
    return PayloadEntry(str(name), path, 0o755 if state.st_mode & 0o111 else 0o644, state.st_size)


def _digest(entry: PayloadEntry) -> str:
    digest = hashlib.sha256()
    if entry.path.is_file() and not entry.target:
        with entry.path.open("rb") as file:
            while data := file.read(CHUNK):
                digest.update(data)
    return digest.hexdigest()


# Sending


def put(session: Session, payload: Payload, shared: str, *, user: str, deadline: Deadline, report: Reporter) -> str:
    """Put a payload below the shared folder, as the cluster's user, unless it is there. Returns its folder."""
    with (
        report.step("payload", session.name, awaiting=f"{payload.source} on the shared folder"),
        closing(session.start_program(guest.program("unpack"), awaited=AWAITED, deadline=deadline)) as pipe,
    ):
        request = json.dumps({"shared": shared, "name": payload.name, "user": user}) + "\n"
        pipe.write(request.encode(), deadline, AWAITED)
        if not field(_answer(pipe, deadline), "present", bool, f"{pipe.name}: {AWAITED}"):
            _send(pipe, payload, deadline, report)
            _answer(pipe, deadline)
    return f"{shared}/{FOLDER}/{payload.name}"


def _answer(pipe: Pipe, deadline: Deadline) -> dict[str, Any]:
    answer = receive(pipe, deadline, AWAITED)
    require_success(answer, f"{pipe.name}: cannot store the payload")
    return answer


def _send(pipe: Pipe, payload: Payload, deadline: Deadline, report: Reporter) -> None:
    pieces = _Pieces(pipe, payload, deadline, report)
    try:
        with tarfile.open(fileobj=pieces, mode="w|", bufsize=CHUNK, format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
            for entry in payload.entries:
                _add(archive, entry)
        pieces.end()
    except OSError as error:
        path = error.filename or payload.source
        raise VclusterError(f"{path} changed while it was sent: {error.strerror or error}") from error
    except VclusterError:
        if pipe.has_more():
            _answer(pipe, deadline)  # raises the reason why the node stopped reading
        raise


def _add(archive: tarfile.TarFile, entry: PayloadEntry) -> None:
    info = archive.gettarinfo(entry.path, entry.name.rstrip("/"))
    info.mode, info.uid, info.gid, info.uname, info.gname = entry.mode, 0, 0, "", ""
    if not info.isreg():
        archive.addfile(info)
        return
    with entry.path.open("rb") as file:
        archive.addfile(info, file)


class _Pieces:
    """A file object that sends an archive in pieces, each after its length."""

    def __init__(self, pipe: Pipe, payload: Payload, deadline: Deadline, report: Reporter) -> None:
        self._pipe, self._deadline, self._report = pipe, deadline, report
        self._sent, self._percent, self._size = 0, 0, max(1, payload.size_bytes)

    def write(self, data: bytes) -> int:
        """Send a piece."""
        self._pipe.write(len(data).to_bytes(4, "big") + data, self._deadline, AWAITED)
        self._sent += len(data)
        if (percent := min(100, 100 * self._sent // self._size)) > self._percent:
            self._percent = percent
            text = f"{min(self._sent, self._size) // MIB} of {self._size // MIB} MiB"
            self._report.emit("progress", "payload", self._pipe.name, text, fraction=percent / 100)
        return len(data)

    def end(self) -> None:
        """Mark the end of the archive."""
        self._pipe.write(bytes(4), self._deadline, AWAITED)
