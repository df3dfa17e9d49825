"""Snapshots of nodes on a server: the memory and the disk of a ready template, which clones resume from.

The key of a snapshot stands for everything that it depends on. Its folder (snapshot_folders.py) contains `disk.qcow2`,
the backing file of clones' disks; `ram`, the memory, sparse, which clones' QEMUs map; `state`, the state of QEMU's
devices; and `manifest.json`. None of them changes later.

These functions are operations of the agent, as in operations.py: arguments and results are JSON.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vcluster.adapters.process import run
from vcluster.agent import sparse_digest
from vcluster.agent.snapshot_folders import (
    FOLDER_MODE,
    REFUSED,
    UNFINISHED,
    is_busy,
    key_of_folder,
    lock_folder,
    refusal_file,
    remove_folder,
    remove_if_empty,
    remove_path,
    remove_unfinished,
    require_room,
    snapshot_folder,
    snapshot_folders,
    unfinished_folder,
)
from vcluster.agent.snapshot_manifest import (
    DISK,
    FILES,
    FORMAT,
    MANIFEST,
    RAM,
    STATE,
    ManifestFile,
    SnapshotManifest,
    compare_conditions,
    compare_file,
    compare_owner,
    read_manifest,
)
from vcluster.errors import MissingError, VclusterError

SEED = "seed.iso"  # exists only while the snapshot is being made
_CHUNK_BYTES = 1 << 20
_IMAGE_TOOL_TIMEOUT_S, _MONITOR_TIMEOUT_S, _DIG_TIMEOUT_S = 60.0, 30.0, 600.0
_ATTEMPTS = 100  # another process may remove the folder before we lock it
_QCOW2 = b"QFI\xfb"  # docs/interop/qcow2.txt in QEMU

# The unfinished snapshots of this process: the descriptors of their folders, which hold the locks.
_locked: dict[Path, int] = {}


def begin_snapshot(root: str, key: str) -> dict[str, Any]:
    """Create and lock a folder to make a snapshot in. The lock lasts until the snapshot is finished or dropped.

    Return no folder when the snapshot exists (`is_there`) or another process is making it (`is_busy`); then the caller
    tries again later. Files of a killed command are removed.
    """
    final, unfinished = snapshot_folder(root, key), unfinished_folder(root, key)
    with _storage_errors(key):
        for _ in range(_ATTEMPTS):
            if final.is_dir():
                return {"folder": "", "is_there": True, "is_busy": False}
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                Path(root).mkdir(parents=True, exist_ok=True)
                Path(root).chmod(FOLDER_MODE)
                unfinished.mkdir(FOLDER_MODE)
            try:
                descriptor = lock_folder(unfinished)
            except FileNotFoundError:
                continue
            if descriptor is None:
                return {"folder": "", "is_there": False, "is_busy": True}
            if final.is_dir():  # another process finished it in the meantime
                remove_folder(unfinished)
                os.close(descriptor)
                continue
            _locked[unfinished] = descriptor
            for leftover in list(unfinished.iterdir()):
                remove_path(leftover)
            return {"folder": str(unfinished), "is_there": False, "is_busy": False}
    raise VclusterError(f"cannot begin snapshot {key}: another process removed its folder several times")


def prepare_template(
    folder: str, backing: str, disk_bytes: int, seed: str, ram_bytes: int, qemu_owner: Sequence[int]
) -> None:
    """Make the files of a template: a disk backed by an image, a seed (given in base64), and a file for its memory.

    `qemu_owner` is the user and the group of QEMU, as numbers.
    """
    place = Path(folder)
    require_room(place.parent, ram_bytes, "the memory")  # QEMU would be killed when it writes to a page without room
    create = ("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing, str(place / DISK))
    run([*create, str(disk_bytes)], timeout_s=_IMAGE_TOOL_TIMEOUT_S)
    with _storage_errors(place.name):
        (place / SEED).write_bytes(base64.b64decode(seed))
        with (place / RAM).open("xb") as ram:
            ram.truncate(ram_bytes)
        (place / RAM).chmod(0o600)
        os.chown(place / RAM, *qemu_owner)


def lend_file(domain: str, path: str, request: Mapping[str, Any], *, is_new: bool = False) -> None:
    """Send a command to a domain's QEMU with a descriptor of a file. QEMU itself needs no right to open the file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL if is_new else os.O_RDONLY
    with _storage_errors(Path(path).parent.name):
        descriptor = os.open(path, flags, 0o600)
    try:
        argv = ("virsh", "--connect", "qemu:///system", "qemu-monitor-command", f"--pass-fds={descriptor}", domain)
        answer = run([*argv, json.dumps(dict(request))], timeout_s=_MONITOR_TIMEOUT_S, pass_fds=(descriptor,)).stdout
    finally:
        os.close(descriptor)
    if '"return"' not in answer:
        raise VclusterError(f"QEMU does not accept {path}: {answer.strip()}")


