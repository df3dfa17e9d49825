"""Locks: one command at a time works with a directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(directory: Path, report_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a directory until the `with` ends. It is made if it is not there, and it may be removed meanwhile.

    The directory itself is the lock, so no lock file remains. `report_wait` is called before a wait.
    """
    while True:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.ExitStack() as undo, contextlib.suppress(FileNotFoundError):
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            undo.callback(os.close, descriptor)
            take(descriptor, report_wait)
            if os.fstat(descriptor).st_ino == directory.stat().st_ino:  # another command may have removed it
                undo.pop_all()
                break
    try:
        yield
    finally:
        os.close(descriptor)


def take(descriptor: int, report_wait: Callable[[], None]) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        report_wait()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
