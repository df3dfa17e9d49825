"""Snapshots."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vcluster.agent import sparse_digest
from vcluster.agent.snapshot_folders import (
    REFUSED,
    UNFINISHED,
    is_busy,
    lock_folder,
    refusal_file,
    remove_folder,
    remove_if_empty,
    remove_path,
    remove_unfinished,
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
    compare,
    compare_file,
    compare_owner,
    read_manifest,
)
from vcluster.errors import MissingError, VclusterError
from vcluster.snapshots import qemu_stream, save_file

SAVE, SEED = "save", "seed.iso"  # only while it is being made
_WAY_MODE = 0o711  # QEMU's user reaches its files through the folder; nobody lists it
_CHUNK_BYTES = 1 << 20
_ATTEMPTS = 100  # others may remove a folder between its making and its locking, not so often
_QCOW2 = b"QFI\xfb"  # docs/interop/qcow2.txt in QEMU

# The unfinished snapshots of this process: their folders' descriptors, which bear the locks.
_ours: dict[Path, int] = {}


def begin_snapshot(root: str, key: str) -> dict[str, Any]:
    """A folder to make a snapshot in, which is ours until it is finished or dropped, or this process ends.

    There is none when the snapshot is there, or when somebody makes it (`is_busy`), who is waited for by asking again.
    What killed work left is gone.
    """
    final, unfinished = snapshot_folder(root, key), unfinished_folder(root, key)
    with _storing(key):
        for _ in range(_ATTEMPTS):
            if final.is_dir():
                return {"folder": "", "is_there": True, "is_busy": False}
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                Path(root).mkdir(parents=True, exist_ok=True)
                Path(root).chmod(_WAY_MODE)
                unfinished.mkdir()
            try:
                descriptor = lock_folder(unfinished)
            except FileNotFoundError:
                continue
            if descriptor is None:
                return {"folder": "", "is_there": False, "is_busy": True}
            if final.is_dir():  # finished while we made the folder
                remove_folder(unfinished)
                os.close(descriptor)
                continue
            _ours[unfinished] = descriptor
            for left in list(unfinished.iterdir()):
                remove_path(left)
            unfinished.chmod(_WAY_MODE)
            return {"folder": str(unfinished), "is_there": False, "is_busy": False}
    raise VclusterError(f"snapshot {key} cannot be begun: its folder vanishes again and again")


def finish_snapshot(
    folder: str, key: str, circumstances: Mapping[str, Any], image_digest: str, qemu_owner: Sequence[int]
) -> None:
    """Make the folder whole and give it its name: it holds `disk.qcow2` and `save`, the domain as libvirt saved it.

    What else it holds goes. `qemu_owner` is user and group of QEMU, as numbers. After an error the folder is still
    ours, to be dropped.
    """
    place = Path(folder)
    if place not in _ours or place.name != f"{UNFINISHED}{key}":
        raise VclusterError(f"snapshot {key} is not being made here")
    with _storing(key):
        head, split = _split(place)
        for left in list(place.iterdir()):
            if left.name not in FILES:
                remove_path(left)
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
            machine=split.machine,
            **asdict(head),
            owner=list(qemu_owner),
            ram_data_bytes=split.pages * qemu_stream.PAGE_BYTES,
            files={
                name: ManifestFile((place / name).stat().st_size, sparse_digest.digest(place / name)) for name in FILES
            },
        )
        (place / MANIFEST).write_text(json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1) + "\n")
        (place / MANIFEST).chmod(0o600)
        for path in (*(place / name for name in (*FILES, MANIFEST)), place):
            _sync(path)
        place.rename(snapshot_folder(str(place.parent), key))
        os.close(_ours.pop(place))
        _sync(place.parent)


def drop_snapshot(root: str, key: str, refused: str = "") -> None:
    """Remove a snapshot, and what there is of an unfinished one unless another makes it.

    `refused` says why no node could be made from a whole one: until somebody asks for it, none is to be made again.
    """
    final, unfinished = snapshot_folder(root, key), unfinished_folder(root, key)
    if unfinished in _ours:
        remove_folder(unfinished)
        os.close(_ours.pop(unfinished))
    else:
        remove_unfinished(unfinished)
    remove_folder(final)
    if refused:
        with _storing(key):
            refusal_file(root, key).write_text(refused)
    remove_if_empty(root)


def permit_snapshot(root: str, key: str) -> None:
    """Let one be made again that was refused."""
    refusal_file(root, key).unlink(missing_ok=True)
    remove_if_empty(root)


def check_snapshot(root: str, key: str, circumstances: Mapping[str, Any]) -> dict[str, Any]:
    """Whether a snapshot is there, and why it must not be used: `wrong`, empty when it is as it was made, under these.

    `refused` says why one that is not there is not to be made again unasked. With what a clone of it is made from: the
    XML of the domain that was saved, and where its memory is.
    """
    folder = snapshot_folder(root, key)
    found = {
        "is_there": folder.is_dir(),
        "is_busy": False,
        "refused": "",
        "wrong": "",
        "xml": "",
        "ram": str(folder / RAM),
    }
    if not found["is_there"]:
        refusal = refusal_file(root, key)
        refused = refusal.read_text() if refusal.is_file() else ""
        return {**found, "is_busy": is_busy(unfinished_folder(root, key)), "refused": refused}
    try:
        manifest = read_manifest(folder)
        compare(manifest, key, circumstances)
        for name, file in manifest.files.items():
            compare_file(folder / name, file)
        compare_owner(folder / RAM, manifest.owner)
    except VclusterError as error:
        return {**found, "wrong": error.message}
    except OSError as error:
        return {**found, "wrong": f"{error.filename or folder}: {error.strerror or error}"}
    return {**found, "xml": manifest.xml}


def write_clone(root: str, key: str, path: str, xml: str) -> None:
    """Write a file that libvirt restores a clone from: with this XML, and without the memory. There must be none yet.

    Raises SaveFileError where the XML is too long for it.
    """
    folder = snapshot_folder(root, key)
    head = save_file.write(replace(read_manifest(folder).head, xml=xml))
    with _storing(key):
        _copy(folder / STATE, Path(path), behind=head)


def copy_disk(root: str, key: str, path: str) -> None:
    """Copy the small disk that a snapshot's memory goes with: who is made from the snapshot outlives it."""
    with _storing(key):
        _copy(snapshot_folder(root, key) / DISK, Path(path))


