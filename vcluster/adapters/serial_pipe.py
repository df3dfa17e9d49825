"""Programs."""

from __future__ import annotations

import errno
import hashlib
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any, Protocol

from vcluster.adapters.pipe import Pipe
from vcluster.adapters.process import KILLED
from vcluster.errors import VclusterError
from vcluster.util.deadline import Deadline

POLL_S = 0.5
ROOM_POLL_S = 0.01
_PIECE = 1 << 15  # of a program's input goes out in one line, in bytes


class Post(Protocol):
    """Queues a request to the node; waits up to `room_s` seconds for room in the queue."""

    def __call__(self, request: dict[str, object], awaited: str, *, room_s: float = 0.0) -> None: ...


class NoReaderError(BrokenPipeError):
    """The program has ended."""


class SerialPipe(Pipe):
    """A program at the other end of a serial port. What it says on standard error is heard by who reads."""

    def __init__(self, name: str, post: Post, number: int, source: bytes) -> None:
        super().__init__(name)
        self._post, self._number, self._source = post, number, source
        self._changed = threading.Condition()
        self._pieces: deque[tuple[str, bytes]] = deque()
        self._exit_code: int | None = None
        self._broken: VclusterError | None = None
        self._is_closed = False

    @property
    def is_alive(self) -> bool:
        return not self._has_ended

    @property
    def _has_ended(self) -> bool:
        return self._exit_code is not None or self._broken is not None or self._is_closed

    def receive(self, timeout_s: float) -> bytes:
        ends_s = time.monotonic() + timeout_s
        while piece := self._piece(max(0.0, ends_s - time.monotonic())):
            stream, data = piece
            if stream == "stdout":
                return data
            self.said(data)
        return b""

    def next_piece(self, deadline: Deadline, awaited: str) -> tuple[str, bytes] | None:
        """The next that it has said, behind the name of the stream; None at the end. Raises DeadlineError in time."""
        while True:
            deadline.check(f"{self.name}: {awaited}")
            with suppress(TimeoutError):
                return self._piece(deadline.remaining_s(POLL_S))

    def _piece(self, timeout_s: float) -> tuple[str, bytes] | None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._pieces or self._has_ended, timeout_s):
                raise TimeoutError
            return self._pieces.popleft() if self._pieces else None

    def transmit(self, data: memoryview, timeout_s: float) -> int:
        if self._has_ended:
            raise NoReaderError(errno.EPIPE, "the program has ended")
        piece = bytes(data[:_PIECE])
        request: dict[str, object] = {"do": "write", "id": self._number, "data": piece.decode("latin-1")}
        try:
            self._post(request, "a write", room_s=max(timeout_s, ROOM_POLL_S))
        except VclusterError as error:
            raise NoReaderError(errno.EPIPE, error.message) from error
        return len(piece)

    def feed(self, stdin: bytes, deadline: Deadline, awaited: str) -> None:
        """Write all that it will get to read."""
        view = memoryview(stdin)
        while view:
            deadline.check(f"{self.name}: {awaited}")
            with suppress(TimeoutError):
                view = view[self.transmit(view, deadline.remaining_s(POLL_S)) :]
        self.shut()

    def shut(self) -> None:
        with suppress(VclusterError):
            self._post({"do": "end", "id": self._number}, "the end of its input")

    def close(self) -> None:
        with self._changed:
            if self._has_ended:
                self._is_closed = True
                return
            self._is_closed = True
            self._pieces.clear()
            self._changed.notify_all()
            with suppress(VclusterError):
                self._post({"do": "kill", "id": self._number}, "its end")

    def wait(self, timeout_s: float) -> int | None:
        with self._changed:
            self._changed.wait_for(lambda: self._exit_code is not None or self._broken, timeout_s)
            return KILLED if self._exit_code is not None and self._exit_code < 0 else self._exit_code

    def reason(self) -> str:
        code = self.wait(0.0 if self._is_closed else 1.0)
        if self._broken and code is None:
            return self._broken.message
        while self._pieces:
            stream, data = self._pieces.popleft()
            if stream == "stderr":
                self.said(data)
        return self.error_output or ("" if code is None else f"the program ended with exit code {code}")

    def heard(self, message: dict[str, Any]) -> None:
        """Something came of it."""
        with self._changed:
            if "unknown" in message:
                self._start_again(message["unknown"])
            elif "exit" in message:
                self._exit_code = message["exit"]
            elif not self._is_closed:
                stream = "stdout" if "out" in message else "stderr"
                self._pieces.append((stream, message.get("out", message.get("err", "")).encode("latin-1")))
            self._changed.notify_all()

    def abort(self, error: VclusterError) -> None:
        """Nothing more will come."""
        with self._changed:
            self._broken = error
            self._changed.notify_all()

    def _start_again(self, digest: str) -> None:
        """The node has not got it; what was written meanwhile waits there."""
        if self._is_closed:
            return
        request: dict[str, object] = {"do": "start", "id": self._number, "program": digest}
        with suppress(VclusterError):
            self._post(request | {"source": program_text(self._source)}, "its start")


def program_text(source: bytes) -> str:
    return source.decode(errors="surrogateescape")  # one that is no text is refused there


def program_digest(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()
