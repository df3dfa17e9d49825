"""What a section of a configuration file, or a command's options, say: the good values, and every mistake.

A key that is `doubtful` was given, but what it is meant to be is not known: nothing is concluded from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from vcluster.config import ini_file
from vcluster.config.readers import Host, Table
from vcluster.errors import RequestError
from vcluster.model.spec import LOCAL_SERVER

_TRAILING_COMMENT = re.compile(r"[ \t][#;]")
_SYNONYMS = {"memory": "ram", "ram": "memory", "disk": "hdd", "hdd": "disk"}


class ValidationErrors:
    """All mistakes of a file, which is called `where`, and of the options that go with it."""

    def __init__(self, where: str = "") -> None:
        self._where = where
        self._lines: list[tuple[float, str]] = []

    def add(self, line: int, about: str, text: str) -> None:
        """A mistake on a line, or of the file as a whole (line 0)."""
        head = f"{self._where}:{line}" if line else self._where
        # A mistake as a whole may follow from another one: the reader should come to it last.
        self._lines.append((line or float("inf"), ": ".join(filter(None, (head, about, text)))))

    def add_option(self, option: str, text: str) -> None:
        """A mistake in an option of the command."""
        self._lines.append((0, f"{option}: {text}"))

    def raise_any(self) -> None:
        """Raise RequestError if there are any, in the order of the file."""
        if self._lines:
            raise RequestError("\n".join(text for _, text in sorted(self._lines, key=lambda line: line[0])))


@dataclass(slots=True)
class SectionReader:
    """The good values of a section. `defaults` stand for keys that are not given."""

    title: str
    errors: ValidationErrors
    line: int = 0
    entries: Mapping[str, ini_file.IniEntry] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict, repr=False)
    invalid: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """NAME of [server NAME]."""
        return self.title.partition(" ")[2]

    def read(self, table: Table) -> None:
        """Understand every entry."""
        for key, entry in self.entries.items():
            if key not in table:
                self._refuse_unknown(key, table)
            elif not entry.value:
                self.doubt(key, f"is empty; leave {'it' if entry.option else 'the line'} out")
            else:
                self._understand(key, entry, table)

    def _understand(self, key: str, entry: ini_file.IniEntry, table: Table) -> None:
        try:
            self.values[key] = table[key](entry.value)
        except RequestError as error:
            hints = [error.message, error.hint]
            if "password" not in key and entry.line and _TRAILING_COMMENT.search(entry.value):
                hints.append("comments stand on lines of their own")
            self.doubt(key, "; ".join(filter(None, hints)))

    def _refuse_unknown(self, key: str, table: Table) -> None:
        near = get_close_matches(key.lower(), table, n=1)
        meant = _SYNONYMS.get(key.lower(), "") if not near else near[0]
        if meant in table:
            self.invalid.add(meant)
            self.add_error(key, f"is not known here; did you mean {meant}?")
        else:
            self.add_error(key, f"is not known here; known are {', '.join(table)}")

    def add_error(self, key: str, text: str) -> None:
        """Tell what is wrong with a key, at its place; with the section where the key is not given."""
        entry = self.entries.get(key)
        if entry and entry.option:
            self.errors.add_option(entry.option, text)
        else:
            self.errors.add(entry.line if entry else self.line, ini_file.about(self.title, key if entry else ""), text)

    def doubt(self, key: str, text: str) -> None:
        """Tell what is wrong with a key, and conclude nothing from it."""
        self.invalid.add(key)
        self.add_error(key, text)

    def place(self, key: str) -> str:
        """A key that is given, with its place, for the text of a complaint about another."""
        entry = self.entries[key]
        return entry.option or f"{key} (line {entry.line})"

    def get(self, key: str, default: Any = None) -> Any:
        """A value, or what stands for one that is not given."""
        return self.values.get(key, self.defaults.get(key, default))

    @property
    def host(self) -> Host:
        """Where it is. A server's own name will do."""
        host: Host = self.get("host", Host(self.name))
        return Host(host.name, self.get("user", host.user), self.get("port", host.port))

    @property
    def is_local(self) -> bool:
        """Whether it is this machine."""
        return self.host.name.lower() == LOCAL_SERVER
