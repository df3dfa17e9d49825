"""The folders of snapshots: their names, their locks and their removal.

A snapshot is a folder with its key as name. Until it is complete, the folder is `.unfinished-KEY`, locked by the
process that makes it. So the remains of a killed command are never mistaken for work in progress.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
from pathlib import Path

from vcluster.adapters.process import run
from vcluster.errors import MissingError, VclusterError

UNFINISHED = ".unfinished-"
REFUSED = ".refused"
MIB = 2**20
UNMOUNT_S = 10
FOLDER_MODE = 0o711  # QEMU's user can open the files, but other users can neither list nor lock the folder
KEY = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,127}\Z")


def snapshot_folder(root: str, key: str) -> Path:
    """The folder of a complete snapshot. Raises VclusterError for an invalid key."""
    if not KEY.match(key):
        raise VclusterError(f"{key!r:.60} is not a snapshot's key")
    return Path(root) / key


def unfinished_folder(root: str, key: str) -> Path:
    """The folder of a snapshot that is being made."""
    return Path(root) / f"{UNFINISHED}{snapshot_folder(root, key).name}"


def refusal_file(root: str, key: str) -> Path:
    """The file with the reason why a snapshot is not to be made again unless it is requested."""
    return Path(root) / f"{snapshot_folder(root, key).name}{REFUSED}"


def key_of_folder(folder: Path) -> str:
    """The key of an unfinished snapshot, from its folder: `.unfinished-KEY`, or `.unfinished-KEY.DIGITS` if removed."""
    return folder.name.removeprefix(UNFINISHED).partition(".")[0]


def snapshot_folders(root: str) -> list[Path]:
    """The folders of all complete snapshots; none without the right to list them (`image list` works for any user)."""
    if not Path(root).is_dir() or not os.access(root, os.R_OK):
        return []
    return sorted(path for path in Path(root).iterdir() if KEY.match(path.name) and path.is_dir())


def lock_folder(folder: Path, *, shared: bool = False) -> int | None:
    """Lock a folder. Return its descriptor, or None when another process has a lock; shared locks allow each other.

    The folder gets a mode with which only its owner can lock it.

    Raises FileNotFoundError when the folder was renamed or removed before it was locked: then its name belongs to
    another folder or to none.
    """
    with contextlib.ExitStack() as undo:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        undo.callback(os.close, descriptor)
        with contextlib.suppress(OSError):  # the folder of another user, or a read-only file system
            os.fchmod(descriptor, FOLDER_MODE)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        if not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        undo.pop_all()
        return descriptor


def is_busy(folder: Path) -> bool:
    """Whether another process has the folder's lock."""
    try:
        descriptor = lock_folder(folder)
    except FileNotFoundError:
        return False
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


def remove_unfinished(folder: Path) -> bool:
    """Remove a folder unless it is locked. Return whether it was removed."""
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
    """Rename a folder, then remove it: its name never belongs to part of a snapshot, and is free at once."""
    doomed = folder.with_name(f"{UNFINISHED}{key_of_folder(folder)}.{secrets.token_hex(4)}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(doomed)
        remove_path(doomed)


def remove_path(path: Path) -> None:
    """Remove a file or a folder. Raises VclusterError if it still exists."""
    if path.is_dir() and not path.is_symlink():
        _unmount_below(path)
        shutil.rmtree(path, ignore_errors=True)  # another process may be removing it too
    else:
        path.unlink(missing_ok=True)
    if path.exists():
        raise VclusterError(f"cannot remove {path}")


def _unmount_below(folder: Path) -> None:
    """Unmount what a killed program left in a folder: a build of version 0.1 mounted /proc there, for example."""
    # Field 5 of proc_pid_mountinfo(5) is the mount point. Blanks and backslashes in it are octal escapes.
    fields = (line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    points = [re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field) for field in fields]
    for point in reversed(points):
        if Path(point).is_relative_to(folder):
            run(["umount", "--lazy", point], timeout_s=UNMOUNT_S, may_fail=True)


def remove_if_empty(root: str) -> None:
    """Remove the folder of all snapshots if it is empty."""
    with contextlib.suppress(OSError):
        Path(root).rmdir()


def require_room(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise MissingError if the disk of a folder has no room for `what`."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise full_disk(folder, what, f"{-(-needed_bytes // MIB)} MiB needed, {free_bytes // MIB} MiB free")


def full_disk(folder: Path, what: str, reason: str) -> MissingError:
    """The error for a disk that is full."""
    return MissingError(f"{folder} has no room for {what}: {reason}", hint="free space on that disk")


def is_full(error: OSError) -> bool:
    """Whether an error means that a disk, or the user's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
