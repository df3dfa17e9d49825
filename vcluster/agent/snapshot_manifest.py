"""What is known of a snapshot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcluster.agent import sparse_digest
from vcluster.errors import VclusterError
from vcluster.snapshots import save_file

FORMAT = 1
DISK, RAM, STATE = "disk.qcow2", "ram", "state"
MANIFEST = "manifest.json"
FILES = (DISK, RAM, STATE)
_SHOWN_MAX = 60


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file: its size in bytes and its digest (sparse.py)."""

    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class SnapshotManifest:
    """What is known of a snapshot.

    `xml`, `cookie`, `data_bytes` and `was_running` are its savefile.SaveHead; `owner` is user and group of `ram`, as
    numbers; `circumstances` are what it may only be used under, by their names.
    """

    key: str
    created: str
    image: str
    circumstances: dict[str, Any]
    machine: str
    xml: str
    cookie: str
    data_bytes: int
    was_running: bool
    owner: list[int]
    ram_data_bytes: int
    files: dict[str, ManifestFile]

    def __post_init__(self) -> None:
        kinds: dict[str, type] = {
            **dict.fromkeys(("key", "created", "image", "machine", "xml", "cookie"), str),
            **dict.fromkeys(("circumstances", "files"), dict),
            **dict.fromkeys(("data_bytes", "ram_data_bytes"), int),
            "was_running": bool,
            "owner": list,
        }
        wrong = [name for name, kind in kinds.items() if not isinstance(getattr(self, name), kind)]
        if wrong or sorted(self.files) != sorted(FILES) or len(self.owner) != 2:
            raise ValueError(f"wrong: {', '.join(wrong) or 'files or owner'}")

    @property
    def head(self) -> save_file.SaveHead:
        """What its saved domain's file began with."""
        return save_file.SaveHead(self.xml, self.cookie, self.data_bytes, self.was_running)


def read_manifest(folder: Path) -> SnapshotManifest:
    path = folder / MANIFEST
    try:
        words = json.loads(path.read_bytes())
        if (found := words.pop("format")) != FORMAT:
            raise VclusterError(f"{path} is of format {_shown(found)}; {FORMAT} is known")
        return SnapshotManifest(
            **{**words, "files": {name: ManifestFile(**file) for name, file in words["files"].items()}}
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise VclusterError(f"{path} is no manifest of a snapshot") from error


def compare(manifest: SnapshotManifest, key: str, circumstances: Mapping[str, Any]) -> None:
    """Raises VclusterError where a snapshot was made for another key or under other circumstances, naming the first."""
    if manifest.key != key:
        raise VclusterError(f"snapshot {key} was made as {_shown(manifest.key)}")
    for name in (*circumstances, *manifest.circumstances):
        theirs, ours = manifest.circumstances.get(name), circumstances.get(name)
        if theirs != ours:
            raise VclusterError(f"snapshot {key} was made with {name} {_shown(theirs)}, not {_shown(ours)}")


def compare_file(path: Path, file: ManifestFile) -> None:
    size = path.stat().st_size
    if size != file.size:
        raise VclusterError(f"{path} has {size} bytes, not {file.size}")
    if sparse_digest.digest(path) != file.digest:
        raise VclusterError(f"{path} has changed")


def compare_owner(path: Path, owner: Sequence[int]) -> None:
    found = path.stat()
    if [found.st_uid, found.st_gid] != list(owner):
        raise VclusterError(f"{path} does not belong to QEMU's user any more")


def _shown(value: Any) -> str:
    """A circumstance in a line."""
    if value is None:
        return "unknown"
    text = value if isinstance(value, str) else json.dumps(value)
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_MAX else f"{line[: _SHOWN_MAX - 1]}…"
