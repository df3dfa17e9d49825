"""Pieces of Markdown and of manual pages (roff, man macros: groff_man(7))."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

NOTE = "<!-- Made by scripts/reference.py from the code: change the code, not this page. -->\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def code(text: str) -> str:
    """Text in code style; empty for none."""
    if "`" in text:
        return f"`` {text} ``"
    return f"`{text}`" if text else ""


def sentences(text: str) -> list[str]:
    """The sentences of a text, each for a line of its own."""
    return [one for one in re.split(r"(?<=[.!?])\s+(?=[A-Z`])", " ".join(text.split())) if one]


def paragraph(text: str) -> str:
    """A paragraph with one sentence a line."""
    return "\n".join(sentences(text)) + "\n" if text else ""


def roff(text: str) -> str:
    """Text for a manual page: what roff would act on is escaped."""
    plain = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "")
    return "\n".join("\\&" + line if line[:1] in (".", "'") else line for line in plain.splitlines())
