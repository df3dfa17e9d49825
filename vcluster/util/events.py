"""Work reports events; whoever listens prints them or writes them down."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

EVERYONE = ""


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened: `what` is start, progress, end, fail or note; `node` is EVERYONE for the cluster as a whole.

    `at_s` counts from the beginning of the command, in seconds; `text` says what is awaited, or what went wrong;
    `fraction` is how much of the stage is done, where that is known.
    """

    what: str
    stage: str
    node: str
    at_s: float
    text: str = ""
    fraction: float | None = None


Listener = Callable[[Event], None]


@dataclass(slots=True)
class Reporter:
    """Passes events on to its listeners, one at a time, from whichever thread they come."""

    listeners: tuple[Listener, ...] = ()
    started_s: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def emit(self, what: str, stage: str, node: str = EVERYONE, text: str = "", fraction: float | None = None) -> None:
        """Report one event."""
        event = Event(what, stage, node, time.monotonic() - self.started_s, text, fraction)
        with self._lock:
            for listener in self.listeners:
                listener(event)

    def note(self, text: str) -> None:
        """Report a line for the user to read."""
        self.emit("note", "", text=text)

    @contextmanager
    def step(self, stage: str, node: str = EVERYONE, awaiting: str = "") -> Iterator[None]:
        """Report the start and the end, or the failure, of a stage."""
        self.emit("start", stage, node, awaiting)
        try:
            yield
        except BaseException as error:
            self.emit("fail", stage, node, str(error) or type(error).__name__)
            raise
        self.emit("end", stage, node)
