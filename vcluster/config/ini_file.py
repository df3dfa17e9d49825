"""The lines of a configuration file: sections, keys and values with their line numbers.

Python's configparser has no line numbers and stops at the first error, but users fix a file faster if they see all
errors. Each line is `[section]`, `key = value`, `key: value`, or a comment that begins with # or ;.
A value is literal, without the spaces around it: a password can contain # ; % = and quotes.
"""

from __future__ import annotations

import re
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path

from vcluster.config import bounded_file
from vcluster.errors import RequestError
from vcluster.model import quoting
from vcluster.model.quoting import shown

SIZE_MAX_BYTES = 65536
TEMPLATE = "config.template"
TITLE_SHOWN_MAX = 60

# Characters that a terminal, a log or a line-based file acts on: control characters, line separators, surrogates.
CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

_HEADER = re.compile(r"\[((?:[^\[\]]|\[[^\[\]]*\])*)\](.*)")  # the title of a link contains a nodeset
# Messages contain keys, so a key has no spaces: `password my` in `password my=secret` is not a key.
_PAIR = re.compile(r"([A-Za-z_][A-Za-z0-9_-]{0,39})[ \t]*[=:](.*)")


@dataclass(frozen=True, slots=True)
class IniEntry:
    """The value of a key, and its line or its option. The value can be a secret, so repr omits it."""

    value: str = field(repr=False)
    line: int = 0
    option: str = ""


@dataclass(frozen=True, slots=True)
class IniSection:
    """A section, with the first entry of each key."""

    title: str
    line: int
    entries: dict[str, IniEntry]


@dataclass(frozen=True, slots=True)
class Mistake:
    """An error in a line, with its section and key if it is about a key. It never contains a value."""

    line: int
    about: str
    text: str


def load(path: Path) -> tuple[str, bool]:
    """The text of a file, and True if group and others have no access. Raises RequestError if it cannot be read."""
    hint = f"copy {template()} and edit the copy"
    content, mode = bounded_file.read(path, SIZE_MAX_BYTES, purpose="a configuration file", hint=hint)
    return _decode(content, path), not mode & (stat.S_IRWXG | stat.S_IRWXO)


def template() -> str:
    """The path of config.template: in a checkout, or below the prefix of an installed package."""
    folders = (Path(__file__).parents[2], Path(sys.prefix, "share/vcluster"))
    found = next((folder for folder in folders if (folder / TEMPLATE).is_file()), Path())
    return path_shown(found / TEMPLATE)


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RequestError(
            f"{path_shown(path)}:{line}: this line is not UTF-8", hint="save the file as plain text in UTF-8"
        ) from None


def path_shown(path: Path) -> str:
    """A path, safe for a line of a message."""
    return quoting.path_shown(path)


def parse(text: str) -> tuple[list[IniSection], list[Mistake]]:
    """The sections of a text in order, with repeated sections, and the errors in its lines."""
    reader = _Reader()
    if "\0" in text:
        return [], [
            Mistake(
                text.count("\n", 0, text.index("\0")) + 1,
                "",
                "this line contains a NUL character; save the file as plain text in UTF-8",
            )
        ]
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        reader.read(number, line.removesuffix("\r"))
    return reader.sections, reader.mistakes


def value(text: str, title: str, key: str) -> str | None:
    """The value of a key in a section of a text, or None."""
    sections, _ = parse(text)
    found = (section.entries[key].value for section in sections if section.title == title and key in section.entries)
    return next(found, None)


class _Reader:
    """Reads one line after another."""

    def __init__(self) -> None:
        self.sections: list[IniSection] = []
        self.mistakes: list[Mistake] = []
        self._first_lines: dict[str, int] = {}

    def read(self, number: int, line: str) -> None:
        content = line.strip(" \t")
        if not content or content[0] in "#;":
            return
        if CONTROL.search(content):
            self._refuse(number, "this line contains a control character")
            return
        is_indented = line[0] in " \t"
        if is_indented:
            self._refuse(number, "this line begins with a space; remove it, and write each value on one line")
        if content[0] == "[":
            self._open(number, content)
        elif pair := _PAIR.fullmatch(content):
            self._add(number, pair[1], pair[2].strip(" \t"))
        elif not is_indented:
            self._refuse(number, "this line is neither [section] nor key = value")

    def _open(self, number: int, content: str) -> None:
        header = _HEADER.fullmatch(content)
        title = " ".join((header[1] if header else content.strip("[")).split())
        if not header:
            self._refuse(number, "this line has no ] after the section name")
        elif header[2]:
            self._refuse(number, "this line has text after the ]; write comments on separate lines")
        if title in self._first_lines:
            self._refuse(number, f"is a duplicate; the first is on line {self._first_lines[title]}", of=title)
        self._first_lines.setdefault(title, number)
        self.sections.append(IniSection(title, number, {}))

    def _add(self, number: int, key: str, value: str) -> None:
        if not self.sections:
            self._refuse(number, "this line is before the first [section]; write [cluster] above it")
            return
        title, entries = self.sections[-1].title, self.sections[-1].entries
        if key in entries:
            self._refuse(number, f"is a duplicate; the first is on line {entries[key].line}", of=title, key=key)
            return
        entries[key] = IniEntry(value, number)

    def _refuse(self, number: int, text: str, *, of: str = "", key: str = "") -> None:
        self.mistakes.append(Mistake(number, about(of, key) if of else "", text))


def about(title: str, key: str = "") -> str:
    """The name of a section or of a key in it, short and safe for a line of a message."""
    short = title if len(title) <= TITLE_SHOWN_MAX else f"{title[:TITLE_SHOWN_MAX]}…"
    return f"[{short if short.isprintable() else shown(short, TITLE_SHOWN_MAX)}] {key}".rstrip()
