"""Snapshots of nodes on a server: the memory and the disk of one that is ready, for others to go on from.

A snapshot is a folder, named by a key that stands for all it depends on. It appears under its name only when it is
whole; until then it is `.unfinished-KEY`, locked by whoever makes it, so what a killed command left can be told from
what is in use. Its files: `disk.qcow2`, which nodes' disks lie on; `ram`, the memory, sparse, which nodes' QEMUs map;
`state`, QEMU's stream without that memory (ramstream.py); `manifest.json`. None is changed afterwards.

These are operations as those of operations.py: arguments and results are JSON.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vcluster.agent import sparse_digest
from vcluster.errors import MissingError, VclusterError
from vcluster.snapshots import qemu_stream, save_file

FORMAT = 1
DISK, RAM, STATE = "disk.qcow2", "ram", "state"
SAVE, SEED = "save", "seed.iso"  # only while it is being made
_MANIFEST = "manifest.json"
_FILES = (DISK, RAM, STATE)
_UNFINISHED = ".unfinished-"
_REFUSED = ".refused"
_KEY = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,127}\Z")
_WAY_MODE = 0o711  # QEMU's user reaches its files through the folder; nobody lists it
_CHUNK_BYTES = 1 << 20
_ATTEMPTS = 100  # others may remove a folder between its making and its locking, not so often
_QCOW2 = b"QFI\xfb"  # docs/interop/qcow2.txt in QEMU
_SHOWN_MAX = 60

# The unfinished snapshots of this process: their folders' descriptors, which bear the locks.
_ours: dict[Path, int] = {}


@dataclass(frozen=True, slots=True)
class _File:
    """One file: its size in bytes and its digest (sparse.py)."""

    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class _Manifest:
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
    files: dict[str, _File]

    def __post_init__(self) -> None:
        kinds: dict[str, type] = {
            **dict.fromkeys(("key", "created", "image", "machine", "xml", "cookie"), str),
            **dict.fromkeys(("circumstances", "files"), dict),
            **dict.fromkeys(("data_bytes", "ram_data_bytes"), int),
            "was_running": bool,
            "owner": list,
        }
        wrong = [name for name, kind in kinds.items() if not isinstance(getattr(self, name), kind)]
        if wrong or sorted(self.files) != sorted(_FILES) or len(self.owner) != 2:
            raise ValueError(f"wrong: {', '.join(wrong) or 'files or owner'}")

    @property
    def head(self) -> save_file.SaveHead:
        """What its saved domain's file began with."""
        return save_file.SaveHead(self.xml, self.cookie, self.data_bytes, self.was_running)


# Making one


def begin_snapshot(root: str, key: str) -> dict[str, Any]:
    """A folder to make a snapshot in, which is ours until it is finished or dropped, or this process ends.

    There is none when the snapshot is there, or when somebody makes it (`is_busy`), who is waited for by asking again.
    What killed work left is gone.
    """
    final, unfinished = _place(root, key), _unfinished_place(root, key)
    with _storing(key):
        for _ in range(_ATTEMPTS):
            if final.is_dir():
                return {"folder": "", "is_there": True, "is_busy": False}
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                Path(root).mkdir(parents=True, exist_ok=True)
                Path(root).chmod(_WAY_MODE)
                unfinished.mkdir()
            try:
                descriptor = _lock(unfinished)
            except FileNotFoundError:
                continue
            if descriptor is None:
                return {"folder": "", "is_there": False, "is_busy": True}
            if final.is_dir():  # finished while we made the folder
                _remove_folder(unfinished)
                os.close(descriptor)
                continue
            _ours[unfinished] = descriptor
            for left in list(unfinished.iterdir()):
                _remove(left)
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
    if place not in _ours or place.name != f"{_UNFINISHED}{key}":
        raise VclusterError(f"snapshot {key} is not being made here")
    with _storing(key):
        head, split = _split(place)
        for left in list(place.iterdir()):
            if left.name not in _FILES:
                _remove(left)
        _require_qcow2(place / DISK)
        for name, mode, (user, group) in (
            (DISK, 0o600, (os.geteuid(), os.getegid())),
            (RAM, 0o600, qemu_owner),
            (STATE, 0o600, (os.geteuid(), os.getegid())),
        ):
            os.chown(place / name, user, group)
            (place / name).chmod(mode)
        manifest = _Manifest(
            key=key,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            image=image_digest,
            circumstances=dict(circumstances),
            machine=split.machine,
            **asdict(head),
            owner=list(qemu_owner),
            ram_data_bytes=split.pages * qemu_stream.PAGE_BYTES,
            files={name: _File((place / name).stat().st_size, sparse_digest.digest(place / name)) for name in _FILES},
        )
        (place / _MANIFEST).write_text(json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1) + "\n")
        (place / _MANIFEST).chmod(0o600)
        for path in (*(place / name for name in (*_FILES, _MANIFEST)), place):
            _sync(path)
        place.rename(_place(str(place.parent), key))
        os.close(_ours.pop(place))
        _sync(place.parent)