def remove_file(path: str) -> None:
    """Remove a file, if it is there."""
    Path(path).unlink(missing_ok=True)


def list_snapshots(root: str) -> list[dict[str, Any]]:
    """The snapshots that are whole, with the bytes that they take. One with no manifest to read has empty entries."""
    found = []
    for folder in snapshot_folders(root):
        entry: dict[str, Any] = {"key": folder.name, "image": "", "created": "", "memory_mib": 0, "circumstances": {}}
        with contextlib.suppress(VclusterError, OSError):
            manifest = read_manifest(folder)
            entry.update(image=manifest.image, created=manifest.created, circumstances=manifest.circumstances)
            entry["memory_mib"] = manifest.files[RAM].size // 2**20
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            found.append({**entry, "bytes": sum(path.stat().st_blocks * 512 for path in folder.iterdir())})
    return found


def sweep_snapshots(root: str) -> list[str]:
    """Remove unfinished ones that nobody works on, and return their folders' names."""
    places = sorted(Path(root).glob(f"{UNFINISHED}*"))
    swept = [place.name for place in places if place not in _ours and remove_unfinished(place)]
    remove_if_empty(root)
    return swept


def remove_snapshots(root: str, image_digest: str) -> list[str]:
    """Remove all snapshots of an image, and return their keys."""
    keys = [entry["key"] for entry in list_snapshots(root) if entry["image"] == image_digest]
    for key in keys:
        remove_folder(snapshot_folder(root, key))
    # They have no manifest; their keys begin as their image's digest does (snapshots.key_of).
    for refusal in Path(root).glob(f"{image_digest.removeprefix('sha256-')[:12]}-*{REFUSED}"):
        refusal.unlink(missing_ok=True)
    remove_if_empty(root)
    return keys


OPERATIONS: tuple[Callable[..., Any], ...] = (
    begin_snapshot,
    finish_snapshot,
    drop_snapshot,
    permit_snapshot,
    check_snapshot,
    write_clone,
    copy_disk,
    remove_file,
    list_snapshots,
    sweep_snapshots,
    remove_snapshots,
)


def _split(folder: Path) -> tuple[save_file.SaveHead, qemu_stream.Split]:
    """Make `ram` and `state` of `save`."""
    with (
        (folder / SAVE).open("rb", buffering=_CHUNK_BYTES) as source,
        (folder / RAM).open("xb", buffering=_CHUNK_BYTES) as ram,
        (folder / STATE).open("xb") as state,
    ):
        start = source.read(save_file.HEADER_BYTES)
        start += source.read(save_file.data_bytes_of(start))
        return save_file.read(start), qemu_stream.split(source, ram, state)


def _copy(source: Path, path: Path, *, behind: bytes = b"") -> None:
    """A new file that only we may read: these bytes, then all of another. There is none if that fails."""
    with source.open("rb") as content:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(behind)
                shutil.copyfileobj(content, file, _CHUNK_BYTES)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _require_qcow2(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_QCOW2)) != _QCOW2:
            raise VclusterError(f"{path} is no qcow2 file")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _storing(key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise MissingError(
            f"snapshot {key} cannot be stored: {where}{error.strerror or error}", hint="see to room and rights there"
        ) from error
