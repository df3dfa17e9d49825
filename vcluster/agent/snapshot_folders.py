"""Folders of snapshots."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
from pathlib import Path

from vcluster.errors import VclusterError

UNFINISHED = ".unfinished-"
REFUSED = ".refused"
KEY = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,127}\Z")


def snapshot_folder(root: str, key: str) -> Path:
    if not KEY.match(key):
        raise VclusterError(f"{key!r} is no key of a snapshot")
    return Path(root) / key


def unfinished_folder(root: str, key: str) -> Path:
    return Path(root) / f"{UNFINISHED}{snapshot_folder(root, key).name}"


def refusal_file(root: str, key: str) -> Path:
    return Path(root) / f"{snapshot_folder(root, key).name}{REFUSED}"


def snapshot_folders(root: str) -> list[Path]:
    """None, for who may not look: `image list` is for everybody."""
    if not Path(root).is_dir() or not os.access(root, os.R_OK):
        return []
    return sorted(path for path in Path(root).iterdir() if KEY.match(path.name) and path.is_dir())


def lock_folder(folder: Path) -> int | None:
    """The folder's descriptor with its lock, or None when somebody has that. Raises FileNotFoundError if it goes away.

    A folder that was renamed or removed before we had its lock is not the one that bears the name now.
    """
    with contextlib.ExitStack() as undo:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        undo.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        if not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        undo.pop_all()
        return descriptor


def is_busy(folder: Path) -> bool:
    """Whether somebody has its lock."""
    try:
        descriptor = lock_folder(folder)
    except FileNotFoundError:
        return False
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


def remove_unfinished(folder: Path) -> bool:
    """Remove it, unless it is in use. Whether it was removed."""
    try:
        descriptor = lock_folder(folder)
    except FileNotFoundError:
        return False
    if descriptor is None:
        return False
    try:
        remove_folder(folder)
    finally:
        os.close(descriptor)
    return True


def remove_folder(folder: Path) -> None:
    """Its name goes first: no half of a snapshot ever bears it, and another may be begun at once."""
    key = folder.name.removeprefix(UNFINISHED).partition(".")[0]
    doomed = folder.with_name(f"{UNFINISHED}{key}.{secrets.token_hex(4)}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(doomed)
        remove_path(doomed)


def remove_path(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # another may be removing it too
    else:
        path.unlink(missing_ok=True)
    if path.exists():
        raise VclusterError(f"{path} cannot be removed")


def remove_if_empty(root: str) -> None:
    with contextlib.suppress(OSError):
        Path(root).rmdir()
