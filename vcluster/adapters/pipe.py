"""Two-way streams to a program that runs elsewhere: read so many bytes, read a line, write, all by a deadline."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from vcluster.errors import VclusterError
from vcluster.util.deadline import Deadline

CHUNK = 1 << 18
LINE_LIMIT = 1 << 26  # a line longer than this is not one of ours
_LOOK_S = 0.5  # how often a wait looks whether it was called off
_TAIL = 8192  # of what a program says on its standard error this much is kept


Listener = Callable[["Pipe", bytes], None]  # hears, in a thread, what a program says on its standard error


class Pipe(ABC):
    """The standard streams of a running program. One thread reads and one writes at a time; `close` comes from any.

    What has arrived of an answer stays when a deadline cuts the wait for it: the next read goes on from there.
    """

    def __init__(self, name: str, on_error_output: Listener | None = None) -> None:
        self.name = name
        self._pending = bytearray()
        self._tail = bytearray()
        self._on_error_output = on_error_output

    @property
    def error_output(self) -> str:
        """The end of what the program has said on its standard error."""
        return bytes(self._tail).decode(errors="replace").strip()

    def read(self, size: int, deadline: Deadline, awaited: str) -> bytes:
        """Exactly `size` bytes. Raises DeadlineError in time, VclusterError when the stream ends before."""
        while len(self._pending) < size:
            self._pending += self._more(deadline, awaited)
        return self._take(size)

    def read_line(self, deadline: Deadline, awaited: str) -> bytes:
        """The next line, without its end."""
        looked = 0
        while (end := self._pending.find(b"\n", looked)) < 0:
            looked = len(self._pending)
            if looked > LINE_LIMIT:
                raise VclusterError(f"{self.name}: {awaited}: an answer without an end")
            self._pending += self._more(deadline, awaited)
        return self._take(end + 1)[:-1]

    def write(self, data: bytes | memoryview, deadline: Deadline, awaited: str) -> None:
        """Write all of it. Raises DeadlineError in time, VclusterError when nobody reads any more."""
        view = memoryview(data)
        while view:
            try:
                view = view[self.transmit(view, deadline.remaining_s(_LOOK_S)) :]
            except TimeoutError:
                deadline.check(f"{self.name}: {awaited}")
            except (OSError, EOFError, ValueError) as error:  # ValueError: closed by ourselves
                raise self.broken(awaited, error) from error

    def has_more(self) -> bool:
        """Whether a read would find something, if only the end, without a wait."""
        if not self._pending:
            with contextlib.suppress(TimeoutError, OSError):
                self._pending += self.receive(0.0)
        return bool(self._pending) or not self.is_alive

    def broken(self, awaited: str, error: BaseException | None = None) -> VclusterError:
        """The error for a stream that ended while something was awaited, with the reason if one is known."""
        reason = one_line(self.reason() or (error and (str(error) or type(error).__name__)) or "")
        return VclusterError(f"{self.name}: the connection broke during {awaited}" + (f": {reason}" if reason else ""))

    @property
    @abstractmethod
    def is_alive(self) -> bool:
        """Whether bytes may still come."""

    @abstractmethod
    def receive(self, timeout_s: float) -> bytes:
        """Some bytes, none at the end. Raises TimeoutError."""

    @abstractmethod
    def transmit(self, data: memoryview, timeout_s: float) -> int:
        """Write some of it and say how many bytes. Raises TimeoutError, or OSError at the end."""

    @abstractmethod
    def shut(self) -> None:
        """Say that nothing more will be written."""

    @abstractmethod
    def close(self) -> None:
        """Close all streams, which ends the program. A second time does nothing."""

    @abstractmethod
    def wait(self, timeout_s: float) -> int | None:
        """The program's exit code, once it has ended; None when that is not known in time."""

    @abstractmethod
    def reason(self) -> str:
        """Why the stream ended, as far as is known."""

    def _more(self, deadline: Deadline, awaited: str) -> bytes:
        while True:
            try:
                data = self.receive(deadline.remaining_s(_LOOK_S))
            except TimeoutError:
                deadline.check(f"{self.name}: {awaited}")
            except (OSError, EOFError, ValueError) as error:  # ValueError: closed by ourselves
                raise self.broken(awaited, error) from error
            else:
                if not data:
                    raise self.broken(awaited)
                return data

    def _take(self, size: int) -> bytes:
        taken = bytes(self._pending[:size])
        del self._pending[:size]
        return taken

    def said(self, data: bytes) -> None:
        """Something came on standard error."""
        self._tail += data
        del self._tail[:-_TAIL]
        if self._on_error_output:
            self._on_error_output(self, data)


class LocalPipe(Pipe):
    """A program of this machine."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        on_error_output: Listener | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        super().__init__(name, on_error_output)
        streams = subprocess.PIPE
        self._process = subprocess.Popen(list(argv), stdin=streams, stdout=streams, stderr=streams, bufsize=0, env=env)
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
                self.said(data)


class LineSplitter:
    """Makes lines of what arrives in pieces on several streams, and passes each on with its stream's name.

    `end` passes on what has come since the last line's end.
    """

    def __init__(self, hear: Callable[[str, str], None]) -> None:
        self._receive = hear
        self._rest: dict[str, bytes] = {}

    def __call__(self, stream: str, data: bytes) -> None:
        *lines, rest = (self._rest.get(stream, b"") + data).split(b"\n")
        self._rest[stream] = rest
        for line in lines:
            self._pass_on(stream, line)

    def end(self) -> None:
        """Nothing more will come."""
        for stream, rest in self._rest.items():
            if rest:
                self._pass_on(stream, rest)
        self._rest.clear()

    def _pass_on(self, stream: str, line: bytes) -> None:
        self._receive(stream, line.rstrip(b"\r").decode(errors="backslashreplace"))


def one_line(text: str) -> str:
    """The last lines of a text as one."""
    return " | ".join(line.strip() for line in text.splitlines()[-3:] if line.strip())


def error_line(error: BaseException) -> str:
    """The reason of an error as one line: its text, or its class when it has none."""
    return one_line(str(error)) or type(error).__name__
