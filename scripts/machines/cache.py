"""The cache: disks and booted machines, each in a folder named by the digest of what it was made from.

`Entry.directory` holds a disk, its kernel and the machines that were booted from it. A folder gets its name when it is
complete. The cache has a size limit: the entries that were not used for the longest time are removed first.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from testbeds.programs import run

CACHE = Path("/var/cache/vcluster-machines")
LIMIT_BYTES = 24 * 1024**3
UNFINISHED = ".unfinished-"
KEY = CACHE / "key"  # logs in to every machine


@dataclass(frozen=True)
class Entry:
    """A disk and the machines that were booted from it, as the cache sees them."""

    name: str
    size_bytes: int
    used: float  # seconds since the epoch

    @property
    def directory(self) -> Path:
        return CACHE / self.name


def entries() -> list[Entry]:
    found = []
    for path in sorted(CACHE.glob("[0-9a-f]*")):
        if path.is_dir():
            found.append(Entry(path.name, size_bytes(path), path.stat().st_mtime))
    return found


def size_bytes(directory: Path) -> int:
    """The disk space of a folder. Its files have holes, so their lengths do not count."""
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*"))


def to_remove(found: Iterable[Entry], in_use: Collection[str], limit_bytes: int = LIMIT_BYTES) -> list[Entry]:
    """The entries to remove until the rest is within the limit: the least recently used first, none in use."""
    by_age = sorted(found, key=lambda entry: entry.used)
    total = sum(entry.size_bytes for entry in by_age)
    chosen = []
    for entry in by_age:
        if total > limit_bytes and entry.name not in in_use:
            chosen.append(entry)
            total -= entry.size_bytes
    return chosen


def enforce_limit(in_use: Collection[str]) -> list[Entry]:
    """Remove what exceeds the limit. Returns what was removed."""
    gone = to_remove(entries(), in_use)
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


def remove_unfinished() -> None:
    """Remove what killed runs left. Call it only while no other run builds."""
    for path in [*CACHE.glob(f"{UNFINISHED}*"), *CACHE.glob(f"*/{UNFINISHED}*")]:
        remove(path)


def remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


def ensure_key() -> str:
    """The public key that logs in to the machines. The pair is made once, because the disks hold it."""
    CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
    public = KEY.with_suffix(".pub")
    if not public.exists():
        KEY.unlink(missing_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "scripts/machine", "-f", str(KEY)])
    return public.read_text().strip()
