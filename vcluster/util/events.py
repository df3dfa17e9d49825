"""Work reports events; listeners print or store them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

EVERYONE = ""


@dataclass(frozen=True, slots=True)
class Event:
    """An event: `what` is start, progress, end, fail or note; `node` is EVERYONE for the cluster as a whole.

    `at_s` is in seconds since the command began. `text` is the awaited thing or the error. `fraction` is the completed
    share of the stage, None if unknown.
    """

    what: str
    stage: str
    node: str
    at_s: float
    text: str = ""
    fraction: float | None = None


Listener = Callable[[Event], None]


class OpenStages:
    """The stages that have begun and not ended. A stage that failed stays open until the next one of its node."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str], bool] = {}  # by node and stage, the latest last: whether it failed
        self._latest = ""

    def record(self, event: Event) -> None:
        """Record the start, failure or end of a stage."""
        key = (event.node, event.stage)
        with self._lock:
            if event.what == "start":
                failed = [other for other, has_failed in self._open.items() if has_failed and other[0] == event.node]
                for other in (*failed, key):
                    self._open.pop(other, None)
                self._open[key], self._latest = False, event.stage
            elif event.what == "fail" and key in self._open:
                self._open[key] = True
            elif event.what == "end":
                self._open.pop(key, None)

    def of(self, node: str) -> str:
        """The latest open stage of a node; without one, that of the command. Empty before the first stage."""
        with self._lock:
            own = [stage for name, stage in self._open if name == node]
            return (own or [stage for _, stage in self._open] or [self._latest])[-1]


@dataclass(slots=True)
class Reporter:
    """Passes events to its listeners, one at a time, from any thread."""

    listeners: tuple[Listener, ...] = ()
    started_s: float = field(default_factory=time.monotonic)
    stages: OpenStages = field(default_factory=OpenStages)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def emit(self, what: str, stage: str, node: str = EVERYONE, text: str = "", fraction: float | None = None) -> None:
        """Report one event."""
        event = Event(what, stage, node, time.monotonic() - self.started_s, text, fraction)
        self.stages.record(event)
        with self._lock:
            for listener in self.listeners:
                listener(event)

    def note(self, text: str) -> None:
        """Report a line for the user."""
        self.emit("note", "", text=text)

    @contextmanager
    def step(self, stage: str, node: str = EVERYONE, awaiting: str = "") -> Iterator[None]:
        """Report the start of a stage, and its end or failure."""
        self.emit("start", stage, node, awaiting)
        try:
            yield
        except BaseException as error:
            self.emit("fail", stage, node, str(error) or type(error).__name__)
            raise
        self.emit("end", stage, node)


@dataclass(frozen=True, slots=True)
class Call:
    """A call to an outside interface that has ended: `where` is the server or library, `error` is empty on success."""

    where: str
    operation: str
    seconds: float
    error: str = ""


CallListener = Callable[[Call], None]
_call_listeners: list[CallListener] = []


def listen_to_calls(listener: CallListener) -> None:
    """Pass each later call of this process to a listener, from any thread."""
    _call_listeners.append(listener)


@contextmanager
def timed_call(where: str, operation: str) -> Iterator[None]:
    """Report a call with its duration to the listeners. Costs nothing when there are none."""
    if not _call_listeners:
        yield
        return
    started_s, failure = time.monotonic(), ""
    try:
        yield
    except BaseException as error:
        failure = str(error) or type(error).__name__
        raise
    finally:
        call = Call(where, operation, time.monotonic() - started_s, failure)
        for listener in tuple(_call_listeners):
            listener(call)
