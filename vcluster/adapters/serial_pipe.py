"""The streams of a program in a node, over the node's serial port."""

from __future__ import annotations

import errno
import hashlib
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any, Protocol

from vcluster.adapters.pipe import LINE_LIMIT, Pipe
from vcluster.adapters.process import KILLED
from vcluster.errors import VclusterError
from vcluster.util.deadline import Deadline

POLL_S = 0.5
ROOM_POLL_S = 0.01
_PIECES_MAX = 100_000  # that wait to be read
EXIT_MAX = 255
_PIECE_BYTES = 1 << 15  # of a program's input in one line


class RequestQueue(Protocol):
    """Queues a request to the node; waits up to `room_s` seconds for room in the queue."""

    def __call__(self, request: dict[str, object], awaited: str, *, room_s: float = 0.0) -> None: ...


class NoReaderError(BrokenPipeError):
    """The program has ended, so nothing reads its input."""


class SerialPipe(Pipe):
    """A program in a node. The thread that reads its output also records its standard error."""

    def __init__(self, name: str, send: RequestQueue, number: int, source: bytes) -> None:
        super().__init__(name)
        self._send, self._number, self._source = send, number, source
        self._changed = threading.Condition()
        self._pieces: deque[tuple[str, bytes]] = deque()
        self._unread_bytes = 0
        self._exit_code: int | None = None
        self._failure: VclusterError | None = None
        self._is_closed = False

    @property
    def is_alive(self) -> bool:
        return not self._has_ended

    @property
    def _has_ended(self) -> bool:
        return self._exit_code is not None or self._failure is not None or self._is_closed

    def receive(self, timeout_s: float) -> bytes:
        ends_s = time.monotonic() + timeout_s
        while piece := self._next_piece(max(0.0, ends_s - time.monotonic())):
            stream, data = piece
            if stream == "stdout":
                return data
            self.add_error_output(data)
        return b""

    def next_piece(self, deadline: Deadline, awaited: str) -> tuple[str, bytes] | None:
        """The next output: the stream's name and the bytes, or None at the end. Raises DeadlineError."""
        while True:
            deadline.check(f"{awaited} on {self.name}")
            with suppress(TimeoutError):
                return self._next_piece(deadline.remaining_s(POLL_S))

    def _next_piece(self, timeout_s: float) -> tuple[str, bytes] | None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._pieces or self._has_ended, timeout_s):
                raise TimeoutError
            if not self._pieces:
                return None
            stream, data = self._pieces.popleft()
            self._unread_bytes -= len(data)
            return stream, data

    def transmit(self, data: memoryview, timeout_s: float) -> int:
        if self._has_ended:
            raise NoReaderError(errno.EPIPE, "the program has ended")
        piece = bytes(data[:_PIECE_BYTES])
        request: dict[str, object] = {"do": "write", "id": self._number, "data": piece.decode("latin-1")}
        try:
            self._send(request, "a write", room_s=max(timeout_s, ROOM_POLL_S))
        except VclusterError as error:
            raise NoReaderError(errno.EPIPE, error.message) from error
        return len(piece)

    def feed(self, stdin: bytes, deadline: Deadline, awaited: str) -> None:
        """Write all of the program's input and close it."""
        view = memoryview(stdin)
        while view:
            deadline.check(f"{awaited} on {self.name}")
            with suppress(TimeoutError):
                view = view[self.transmit(view, deadline.remaining_s(POLL_S)) :]
        self.shut()

    def shut(self) -> None:
        with suppress(VclusterError):
            self._send({"do": "end", "id": self._number}, "the end of its input")

    def close(self) -> None:
        with self._changed:
            if self._has_ended:
                self._is_closed = True
                return
            self._is_closed = True
            self._pieces.clear()
            self._changed.notify_all()
            with suppress(VclusterError):
                self._send({"do": "kill", "id": self._number}, "its end")

    def wait(self, timeout_s: float) -> int | None:
        with self._changed:
            self._changed.wait_for(lambda: self._exit_code is not None or self._failure, timeout_s)
            return KILLED if self._exit_code is not None and self._exit_code < 0 else self._exit_code

    def reason(self) -> str:
        code = self.wait(0.0 if self._is_closed else 1.0)
        if self._failure and code is None:
            return self._failure.message
        while self._pieces:
            stream, data = self._pieces.popleft()
            if stream == "stderr":
                self.add_error_output(data)
        return self.error_output or ("" if code is None else f"the program ended with exit code {code}")

    def broken(self, awaited: str, error: BaseException | None = None) -> VclusterError:
        hint = self._failure.hint if self._failure else None
        return VclusterError(super().broken(awaited, error).message, hint=hint)

    def on_message(self, message: dict[str, Any]) -> None:
        """Handle a message of the node about this program. Raises VclusterError for one that is malformed."""
        with self._changed:
            if "unknown" in message:
                self._start_with_source(_text_of(message, "unknown"))
            elif "exit" in message:
                self._exit_code = _exit_code_of(message)
            elif not self._is_closed:
                stream, field = ("stdout", "out") if "out" in message else ("stderr", "err")
                self._add(stream, _bytes_of(message, field))
            self._changed.notify_all()

    def _add(self, stream: str, data: bytes) -> None:
        """Record output. The node is not trusted: it may send without end, also empty pieces."""
        self._pieces.append((stream, data))
        self._unread_bytes += len(data)
        if self._unread_bytes > LINE_LIMIT or len(self._pieces) > _PIECES_MAX:
            self._failure = VclusterError(f"{self.name}: the program printed too much")
            self._pieces.clear()

    def abort(self, error: VclusterError) -> None:
        """Record that the connection has failed: no more messages can arrive."""
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def _start_with_source(self, digest: str) -> None:
        """Send the source of a program that the node does not have. The node keeps the input that arrived before."""
        if self._is_closed:
            return
        request: dict[str, object] = {"do": "start", "id": self._number, "program": digest}
        with suppress(VclusterError):
            self._send(request | {"source": program_text(self._source)}, "its start")


def _text_of(message: dict[str, Any], field: str) -> str:
    value = message.get(field, "")
    if not isinstance(value, str):
        raise malformed(field)
    return value


def _exit_code_of(message: dict[str, Any]) -> int:
    value = message["exit"]
    if not isinstance(value, int) or isinstance(value, bool) or not -EXIT_MAX <= value <= EXIT_MAX:
        raise malformed("exit")
    return value


def _bytes_of(message: dict[str, Any], field: str) -> bytes:
    """Output of a program: each character is a byte."""
    try:
        return _text_of(message, field).encode("latin-1")
    except UnicodeEncodeError as error:
        raise malformed(field) from error


def malformed(field: str) -> VclusterError:
    """The error for a message of the node with a wrong field."""
    return VclusterError(f"the node sent a message that vcluster does not know: its field {field} is wrong")


def program_text(source: bytes) -> str:
    """A program's source as text. The node rejects bytes that are not UTF-8."""
    return source.decode(errors="surrogateescape")


def program_digest(source: bytes) -> str:
    """The name of a program in requests: the SHA-256 of its source."""
    return hashlib.sha256(source).hexdigest()
