"""Snapshots that the servers of the testbed share. One server makes a snapshot; the next ones get a copy of it.

The key of a snapshot holds everything that it depends on, and `create` compares each file with its digest. So a copy
that does not fit is never used: nodes boot, and tests that need clones fail.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.clusters import SNAPSHOTS, Host
from vcluster.images.store import DEFAULT_ROOT
from vcluster.model.spec import DEFAULT_IMAGE

CACHE = Path(__file__).resolve().parent.parent / "build" / "test-snapshots"
MODE = 0o711  # of the folder of snapshots: QEMU's user reads the files in it
WARM_S = 400


def provide(host: Host, *options: str) -> None:
    """Give a server the snapshots for nodes of these options of `image warm`, from the cache if they are there."""
    folder = host.server.path(SNAPSHOTS)
    with _locked_cache():
        for key in keys(CACHE):
            if key.startswith(image_prefix()):
                copy(CACHE / key, folder)
            else:
                shutil.rmtree(CACHE / key)  # the image was built again
        host.vcluster("image", "warm", *options, timeout_s=WARM_S)
        _add(folder)
        for key in set(keys(CACHE)) - set(keys(folder)):
            shutil.rmtree(CACHE / key)  # outdated: vcluster has removed it from the server


def store(host: Host) -> None:
    """Add the snapshots of a server to the cache."""
    with _locked_cache():
        _add(host.server.path(SNAPSHOTS))


@contextmanager
def _locked_cache() -> Iterator[None]:
    """Two runs of pytest may use it. The second one waits, and then copies what the first one has made."""
    CACHE.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(CACHE, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _add(folder: Path) -> None:
    for key in set(keys(folder)) - set(keys(CACHE)):
        copy(folder / key, CACHE)


def keys(folder: Path) -> list[str]:
    """The keys of the complete snapshots in a folder."""
    return sorted(path.name for path in folder.glob("*") if path.is_dir() and path.name[0] != ".")


def image_prefix() -> str:
    """The prefix of the keys of all snapshots of the guest image (vcluster/snapshots/template.py: key_of)."""
    return (DEFAULT_ROOT / "names" / DEFAULT_IMAGE).resolve().name.removeprefix("sha256-")[:12]


def copy(snapshot: Path, folder: Path) -> None:
    """Copy a snapshot into a folder of snapshots, unless it is there. The copy appears there when it is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(MODE)
    if (folder / snapshot.name).exists():
        return
    draft = folder / f".copy-{os.getpid()}"
    try:
        subprocess.run(["cp", "-a", "--sparse=always", "--reflink=auto", snapshot, draft], check=True, timeout=60)
        draft.rename(folder / snapshot.name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
