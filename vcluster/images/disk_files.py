"""Check of a disk file: can nodes use it as their base?"""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcluster.adapters.process import run
from vcluster.errors import RequestError

SECTOR = 512
CHECK_TIMEOUT_S = 300.0
FORMATS = ("qcow2", "raw")
_GPT_PROTECTIVE = 0xEE


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """The facts that qemu-img prints about a disk file."""

    format: str
    virtual_size_bytes: int


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def inspect(path: Path) -> DiskFacts:
    """The facts about a disk file. Raises RequestError with the reason if nodes cannot use it as their base."""
    info = _info(path)
    kind, size = info["format"], int(info["virtual-size"])
    if kind not in FORMATS:
        raise RequestError(f"{path} has format {kind}, not qcow2 or raw", hint=f"qemu-img convert -O qcow2 {path} NEW")
    if "backing-filename" in info or "full-backing-filename" in info:
        raise RequestError(f"{path} needs a backing file", hint=f"qemu-img convert -O qcow2 {path} NEW")
    if "data-file" in info.get("format-specific", {}).get("data", {}):
        raise RequestError(f"{path} has its data in another file", hint=f"qemu-img convert -O qcow2 {path} NEW")
    if kind == "qcow2":
        _check_qcow2(path)
    end = partitions_end(_first_sectors(path, kind))
    if end is None:
        raise RequestError(f"{path} is not a disk image: it has no partition table")
    if end > size:
        raise RequestError(f"{path} is truncated: its partitions end at byte {end}, the file ends at byte {size}")
    return DiskFacts(kind, size)


def qcow2_bytes(path: Path, kind: str) -> int:
    """The size of a disk file as qcow2, in bytes. A compressed one grows."""
    argv = ["qemu-img", "measure", "--output=json", "-f", kind, "-O", "qcow2", str(path.absolute())]
    return int(json.loads(run(argv, timeout_s=CHECK_TIMEOUT_S).stdout)["required"])


def partitions_end(head: bytes) -> int | None:
    """The end of the last partition in bytes, from the first two sectors of a disk. None without a partition table.

    MBR: https://en.wikipedia.org/wiki/Master_boot_record, four entries of 16 bytes from byte 446. GPT: UEFI
    specification, section 5.3.2: the block of the backup header is at byte 32 of the header.
    """
    if len(head) < SECTOR or head[510:512] != b"\x55\xaa":
        return None
    entries = [struct.unpack("<BxxxBxxxII", head[at : at + 16]) for at in range(446, 510, 16)]
    if any(kind == _GPT_PROTECTIVE for _, kind, _, _ in entries):
        if head[SECTOR : SECTOR + 8] != b"EFI PART":
            return None
        (backup,) = struct.unpack("<Q", head[SECTOR + 32 : SECTOR + 40])
        return int(backup + 1) * SECTOR
    ends = [(start + length) * SECTOR for _, kind, start, length in entries if kind]
    return max(ends) if ends else None


def _info(path: Path) -> dict[str, Any]:
    completed = run(["qemu-img", "info", "--output=json", "--", str(path)], timeout_s=60, may_fail=True)
    if completed.exit_code:
        raise RequestError(f"cannot read {path} as a disk image: {completed.stderr.strip().splitlines()[-1]}")
    info: dict[str, Any] = json.loads(completed.stdout)
    return info


def _check_qcow2(path: Path) -> None:
    argv = ["qemu-img", "check", "--output=json", "-f", "qcow2", str(path.absolute())]
    completed = run(argv, timeout_s=CHECK_TIMEOUT_S, may_fail=True)
    # 3 means leaked clusters (qemu-img(1)): they waste space but do no harm.
    if completed.exit_code not in (0, 3):
        messages = completed.stderr.strip().splitlines() or ["qemu-img check reports errors"]
        raise RequestError(f"{path} is truncated or corrupt: {messages[0]}")


def _first_sectors(path: Path, kind: str) -> bytes:
    if kind == "raw":
        with path.open("rb") as file:
            return file.read(2 * SECTOR)
    with tempfile.NamedTemporaryFile(prefix="vcluster-") as head:
        argv = [
            "qemu-img",
            "dd",
            "-f",
            kind,
            "-O",
            "raw",
            f"bs={SECTOR}",
            "count=2",
            f"if={path.absolute()}",
            f"of={head.name}",
        ]
        run(argv, timeout_s=60)
        return Path(head.name).read_bytes()
