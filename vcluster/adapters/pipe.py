"""Streams to and from a running program: read a number of bytes, read a line, write, each with a deadline."""

from __future__ import annotations

import codecs
import contextlib
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable

from vcluster.adapters.process import Completed, Output
from vcluster.errors import VclusterError
from vcluster.util.deadline import Deadline

CHUNK = 1 << 18
LINE_LIMIT = 1 << 26  # longer lines are an error
OUTPUT_LIMIT = 1 << 24  # of a program's output that is kept
PART_BYTES = 1 << 20
_POLL_S = 0.5  # how often a wait checks whether it was cancelled
_TAIL_BYTES = 8192  # how much of a program's standard error is kept


Listener = Callable[["Pipe", bytes], None]  # called in a thread with a program's standard error


class Pipe(ABC):
    """The standard streams of a running program. One thread may read and one may write; any thread may call `close`.

    When a deadline ends a read, the bytes that have arrived stay; the next read continues with them.
    """

    def __init__(self, name: str, on_error_output: Listener | None = None) -> None:
        self.name = name
        self._pending = bytearray()
        self._tail = bytearray()
        self._on_error_output = on_error_output

    @property
    def error_output(self) -> str:
        """The last part of the program's standard error."""
        return bytes(self._tail).decode(errors="replace").strip()

    def read(self, size: int, deadline: Deadline, awaited: str) -> bytes:
        """Read exactly `size` bytes. Raises DeadlineError, or VclusterError when the stream ends first."""
        while len(self._pending) < size:
            self._pending += self._more(deadline, awaited)
        return self._take(size)

    def read_line(self, deadline: Deadline, awaited: str, *, limit: int = LINE_LIMIT) -> bytes:
        """Read the next line, without its newline. Raises VclusterError if it has more bytes than the limit."""
        searched = 0
        while (end := self._pending.find(b"\n", searched)) < 0:
            searched = len(self._pending)
            if searched > limit:
                raise self._too_long(awaited, limit)
            self._pending += self._more(deadline, awaited)
        if end > limit:
            raise self._too_long(awaited, limit)
        return self._take(end + 1)[:-1]

    def write(self, data: bytes | memoryview, deadline: Deadline, awaited: str) -> None:
        """Write all of `data`. Raises DeadlineError, or VclusterError when nothing reads it any more."""
        view = memoryview(data)
        while view:
            try:
                view = view[self.transmit(view, deadline.remaining_s(_POLL_S)) :]
            except TimeoutError:
                deadline.check(f"{awaited} on {self.name}")
            except (OSError, EOFError, ValueError) as error:  # ValueError: closed by another thread
                raise self.broken(awaited, error) from error

    def has_more(self) -> bool:
        """Whether a read would return at once, with data or because the stream has ended."""
        if not self._pending:
            with contextlib.suppress(TimeoutError, OSError):
                self._pending += self.receive(0.0)
        return bool(self._pending) or not self.is_alive

    def broken(self, awaited: str, error: BaseException | None = None) -> VclusterError:
        """The error for a stream that ended during `awaited`, with the reason if it is known."""
        reason = one_line(self.reason() or (error and (str(error) or type(error).__name__)) or "")
        return VclusterError(f"{self.name}: the connection broke during {awaited}" + (f": {reason}" if reason else ""))

    @property
    def unread(self) -> bytes:
        """What has arrived and is not read."""
        return bytes(self._pending)

    @property
    @abstractmethod
    def is_alive(self) -> bool:
        """Whether more bytes may arrive."""

    @abstractmethod
    def receive(self, timeout_s: float) -> bytes:
        """Read some bytes; no bytes mean the end. Raises TimeoutError."""

    @abstractmethod
    def transmit(self, data: memoryview, timeout_s: float) -> int:
        """Write part of `data` and return how many bytes. Raises TimeoutError, or OSError when the stream has ended."""

    @abstractmethod
    def shut(self) -> None:
        """Close the program's input."""

    @abstractmethod
    def close(self) -> None:
        """Close all streams, which ends the program. A second call does nothing."""

    @abstractmethod
    def wait(self, timeout_s: float) -> int | None:
        """The program's exit code, or None if it is not known after `timeout_s` seconds."""

    @abstractmethod
    def reason(self) -> str:
        """Why the stream ended; empty if that is unknown."""

    def _more(self, deadline: Deadline, awaited: str) -> bytes:
        while True:
            try:
                data = self.receive(deadline.remaining_s(_POLL_S))
            except TimeoutError:
                deadline.check(f"{awaited} on {self.name}")
            except (OSError, EOFError, ValueError) as error:  # ValueError: closed by another thread
                raise self.broken(awaited, error) from error
            else:
                if not data:
                    raise self.broken(awaited)
                return data

    def _too_long(self, awaited: str, limit: int) -> VclusterError:
        return VclusterError(f"{self.name}: {awaited}: the answer is longer than {limit >> 10} KiB")

    def _take(self, size: int) -> bytes:
        taken = bytes(self._pending[:size])
        del self._pending[:size]
        return taken

    def add_error_output(self, data: bytes) -> None:
        """Record standard error that has arrived, and pass it to the listener."""
        self._tail += data
        del self._tail[:-_TAIL_BYTES]
        if self._on_error_output:
            self._on_error_output(self, data)


