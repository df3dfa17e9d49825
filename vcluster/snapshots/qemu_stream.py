"""Split QEMU's migration stream into the guest's memory, as a plain sparse file, and a stream without it. Pure.

The second part is a stream again. In it the guest's memory is a block with another name and without pages; a QEMU that
maps the file under that name resumes from it. This module knows complete, plain streams of one guest, and refuses
everything else: a guest that lacks one page may run for a while before it fails. It also runs on servers.

The format of QEMU 7.2 (migration/savevm.c) has big-endian numbers: magic, version, then sections. The first byte of a
section is its kind:
  7        configuration: the length of the machine's name in 32 bits, and the name
  1, 2, 3  start, part and end of state that is sent while the guest may run; for a plain guest only `ram`. The number
           of the section, in a start also name, instance and version; records; a footer (0x7e and the number)
  4        a device; from the first one to the end of the stream QEMU sends only devices, and then 0 and 6
  0        the end of devices
  6        the last section: the length of a description in 32 bits, and the description in JSON

A record (migration/ram.c) has 64 bits: an address in a block, with flags in the bits below the page size.
  MEM_SIZE    the bytes of all blocks; then each block's name and size
  ZERO, PAGE  the block's name, or CONTINUE for the block of the page before, also across sections; then a zero byte or
              the page. A page may come more than once; the last one counts
  EOS         the end of the section
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import BinaryIO

from vcluster.errors import VclusterError

BLOCK = b"vcluster.ram"  # name of the guest's memory block after the split
PAGE_BYTES = 4096  # TARGET_PAGE_SIZE of x86; only x86 guests have pc.ram

_GUEST_BLOCK = b"pc.ram"  # hw/i386/pc.c
_MAGIC, _VERSION = 0x5145564D, 3
_START, _PART, _END, _FULL, _CONFIGURATION, _FOOTER = 1, 2, 3, 4, 7, 0x7E
_RAM, _RAM_INSTANCE, _RAM_VERSION = b"ram", 0, 4
_ZERO, _MEM_SIZE, _PAGE, _EOS, _CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
_KINDS = {0x01: "an old kind", 0x40: "XBZRLE", 0x80: "a hook", 0x100: "compression", 0x200: "several channels"}
_MACHINE_MAX = 255
_CHUNK_BYTES = 1 << 20
_TAIL_BYTES = 1 << 20  # ten times the description of a machine
_LAST = re.compile(rb"(?s)\x00\x06(?=(.{4})\{)")  # end of devices, description, its length


class StreamError(VclusterError):
    """The stream is cut off, or has unknown content."""


@dataclass(frozen=True, slots=True)
class Split:
    """The result of a split: the machine type, the guest's memory in bytes, and the number of its pages with data."""

    machine: str
    ram_bytes: int
    pages: int


def split(source: BinaryIO, ram: BinaryIO, state: BinaryIO) -> Split:
    """Write the guest's memory into `ram` and the rest into `state`. After a StreamError both are useless.

    `source` is buffered and at the beginning of the stream. `ram` is empty and seekable: zero pages become holes, if
    the file system has holes.
    """
    stream = _Stream(source)
    if stream.number(4) != _MAGIC:
        raise StreamError("the file is not a stream of QEMU")
    if (version := stream.number(4)) != _VERSION:
        raise StreamError(f"QEMU's stream has version {version}, but only {_VERSION} is known")
    if (kind := stream.number(1)) != _CONFIGURATION:
        raise StreamError(f"QEMU's stream begins with section {kind}, not with the machine's name")
    machine = _machine(stream)
    state.write(_be(_MAGIC, 4) + _be(_VERSION, 4) + _be(_CONFIGURATION, 1) + _be(len(machine), 4) + machine.encode())
    memory = _Memory(stream, ram, state)
    _ram_sections(stream, memory, state)
    size, pages = memory.finish()
    _copy_devices(source, state)
    return Split(machine, size, pages)


class _Stream:
    """Reads complete items from a stream."""

    def __init__(self, source: BinaryIO) -> None:
        self._read = source.read

    def take(self, size: int) -> bytes:
        """The next `size` bytes. Raises StreamError when there are fewer."""
        data = self._read(size)
        if len(data) != size:
            raise StreamError("QEMU's stream is cut off")
        return data

    def number(self, size: int) -> int:
        """A number of `size` bytes."""
        return int.from_bytes(self.take(size), "big")

    def name(self) -> bytes:
        """A name, which follows its length."""
        return self.take(self.number(1))


