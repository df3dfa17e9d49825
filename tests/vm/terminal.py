"""A program of a server on a terminal."""

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
    """The keyboard and the screen of a program."""

    process: subprocess.Popen[bytes]
    _descriptor: int
    _output: str = ""

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._descriptor, text.encode())

    def read_until(self, text: str, timeout_s: float = 300) -> str:
        """The output since the last call, up to this text. The text must come."""
        deadline = time.monotonic() + timeout_s
        while text not in self._output:
            assert select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))[0], (
                self._timeout_message(text)
            )
            try:
                data = os.read(self._descriptor, 1 << 16)
            except OSError:  # the program has ended, and no other process has the terminal
                data = b""
            assert data, self._timeout_message(text)
            self._output += data.decode(errors="replace")
        before, _, self._output = self._output.partition(text)
        return before + text

    def _timeout_message(self, text: str) -> str:
        return f"{text!r} did not come, but {self._output!r}"


@contextlib.contextmanager
def terminal(server: Server, argv: Sequence[str]) -> Iterator[Terminal]:
    """Start a program on its own terminal. It is killed at the end unless it has ended."""
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
