"""The cache: disks and booted machines, each in a folder named by the digest of what it was made from.

An entry holds a disk, its kernel and the machines that were booted from it.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from testbeds import caches
from testbeds.caches import remove, size_bytes, touch, unfinished
from testbeds.programs import run

__all__ = [
    "CACHE",
    "KEY",
    "enforce_limit",
    "ensure_key",
    "remove",
    "remove_unfinished",
    "size_bytes",
    "touch",
    "unfinished",
]

CACHE = Path("/var/cache/vcluster-machines")
LIMIT_BYTES = 24 * 1024**3
KEY = CACHE / "key"  # logs in to every machine


def enforce_limit(in_use: Collection[str]) -> list[caches.Entry]:
    """Remove what exceeds the limit. Returns what was removed."""
    return caches.enforce_limit(CACHE, in_use, LIMIT_BYTES)


def remove_unfinished() -> None:
    """Remove what killed runs left. Call it only while no other run builds."""
    caches.remove_unfinished(CACHE)


def ensure_key() -> str:
    """The public key that logs in to the machines. The pair is made once, because the disks hold it."""
    CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
    public = KEY.with_suffix(".pub")
    if not public.exists():
        KEY.unlink(missing_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "scripts/machine", "-f", str(KEY)])
    return public.read_text().strip()
