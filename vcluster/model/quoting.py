"""Text of users, nodes and libraries, as messages quote it."""

from __future__ import annotations

import re
from pathlib import Path

OUTPUT_MAX = 500  # characters of a node's output in a message
_SEQUENCE = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|[()][0-9A-B]|.)")  # ECMA-48: colors, the cursor
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
PATH_SHOWN_MAX = 200
ERROR_LENGTH_MAX = 80  # of a library's message, quoted in an error message


def shown(text: str, length_max: int = 40) -> str:
    """A user's text, escaped and shortened for one line of a message."""
    return repr(text if len(text) <= length_max else text[:length_max] + "…")


def path_shown(path: Path | str) -> str:
    """A path for a line of a message: as it is if it is plain and short, or else escaped and shortened."""
    text = str(path)
    return text if text.isprintable() and len(text) <= PATH_SHOWN_MAX else shown(text, length_max=PATH_SHOWN_MAX)


def printable(text: str) -> str:
    """A text without characters that control a terminal: each becomes `?`."""
    return "".join(each if each.isprintable() else "?" for each in text)


def displayable(text: str) -> str:
    """A text without what controls a terminal. Tabs and ends of lines stay.

    Complete sequences, for example for colors, are removed; each other control character becomes `?`.
    """
    return _CONTROL.sub("?", _SEQUENCE.sub("", text.replace("\r\n", "\n")))


def encodable(text: str) -> str:
    """A text that can be written as UTF-8: each lone surrogate, which JSON may contain, becomes `?`."""
    return text.encode(errors="replace").decode()


def quoted(output: object) -> str:
    """What a node printed, as one line of a message: printable and shortened."""
    return printable(" ".join(str(output)[: 2 * OUTPUT_MAX].split()))[:OUTPUT_MAX]


def one_line(error: Exception) -> str:
    """A library's message, escaped and shortened for one line; it may contain a user's text."""
    return str(error).encode("unicode_escape").decode()[:ERROR_LENGTH_MAX]


def refused_password_hint(password: str) -> str | None:
    """A hint for a refused password that may hold more than the user means. A configuration file has no quotes."""
    if len(password) > 1 and password[0] == password[-1] and password[0] in "\"'":
        return "the quotation marks count as part of the password; if it has none, remove them"
    if " #" in password or " ;" in password:
        return "a comment after the password counts as part of it; write it on a line of its own"
    return None
