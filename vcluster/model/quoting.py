"""Text of users, nodes and libraries, as messages quote it."""

from __future__ import annotations

ERROR_LENGTH_MAX = 80  # of a library's message, quoted in an error message


def shown(text: str, length_max: int = 40) -> str:
    """A user's text, escaped and shortened for one line of a message."""
    return repr(text if len(text) <= length_max else text[:length_max] + "…")


def printable(text: str) -> str:
    """A text without characters that control a terminal: each becomes `?`."""
    return "".join(each if each.isprintable() else "?" for each in text)


def one_line(error: Exception) -> str:
    """A library's message, escaped and shortened for one line; it may contain a user's text."""
    return str(error).encode("unicode_escape").decode()[:ERROR_LENGTH_MAX]
