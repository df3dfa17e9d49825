"""The manifest of a snapshot: its conditions, its files and their digests, and the checks against them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from vcluster.agent import sparse_digest
from vcluster.errors import VclusterError
from vcluster.model import json_text

FORMAT = 1
DISK, RAM, STATE = "disk.qcow2", "ram", "state"
MANIFEST = "manifest.json"
FILES = (DISK, RAM, STATE)
_SHOWN_MAX = 60


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """A file of a snapshot: its size in bytes and its digest (sparse_digest.py)."""

    size: int
    digest: str

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or not isinstance(self.digest, str) or self.size < 0:
            raise ValueError("invalid: size or digest")


@dataclass(frozen=True, slots=True)
class SnapshotManifest:
    """The content of manifest.json.

    `xml` is the XML of the template's domain. `owner` is the user and the group of `ram`, as numbers. `circumstances`
    are the conditions for its use, by name.
    """

    key: str
    created: str
    image: str
    circumstances: dict[str, Any]
    xml: str
    owner: list[int]
    files: dict[str, ManifestFile]

    def __post_init__(self) -> None:
        kinds: dict[str, type] = {
            **dict.fromkeys(("key", "created", "image", "xml"), str),
            **dict.fromkeys(("circumstances", "files"), dict),
            "owner": list,
        }
        invalid = [name for name, kind in kinds.items() if not isinstance(getattr(self, name), kind)]
        has_owner = len(self.owner) == 2 and all(isinstance(number, int) for number in self.owner)
        if invalid or sorted(self.files) != sorted(FILES) or not has_owner:
            raise ValueError(f"invalid: {', '.join(invalid) or 'files or owner'}")


def read_manifest(folder: Path) -> SnapshotManifest:
    """Read the manifest of a snapshot's folder; fields of earlier versions are ignored.

    Raises VclusterError if it is invalid, OSError if it is missing.
    """
    path = folder / MANIFEST
    try:
        fields = json_text.parse(path.read_bytes())
        if (found := fields.pop("format")) != FORMAT:
            raise VclusterError(f"{path} has format {_shown(found)}; this version reads format {FORMAT}")
        known = {field.name: fields[field.name] for field in dataclass_fields(SnapshotManifest)}
        return SnapshotManifest(
            **{**known, "files": {name: ManifestFile(**file) for name, file in known["files"].items()}}
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise VclusterError(f"{path} is not a snapshot's manifest") from error


def compare_conditions(manifest: SnapshotManifest, key: str, circumstances: Mapping[str, Any]) -> None:
    """Raise VclusterError, with the first difference, if a snapshot has another key or other conditions."""
    if manifest.key != key:
        raise VclusterError(f"the manifest of snapshot {key} has another key: {_shown(manifest.key)}")
    for name in (*circumstances, *manifest.circumstances):
        made_with, current = manifest.circumstances.get(name), circumstances.get(name)
        if made_with != current:
            raise VclusterError(f"snapshot {key} was made with {name} {_shown(made_with)}, not {_shown(current)}")


def compare_file(path: Path, file: ManifestFile) -> None:
    """Raise VclusterError if a file differs from its entry."""
    size = path.stat().st_size
    if size != file.size:
        raise VclusterError(f"{path} has {size} bytes, not {file.size}")
    if sparse_digest.digest(path) != file.digest:
        raise VclusterError(f"{path} has changed since the snapshot was made")


def compare_owner(path: Path, owner: Sequence[int]) -> None:
    """Raise VclusterError if a file's user or group has changed."""
    found = path.stat()
    if [found.st_uid, found.st_gid] != list(owner):
        raise VclusterError(f"{path} no longer belongs to QEMU's user")


def _shown(value: Any) -> str:
    """A condition's value as one short line."""
    if value is None:
        return "unknown"
    text = value if isinstance(value, str) else json.dumps(value)
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_MAX else f"{line[: _SHOWN_MAX - 1]}…"
