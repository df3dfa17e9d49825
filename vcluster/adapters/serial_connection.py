"""A node's serial port."""

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

from vcluster.adapters.pipe import Pipe, one_line
from vcluster.adapters.process import Completed, Output
from vcluster.adapters.serial_pipe import POLL_S, ROOM_POLL_S, NoReaderError, SerialPipe, program_digest, program_text
from vcluster.errors import VclusterError
from vcluster.util.deadline import Deadline

LEAVE_S = 5.0  # a node that does not answer in this time is left without
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

    def ask(self, request: dict[str, object], deadline: Deadline, awaited: str) -> Any:
        """The node's answer to a request. Raises VclusterError with the node's words, or when the connection breaks."""
        answer = _Answer()
        self._post(request, awaited, answer)
        while not answer.is_there.wait(deadline.remaining_s(POLL_S)):
            deadline.check(f"{self.name}: {awaited}")
        if answer.broken:
            raise self._lost(awaited, answer.broken)
        if "error" in answer.words:
            raise VclusterError(f"{self.name}: {awaited}: {answer.words['error']}")
        return answer.words.get("done")

    def load(self, sources: Iterable[bytes], deadline: Deadline, awaited: str) -> None:
        """Have the node keep programs and load the modules they need, so that each starts at once."""
        programs = {program_digest(source): program_text(source) for source in sources}
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
            with suppress(NoReaderError):
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
        pipe = SerialPipe(self.name, self.post, number, source)
        with self._lock:
            self._pipes[number] = pipe
        try:
            self._post({"do": "start", "id": number, "program": program_digest(source)}, awaited)
        except VclusterError:
            self._pipes.pop(number, None)
            raise
        return pipe

    # What goes out

    def post(self, request: dict[str, object], awaited: str, *, room_s: float = 0.0) -> None:
        """For the programs of this door: have something said; at first wait until there is room for more.

        Raises TimeoutError when there is not, VclusterError when the connection is broken.
        """
        ends_s = time.monotonic() + room_s
        while room_s and self._outgoing.qsize() >= _QUEUED_MAX:
            if time.monotonic() > ends_s:
                raise TimeoutError
            time.sleep(ROOM_POLL_S)
        self._post(request, awaited)

    def _post(self, request: dict[str, object], awaited: str, answer: _Answer | None = None) -> None:
        with self._lock:
            if self._broken:
                raise self._lost(awaited, self._broken)
            if answer:
                self._asked.append(answer)
            self._outgoing.put(json.dumps(request) + "\n")

    def _speak(self) -> None:
        """In a thread of its own: a line that a deadline cuts in the middle would spoil the next."""
        lasting = self._lasting.with_check(self._words.check)
        try:
            self._words.say("\n", lasting, "the serial port")  # somebody before us may have been cut
            while (line := self._outgoing.get()) is not None:
                self._words.say(line, lasting, "the serial port")
        except VclusterError as error:
            self._end(error)

    # What comes in

    def _listen(self) -> None:
        lasting = self._lasting.with_check(self._words.check)
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
