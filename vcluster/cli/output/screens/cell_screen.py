"""Lines on a terminal that are redrawn in their place: only characters that have changed are written. Pure.

Nothing is cleared, so nothing flickers. The lines stay on the terminal at the end. The cursor is below them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

BYTES_MAX = 4000  # of a redraw; what has no room is written by the next ones
GAP = 5  # so many equal characters between two changes are written again: moving the cursor takes as many
_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"  # the cursor, while it moves


class CellScreen:
    """The lines as the terminal has them, which has so many columns and rows."""

    def __init__(self, columns: int, rows: int) -> None:
        self.size = columns, rows
        self._columns, self._rows = max(1, columns - 1), max(1, rows - 1)  # the last ones would scroll
        self._shown: list[str] = []
        self._next = 0  # the line that the next redraw begins with

    def update(self, lines: Sequence[str]) -> str:
        """The text that makes the terminal show these lines, as far as it has room for them."""
        wanted = [self._fit(line) for line in _cut(lines, self._rows)]
        wanted += [""] * (len(self._shown) - len(wanted))
        begin = "\r\n" * (len(wanted) - len(self._shown))
        self._shown += [""] * (len(wanted) - len(self._shown))
        written, at = [begin], len(self._shown)
        left = BYTES_MAX - len(begin) - len(_HIDE) - len(_SHOW)
        for number in self._order():
            for column, text in _changes(self._shown[number], wanted[number]):
                move = f"{_vertical(number - at)}\x1b[{column + 1}G{text}"
                if len(move) + 10 > left:  # 10 for the return to the line below
                    self._next = number
                    return self._closed(written, at)
                written.append(move)
                left -= len(move)
                at = number
                self._shown[number] = _replaced(self._shown[number], column, text)
        self._next = 0
        return self._closed(written, at)

    def _order(self) -> Iterator[int]:
        """All lines, first those that had no room in the last redraw."""
        count = len(self._shown)
        return ((self._next + number) % count for number in range(count))

    def _closed(self, written: Sequence[str], at: int) -> str:
        if not any(written):
            return ""
        return f"{_HIDE}{''.join(written)}{_vertical(len(self._shown) - at)}\r{_SHOW}"

    def _fit(self, line: str) -> str:
        """The line within the columns, without what moves the cursor. Other letters than ASCII may be wider."""
        safe = "".join(letter if " " <= letter <= "~" else "?" for letter in line)
        return safe[: self._columns].rstrip()


def _cut(lines: Sequence[str], rows: int) -> list[str]:
    """The lines, or the first ones and how many are left."""
    if len(lines) <= rows:
        return list(lines)
    return [*lines[: rows - 1], f"... {len(lines) - rows + 1} more lines: the terminal has {rows + 1} rows"]


def _changes(old: str, new: str) -> Iterator[tuple[int, str]]:
    """The column and the text of each change; what the new line lacks becomes blank."""
    width = max(len(old), len(new))
    old, new = old.ljust(width), new.ljust(width)
    start = end = -1
    for column in range(width):
        if old[column] == new[column]:
            continue
        if start >= 0 and column - end > GAP:
            yield start, new[start:end]
            start = -1
        start, end = (column if start < 0 else start), column + 1
    if start >= 0:
        yield start, new[start:end]


def _replaced(line: str, column: int, text: str) -> str:
    padded = line.ljust(column)
    return (padded[:column] + text + padded[column + len(text) :]).rstrip()


def _vertical(rows: int) -> str:
    """Move the cursor down by so many rows, or up."""
    return "" if not rows else f"\x1b[{rows}B" if rows > 0 else f"\x1b[{-rows}A"
