"""Print text. All text of commands passes here: nodes, servers and files are not trusted with the user's terminal.

Text of any origin could move the cursor, change the title or write to the clipboard by control sequences.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TextIO

import click

from vcluster.model.quoting import displayable, encodable

Paint = Callable[[str], str]  # adds colors to a text that is safe for a terminal


def print_text(text: str, *, err: bool = False, nl: bool = True, paint: Paint = str) -> None:
    """Print text on standard output or standard error, on a terminal with the colors of `paint`.

    Off a terminal, the output of programs stays as it is.
    """
    stream = sys.stderr if err else sys.stdout
    click.echo(paint(displayable(text)) if is_terminal(stream) else encodable(text), err=err, nl=nl)


def draw(update: str) -> None:
    """Write cells and moves of the cursor on standard output; a screen has made the texts of the cells safe."""
    click.echo(update, nl=False, color=True)


def complain(text: str, *, head: str, color: bool) -> None:
    """Print an error on standard error, after our own `head`, which may have a color."""
    click.echo(f"{head} {displayable(text)}", err=True, color=color)


def confirm(question: str) -> bool:
    """Ask a question that takes yes or no."""
    return click.confirm(displayable(question), err=True)


def ask_secret(question: str) -> str:
    """Ask for a password."""
    return str(click.prompt(displayable(question), hide_input=True, err=True))


def is_terminal(stream: TextIO | Any) -> bool:
    """Whether a stream is a terminal; there may be no stream."""
    return bool(stream and stream.isatty())