def drop_snapshot(root: str, key: str, refused: str = "") -> None:
    """Remove a snapshot, and what there is of an unfinished one unless another makes it.

    `refused` says why no node could be made from a whole one: until somebody asks for it, none is to be made again.
    """
    final, unfinished = _place(root, key), _unfinished_place(root, key)
    if unfinished in _ours:
        _remove_folder(unfinished)
        os.close(_ours.pop(unfinished))
    else:
        _remove_unfinished(unfinished)
    _remove_folder(final)
    if refused:
        with _storing(key):
            _refusal(root, key).write_text(refused)
    _remove_empty(root)


def permit_snapshot(root: str, key: str) -> None:
    """Let one be made again that was refused."""
    _refusal(root, key).unlink(missing_ok=True)
    _remove_empty(root)


# Using one


def check_snapshot(root: str, key: str, circumstances: Mapping[str, Any]) -> dict[str, Any]:
    """Whether a snapshot is there, and why it must not be used: `wrong`, empty when it is as it was made, under these.

    `refused` says why one that is not there is not to be made again unasked. With what a clone of it is made from: the
    XML of the domain that was saved, and where its memory is.
    """
    folder = _place(root, key)
    found = {
        "is_there": folder.is_dir(),
        "is_busy": False,
        "refused": "",
        "wrong": "",
        "xml": "",
        "ram": str(folder / RAM),
    }
    if not found["is_there"]:
        refusal = _refusal(root, key)
        refused = refusal.read_text() if refusal.is_file() else ""
        return {**found, "is_busy": _is_busy(_unfinished_place(root, key)), "refused": refused}
    try:
        manifest = _read_manifest(folder)
        _compare(manifest, key, circumstances)
        for name, file in manifest.files.items():
            _compare_file(folder / name, file)
        _compare_owner(folder / RAM, manifest.owner)
    except VclusterError as error:
        return {**found, "wrong": error.message}
    except OSError as error:
        return {**found, "wrong": f"{error.filename or folder}: {error.strerror or error}"}
    return {**found, "xml": manifest.xml}


def write_clone(root: str, key: str, path: str, xml: str) -> None:
    """Write a file that libvirt restores a clone from: with this XML, and without the memory. There must be none yet.

    Raises SaveFileError where the XML is too long for it.
    """
    folder = _place(root, key)
    head = save_file.write(replace(_read_manifest(folder).head, xml=xml))
    with _storing(key):
        _copy(folder / STATE, Path(path), behind=head)


def copy_disk(root: str, key: str, path: str) -> None:
    """Copy the small disk that a snapshot's memory goes with: who is made from the snapshot outlives it."""
    with _storing(key):
        _copy(_place(root, key) / DISK, Path(path))


def remove_file(path: str) -> None:
    """Remove a file, if it is there."""
    Path(path).unlink(missing_ok=True)


# All of them


def list_snapshots(root: str) -> list[dict[str, Any]]:
    """The snapshots that are whole, with the bytes that they take. One with no manifest to read has empty entries."""
    found = []
    for folder in _folders(root):
        entry: dict[str, Any] = {"key": folder.name, "image": "", "created": "", "memory_mib": 0, "circumstances": {}}
        with contextlib.suppress(VclusterError, OSError):
            manifest = _read_manifest(folder)
            entry.update(image=manifest.image, created=manifest.created, circumstances=manifest.circumstances)
            entry["memory_mib"] = manifest.files[RAM].size // 2**20
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            found.append({**entry, "bytes": sum(path.stat().st_blocks * 512 for path in folder.iterdir())})
    return found


