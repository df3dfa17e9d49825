"""Migration streams of QEMU, made by hand, with the memory of a guest (migration/savevm.c, migration/ram.c)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

PAGE_BYTES = 4096
RAM, BIOS = b"pc.ram", b"pc.bios"
MACHINE = b"pc-i440fx-7.2"
ZERO, MEM_SIZE, PAGE, EOS, CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
SECTION = 2


def be(number: int, size: int) -> bytes:
    return number.to_bytes(size, "big")


def named(name: bytes) -> bytes:
    return be(len(name), 1) + name


def configuration(machine: bytes = MACHINE) -> bytes:
    """The start of a stream."""
    return b"QEVM" + be(3, 4) + b"\7" + be(len(machine), 4) + machine


def blocks(sizes: Mapping[bytes, int], *, twice: bool = False, total: int | None = None) -> bytes:
    """The record that lists the blocks. With `twice` it lists each two times; `total` is another sum."""
    listed = [named(name) + be(size, 8) for name, size in sizes.items()] * (1 + twice)
    whole = (sum(sizes.values()) * (1 + twice) if total is None else total) & -8
    return be(whole | MEM_SIZE, 8) + b"".join(listed)


def page(number: int, data: bytes, block: bytes = b"") -> bytes:
    """A page of this block, or of the block before."""
    return _record(number, PAGE, block) + data


def zero(number: int, block: bytes = b"") -> bytes:
    """A page of zeros."""
    return _record(number, ZERO, block) + b"\0"


def _record(number: int, flags: int, block: bytes) -> bytes:
    return be(number * PAGE_BYTES | flags, 8) + named(block) if block else be(number * PAGE_BYTES | flags | CONTINUE, 8)


def start(
    *records: bytes, name: bytes = b"ram", instance: int = 0, version: int = 4, footer: bytes = b"\x7e\0\0\0\2"
) -> bytes:
    """The first section of memory."""
    head = b"\1" + be(SECTION, 4) + named(name) + be(instance, 4) + be(version, 4)
    return head + b"".join(records) + be(EOS, 8) + footer


def part(*records: bytes, number: int = SECTION) -> bytes:
    """A section of memory."""
    return _section(2, number, records)


def end(*records: bytes, number: int = SECTION) -> bytes:
    """The last section of memory."""
    return _section(3, number, records)


def _section(kind: int, number: int, records: Iterable[bytes]) -> bytes:
    return be(kind, 1) + be(number, 4) + b"".join(records) + be(EOS, 8) + b"\x7e" + be(number, 4)


def devices() -> bytes:
    """The part after the memory: one device, and the description."""
    description = json.dumps({"page_size": PAGE_BYTES, "devices": []}).encode()
    device = b"\4" + be(3, 4) + named(b"timer") + be(0, 4) + be(2, 4) + bytes(24) + b"\x7e" + be(3, 4)
    return device + b"\0" + b"\6" + be(len(description), 4) + description


def stream(first: Iterable[bytes], last: Iterable[bytes]) -> bytes:
    """A whole stream, with memory in two sections."""
    return configuration() + start(*first) + end(*last) + devices()
