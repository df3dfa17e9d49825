"""A connection to a node by its serial port, for guest programs: no network, no login, no start of Python in the node.

At the other end is the program that clones of a template resume with. It describes the protocol
(images/debian/overlay/usr/lib/vcluster/clone).
"""

from __future__ import annotations

import itertools
import json
import math
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import closing, suppress
from types import TracebackType
from typing import Any, Protocol

from vcluster.adapters.pipe import Pipe, Printed, one_line
from vcluster.adapters.process import Completed, Output
from vcluster.adapters.serial_pipe import (
    POLL_S,
    ROOM_POLL_S,
    NoReaderError,
    SerialPipe,
    malformed,
    program_digest,
    program_text,
)
from vcluster.errors import VclusterError
from vcluster.model import json_text
from vcluster.model.quoting import quoted
from vcluster.util.deadline import Deadline

LEAVE_TIMEOUT_S = 5.0  # after this time, close the connection without the node's answer
_FOREIGN_MAX = 10_000  # messages of the node one after the other that are not of its program
_QUEUED_MAX = 32  # lines that may wait to be sent; then writers wait


class LineChannel(Protocol):
    """A channel for lines, such as SerialChannel."""

    def read_line(self, deadline: Deadline, awaited: str) -> str:
        """The next line. Raises DeadlineError, or VclusterError when the node has stopped."""

    def send(self, text: str | bytes, deadline: Deadline, awaited: str) -> None:
        """Send all of `text`. Raises DeadlineError, or VclusterError when the node has stopped."""

    def close(self) -> None:
        """Close the channel."""


