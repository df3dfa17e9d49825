"""The modes and owners of files. Other commands may remove a file at any time: then it is not there."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

_KINDS = {stat.S_IFDIR: "folder", stat.S_IFREG: "file", stat.S_IFLNK: "link"}
LABEL, LABEL_MAX = ".vcluster-owner", 200  # the file with the owner label of a cluster's folder

State = dict[str, Any]


def file_state(path: Path) -> State | None:
    """The kind, the mode and the owner of a file, without following a link; None if it is not there."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return {
        "kind": _KINDS.get(stat.S_IFMT(found.st_mode), "special file"),
        "mode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
    }


def tree_states(path: Path) -> dict[str, State]:
    """The state of a folder, which has the name ".", and of everything in it, by relative path."""
    return {str(found.relative_to(path)): state for found in _tree(path) if (state := file_state(found))}


def _tree(path: Path) -> Iterator[Path]:
    yield path
    with suppress(OSError):
        for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield from _tree(Path(entry.path))
            else:
                yield Path(entry.path)


def uids_of(*names: str) -> set[int]:
    """The uids of those of these users who exist."""
    found = set()
    for name in names:
        with suppress(KeyError):
            found.add(pwd.getpwnam(name).pw_uid)
    return found


def text_of_file(path: Path, size_max: int = 1 << 20) -> str:
    """The beginning of a file as text; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(size_max).decode(errors="replace")
    except OSError:
        return ""


def label_of(folder: Path) -> str:
    """The owner label of a cluster's folder; empty without one."""
    try:
        descriptor = os.open(folder / LABEL, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    with os.fdopen(descriptor, "rb") as file:
        return file.read(LABEL_MAX).decode(errors="replace").strip()
