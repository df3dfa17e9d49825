"""A program of a server on a terminal, as a person has it before them."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.testbed import SCRIPT, Server

CTRL_C, CTRL_BRACKET = "\x03", "\x1d"


@dataclass
class Terminal:
    """What somebody types, and what they see."""

    process: subprocess.Popen[bytes]
    _descriptor: int
    _seen: str = ""

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._descriptor, text.encode())

    def read_until(self, words: str, timeout_s: float = 60) -> str:
        """What has come since the last time, up to these words, which must come."""
        deadline = time.monotonic() + timeout_s
        while words not in self._seen:
            assert select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))[0], (
                self._translate_error(words)
            )
            try:
                data = os.read(self._descriptor, 1 << 16)
            except OSError:  # the program has ended, and nobody else has the terminal
                data = b""
            assert data, self._translate_error(words)
            self._seen += data.decode(errors="replace")
        before, _, self._seen = self._seen.partition(words)
        return before + words

    def _translate_error(self, words: str) -> str:
        return f"{words!r} did not come, but {self._seen!r}"


@contextlib.contextmanager
def terminal(server: Server, argv: Sequence[str]) -> Iterator[Terminal]:
    """Start a program on a terminal of its own; it is killed at the end unless it has ended."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), "exec", server.name, "--", *argv],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        try:
            yield Terminal(process, ours)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    finally:
        os.close(ours)
