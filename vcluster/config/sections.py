"""The values of one section of a configuration file or of a command's options, and the errors in them.

A key is `invalid` if it is present but its value is unknown. Later checks ignore invalid keys.
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

_QUOTED = re.compile(r"""(["']).*\1""")
_TRAILING_COMMENT = re.compile(r"[ \t][#;]")
_SYNONYMS = {"memory": "ram", "ram": "memory", "disk": "hdd", "hdd": "disk"}


class ValidationErrors:
    """All errors in a file and in the options of the command. `where` is the file's name for messages."""

    def __init__(self, where: str = "") -> None:
        self._where = where
        self._lines: list[tuple[float, str]] = []

    def add(self, line: int, about: str, text: str) -> None:
        """Add an error on a line, or in the file as a whole (line 0)."""
        head = f"{self._where}:{line}" if line else self._where
        # An error in the file as a whole can be a result of another error, so it comes last.
        self._lines.append((line or float("inf"), ": ".join(filter(None, (head, about, text)))))

    def add_option(self, option: str, text: str) -> None:
        """Add an error in an option of the command."""
        self._lines.append((0, f"{option}: {text}"))

    def raise_any(self) -> None:
        """Raise RequestError if there are errors. They are in the order of the file."""
        if self._lines:
            raise RequestError("\n".join(text for _, text in sorted(self._lines, key=lambda line: line[0])))


@dataclass(slots=True)
class SectionReader:
    """The valid values of a section. `defaults` are the values of keys that are not present."""

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
        """Read every entry with the reader of its key."""
        for key, entry in self.entries.items():
            if key not in table:
                self._refuse_unknown(key, table)
            elif not entry.value:
                self.add_invalid(key, "is empty; write a value, or remove it")
            else:
                self._read_entry(key, entry, table)

    def _read_entry(self, key: str, entry: ini_file.IniEntry, table: Table) -> None:
        try:
            self.values[key] = table[key](entry.value)
        except RequestError as error:
            is_command = (error.hint or "").startswith("vcluster ")
            hints = [f"{error.message} ({error.hint})"] if is_command else [error.message, error.hint]
            if "password" not in key and _QUOTED.fullmatch(entry.value):
                hints.append("remove the quotes")
            if "password" not in key and entry.line and _TRAILING_COMMENT.search(entry.value):
                hints.append("write comments on separate lines")
            self.add_invalid(key, "; ".join(filter(None, hints)))

    def _refuse_unknown(self, key: str, table: Table) -> None:
        near = get_close_matches(key.lower(), table, n=1)
        meant = _SYNONYMS.get(key.lower(), "") if not near else near[0]
        if meant in table:
            self.invalid.add(meant)
            self.add_error(key, f"unknown key; did you mean {meant}?")
        else:
            self.add_error(key, f"unknown key; known keys are {', '.join(table)}")

    def add_error(self, key: str, text: str) -> None:
        """Add an error about a key, at its line. If the key is not present, the error is about the section."""
        entry = self.entries.get(key)
        if entry and entry.option:
            self.errors.add_option(entry.option, text)
        else:
            self.errors.add(entry.line if entry else self.line, ini_file.about(self.title, key if entry else ""), text)

    def add_invalid(self, key: str, text: str) -> None:
        """Add an error about a key, and mark the key as invalid."""
        self.invalid.add(key)
        self.add_error(key, text)

    def location(self, key: str) -> str:
        """A key that is present, with its line, for an error about another key."""
        entry = self.entries[key]
        return entry.option or f"{key} (line {entry.line})"

    def get(self, key: str, default: Any = None) -> Any:
        """A value, or its default."""
        return self.values.get(key, self.defaults.get(key, default))

    @property
    def host(self) -> Host:
        """The host of a machine. The default is the server's name."""
        host: Host = self.get("host", Host(self.name))
        return Host(host.name, self.get("user", host.user), self.get("port", host.port))

    @property
    def is_local(self) -> bool:
        """True if the section describes this machine."""
        return self.host.name.lower() == LOCAL_SERVER
