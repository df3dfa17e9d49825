"""A lock of the server: one process at a time changes limits of links, offloads, and faults."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PATH = Path("/run/vcluster/links.lock")


@contextmanager
def locked() -> Iterator[None]:
    """Wait until no other process holds the lock, and hold it.

    The file is removed afterwards, and its folder if it is empty.
    The kernel releases the lock of a process that is killed. Only root can open the file, so only root can hold it.
    """
    with inherited(_acquire()):
        yield


@contextmanager
def handing_over() -> Iterator[int]:
    """Wait for the lock, and hold it until a process that starts in the block has inherited its descriptor.

    That process releases the lock with `inherited`. Until then no other process gets it, also if this one is killed.
    """
    descriptor = _acquire()
    try:
        yield descriptor
    finally:
        os.close(descriptor)  # the file stays, because the other process may hold the lock


@contextmanager
def inherited(descriptor: int) -> Iterator[None]:
    """Hold the lock that belongs to a descriptor, and release it."""
    try:
        yield
    finally:
        PATH.unlink(missing_ok=True)
        with suppress(OSError):  # it has other files
            PATH.parent.rmdir()
        os.close(descriptor)


def _acquire() -> int:
    """Wait for the lock, and return its descriptor."""
    while True:
        try:
            PATH.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(PATH, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except (FileExistsError, FileNotFoundError):
            if PATH.parent.exists() and not PATH.parent.is_dir():
                raise
            continue  # the process that held the lock before has removed the folder, perhaps inside `mkdir`
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_current(descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def can_hold() -> bool:
    """Whether this user can hold the lock."""
    return os.access(PATH.parent if PATH.parent.exists() else PATH.parent.parent, os.W_OK)


def _is_current(descriptor: int) -> bool:
    """Whether the path still names the open file: the process that held the lock before has removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), PATH.stat())
    except FileNotFoundError:
        return False
