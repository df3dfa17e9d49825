"""A digest of a sparse file that reads only its data, not its holes. The agent carries this module to servers.

The digest depends on the content and not on how the file system stores it: a block of zeros counts as a hole, so a copy
with other holes has the same digest. It differs from the output of sha512sum.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK_BYTES = 1 << 16
_PART_BLOCKS = 128  # one thread hashes this much at a time: 8 MiB
_THREADS_MAX = 4
_ZEROS = bytes(BLOCK_BYTES)


def digest(path: Path) -> str:
    """The SHA-512 of the file's size and of the SHA-512 of each part, which several threads compute.

    SHA-512 takes two thirds of the time of SHA-256 on a processor without SHA instructions.
    A part's digest covers its blocks that are not zero, each after its number. Parts without data are omitted.
    """
    whole = hashlib.sha512()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        whole.update(_be(size))
        parts = list(_parts(descriptor, size))
        with ThreadPoolExecutor(min(_THREADS_MAX, os.cpu_count() or 1)) as threads:
            for part, found in zip(parts, threads.map(lambda part: _part(descriptor, part), parts), strict=True):
                if found:
                    whole.update(_be(part) + found)
    finally:
        os.close(descriptor)
    return whole.hexdigest()


def _parts(descriptor: int, size: int) -> Iterator[int]:
    """The numbers of the parts with data."""
    part_bytes, at = BLOCK_BYTES * _PART_BLOCKS, 0
    while at < size:
        try:
            part = os.lseek(descriptor, at, os.SEEK_DATA) // part_bytes
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole up to the end
                return
            raise
        yield part
        at = (part + 1) * part_bytes


def _part(descriptor: int, part: int) -> bytes:
    """The digest of one part; empty if all of it is zero."""
    found = hashlib.sha512()
    has_data = False
    for block in _blocks(descriptor, part * _PART_BLOCKS, (part + 1) * _PART_BLOCKS):
        data = os.pread(descriptor, BLOCK_BYTES, block * BLOCK_BYTES)
        if data != _ZEROS[: len(data)]:
            has_data = True
            found.update(_be(block))
            found.update(data)
    return found.digest() if has_data else b""


def _blocks(descriptor: int, start: int, end: int) -> Iterator[int]:
    """The numbers of the blocks with data, from `start` up to `end`."""
    block = start
    while block < end:
        try:
            data = os.lseek(descriptor, block * BLOCK_BYTES, os.SEEK_DATA)
            hole = os.lseek(descriptor, data, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        block = max(block, data // BLOCK_BYTES)
        after = min(end, -(-hole // BLOCK_BYTES))
        yield from range(block, after)
        block = max(block, after)


def _be(number: int) -> bytes:
    return number.to_bytes(8, "big")
