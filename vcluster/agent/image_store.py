"""Images that a controller delivers to this server.

An image is a folder with its digest as name. Until it is complete, the folder is `.unfinished-DIGEST`, locked by the
agent that receives it. An agent then keeps a shared lock on the complete image until it ends, so that no other command
removes the image of a create.

These functions are operations of the agent, as in operations.py: arguments and results are JSON.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vcluster.adapters import image_stamps
from vcluster.agent.snapshot_folders import FOLDER_MODE, UNFINISHED, lock_folder, remove_folder, require_room
from vcluster.agent.snapshot_manifest import MANIFEST
from vcluster.errors import ConflictError, MissingError, VclusterError

_ATTEMPTS = 100  # another process may rename or remove the folder before we lock it

_DIGEST = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,127}")
_FILE = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")

# Descriptors of folders, which hold the locks of this process.
_received: dict[Path, int] = {}
_used: dict[Path, int] = {}


def image_problem(root: str, digest: str) -> str:
    """Why nodes must not use an image of this server; empty if it is as it was stored, or if there is none."""
    _require_names(digest)
    folder = Path(root) / digest
    return image_stamps.problem(folder / MANIFEST) if folder.is_dir() else ""


def begin_image(root: str, digest: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Lock an image, to use it if it `is_there`, or to receive it.

    `partial` is the number of bytes of each file that have arrived. If another agent receives the image, it `is_busy`:
    then the caller tries again later. Raises VclusterError if a file of the image does not have its size.
    """
    _require_names(digest, sizes)
    unfinished, is_busy = _unfinished(root, digest), False
    with _disk_errors(digest):
        if unfinished not in _received and not _use(Path(root) / digest, sizes):
            is_busy = not _lock_unfinished(unfinished)
        if unfinished in _received and _use(Path(root) / digest, sizes):  # another agent finished it before our lock
            _drop(unfinished)
        partial = {path.name: path.stat().st_size for path in unfinished.iterdir()} if unfinished in _received else {}
        if unfinished in _received:
            _require_room(unfinished, sum(sizes.values()) - sum(partial.values()))
    is_there = not is_busy and unfinished not in _received
    return {"is_there": is_there, "is_busy": is_busy, "partial": partial}