def dig_holes(folder: str) -> None:
    """Free the room of pages that the guest has cleared, if the file system can."""
    run(["fallocate", "--dig-holes", str(Path(folder) / RAM)], timeout_s=_DIG_TIMEOUT_S, may_fail=True)


def finish_snapshot(
    folder: str, key: str, circumstances: Mapping[str, Any], image_digest: str, xml: str, qemu_owner: Sequence[int]
) -> None:
    """Complete a snapshot from the files of a template that was stopped, and name its folder. Remove all other files.

    `xml` is that of the template's domain. `qemu_owner` is the user and the group of QEMU, as numbers. After an error
    the folder stays locked; the caller drops it.
    """
    place = Path(folder)
    if place not in _locked or place.name != f"{UNFINISHED}{key}":
        raise VclusterError(f"this process is not making snapshot {key}")
    with _storage_errors(key):
        for leftover in list(place.iterdir()):
            if leftover.name not in FILES:
                remove_path(leftover)
        _require_qcow2(place / DISK)
        for name, mode, (user, group) in (
            (DISK, 0o600, (os.geteuid(), os.getegid())),
            (RAM, 0o600, qemu_owner),
            (STATE, 0o600, (os.geteuid(), os.getegid())),
        ):
            os.chown(place / name, user, group)
            (place / name).chmod(mode)
        manifest = SnapshotManifest(
            key=key,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            image=image_digest,
            circumstances=dict(circumstances),
            xml=xml,
            owner=list(qemu_owner),
            files={
                name: ManifestFile((place / name).stat().st_size, sparse_digest.digest(place / name)) for name in FILES
            },
        )
        (place / MANIFEST).write_text(json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1) + "\n")
        (place / MANIFEST).chmod(0o600)
        for path in (*(place / name for name in (*FILES, MANIFEST)), place):
            _sync(path)
        place.rename(snapshot_folder(str(place.parent), key))
        os.close(_locked.pop(place))
        _sync(place.parent)


def drop_snapshot(root: str, key: str, refused: str = "") -> None:
    """Remove a snapshot, and an unfinished one unless another process is making it.

    `refused` is the reason why no clone started from a complete one. It is not made again until a user requests it.
    """
    final, unfinished = snapshot_folder(root, key), unfinished_folder(root, key)
    if unfinished in _locked:
        remove_folder(unfinished)
        os.close(_locked.pop(unfinished))
    else:
        remove_unfinished(unfinished)
    remove_folder(final)
    if refused:
        with _storage_errors(key):
            refusal_file(root, key).write_text(refused)
    remove_if_empty(root)


def permit_snapshot(root: str, key: str) -> None:
    """Allow a refused snapshot to be made again."""
    refusal_file(root, key).unlink(missing_ok=True)
    remove_if_empty(root)


