"""The standard streams of the command: all three exist, and a failed write has one meaning for each.

A result that cannot be written makes the command fail. Progress and messages that cannot be written are lost: no work,
and no rollback, ends because nothing reads them any more.
"""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Callable
from typing import TextIO

INPUT, OUTPUT, ERRORS = 0, 1, 2
# A closed stream becomes /dev/null. Writing a result must still fail, so standard output is opened for reading.
_REPLACEMENTS = {INPUT: os.O_RDONLY, OUTPUT: os.O_RDONLY, ERRORS: os.O_WRONLY}


class OutputError(Exception):
    """A result cannot be written to standard output.

    It is not an OSError: click would turn a closed pipe into exit code 1, and it would look like an error of a file.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: {error.strerror}")
        self.is_closed_pipe = isinstance(error, BrokenPipeError)


class _Results(io.FileIO):
    """Standard output. Its failure has its own class, which files and sockets do not have."""

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        try:
            return _write(super().write, self.fileno(), data)
        except OSError as error:
            raise OutputError(error) from error


class _Messages(io.FileIO):
    """Standard error. What cannot be written is dropped."""

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        try:
            return _write(super().write, self.fileno(), data)
        except OSError:
            return len(data)


def prepare() -> None:
    """Open the standard streams that are closed, and give each write the meaning that this module describes.

    A file that is opened later would otherwise take the place of a closed stream, and messages would go into it.
    """
    for descriptor, mode in _REPLACEMENTS.items():  # the lowest free descriptor is always the next of these
        if not _is_open(descriptor):
            os.open(os.devnull, mode)
            os.set_inheritable(descriptor, True)
    if sys.stdin is None:
        sys.stdin = open(INPUT, closefd=False)  # noqa: SIM115 - it lasts as long as the process
    sys.stdout = _text(_Results(OUTPUT, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Messages(ERRORS, "w", closefd=False), sys.stderr)


def _text(raw: io.FileIO, before: TextIO | None) -> TextIO:
    """A text stream like the one that Python made, on another file. It escapes what the locale cannot express."""
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding if before else None,
        errors="backslashreplace",
        line_buffering=raw.fileno() == ERRORS or raw.isatty(),
    )


def _write(write: Callable[[bytes], int | None], descriptor: int, data: bytes) -> int:
    """Write, and wait for room if another program has made the stream non-blocking."""
    while (written := write(data)) is None:
        select.select([], [descriptor], [])
    return written


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
