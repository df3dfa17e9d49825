"""The streams of a program on this machine, like those of a program that a session runs on a server."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
from collections.abc import Sequence

from vcluster.adapters.pipe import CHUNK, Listener, Pipe


class ProcessPipe(Pipe):
    """A program on this machine. A signal for the process group of the command, like that of Ctrl-C, does not reach it.

    `close` ends its input, and kills it if it does not end soon.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        on_error_output: Listener | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        super().__init__(name, on_error_output)
        streams = subprocess.PIPE
        self._process = subprocess.Popen(
            list(argv), stdin=streams, stdout=streams, stderr=streams, bufsize=0, env=env, start_new_session=True
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr  # noqa: S101 - for mypy
        self._stdin, self._stdout, self._stderr = self._process.stdin, self._process.stdout, self._process.stderr
        os.set_blocking(self._stdin.fileno(), False)
        self._closing = threading.Lock()
        self._listener = threading.Thread(target=self._listen, name=f"stderr of {name}", daemon=True)
        self._listener.start()

    @property
    def is_alive(self) -> bool:
        return not self._stdout.closed and self._process.poll() is None

    def receive(self, timeout_s: float) -> bytes:
        if not select.select([self._stdout], [], [], timeout_s)[0]:
            raise TimeoutError
        return os.read(self._stdout.fileno(), CHUNK)

    def transmit(self, data: memoryview, timeout_s: float) -> int:
        if not select.select([], [self._stdin], [], timeout_s)[1]:
            raise TimeoutError
        return os.write(self._stdin.fileno(), data[:CHUNK])

    def shut(self) -> None:
        self._stdin.close()

    def close(self) -> None:
        with self._closing:
            self._stdin.close()
            self.wait(2.0)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self._stdout.close()
            self._listener.join(2.0)
            self._stderr.close()

    def wait(self, timeout_s: float) -> int | None:
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def reason(self) -> str:
        code = self.wait(1.0)
        self._listener.join(1.0)
        return self.error_output or ("" if code is None else f"the program ended with exit code {code}")

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while data := os.read(self._stderr.fileno(), 65536):
                self.add_error_output(data)