def check_snapshot(root: str, key: str, circumstances: Mapping[str, Any]) -> dict[str, Any]:
    """Whether a snapshot exists, and whether it can be used under these conditions.

    `wrong` is the reason why it cannot be used, or empty. `refused` is the reason why a missing one is not to be made
    again unless it is requested. `xml` is that of the template's domain; `ram` and `state` are paths.
    """
    folder = snapshot_folder(root, key)
    found = {
        "is_there": folder.is_dir(),
        "is_busy": False,
        "refused": "",
        "wrong": "",
        "xml": "",
        "ram": str(folder / RAM),
        "state": str(folder / STATE),
    }
    if not found["is_there"]:
        refusal = refusal_file(root, key)
        refused = refusal.read_text(errors="replace") if refusal.is_file() else ""
        return {**found, "is_busy": is_busy(unfinished_folder(root, key)), "refused": refused}
    try:
        manifest = read_manifest(folder)
        compare_conditions(manifest, key, circumstances)
        for name, file in manifest.files.items():
            compare_file(folder / name, file)
        compare_owner(folder / RAM, manifest.owner)
    except VclusterError as error:
        return {**found, "wrong": error.message}
    except OSError as error:
        return {**found, "wrong": f"{error.filename or folder}: {error.strerror or error}"}
    return {**found, "xml": manifest.xml}


def copy_disk(root: str, key: str, path: str) -> None:
    """Copy the snapshot's small disk for a clone, because the clone may outlive the snapshot."""
    with _storage_errors(key):
        _copy(snapshot_folder(root, key) / DISK, Path(path))


def list_snapshots(root: str) -> list[dict[str, Any]]:
    """All complete snapshots, with their size on disk. Without a readable manifest, the other fields are empty."""
    found = []
    for folder in snapshot_folders(root):
        entry: dict[str, Any] = {"key": folder.name, "image": "", "created": "", "memory_mib": 0, "circumstances": {}}
        with contextlib.suppress(VclusterError, OSError):
            manifest = read_manifest(folder)
            entry.update(image=manifest.image, created=manifest.created, circumstances=manifest.circumstances)
            entry["memory_mib"] = manifest.files[RAM].size // 2**20
        with contextlib.suppress(FileNotFoundError):  # removed in the meantime
            found.append({**entry, "bytes": sum(path.stat().st_blocks * 512 for path in folder.iterdir())})
    return found


def sweep_snapshots(root: str) -> dict[str, list[str]]:
    """Remove unfinished snapshots that no process is making.

    Return the keys of those `removed`, and of those that are `in_use`: some process is making them.
    """
    places = sorted(Path(root).glob(f"{UNFINISHED}*"))
    removed = {key_of_folder(place) for place in places if place not in _locked and remove_unfinished(place)}
    in_use = {key_of_folder(place) for place in Path(root).glob(f"{UNFINISHED}*")}
    remove_if_empty(root)
    return {"removed": sorted(removed), "in_use": sorted(in_use)}


def remove_snapshots(root: str, image_digest: str) -> list[str]:
    """Remove all snapshots of an image. Return their keys."""
    keys = [entry["key"] for entry in list_snapshots(root) if entry["image"] == image_digest]
    for key in keys:
        remove_folder(snapshot_folder(root, key))
    # Refusals have no manifest, but their keys start with the image's digest (snapshots.template.key_of).
    beginning = f"{image_digest.removeprefix('sha256-')[:12]}-"
    for refusal in Path(root).glob(f"*{REFUSED}"):
        if refusal.name.startswith(beginning):
            refusal.unlink(missing_ok=True)
    remove_if_empty(root)
    return keys


OPERATIONS: tuple[Callable[..., Any], ...] = (
    begin_snapshot,
    prepare_template,
    lend_file,
    dig_holes,
    finish_snapshot,
    drop_snapshot,
    permit_snapshot,
    check_snapshot,
    copy_disk,
    list_snapshots,
    sweep_snapshots,
    remove_snapshots,
)


def _copy(source: Path, path: Path) -> None:
    """Copy to a new private file. Remove it on an error."""
    with source.open("rb") as content:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                shutil.copyfileobj(content, file, _CHUNK_BYTES)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _require_qcow2(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_QCOW2)) != _QCOW2:
            raise VclusterError(f"{path} is not a qcow2 file")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _storage_errors(key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        raise MissingError(
            f"cannot store snapshot {key}: {path}{error.strerror or error}",
            hint="check free space and permissions there",
        ) from error
