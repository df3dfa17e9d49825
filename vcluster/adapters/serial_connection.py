"""A node's serial port as a door for guest programs: no network, no login, and no start of Python in the node.

At the other end is the program that nodes have whose memory was kept (images/debian12/overlay/usr/lib/vcluster/clone,
which describes what is said), with which they wake.
"""

from __future__ import annotations

import errno
import hashlib
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

from vcluster.adapters.pipe import Pipe, one_line
from vcluster.adapters.process import KILLED, Completed, Output
from vcluster.errors import VclusterError
from vcluster.util.deadline import Deadline

LEAVE_S = 5.0  # a node that does not answer in this time is left without
_LOOK_S = 0.5
_ROOM_S = 0.01
_PIECE = 1 << 15  # of a program's input goes out in one line, in bytes
_QUEUED_MAX = 32  # so many lines wait to go out before who writes has to


class LineChannel(Protocol):
    """What lines go over, as hypervisor.Words does."""

    def next(self, deadline: Deadline, awaited: str) -> str:
        """The next line. Raises DeadlineError in time."""

    def say(self, text: str | bytes, deadline: Deadline, awaited: str) -> None:
        """Send all of it. Raises DeadlineError in time, VclusterError when nobody will read it."""

    def check(self, awaited: str) -> None:
        """Raise VclusterError when nothing will come any more."""

    def close(self) -> None:
        """Hang up."""


class SerialConnection:
    """A connection to a node by its serial port; several threads may use it. Use as a context manager, or close it.

    `deadline` is for programs that are not given another.
    """

    def __init__(self, name: str, words: LineChannel, deadline: Deadline) -> None:
        self.name = name
        self.deadline = deadline
        self._words = words
        self._lasting = Deadline(math.inf)
        self._lock = threading.Lock()
        self._outgoing: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._asked: deque[_Answer] = deque()
        self._pipes: dict[int, SerialPipe] = {}
        # Others may have talked to the node before, and programs of theirs not have ended.
        self._numbers = itertools.count(secrets.randbits(31))
        self._broken: VclusterError | None = None
        self._has_left = self._has_hung_up = False
        for work in (self._listen, self._speak):
            threading.Thread(target=work, name=f"serial port of {name}", daemon=True).start()

    def __enter__(self) -> SerialConnection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_alive(self) -> bool:
        """Whether the connection stands."""
        return self._broken is None

    def close(self) -> None:
        """Tell the node that we wait for nothing more, and hang up; it may be called again."""
        with self._lock:
            is_first, self._has_left = not self._has_left, True
        if is_first and self.is_alive:
            with suppress(VclusterError):
                self.ask({"do": "leave"}, Deadline(LEAVE_S), "its leave")
        self.disconnect()

    def disconnect(self) -> None:
        """Hang up without a word. A second time does nothing."""
        with self._lock:
            is_first, self._has_hung_up = not self._has_hung_up, True
        if not is_first:
            return
        self._end(VclusterError("we hung up"))
        self._lasting.cancel()
        self._words.close()

    def ask(self, verb: dict[str, object], deadline: Deadline, awaited: str) -> Any:
        """The node's answer to a verb. Raises VclusterError with the node's words, or when the connection breaks."""
        answer = _Answer()
        self._post(verb, awaited, answer)
        while not answer.is_there.wait(deadline.remaining_s(_LOOK_S)):
            deadline.check(f"{self.name}: {awaited}")
        if answer.broken:
            raise self._lost(awaited, answer.broken)
        if "error" in answer.words:
            raise VclusterError(f"{self.name}: {awaited}: {answer.words['error']}")
        return answer.words.get("done")

    def load(self, sources: Iterable[bytes], deadline: Deadline, awaited: str) -> None:
        """Have the node keep programs and load the modules they need, so that each starts at once."""
        programs = {_digest(source): _text(source) for source in sources}
        self.ask({"do": "load", "programs": programs}, deadline, awaited)

    def run_program(
        self,
        source: bytes,
        stdin: bytes,
        *,
        awaited: str,
        deadline: Deadline | None = None,
        on_output: Output | None = None,
    ) -> Completed:
        """Run a Python program to its end, or to the deadline (the door's if none is given); `awaited` names it.

        What it prints is passed to `on_output` as it comes, and returned as a whole.
        """
        deadline = deadline or self.deadline
        printed = {"stdout": bytearray(), "stderr": bytearray()}
        with closing(self._start(source, awaited, deadline)) as pipe:
            with suppress(_NoReaderError):
                pipe.feed(stdin, deadline, awaited)
            while piece := pipe.next_piece(deadline, awaited):
                stream, data = piece
                printed[stream] += data
                if on_output:
                    on_output(stream, data)
            exit_code = pipe.wait(0)
            if exit_code is None:
                raise pipe.broken(awaited)
        texts = {stream: data.decode(errors="backslashreplace") for stream, data in printed.items()}
        return Completed(exit_code, **texts)

    def start_program(self, source: bytes, *, awaited: str, deadline: Deadline | None = None) -> Pipe:
        """Start a Python program on the node and return its streams."""
        return self._start(source, awaited, deadline or self.deadline)

    def _start(self, source: bytes, awaited: str, deadline: Deadline) -> SerialPipe:
        deadline.check(f"{self.name}: {awaited}")
        number = next(self._numbers)
        pipe = SerialPipe(self, number, source)
        with self._lock:
            self._pipes[number] = pipe
        try:
            self._post({"do": "start", "id": number, "program": _digest(source)}, awaited)
        except VclusterError:
            self._pipes.pop(number, None)
            raise
        return pipe

    # What goes out

    def post(self, verb: dict[str, object], awaited: str, *, room_s: float = 0.0) -> None:
        """For the programs of this door: have something said; at first wait until there is room for more.

        Raises TimeoutError when there is not, VclusterError when the connection is broken.
        """
        ends_s = time.monotonic() + room_s
        while room_s and self._outgoing.qsize() >= _QUEUED_MAX:
            if time.monotonic() > ends_s:
                raise TimeoutError
            time.sleep(_ROOM_S)
        self._post(verb, awaited)

    def _post(self, verb: dict[str, object], awaited: str, answer: _Answer | None = None) -> None:
        with self._lock:
            if self._broken:
                raise self._lost(awaited, self._broken)
            if answer:
                self._asked.append(answer)
            self._outgoing.put(json.dumps(verb) + "\n")

    def _speak(self) -> None:
        """In a thread of its own: a line that a deadline cuts in the middle would spoil the next."""
        lasting = self._lasting.watching(self._words.check)
        try:
            self._words.say("\n", lasting, "the serial port")  # somebody before us may have been cut
            while (line := self._outgoing.get()) is not None:
                self._words.say(line, lasting, "the serial port")
        except VclusterError as error:
            self._end(error)

    # What comes in

    def _listen(self) -> None:
        lasting = self._lasting.watching(self._words.check)
        try:
            while True:
                line = self._words.next(lasting, "its next word")
                try:
                    message = json.loads(line)
                except ValueError:  # a word for others, such as that the node is ready
                    continue
                if isinstance(message, dict):
                    self._heard(message)
        except VclusterError as error:
            self._end(error)

    def _heard(self, message: dict[str, Any]) -> None:
        if "done" in message or "error" in message:
            with self._lock:
                answer = self._asked.popleft() if self._asked else None
            if answer:
                answer.come(message)
        elif pipe := self._pipes.get(message.get("id", -1)):
            if "exit" in message:
                self._pipes.pop(message["id"])
            pipe.heard(message)

    def _end(self, error: VclusterError) -> None:
        with self._lock:
            if self._broken:
                return
            self._broken = error
            asked, pipes = list(self._asked), list(self._pipes.values())
        self._outgoing.put(None)
        for answer in asked:
            answer.abort(error)
        for pipe in pipes:
            pipe.abort(error)

    def _lost(self, awaited: str, error: VclusterError) -> VclusterError:
        return VclusterError(f"{self.name}: the connection broke during {awaited}: {one_line(error.message)}")