class LoginOutput:
    """Drops what login scripts print on standard output, up to the line of a random mark.

    Debian's bash reads ~/.bashrc for commands by SSH too, and other shells have such files.
    """

    def __init__(self, name: str, *, is_silent: bool = False) -> None:
        self._name = name
        self.mark = f"vcluster-{secrets.token_hex(8)}"
        self._has_ended = is_silent
        self._before = bytearray()

    @property
    def rest(self) -> bytes:
        """What was printed, as long as the mark is missing: then the login printed the reason."""
        return bytes(self._before)

    def after_mark(self, data: bytes) -> bytes:
        """The part of the output that does not come from the login."""
        if self._has_ended:
            return data
        self._before += data
        _, mark, rest = self._before.partition(f"{self.mark}\n".encode())
        if mark:
            self._has_ended = True
            self._before.clear()
        elif len(self._before) > PART_BYTES:
            raise VclusterError(f"{self._name}: its login scripts print more than {PART_BYTES >> 20} MiB")
        return bytes(rest)


class OutputLimitError(VclusterError):
    """A program printed more than vcluster keeps."""


class Printed:
    """What a program printed on each stream. Nodes are not trusted, so a limited part of it is kept.

    With a listener, which gets all of it, that is the last part. Without one, a program must not print more.
    """

    def __init__(self, subject: str, on_output: Output | None) -> None:
        self._subject, self._on_output = subject, on_output
        self._kept = {"stdout": bytearray(), "stderr": bytearray()}

    def add(self, stream: str, data: bytes) -> None:
        """Record output that has arrived. Raises OutputLimitError if it is too much."""
        kept = self._kept[stream]
        kept += data
        if self._on_output:
            del kept[:-OUTPUT_LIMIT]
            self._on_output(stream, data)
        elif len(kept) > OUTPUT_LIMIT:
            raise OutputLimitError(f"{self._subject} printed more than {OUTPUT_LIMIT >> 20} MiB")

    def completed(self, exit_code: int) -> Completed:
        """The program's end, with what is kept of its output."""
        texts = {stream: data.decode(errors="backslashreplace") for stream, data in self._kept.items()}
        return Completed(exit_code, **texts)


class LineJoiner:
    """Joins pieces of a stream into lines. The time that it takes is linear in their length."""

    def __init__(self) -> None:
        self.rest = bytearray()  # after the last newline

    def add(self, data: bytes) -> list[bytes]:
        """The lines that a piece completes, without their newlines."""
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = bytes(self.rest) + lines[0]
            self.rest.clear()
        self.rest += rest
        return lines


class LineSplitter:
    """Joins pieces of several streams into lines and passes each line to `on_line` with its stream's name.

    `end` passes on the rest after the last newline. A line that is too long is passed on in parts of whole characters.
    """

    def __init__(self, on_line: Callable[[str, str], None]) -> None:
        self._on_line = on_line
        self._joiners: dict[str, LineJoiner] = {}

    def __call__(self, stream: str, data: bytes) -> None:
        joiner = self._joiners.setdefault(stream, LineJoiner())
        for line in joiner.add(data):
            self._pass_on(stream, line)
        if len(joiner.rest) > PART_BYTES:
            part, used = codecs.utf_8_decode(joiner.rest, "backslashreplace", False)  # up to the last whole character
            self._on_line(stream, part)
            del joiner.rest[:used]

    def end(self) -> None:
        """Pass on lines without a newline at the end of their stream."""
        for stream, joiner in self._joiners.items():
            if joiner.rest:
                self._pass_on(stream, joiner.rest)
        self._joiners.clear()

    def _pass_on(self, stream: str, line: bytes | bytearray) -> None:
        self._on_line(stream, line.rstrip(b"\r").decode(errors="backslashreplace"))


def one_line(text: str) -> str:
    """The last three lines of a text as one line."""
    return " | ".join(line.strip() for line in text.splitlines()[-3:] if line.strip())


def error_line(error: BaseException) -> str:
    """The reason of an error as one line: its text, or its class when it has none."""
    return one_line(str(error)) or type(error).__name__