def _lock_unfinished(unfinished: Path) -> bool:
    """Make the folder of an unfinished image and lock it. Returns False if another agent has the lock."""
    for _ in range(_ATTEMPTS):
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        unfinished.mkdir(FOLDER_MODE, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            descriptor = lock_folder(unfinished)
            if descriptor is None:
                return False
            _received[unfinished] = descriptor
            return True
    raise VclusterError(f"cannot make {unfinished}: another process removes it")


def _require_room(unfinished: Path, needed_bytes: int) -> None:
    """Raise MissingError if the rest of an image does not fit on the disk. Then nothing of it stays."""
    try:
        require_room(unfinished.parent, needed_bytes, "the image")
    except MissingError:
        _drop(unfinished)
        remove_empty(unfinished.parent)
        raise


def _drop(unfinished: Path) -> None:
    """Remove a folder that this process has locked."""
    shutil.rmtree(unfinished)
    os.close(_received.pop(unfinished))


def remove_empty(root: Path) -> None:
    """Remove the folder of images, and the one that it is in, if they are empty."""
    for folder in (root, root.parent):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _use(image: Path, sizes: Mapping[str, int]) -> bool:
    """Take a shared lock on a complete image. Returns whether there is one."""
    if image in _used and not (image.exists() and os.path.samestat(os.fstat(_used[image]), image.stat())):
        os.close(_used.pop(image))
    if image not in _used:
        try:
            descriptor = lock_folder(image, shared=True)
        except FileNotFoundError:
            return False
        if descriptor is None:
            raise ConflictError(f"another command removes image {image.name[:19]}", hint="run the command again")
        _used[image] = descriptor
    for name, size in sizes.items():
        path = image / name
        found_bytes = path.stat().st_size if path.exists() else 0
        if found_bytes != size:
            raise VclusterError(
                f"{path} has {found_bytes} bytes instead of {size}", hint=f"remove {image}, and run the command again"
            )
    return True


def receive_image_file(root: str, digest: str, name: str, offset: int, body: BinaryIO, size: int) -> None:
    """Write `size` bytes of an image's file, starting at `offset`."""
    _require_names(digest, [name])
    folder = _required(root, digest)
    try:
        with _disk_errors(digest), (folder / name).open("r+b" if (folder / name).exists() else "wb") as file:
            _write_body(file, offset, body, size)
    except MissingError:  # another program has taken the room
        _drop(folder)
        remove_empty(Path(root))
        raise


def _write_body(file: BinaryIO, offset: int, body: BinaryIO, size: int) -> None:
    file.truncate(offset)
    file.seek(offset)
    while size:
        chunk = body.read(min(size, 2**20))
        if not chunk:
            raise VclusterError(
                "the upload of an image file was interrupted", hint="run the command again; it continues there"
            )
        file.write(chunk)
        size -= len(chunk)


def finish_image(root: str, digest: str, files: dict[str, str], manifest: str) -> None:
    """Compare the files with their digests and give the image its final name. It stays locked for use."""
    _require_names(digest, files)
    folder = _required(root, digest)
    for name, expected in files.items():
        if _sha256(folder / name) != expected:
            _drop(folder)
            raise VclusterError(
                f"image file {name} arrived damaged", hint="run the command again; it sends the file again"
            )
    with _disk_errors(digest):
        (folder / MANIFEST).write_text(manifest)
        for path in folder.iterdir():
            path.chmod(0o644)
        image_stamps.store(folder, files)
        os.sync()
        if _use(Path(root) / digest, {}):  # `image import` on this server has made it meanwhile
            _drop(folder)
            return
        folder.rename(Path(root) / digest)
    _used[Path(root) / digest] = _received.pop(folder)
    fcntl.flock(_used[Path(root) / digest], fcntl.LOCK_SH)


def remove_image(root: str, digest: str) -> bool:
    """Remove an image, and what has arrived of it. Returns whether there was anything.

    Raises ConflictError while another command uses or receives it.
    """
    _require_names(digest)
    found = [path for path in (Path(root) / digest, *Path(root).glob(f"{UNFINISHED}{digest}*")) if path.is_dir()]
    with _disk_errors(digest), contextlib.ExitStack() as locks:
        for folder in found:
            with contextlib.suppress(FileNotFoundError):
                descriptor = lock_folder(folder)
                if descriptor is None:
                    raise ConflictError(f"another command uses image {digest[:19]}", hint="wait for that command")
                locks.callback(os.close, descriptor)
        for folder in found:
            remove_folder(folder)
    remove_empty(Path(root))
    return bool(found)


def is_file_name(name: str) -> bool:
    """Whether a text is the name of a file in an image's folder, and not a path to another folder."""
    return bool(_FILE.fullmatch(name))


def _require_names(digest: str, names: Iterable[str] = ()) -> None:
    """Raise VclusterError for a name that leads to another folder."""
    if not _DIGEST.fullmatch(digest):
        raise VclusterError(f"{digest!r:.60} is not the digest of an image")
    wrong = next((name for name in names if not is_file_name(name)), None)
    if wrong is not None:
        raise VclusterError(f"{wrong!r:.60} is not the name of a file of an image")


def _unfinished(root: str, digest: str) -> Path:
    return Path(root) / f"{UNFINISHED}{digest}"


def _required(root: str, digest: str) -> Path:
    folder = _unfinished(root, digest)
    if folder not in _received:
        raise VclusterError(f"this process does not receive image {digest[:19]}")
    return folder


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _disk_errors(digest: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MissingError(
            f"cannot store image {digest[:19]}: {error.strerror or error}", hint="free space on the server's disk"
        ) from error


OPERATIONS: tuple[Callable[..., Any], ...] = (
    image_problem,
    begin_image,
    receive_image_file,
    finish_image,
    remove_image,
)
