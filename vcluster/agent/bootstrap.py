"""The first program of the agent on a server: it stores the agent's archive if it is missing, then starts the agent.

It is sent as text before everything else, so it needs only the standard library. Its input continues with one line of
JSON, the order: `folder`, `digest` and `size` of the archive, and the task of request_loop. It answers whether the
server has the archive; if not, the controller sends it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

T = TypeVar("T")
TRIES = 20  # each other agent that ends at the same time may cost one


def main(source: BinaryIO) -> None:
    """Start the agent as ordered. A running agent holds a lock on its archive, so that no other removes it."""
    os.umask(0o022)  # QEMU runs as another user and opens files below the folders that root creates here
    sink = _own_output()
    order = json.loads(source.readline())
    path = Path(order["folder"], order["digest"] + ".pyz")
    try:
        _repeated(lambda: _make_folder(path.parent))
        lock = _open(path, order["digest"])
        _answer(sink, {"have": lock is not None})
        if lock is None:
            archive = source.read(order["size"])
            lock = _repeated(lambda: _store(path, archive, order["digest"]))
            _answer(sink, {"have": True})
    except OSError as error:
        _answer(sink, {"refused": f"{error.filename or path}: {error.strerror or error}"})
        return
    sys.path.insert(0, str(path))
    from vcluster.agent import request_loop  # noqa: PLC0415 - the archive contains it

    request_loop.main(source, sink, order, lock)


def _own_output() -> BinaryIO:
    """The output to the controller, for this program only: other programs' output goes to standard error."""
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return sink


def _answer(sink: BinaryIO, fields: dict[str, Any]) -> None:
    sink.write(json.dumps(fields).encode() + b"\n")
    sink.flush()


def _repeated(work: Callable[[], T]) -> T:
    """The result of work in a folder. An agent that ends may remove the folder meanwhile; then the work is repeated."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(FileNotFoundError):
            return work()
    return work()


def _make_folder(folder: Path) -> None:
    folder.parent.mkdir(0o755, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(1, "another user can write here; remove it", str(folder))


def _open(path: Path, digest: str) -> int | None:
    """Open and lock the archive. Return its descriptor, or None if it is missing or damaged."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    with os.fdopen(os.dup(descriptor), "rb") as file:
        is_valid = hashlib.sha256(file.read()).hexdigest() == digest
    with contextlib.suppress(FileNotFoundError):
        if is_valid and path.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    os.close(descriptor)
    return None


def _store(path: Path, archive: bytes, digest: str) -> int:
    """Write the archive atomically into its folder, and lock it as `_open` does."""
    if hashlib.sha256(archive).hexdigest() != digest:
        raise OSError(5, "the agent's archive arrived damaged", str(path))
    _make_folder(path.parent)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(archive)
            file.flush()
            os.fsync(descriptor)
        draft.rename(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return descriptor
