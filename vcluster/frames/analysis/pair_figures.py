"""Figures of the frames from one node, or rank, to another. Pure.

`docs/reference/capture-report.md` defines each figure.
"""

from __future__ import annotations

from vcluster.frames.analysis.frame_headers import KINDS

SILENCE_NS = 100_000_000
_DIGITS = 11  # of a time, in binary; so it is known within 0.05 %


class TimeCounts:
    """How often each time occurred. It keeps the leading digits, so its size is limited; the extremes are exact."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.least: int | None = None
        self.greatest: int | None = None

    def add(self, time_ns: int) -> None:
        """Count a time."""
        if self.least is None or self.greatest is None:
            self.least = self.greatest = time_ns
        elif time_ns < self.least:
            self.least = time_ns
        elif time_ns > self.greatest:
            self.greatest = time_ns
        more = time_ns.bit_length() - _DIGITS
        if more > 0:
            time_ns = (time_ns >> more << more) + (1 << more >> 1)
        self._counts[time_ns] = self._counts.get(time_ns, 0) + 1

    def quantile(self, percent: int) -> int | None:
        """The smallest time such that at least so many percent are not longer; None without times."""
        if self.least is None or self.greatest is None:
            return None
        wanted, seen = -(-sum(self._counts.values()) * percent // 100), 0
        for time_ns in sorted(self._counts):
            seen += self._counts[time_ns]
            if seen >= wanted:
                break
        return min(max(time_ns, self.least), self.greatest)


class PairFigures:
    """The frames that enter the switch at one node, and are for another."""

    def __init__(self) -> None:
        self.frames = self.bytes = 0
        self.kinds = [[0, 0] for _ in KINDS]
        self.retransmissions = self.rounds = 0
        self.times = TimeCounts()
        self.crossed = 0
        self.last_entry_ns = 0  # of the frames that were matched; `capture_analysis` uses it
        self.queue_max_bytes = 0
        self.silences = self.silent_ns = self.silence_max_ns = 0
        self._last_ns: int | None = None

    def enter(self, length: int, kind: int) -> None:
        """Count a frame at its entry."""
        self.frames += 1
        self.bytes += length
        counts = self.kinds[kind]
        counts[0] += 1
        counts[1] += length

    def send(self, at_ns: int) -> None:
        """Count the silence before a frame of MPI, if it was one."""
        if self._last_ns is not None and at_ns - self._last_ns > SILENCE_NS:
            gap_ns = at_ns - self._last_ns
            self.silences += 1
            self.silent_ns += gap_ns
            self.silence_max_ns = max(self.silence_max_ns, gap_ns)
        self._last_ns = at_ns

    def leave(self, time_ns: int, queue_bytes: int) -> None:
        """Count a frame at its exit: its time in the switch, and the bytes that left since its entry."""
        self.crossed += 1
        self.times.add(time_ns)
        self.queue_max_bytes = max(self.queue_max_bytes, queue_bytes)


class PortFigures:
    """The frames at the port of a node. `received` ones are those that the switch got from the node."""

    def __init__(self) -> None:
        self.received_frames = self.received_bytes = 0
        self.sent_frames = self.sent_bytes = 0
        self.kinds = [[0, 0] for _ in KINDS]
        self.group_frames = self.group_bytes = 0
        self.elsewhere_frames = self.flooded_frames = self.unmatched_frames = 0
        self.sent_messages = self.received_messages = 0
        self.queue_max_bytes = 0