class _Answer:
    """What the node will have said to what it was asked."""

    def __init__(self) -> None:
        self.is_there = threading.Event()
        self.words: dict[str, Any] = {}
        self.broken: VclusterError | None = None

    def come(self, words: dict[str, Any]) -> None:
        self.words = words
        self.is_there.set()

    def abort(self, error: VclusterError) -> None:
        self.broken = error
        self.is_there.set()


class _NoReaderError(BrokenPipeError):
    """The program has ended."""


class SerialPipe(Pipe):
    """A program at the other end of a serial port. What it says on standard error is heard by who reads."""

    def __init__(self, connection: SerialConnection, number: int, source: bytes) -> None:
        super().__init__(connection.name)
        self._door, self._number, self._source = connection, number, source
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
                return self._piece(deadline.remaining_s(_LOOK_S))

    def _piece(self, timeout_s: float) -> tuple[str, bytes] | None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._pieces or self._has_ended, timeout_s):
                raise TimeoutError
            return self._pieces.popleft() if self._pieces else None

    def transmit(self, data: memoryview, timeout_s: float) -> int:
        if self._has_ended:
            raise _NoReaderError(errno.EPIPE, "the program has ended")
        piece = bytes(data[:_PIECE])
        request: dict[str, object] = {"do": "write", "id": self._number, "data": piece.decode("latin-1")}
        try:
            self._door.post(request, "a write", room_s=max(timeout_s, _ROOM_S))
        except VclusterError as error:
            raise _NoReaderError(errno.EPIPE, error.message) from error
        return len(piece)

    def feed(self, stdin: bytes, deadline: Deadline, awaited: str) -> None:
        """Write all that it will get to read."""
        view = memoryview(stdin)
        while view:
            deadline.check(f"{self.name}: {awaited}")
            with suppress(TimeoutError):
                view = view[self.transmit(view, deadline.remaining_s(_LOOK_S)) :]
        self.shut()

    def shut(self) -> None:
        with suppress(VclusterError):
            self._door.post({"do": "end", "id": self._number}, "the end of its input")

    def close(self) -> None:
        with self._changed:
            if self._has_ended:
                self._is_closed = True
                return
            self._is_closed = True
            self._pieces.clear()
            self._changed.notify_all()
            with suppress(VclusterError):
                self._door.post({"do": "kill", "id": self._number}, "its end")

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
            self._door.post(request | {"source": _text(self._source)}, "its start")


def _text(source: bytes) -> str:
    return source.decode(errors="surrogateescape")  # one that is no text is refused there


def _digest(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()
