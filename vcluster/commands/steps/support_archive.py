"""The file of a bug report: an archive with one folder of texts and JSON, and an index. It contains no secrets.

Each text and each document passes through the redactor when it is added, and through nothing else.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vcluster.errors import ConflictError, MissingError, RequestError
from vcluster.model.quoting import one_line, path_shown
from vcluster.util.redaction import Redactor

FILE_BYTES_MAX, REPORT_BYTES_MAX = 1 << 20, 32 << 20
NAME_MAX = 100
INDEX = "README.txt"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_ADVICE = """The report still contains names of hosts, users and nodes, addresses, and paths.
Read it before you send it to others."""


@dataclass(slots=True)
class SupportReport:
    """The files of a bug report, by name, and what was left out with the reason."""

    title: str
    redactor: Redactor
    files: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)
    size_bytes: int = 0

    def add(self, name: str, content: object, about: str) -> str:
        """Add a text, or a document as JSON, without its secrets. Returns the name that the file has in the archive."""
        if isinstance(content, str):
            text = self.redactor.text(content)
        else:
            text = json.dumps(self.redactor.document(content), indent=2) + "\n"
        data = text.encode(errors="replace")
        name = _free_name(safe_path(name), self.files)
        if len(data) > FILE_BYTES_MAX:
            self.omit(name, f"only its last {FILE_BYTES_MAX} of {len(data)} bytes are here")
            data = data[-FILE_BYTES_MAX:]
        if self.size_bytes + len(data) > REPORT_BYTES_MAX:
            self.omit(name, f"the report would have more than {REPORT_BYTES_MAX >> 20} MiB")
            return name
        self.size_bytes += len(data)
        self.files[name], self.about[name] = data.decode(errors="replace"), about
        return name

    def omit(self, name: str, reason: str) -> str:
        """Record what is left out. Returns the reason without secrets, in one line."""
        reason = " ".join(self.redactor.text(reason).split())
        self.left_out[safe_path(name)] = reason
        return reason

    def index(self) -> str:
        """The text that lists what the report contains, what was left out, and what was removed."""
        width = max(map(len, self.files), default=0)
        files = [f"  {name.ljust(width)}  {self.about[name]}" for name in sorted(self.files)]
        missing = [f"  {name}: {reason}" for name, reason in sorted(self.left_out.items())] or ["  nothing"]
        removed = [f"  {kind}: {count}" for kind, count in sorted(self.redactor.removed.items()) if count]
        sections = {"Files": files, "Left out": missing, "Removed": removed or ["  nothing"]}
        parts = [self.title, *("\n".join((f"{title}:", *lines)) for title, lines in sections.items()), _ADVICE]
        return "\n\n".join(parts) + "\n"

    def packed(self, folder: str, time_s: float) -> bytes:
        """The archive, with everything in one folder."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=6) as archive:
            for name, text in {INDEX: self.index(), **self.files}.items():
                data = text.encode()
                entry = tarfile.TarInfo(f"{folder}/{name}")
                entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time_s)
                archive.addfile(entry, io.BytesIO(data))
        return packed.getvalue()


def safe_path(name: str) -> str:
    """A relative path of plain letters: the names of some files come from servers."""
    parts = (_UNSAFE.sub("_", part).lstrip(".")[:NAME_MAX] for part in name.split("/"))
    return "/".join(filter(None, parts)) or "unnamed"


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    """The name, or a similar one that no other file has."""
    number = 2
    free = name
    while free in taken or free == INDEX:
        free, number = f"{name}.{number}", number + 1
    return free


def refuse_existing(path: Path) -> None:
    """Raise ConflictError if the path is in use: nothing is ever overwritten."""
    try:
        is_there = path.is_symlink() or path.exists()
    except (OSError, ValueError) as error:
        raise RequestError(f"--file {path_shown(path)}: {one_line(error)}") from error
    if is_there:
        raise ConflictError(f"{path} exists", hint="choose another path: --file FILE")


def write_new(path: Path, data: bytes, owner: tuple[int, int] | None = None) -> None:
    """Write a new file that only its owner can read. It appears complete or not at all, and replaces no other.

    `owner` are the user and the group that get it.
    """
    draft = path.with_name(f".{path.name[:NAME_MAX]}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if owner:
                os.fchown(file.fileno(), *owner)
        _claim(path)
        draft.replace(path)
    except OSError as error:
        raise MissingError(f"cannot write {path}: {error.strerror}", hint="choose another path: --file FILE") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _claim(path: Path) -> None:
    """Make an empty file at a free path, so that the file that replaces it replaces no other."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        refuse_existing(path)
