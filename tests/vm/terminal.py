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
# The terminal controls the program, as that of a shell does: when it closes, the program gets SIGHUP.
CONTROLLED = ("setsid", "--ctty", "env", "--default-signal=HUP")


@dataclass
class Terminal:
    """The keyboard and the screen of a program."""

    process: subprocess.Popen[bytes]
    _descriptor: int | None
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

    def close(self) -> None:
        """Close the terminal, as when its window or its SSH connection ends."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    def _timeout_message(self, text: str) -> str:
        return f"{text!r} did not come, but {self._output!r}"


@contextlib.contextmanager
def terminal(server: Server, argv: Sequence[str]) -> Iterator[Terminal]:
    """Start a program on its own terminal. The terminal closes at the end."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "exec", server.name, "--", *CONTROLLED, *argv],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    screen = Terminal(process, ours)
    try:
        yield screen
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        screen.close()
