"""Deadlines, shared by all workers of a command."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable

from vcluster.errors import DeadlineError, VclusterError


class Cancelled(VclusterError):
    """The work was cancelled; the error that caused it is reported elsewhere."""

    exit_code = 130


class Deadline:
    """A time limit for work, which can also be cancelled. All workers of a command share one."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._ends_s = time.monotonic() + timeout_s
        self._cancelled = threading.Event()
        self._checks: tuple[Callable[[str], None], ...] = ()

    def with_check(self, check: Callable[[str], None]) -> Deadline:
        """The same deadline, whose checks also call `check(awaited)`, which raises when further waiting is useless."""
        extended = copy.copy(self)
        extended._checks = (*self._checks, check)
        return extended

    def sooner(self, timeout_s: float) -> Deadline:
        """A deadline after this time, or this one if it ends earlier. A cancel ends both."""
        limited = copy.copy(self)
        if timeout_s < self.remaining_s():
            limited.timeout_s, limited._ends_s = timeout_s, time.monotonic() + timeout_s
        return limited

    def cancel(self) -> None:
        """Make every wait on this deadline end with Cancelled."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether the work was cancelled."""
        return self._cancelled.is_set()

    def remaining_s(self, at_most_s: float | None = None) -> float:
        """Seconds left, never negative; `at_most_s` limits one wait of several."""
        left_s = max(0.0, self._ends_s - time.monotonic())
        return left_s if at_most_s is None else min(left_s, at_most_s)

    def check(self, awaited: str) -> None:
        """Raise DeadlineError when the time is up, Cancelled when cancelled.

        `awaited` continues "waiting for" and names the node or server, for example "sshd on node3" or "node1 to boot".
        """
        if self._cancelled.is_set():
            raise Cancelled(f"stopped while waiting for {awaited}")
        for check in self._checks:
            check(awaited)
        if self.remaining_s() == 0:
            raise DeadlineError(
                f"timed out after {self.timeout_s:.0f} s waiting for {awaited}", hint="--timeout gives more time"
            )

    def pause(self, seconds: float, awaited: str) -> None:
        """Wait between two attempts, and check before and after; a cancel ends the wait at once."""
        self.check(awaited)
        self._cancelled.wait(self.remaining_s(seconds))
        self.check(awaited)