def sweep_snapshots(root: str) -> list[str]:
    """Remove unfinished ones that nobody works on, and return their folders' names."""
    places = sorted(Path(root).glob(f"{_UNFINISHED}*"))
    swept = [place.name for place in places if place not in _ours and _remove_unfinished(place)]
    _remove_empty(root)
    return swept


def remove_snapshots(root: str, image_digest: str) -> list[str]:
    """Remove all snapshots of an image, and return their keys."""
    keys = [entry["key"] for entry in list_snapshots(root) if entry["image"] == image_digest]
    for key in keys:
        _remove_folder(_place(root, key))
    # They have no manifest; their keys begin as their image's digest does (snapshots.key_of).
    for refusal in Path(root).glob(f"{image_digest.removeprefix('sha256-')[:12]}-*{_REFUSED}"):
        refusal.unlink(missing_ok=True)
    _remove_empty(root)
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


# Names and locks


def _place(root: str, key: str) -> Path:
    if not _KEY.match(key):
        raise VclusterError(f"{key!r} is no key of a snapshot")
    return Path(root) / key


def _unfinished_place(root: str, key: str) -> Path:
    return Path(root) / f"{_UNFINISHED}{_place(root, key).name}"


def _refusal(root: str, key: str) -> Path:
    return Path(root) / f"{_place(root, key).name}{_REFUSED}"


def _folders(root: str) -> list[Path]:
    """None, for who may not look: `image list` is for everybody."""
    if not Path(root).is_dir() or not os.access(root, os.R_OK):
        return []
    return sorted(path for path in Path(root).iterdir() if _KEY.match(path.name) and path.is_dir())


def _lock(folder: Path) -> int | None:
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


def _is_busy(folder: Path) -> bool:
    """Whether somebody has its lock."""
    try:
        descriptor = _lock(folder)
    except FileNotFoundError:
        return False
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


def _remove_unfinished(folder: Path) -> bool:
    """Remove it, unless it is in use. Whether it was removed."""
    try:
        descriptor = _lock(folder)
    except FileNotFoundError:
        return False
    if descriptor is None:
        return False
    try:
        _remove_folder(folder)
    finally:
        os.close(descriptor)
    return True


def _remove_folder(folder: Path) -> None:
    """Its name goes first: no half of a snapshot ever bears it, and another may be begun at once."""
    key = folder.name.removeprefix(_UNFINISHED).partition(".")[0]
    doomed = folder.with_name(f"{_UNFINISHED}{key}.{secrets.token_hex(4)}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(doomed)
        _remove(doomed)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # another may be removing it too
    else:
        path.unlink(missing_ok=True)
    if path.exists():
        raise VclusterError(f"{path} cannot be removed")


def _remove_empty(root: str) -> None:
    with contextlib.suppress(OSError):
        Path(root).rmdir()


# Content


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


def _read_manifest(folder: Path) -> _Manifest:
    path = folder / _MANIFEST
    try:
        words = json.loads(path.read_bytes())
        if (found := words.pop("format")) != FORMAT:
            raise VclusterError(f"{path} is of format {_shown(found)}; {FORMAT} is known")
        return _Manifest(**{**words, "files": {name: _File(**file) for name, file in words["files"].items()}})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise VclusterError(f"{path} is no manifest of a snapshot") from error


def _compare(manifest: _Manifest, key: str, circumstances: Mapping[str, Any]) -> None:
    """Raises VclusterError where a snapshot was made for another key or under other circumstances, naming the first."""
    if manifest.key != key:
        raise VclusterError(f"snapshot {key} was made as {_shown(manifest.key)}")
    for name in (*circumstances, *manifest.circumstances):
        theirs, ours = manifest.circumstances.get(name), circumstances.get(name)
        if theirs != ours:
            raise VclusterError(f"snapshot {key} was made with {name} {_shown(theirs)}, not {_shown(ours)}")


def _compare_file(path: Path, file: _File) -> None:
    size = path.stat().st_size
    if size != file.size:
        raise VclusterError(f"{path} has {size} bytes, not {file.size}")
    if sparse_digest.digest(path) != file.digest:
        raise VclusterError(f"{path} has changed")


def _compare_owner(path: Path, owner: Sequence[int]) -> None:
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
