"""Text of users, nodes and libraries, as messages quote it."""

from __future__ import annotations

OUTPUT_MAX = 500  # characters of a node's output in a message
ERROR_LENGTH_MAX = 80  # of a library's message, quoted in an error message


def shown(text: str, length_max: int = 40) -> str:
    """A user's text, escaped and shortened for one line of a message."""
    return repr(text if len(text) <= length_max else text[:length_max] + "…")


def printable(text: str) -> str:
    """A text without characters that control a terminal: each becomes `?`."""
    return "".join(each if each.isprintable() else "?" for each in text)


def quoted(output: object) -> str:
    """What a node printed, as one line of a message: printable and shortened."""
    return printable(" ".join(str(output)[: 2 * OUTPUT_MAX].split()))[:OUTPUT_MAX]


def one_line(error: Exception) -> str:
    """A library's message, escaped and shortened for one line; it may contain a user's text."""
    return str(error).encode("unicode_escape").decode()[:ERROR_LENGTH_MAX]
