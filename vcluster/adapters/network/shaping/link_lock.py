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
                try:
                    yield
                finally:
                    PATH.unlink(missing_ok=True)
                    with suppress(OSError):  # it has other files
                        PATH.parent.rmdir()
                return
        finally:
            os.close(descriptor)


def _is_current(descriptor: int) -> bool:
    """Whether the path still names the open file: the process that held the lock before has removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), PATH.stat())
    except FileNotFoundError:
        return False
