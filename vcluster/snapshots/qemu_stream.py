"""QEMU's migration stream, split: the guest's memory as a plain sparse file, and the stream that is left without it.

What is left is a stream again, in which the guest's memory is a block of another name and has no pages: a QEMU that
maps the file under that name goes on from it. Only what a whole, plain stream of one guest holds is known here; all
else is refused, for a guest with one page missing looks well for a while. Pure; travels to servers.

The format (QEMU 7.2): migration/savevm.c, where numbers are big-endian: magic, version; then sections, each a byte that
says what it is. 7: the configuration, which is the machine's name behind its 32-bit length. 1, 2, 3: start, part and
end of what is sent while the guest may run, for a plain guest `ram` alone: the section's number, at the start also
name, instance and version; records; a footer (0x7e and the number). 4: a device, from there to the end; 0: no more
of them; 6: a description in JSON behind its 32-bit length, which ends the stream.

Records (migration/ram.c): 64 bits, an address in a block with flags in the bits below the page's size. MEM_SIZE: the
bytes of all blocks, each block's name and size behind it. ZERO, PAGE: the block's name unless CONTINUE says that it is
that of the page before, be it in another section; then a zero byte, or the page. EOS: the section's end. A page may
come more than once; the last counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import BinaryIO

from vcluster.errors import VclusterError

BLOCK = b"vcluster.ram"  # what the guest's memory is called afterwards
PAGE_BYTES = 4096  # TARGET_PAGE_SIZE of x86; guests of other kinds have no pc.ram

_GUEST_BLOCK = b"pc.ram"  # hw/i386/pc.c
_MAGIC, _VERSION = 0x5145564D, 3
_START, _PART, _END, _FULL, _CONFIGURATION, _FOOTER = 1, 2, 3, 4, 7, 0x7E
_RAM, _RAM_INSTANCE, _RAM_VERSION = b"ram", 0, 4
_ZERO, _MEM_SIZE, _PAGE, _EOS, _CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
_KINDS = {0x01: "an old kind", 0x40: "XBZRLE", 0x80: "a hook", 0x100: "compression", 0x200: "several channels"}
_MACHINE_MAX = 255
_CHUNK_BYTES = 1 << 20
_TAIL_BYTES = 1 << 20  # the description of a whole machine has a tenth of that
_LAST = re.compile(rb"(?s)\x00\x06(?=(.{4})\{)")  # no more devices, the description, its length


class StreamError(VclusterError):
    """A stream that is cut off, or holds something that is not known here."""


@dataclass(frozen=True, slots=True)
class Split:
    """What was split: the machine's type with its version, the guest's memory in bytes, and its pages with data."""

    machine: str
    ram_bytes: int
    pages: int


def split(source: BinaryIO, ram: BinaryIO, state: BinaryIO) -> Split:
    """Write the guest's memory into `ram` and the rest into `state`. Raises StreamError; both are worthless then.

    `source` is buffered and stands at the stream's beginning; `ram` is empty and can seek: pages that are zero are left
    out, and are holes where the file system has such.
    """
    stream = _Stream(source)
    if stream.number(4) != _MAGIC:
        raise StreamError("this is no stream of QEMU's")
    if (version := stream.number(4)) != _VERSION:
        raise StreamError(f"QEMU's stream is of version {version}; {_VERSION} is known")
    if (kind := stream.number(1)) != _CONFIGURATION:
        raise StreamError(f"QEMU's stream begins with section {kind}, not with the machine's name")
    machine = _machine(stream)
    state.write(_be(_MAGIC, 4) + _be(_VERSION, 4) + _be(_CONFIGURATION, 1) + _be(len(machine), 4) + machine.encode())
    memory = _Memory(stream, ram, state)
    _ram_sections(stream, memory, state)
    size, pages = memory.finish()
    _rest(source, state)
    return Split(machine, size, pages)


class _Stream:
    """Reads a stream, whole things only."""

    def __init__(self, source: BinaryIO) -> None:
        self._read = source.read

    def take(self, size: int) -> bytes:
        """So many bytes. Raises StreamError when there are fewer."""
        data = self._read(size)
        if len(data) != size:
            raise StreamError("QEMU's stream is cut off")
        return data

    def number(self, size: int) -> int:
        """A number of so many bytes."""
        return int.from_bytes(self.take(size), "big")

    def name(self) -> bytes:
        """A name behind its length."""
        return self.take(self.number(1))


class _Memory:
    """The records of all sections: the guest's pages go into `ram`, those of other blocks into `state`."""

    def __init__(self, stream: _Stream, ram: BinaryIO, state: BinaryIO) -> None:
        self._stream, self._ram, self._state = stream, ram, state
        self._sizes: dict[bytes, int] = {}
        self._block: bytes | None = None  # of the page before
        self._kept: bytes | None = None  # of the page before that went into `state`
        self._has_data = bytearray()  # a byte for each page of the guest
        self._at = 0  # where `ram` stands: to seek empties its buffer

    def section(self) -> None:
        """Take the records of one section, to its end."""
        take, put = self._stream.take, self._put
        block = self._block
        limit = self._sizes[block] if block is not None else 0
        is_guest = block == _GUEST_BLOCK
        while True:
            word = int.from_bytes(take(8), "big")
            flags = word % PAGE_BYTES
            kind = flags & ~_CONTINUE
            if kind not in (_ZERO, _PAGE):
                self._block = block
                if flags == _EOS:
                    self._state.write(_be(word, 8))
                    return
                self._other(word, flags)
                continue
            if not flags & _CONTINUE:
                block = self._stream.name()
                if block not in self._sizes:
                    raise StreamError(f"QEMU's stream has a page of {_shown(block)}, which it did not tell of")
                limit, is_guest = self._sizes[block], block == _GUEST_BLOCK
            elif block is None:
                raise StreamError("QEMU's stream has a page of no block")
            address = word - flags
            if address >= limit:
                raise StreamError(f"QEMU's stream has a page at {address} of {_shown(block)}, which has {limit} bytes")
            data = take(PAGE_BYTES if kind == _PAGE else 1)
            if kind == _ZERO and data != b"\0":
                raise StreamError(f"QEMU's stream has a page of bytes {data.hex()}")
            if is_guest:
                put(address, data)
            else:
                self._keep(address, kind, block, data)

    def finish(self) -> tuple[int, int]:
        """The guest's memory in bytes and its pages with data, when all records were taken."""
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

    def _keep(self, address: int, kind: int, block: bytes, data: bytes) -> None:
        """A page of another block. Pages between may have been left out, so CONTINUE is told anew."""
        if block == self._kept:
            self._state.write(_be(address | kind | _CONTINUE, 8) + data)
        else:
            self._state.write(_be(address | kind, 8) + _named(block) + data)
            self._kept = block

    def _other(self, word: int, flags: int) -> None:
        if flags != _MEM_SIZE:
            known = next((f" ({name})" for flag, name in _KINDS.items() if flags & flag), "")
            raise StreamError(f"QEMU's stream has memory of a kind that is not known: {flags:#x}{known}")
        if self._sizes:
            raise StreamError("QEMU's stream tells its blocks twice")
        self._state.write(_be(word, 8))
        total = left = word - flags
        while left > 0:
            name, size = self._stream.name(), self._stream.number(8)
            if name in self._sizes or name == BLOCK or not 0 < size <= left or size % PAGE_BYTES:
                raise StreamError(f"QEMU's stream has a block {_shown(name)} of {size} bytes, of {total} in all")
            self._sizes[name] = size
            left -= size
            self._state.write(_named(BLOCK if name == _GUEST_BLOCK else name) + _be(size, 8))
        self._has_data = bytearray(self._sizes.get(_GUEST_BLOCK, 0) // PAGE_BYTES)


def _machine(stream: _Stream) -> str:
    length = stream.number(4)
    name = stream.take(min(length, _MACHINE_MAX))
    if not 0 < length <= _MACHINE_MAX or not name.isascii() or not name.decode("ascii").isprintable():
        raise StreamError(f"QEMU's stream has a machine of no name: {_shown(name[:20])}")
    return name.decode("ascii")


def _ram_sections(stream: _Stream, memory: _Memory, state: BinaryIO) -> None:
    """The sections of `ram`, from its start to its end."""
    number: int | None = None
    kind = 0
    while kind != _END:
        kind = stream.number(1)
        if kind not in (_START, _PART, _END):
            raise StreamError(f"QEMU's stream has section {kind} before the memory's end")
        found = stream.number(4)
        state.write(_be(kind, 1) + _be(found, 4))
        if kind == _START:
            if number is not None:
                raise StreamError(f"QEMU's stream has a second start, of {_shown(stream.name())}")
            number = found
            _start(stream, state)
        if found != number:
            raise StreamError(f"QEMU's stream has section {found} before the memory's end, which is {number}")
        memory.section()
        if (footer := stream.take(5)) != _be(_FOOTER, 1) + _be(found, 4):
            raise StreamError(f"QEMU's stream has {footer.hex()} where section {found} should end")
        state.write(footer)


def _start(stream: _Stream, state: BinaryIO) -> None:
    name, instance, version = stream.name(), stream.number(4), stream.number(4)
    if (name, instance, version) != (_RAM, _RAM_INSTANCE, _RAM_VERSION):
        raise StreamError(f"QEMU's stream starts with {_shown(name)} {instance} of version {version}, not with memory")
    state.write(_named(name) + _be(instance, 4) + _be(version, 4))


def _rest(source: BinaryIO, state: BinaryIO) -> None:
    """The devices, as they are. Their records say nothing of their length, but the description ends with the stream."""
    chunk = source.read(_CHUNK_BYTES)
    if chunk and chunk[0] != _FULL:
        raise StreamError(f"QEMU's stream has section {chunk[0]} behind the memory")
    tail = b""
    while chunk:
        state.write(chunk)
        tail = (tail + chunk)[-_TAIL_BYTES:]
        chunk = source.read(_CHUNK_BYTES)
    if not any(match.end() + 4 + int.from_bytes(match[1], "big") == len(tail) for match in _LAST.finditer(tail)):
        raise StreamError("QEMU's stream is cut off, or has something behind its end")


def _be(number: int, size: int) -> bytes:
    return number.to_bytes(size, "big")


def _named(name: bytes) -> bytes:
    return _be(len(name), 1) + name


def _shown(name: bytes) -> str:
    return ascii(name.decode("latin-1"))
