"""Caches: folders with entries, each named by the digest of what it was made from.

An entry gets its name when it is complete. A cache has a size limit: the entries that were not used for the longest
time are removed first.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

UNFINISHED = ".unfinished-"


@dataclass(frozen=True)
class Entry:
    """An entry as its cache sees it."""

    directory: Path
    size_bytes: int
    used: float  # seconds since the epoch

    @property
    def name(self) -> str:
        return self.directory.name


def entries(cache: Path) -> list[Entry]:
    found = []
    for path in sorted(cache.glob("[0-9a-f]*")):
        if path.is_dir():
            found.append(Entry(path, size_bytes(path), path.stat().st_mtime))
    return found


def size_bytes(directory: Path) -> int:
    """The disk space of a folder. Its files have holes, so their lengths do not count."""
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*"))


def to_remove(found: Iterable[Entry], in_use: Collection[str], limit_bytes: int) -> list[Entry]:
    """The entries to remove until the rest is within the limit: the least recently used first, none in use."""
    by_age = sorted(found, key=lambda entry: entry.used)
    total = sum(entry.size_bytes for entry in by_age)
    chosen = []
    for entry in by_age:
        if total > limit_bytes and entry.name not in in_use:
            chosen.append(entry)
            total -= entry.size_bytes
    return chosen


def enforce_limit(cache: Path, in_use: Collection[str], limit_bytes: int) -> list[Entry]:
    """Remove what exceeds the limit. Returns what was removed."""
    gone = to_remove(entries(cache), in_use, limit_bytes)
    for entry in gone:
        shutil.rmtree(entry.directory)
    return gone


def touch(directory: Path) -> None:
    """Note that an entry is used now."""
    directory.touch()


@contextmanager
def unfinished(final: Path) -> Iterator[Path]:
    """A folder to fill. It becomes `final` when the `with` ends without an error, and is removed otherwise."""
    draft = final.with_name(f"{UNFINISHED}{final.name}")
    remove(draft)
    draft.mkdir(parents=True)
    try:
        yield draft
        draft.rename(final)
    finally:
        remove(draft)


def remove_unfinished(cache: Path) -> None:
    """Remove what killed runs left. Call it only while no other run builds."""
    for path in [*cache.glob(f"{UNFINISHED}*"), *cache.glob(f"*/{UNFINISHED}*")]:
        remove(path)


def remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


def digest(parts: Mapping[str, bytes]) -> str:
    """A name for what depends on these parts and on nothing else."""
    result = hashlib.sha256()
    for name, content in sorted(parts.items()):
        result.update(f"{name}\0{len(content)}\0".encode() + content)
    return result.hexdigest()[:16]
