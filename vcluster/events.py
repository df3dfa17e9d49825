"""Work reports events; whoever listens prints them or writes them down."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vcluster.errors import DeadlineError, VclusterError

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

    def tell(self, what: str, stage: str, node: str = EVERYONE, text: str = "", fraction: float | None = None) -> None:
        """Report one event."""
        event = Event(what, stage, node, time.monotonic() - self.started_s, text, fraction)
        with self._lock:
            for listener in self.listeners:
                listener(event)

    def note(self, text: str) -> None:
        """Report a line for the user to read."""
        self.tell("note", "", text=text)

    @contextmanager
    def step(self, stage: str, node: str = EVERYONE, awaiting: str = "") -> Iterator[None]:
        """Report the start and the end, or the failure, of a stage."""
        self.tell("start", stage, node, awaiting)
        try:
            yield
        except BaseException as error:
            self.tell("fail", stage, node, str(error) or type(error).__name__)
            raise
        self.tell("end", stage, node)


class Cancelled(VclusterError):
    """The work was told to stop; the one who told it knows why."""

    exit_code = 130


class Deadline:
    """A moment by which work must be done, and a way to call it off. Shared by all workers of a command."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._ends_s = time.monotonic() + timeout_s
        self._cancelled = threading.Event()
        self._looks: tuple[Callable[[str], None], ...] = ()

    def watching(self, look: Callable[[str], None]) -> Deadline:
        """The same deadline, whose every check also calls `look`, which raises when there is no point in waiting on.

        It is told what is awaited.
        """
        watched = copy.copy(self)
        watched._looks = (*self._looks, look)
        return watched

    def cancel(self) -> None:
        """Tell all who wait on this deadline to stop."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether the work was called off."""
        return self._cancelled.is_set()

    def remaining_s(self, at_most_s: float | None = None) -> float:
        """Seconds left, never negative; `at_most_s` bounds one wait among several."""
        left_s = max(0.0, self._ends_s - time.monotonic())
        return left_s if at_most_s is None else min(left_s, at_most_s)

    def check(self, awaited: str) -> None:
        """Raise DeadlineError naming what was awaited when time is up, Cancelled when called off."""
        if self._cancelled.is_set():
            raise Cancelled(f"stopped while waiting for {awaited}")
        for look in self._looks:
            look(awaited)
        if self.remaining_s() == 0:
            raise DeadlineError(
                f"{awaited} did not come within {self.timeout_s:.0f} s", hint="--timeout gives more time"
            )

    def pause(self, seconds: float, awaited: str) -> None:
        """Wait a moment between two looks; ends at once when called off."""
        self.check(awaited)
        self._cancelled.wait(self.remaining_s(seconds))
        self.check(awaited)
