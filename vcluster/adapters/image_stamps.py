"""Images that were damaged after their digests were right, found without reading them.

The stamps of an image are the size and the time of change of each file. They are stored when the digests are right, and
a file that was truncated, written or replaced later does not fit. A copy of a right file does not fit either, until
`vcluster image verify` reads it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from vcluster.adapters.process import last_lines, run
from vcluster.model import json_text, json_types

STAMPS, DISK = "stamps.json", "disk.qcow2"
CHECK_TIMEOUT_S = 60.0
LEAKS = 3  # exit code of qemu-img check: they waste space but do no harm
# The header of a qcow2 file (docs/interop/qcow2.txt of QEMU): magic, version, the place of the backing file's name, and
# after 72 bytes the incompatible features.
_HEADER, _MAGIC, _DATA_FILE = struct.Struct(">4sIQ56xQ"), b"QFI\xfb", 4

Stamps = dict[str, list[int]]


def store(folder: Path, names: Iterable[str]) -> None:
    """Store the stamps of an image, whose digests are right.

    A user who cannot write them has them checked by qemu-img each time.
    """
    draft = folder / f".{STAMPS}.new"
    with suppress(OSError):
        draft.write_text(json.dumps({name: _stamp(folder / name) for name in names}))
        draft.chmod(0o644)
        draft.replace(folder / STAMPS)


def problem(manifest: Path) -> str:
    """Why nodes must not use the image of a manifest; empty if it is as it was.

    An image of an earlier version gets its stamps now.
    """
    folder = manifest.parent
    try:
        names = list(json_text.parse(manifest.read_text())["files"])
        found = {name: _stamp(folder / name) for name in names}
        with (folder / DISK).open("rb") as disk:
            head = disk.read(_HEADER.size)
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{folder} cannot be read: {error}"
    stamps = _stamps(folder)
    wrong = _difference(folder, stamps, found) if stamps else ""
    wrong = wrong or _of_disk(folder / DISK, head)
    if wrong or stamps:
        return wrong
    if wrong := _by_qemu(folder / DISK):
        return wrong
    store(folder, names)
    return ""


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _stamps(folder: Path) -> Stamps:
    """The stamps of an image; none if it has none."""
    try:
        found = json_text.parse((folder / STAMPS).read_text())
    except (OSError, ValueError):
        return {}
    is_whole = not json_types.misfit(found, dict[str, tuple[int, int]], STAMPS)
    return found if is_whole else {}


def _difference(folder: Path, stamps: Stamps, found: Stamps) -> str:
    for name, (size, _) in found.items():
        if name in stamps and stamps[name][0] != size:
            return f"{folder / name} has {size} bytes instead of {stamps[name][0]}"
    changed = next((name for name in found if found[name] != stamps.get(name)), "")
    return f"{folder / changed} was changed after it was stored" if changed else ""


def _of_disk(path: Path, head: bytes) -> str:
    """Why a disk cannot be the base of nodes. With a name in its header, it would show them another file."""
    if len(head) < _HEADER.size:
        return f"{path} is truncated"
    magic, version, backing_at, features = _HEADER.unpack(head)
    if magic != _MAGIC:
        return f"{path} is not a qcow2 file"
    if backing_at:
        return f"{path} has a backing file"
    return f"{path} has its data in another file" if version > 2 and features & _DATA_FILE else ""


def _by_qemu(path: Path) -> str:
    done = run(["qemu-img", "check", "-q", "-f", "qcow2", str(path)], timeout_s=CHECK_TIMEOUT_S, may_fail=True)
    return "" if done.exit_code in (0, LEAKS) else f"{path} is truncated or corrupt: {last_lines(done, 1)}"