class SerialConnection:
    """A connection to a node by its serial port. Several threads may use it. Use as a context manager, or close it.

    `deadline` applies to programs that are started without one.
    """

    def __init__(self, name: str, channel: LineChannel, deadline: Deadline) -> None:
        self.name = name
        self.deadline = deadline
        self._channel = channel
        self._until_closed = Deadline(math.inf)
        self._lock = threading.Lock()
        self._outgoing: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._unanswered: deque[_Answer] = deque()
        self._pipes: dict[int, SerialPipe] = {}
        # Start at random: programs of an earlier connection may still be running in the node.
        self._numbers = itertools.count(secrets.randbits(31))
        self._failure: VclusterError | None = None
        self._has_left = self._is_disconnected = False
        for work in (self._receive_lines, self._send_lines):
            threading.Thread(target=work, name=f"serial port of {name}", daemon=True).start()

    def __enter__(self) -> SerialConnection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_alive(self) -> bool:
        """Whether the connection is open."""
        return self._failure is None

    def close(self) -> None:
        """End the node's program and close the connection. A second call does nothing."""
        with self._lock:
            is_first, self._has_left = not self._has_left, True
        if is_first and self.is_alive:
            with suppress(VclusterError):
                self.request({"do": "leave"}, Deadline(LEAVE_TIMEOUT_S), "the end of the program")
        self.disconnect()

    def disconnect(self) -> None:
        """Close the connection; the node's program continues. A second call does nothing."""
        with self._lock:
            is_first, self._is_disconnected = not self._is_disconnected, True
        if not is_first:
            return
        self._fail(VclusterError("vcluster closed the connection"))
        self._until_closed.cancel()
        self._channel.close()

    def request(self, request: dict[str, object], deadline: Deadline, awaited: str) -> Any:
        """Send a request and return the node's answer.

        Raises VclusterError with the node's error, or when the connection breaks; DeadlineError.
        """
        answer = _Answer()
        self._queue(request, awaited, answer)
        while not answer.is_complete.wait(deadline.remaining_s(POLL_S)):
            deadline.check(f"{awaited} on {self.name}")
        if answer.failure:
            raise self._broken(awaited, answer.failure)
        if "error" in answer.message:
            raise VclusterError(f"{self.name}: {awaited}: {quoted(answer.message['error'])}")
        return answer.message.get("done")

    def load(self, sources: Iterable[bytes], deadline: Deadline, awaited: str) -> None:
        """Store programs in the node and import the modules that they need, so that each starts at once."""
        programs = {program_digest(source): program_text(source) for source in sources}
        self.request({"do": "load", "programs": programs}, deadline, awaited)

    def run_program(
        self,
        source: bytes,
        stdin: bytes,
        *,
        awaited: str,
        deadline: Deadline | None = None,
        on_output: Output | None = None,
    ) -> Completed:
        """Run a Python program until it ends or the deadline expires (by default, the connection's).

        `awaited` names the program in messages. Its output is passed to `on_output` as it arrives, and is returned.
        """
        deadline = deadline or self.deadline
        printed = Printed(f"{self.name}: {awaited}", on_output)
        with closing(self._start(source, awaited, deadline)) as pipe:
            with suppress(NoReaderError):
                pipe.feed(stdin, deadline, awaited)
            while piece := pipe.next_piece(deadline, awaited):
                printed.add(*piece)
            exit_code = pipe.wait(0)
            if exit_code is None:
                raise pipe.broken(awaited)
        return printed.completed(exit_code)

    def start_program(self, source: bytes, *, awaited: str, deadline: Deadline | None = None) -> Pipe:
        """Start a Python program on the node and return its streams."""
        return self._start(source, awaited, deadline or self.deadline)

    def _start(self, source: bytes, awaited: str, deadline: Deadline) -> SerialPipe:
        deadline.check(f"{awaited} on {self.name}")
        number = next(self._numbers)
        pipe = SerialPipe(self.name, self._queue_when_room, number, source)
        with self._lock:
            self._pipes[number] = pipe
        try:
            self._queue({"do": "start", "id": number, "program": program_digest(source)}, awaited)
        except VclusterError:
            self._pipes.pop(number, None)
            raise
        return pipe

    def _queue_when_room(self, request: dict[str, object], awaited: str, *, room_s: float = 0.0) -> None:
        """Queue a request of a pipe; with `room_s`, first wait so many seconds for room in the queue.

        Raises TimeoutError when the queue stays full, VclusterError when the connection is broken.
        """
        ends_s = time.monotonic() + room_s
        while room_s and self._outgoing.qsize() >= _QUEUED_MAX:
            if time.monotonic() > ends_s:
                raise TimeoutError
            time.sleep(ROOM_POLL_S)
        self._queue(request, awaited)

    def _queue(self, request: dict[str, object], awaited: str, answer: _Answer | None = None) -> None:
        with self._lock:
            if self._failure:
                raise self._broken(awaited, self._failure)
            if answer:
                self._unanswered.append(answer)
            self._outgoing.put(json.dumps(request) + "\n")

    def _send_lines(self) -> None:
        """Send in a separate thread: a line that a caller's deadline cuts off would spoil the next one."""
        try:
            # An earlier connection may have sent part of a line.
            self._channel.send("\n", self._until_closed, "the serial port")
            while (line := self._outgoing.get()) is not None:
                self._channel.send(line, self._until_closed, "the serial port")
        except VclusterError as error:
            self._fail(error)

    def _receive_lines(self) -> None:
        """Receive in a separate thread, which must not end without an error: others wait for what it delivers."""
        try:
            while True:
                self._deliver_next()
        except VclusterError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - the node decides which one
            self._fail(VclusterError(f"the node sent a message that vcluster does not know ({type(error).__name__})"))

    def _deliver_next(self) -> None:
        """Deliver the next message for a request or a program; others of the node, such as "ready", are skipped."""
        for _ in range(_FOREIGN_MAX):
            message = _parsed(self._channel.read_line(self._until_closed, "the next message"))
            if message is not None and self._deliver(message):
                return
        raise VclusterError(f"the node sent {_FOREIGN_MAX} messages that are not of its program")

    def _deliver(self, message: dict[str, Any]) -> bool:
        """Deliver a message. Returns whether a request or a program waits for it."""
        if "done" in message or "error" in message:
            with self._lock:
                answer = self._unanswered.popleft() if self._unanswered else None
            if answer:
                answer.complete(message)
            return answer is not None
        number = message.get("id", -1)
        if isinstance(number, list | dict):
            raise malformed("id")
        pipe = self._pipes.get(number)
        if pipe:
            pipe.on_message(message)
            if "exit" in message:
                self._pipes.pop(number)
        return pipe is not None

    def _fail(self, error: VclusterError) -> None:
        with self._lock:
            if self._failure:
                return
            self._failure = error
            unanswered, pipes = list(self._unanswered), list(self._pipes.values())
        self._outgoing.put(None)
        for answer in unanswered:
            answer.abort(error)
        for pipe in pipes:
            pipe.abort(error)

    def _broken(self, awaited: str, error: VclusterError) -> VclusterError:
        message = f"{self.name}: the connection broke during {awaited}: {one_line(error.message)}"
        return VclusterError(message, hint=error.hint)


def _parsed(line: str) -> dict[str, Any] | None:
    """A message of the node's program; None for another message of the node, such as "ready"."""
    try:
        message = json_text.parse(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


class _Answer:
    """The node's answer to a request, once it has arrived."""

    def __init__(self) -> None:
        self.is_complete = threading.Event()
        self.message: dict[str, Any] = {}
        self.failure: VclusterError | None = None

    def complete(self, message: dict[str, Any]) -> None:
        self.message = message
        self.is_complete.set()

    def abort(self, error: VclusterError) -> None:
        self.failure = error
        self.is_complete.set()
