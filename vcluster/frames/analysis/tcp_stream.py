"""One direction of a TCP connection: what is sent for the first time, what is sent again, and where messages begin."""

from __future__ import annotations

from vcluster.frames.analysis.frame_headers import PUSH, SYN
from vcluster.frames.analysis.pair_figures import PairFigures

HALF = 1 << 31
MASK = (1 << 32) - 1


class TcpStream:
    """The segments from one end to the other. `figures` are those that count them."""

    __slots__ = ("_begin", "_is_open", "_next", "figures", "kind", "on_message")

    def __init__(self, kind: int, figures: tuple[PairFigures, ...]) -> None:
        self.kind, self.figures = kind, figures
        self._next: int | None = None
        self._begin: int | None = None
        self._is_open = False

    def add(self, sequence: int, size: int, flags: int) -> tuple[bool, bool]:
        """A segment that enters the switch. Returns whether it is sent again, and whether it begins a message.

        A message ends with a segment that has the flag PSH: the kernel sets it at the end of what a program wrote.
        """
        if not size:
            return False, False
        if flags & SYN:
            is_again = sequence == self._begin
            if not is_again:  # a new connection between the same ports
                self._begin, self._next, self._is_open = sequence, (sequence + size) & MASK, False
            return is_again, False
        if self._next is not None and 0 < (self._next - sequence) & MASK < HALF:
            more = (sequence + size - self._next) & MASK
            if not 0 < more < HALF:
                return True, False
            self._next = (sequence + size) & MASK
            return True, self._starts(more, flags)
        self._next = (sequence + size) & MASK
        return False, self._starts(size, flags)

    def _starts(self, size: int, flags: int) -> bool:
        """Whether new data begins a message. FIN alone is no data."""
        if size == flags & 1:
            return False
        starts = not self._is_open
        self._is_open = not flags & PUSH
        return starts
