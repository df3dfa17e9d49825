"""The operations that count the frames which enter ports, by class. A count lasts at most as long as this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vcluster.adapters.network.readings.frame_counters import Counts, FrameCounters
from vcluster.errors import VclusterError

_running: dict[str, FrameCounters] = {}  # by the name of the table


def count_frames(table: str, ports: Sequence[str]) -> None:
    """Begin a count at these ports. The name of its table must be new on this server."""
    _running[table] = FrameCounters(table, ports)


def counted_frames(table: str) -> Counts:
    """The numbers of frames and of bytes of each class."""
    if table not in _running:
        raise VclusterError("the count of frames ended before the measurement")
    return _running[table].read()


def end_frame_count(table: str) -> None:
    """End a count. It is a success if there is none."""
    if counters := _running.pop(table, None):
        counters.close()


OPERATIONS: tuple[Callable[..., Any], ...] = (count_frames, counted_frames, end_frame_count)