class _Memory:
    """The records of all sections. Pages of the guest go into `ram`, pages of other blocks into `state`."""

    def __init__(self, stream: _Stream, ram: BinaryIO, state: BinaryIO) -> None:
        self._stream, self._ram, self._state = stream, ram, state
        self._sizes: dict[bytes, int] = {}
        self._block: bytes | None = None  # block of the page before
        self._state_block: bytes | None = None  # block of the last page in `state`
        self._has_data = bytearray()  # one byte for each page of the guest
        self._at = 0  # position in `ram`, to avoid seeks, which empty its buffer

    def section(self) -> None:
        """Read the records of one section, to its end."""
        take, put = self._stream.take, self._put
        block = self._block
        limit = self._sizes[block] if block is not None else 0
        is_guest = block == _GUEST_BLOCK
        while True:
            header = int.from_bytes(take(8), "big")
            flags = header % PAGE_BYTES
            kind = flags & ~_CONTINUE
            if kind not in (_ZERO, _PAGE):
                self._block = block
                if flags == _EOS:
                    self._state.write(_be(header, 8))
                    return
                self._read_blocks(header, flags)
                continue
            if not flags & _CONTINUE:
                block = self._stream.name()
                if block not in self._sizes:
                    raise StreamError(f"QEMU's stream has a page of {_shown(block)}, which its list of blocks lacks")
                limit, is_guest = self._sizes[block], block == _GUEST_BLOCK
            elif block is None:
                raise StreamError("QEMU's stream has a page without a block")
            address = header - flags
            if address >= limit:
                raise StreamError(f"QEMU's stream has a page at {address} of {_shown(block)}, which has {limit} bytes")
            data = take(PAGE_BYTES if kind == _PAGE else 1)
            if kind == _ZERO and data != b"\0":
                raise StreamError(f"QEMU's stream has a page of bytes {data.hex()}")
            if is_guest:
                put(address, data)
            else:
                self._copy(address, kind, block, data)

    def finish(self) -> tuple[int, int]:
        """The guest's memory in bytes and the number of its pages with data, after all sections."""
        if _GUEST_BLOCK not in self._sizes:
            raise StreamError(f"QEMU's stream has no block {_shown(_GUEST_BLOCK)}")
        self._ram.truncate(self._sizes[_GUEST_BLOCK])
        return self._sizes[_GUEST_BLOCK], sum(self._has_data)

    def _put(self, address: int, data: bytes) -> None:
        page = address // PAGE_BYTES
        if len(data) == PAGE_BYTES:
            self._has_data[page] = 1
        elif self._has_data[page]:
            self._has_data[page] = 0
            data = bytes(PAGE_BYTES)
        else:
            return
        if address != self._at:
            self._ram.seek(address)
        self._ram.write(data)
        self._at = address + PAGE_BYTES

    def _copy(self, address: int, kind: int, block: bytes, data: bytes) -> None:
        """Write a page of another block. CONTINUE depends on the last page in `state`."""
        if block == self._state_block:
            self._state.write(_be(address | kind | _CONTINUE, 8) + data)
        else:
            self._state.write(_be(address | kind, 8) + _named(block) + data)
            self._state_block = block

    def _read_blocks(self, header: int, flags: int) -> None:
        """Read the list of blocks and write it with the new name of the guest's memory."""
        if flags != _MEM_SIZE:
            known = next((f" ({name})" for flag, name in _KINDS.items() if flags & flag), "")
            raise StreamError(f"QEMU's stream has a record of an unknown kind: {flags:#x}{known}")
        if self._sizes:
            raise StreamError("QEMU's stream has a second list of blocks")
        self._state.write(_be(header, 8))
        total = remaining = header - flags
        while remaining > 0:
            name, size = self._stream.name(), self._stream.number(8)
            if name in self._sizes or name == BLOCK or not 0 < size <= remaining or size % PAGE_BYTES:
                raise StreamError(f"QEMU's stream has a block {_shown(name)} of {size} bytes, of {total} in all")
            self._sizes[name] = size
            remaining -= size
            self._state.write(_named(BLOCK if name == _GUEST_BLOCK else name) + _be(size, 8))
        self._has_data = bytearray(self._sizes.get(_GUEST_BLOCK, 0) // PAGE_BYTES)


def _machine(stream: _Stream) -> str:
    length = stream.number(4)
    name = stream.take(min(length, _MACHINE_MAX))
    if not 0 < length <= _MACHINE_MAX or not name.isascii() or not name.decode("ascii").isprintable():
        raise StreamError(f"QEMU's stream has a bad machine name: {_shown(name[:20])}")
    return name.decode("ascii")


def _ram_sections(stream: _Stream, memory: _Memory, state: BinaryIO) -> None:
    """Read the sections of `ram`, from the start section to the end section."""
    number: int | None = None
    kind = 0
    while kind != _END:
        kind = stream.number(1)
        if kind not in (_START, _PART, _END):
            raise StreamError(f"QEMU's stream has a section of kind {kind} before the end of the memory")
        found = stream.number(4)
        state.write(_be(kind, 1) + _be(found, 4))
        if kind == _START:
            if number is not None:
                raise StreamError(f"QEMU's stream has a second start section, {_shown(stream.name())}")
            number = found
            _start(stream, state)
        if found != number:
            raise StreamError(f"QEMU's stream has section {found} before the end of the memory, section {number}")
        memory.section()
        if (footer := stream.take(5)) != _be(_FOOTER, 1) + _be(found, 4):
            raise StreamError(f"QEMU's stream has {footer.hex()} instead of the footer of section {found}")
        state.write(footer)


def _start(stream: _Stream, state: BinaryIO) -> None:
    name, instance, version = stream.name(), stream.number(4), stream.number(4)
    if (name, instance, version) != (_RAM, _RAM_INSTANCE, _RAM_VERSION):
        raise StreamError(f"QEMU's stream starts with {_shown(name)} {instance} of version {version}, not with memory")
    state.write(_named(name) + _be(instance, 4) + _be(version, 4))


def _copy_devices(source: BinaryIO, state: BinaryIO) -> None:
    """Copy the devices. Their records have no length, but the description must end exactly with the stream."""
    chunk = source.read(_CHUNK_BYTES)
    if chunk and chunk[0] != _FULL:
        raise StreamError(f"QEMU's stream has a section of kind {chunk[0]} after the memory")
    tail = b""
    while chunk:
        state.write(chunk)
        tail = (tail + chunk)[-_TAIL_BYTES:]
        chunk = source.read(_CHUNK_BYTES)
    if not any(match.end() + 4 + int.from_bytes(match[1], "big") == len(tail) for match in _LAST.finditer(tail)):
        raise StreamError("QEMU's stream is cut off, or has data after its end")


def _be(number: int, size: int) -> bytes:
    return number.to_bytes(size, "big")


def _named(name: bytes) -> bytes:
    return _be(len(name), 1) + name


def _shown(name: bytes) -> str:
    return ascii(name.decode("latin-1"))
