"""A moment by which work must be done, shared by all workers of a command."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable

from vcluster.errors import DeadlineError, VclusterError


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
