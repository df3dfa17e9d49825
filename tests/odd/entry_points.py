"""What an entry point is, and the checks that hold for each."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from tests.odd.values import Make
from vcluster.cli.main import usage_message
from vcluster.errors import VclusterError

LINE_LENGTH_MAX = 1500
LINES_MAX = 400  # a configuration file has one line for each mistake


class Reached(BaseException):
    """The input was accepted: the next step would act outside of the process. No handler of errors takes it."""


@dataclass(frozen=True)
class EntryPoint:
    """A place where vcluster reads input. `run` reads one input; it returns an error that the user would see, or None.

    `places` are texts of which an error names one. Without any, the error itself is not checked for a place.
    `run_good` replaces what is odd in an input by something good: an error that remains is not about the odd part.
    """

    name: str
    inputs: Make
    run: Callable[[Any], None]
    places: tuple[str, ...] = ()
    run_good: Callable[[Any], None] | None = None
    text_of: Callable[[Any], Any] = lambda value: value  # the odd part of an input


def check(entry: EntryPoint, value: Any) -> None:
    """Read an input. Only a clear error is allowed, which names the place."""
    message, hint = error_of(lambda: entry.run(value))
    if message is None:
        return
    assert_clear(message, hint)
    if entry.places and not names_place(message, entry.places, entry.text_of(value)):
        good = error_of(lambda: run_good(value))[0] if (run_good := entry.run_good) else None
        assert message == good, f"{message!r} names none of {entry.places}"


def error_of(run: Callable[[], None]) -> tuple[str | None, str | None]:
    """The message and the hint of the error that a user would see; None without one."""
    try:
        run()
    except Reached:
        return None, None
    except VclusterError as error:
        return error.message, error.hint
    except click.ClickException as error:
        return usage_message(error), None
    return None, None


def assert_clear(message: str, hint: str | None) -> None:
    """The message is lines of text of a bounded length, which change nothing on a terminal, and it is not Python's."""
    assert isinstance(message, str), type(message)
    assert message.strip(), "an empty message"
    assert hint is None or isinstance(hint, str), type(hint)
    lines = message.split("\n")
    assert len(lines) <= LINES_MAX, len(lines)
    for line in lines:
        assert len(line) <= LINE_LENGTH_MAX, f"{len(line)} characters: {line[:200]}"
    assert "Traceback" not in message
    assert not re.search(r"\b(KeyError|TypeError|AttributeError|IndexError|RecursionError)\b", message), message


def names_place(message: str, places: tuple[str, ...], value: Any) -> bool:
    """Whether the message contains one of the places, or the beginning of the value itself."""
    quoted = [repr(value)[:30].rstrip("'\"\\") or repr(value), value[:30].strip()] if isinstance(value, str) else []
    return any(place in message for place in (*places, *filter(None, quoted)))
