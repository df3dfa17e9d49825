"""Reads a pcapng file as a stream, block by block. Pure: the stream is the only source.

Nothing in the file is trusted. An error names the byte of the file where the wrong block begins.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from vcluster.errors import VclusterError
from vcluster.frames import pcapng
from vcluster.model.quoting import shown

BLOCK_BYTES_MAX = 1 << 26
INTERFACES_MAX = 4096
HEADER_BYTES = 128  # of a frame; the rest is not passed on
DIRECTIONS = (pcapng.INBOUND, pcapng.OUTBOUND)
FIRST_TEXTS = (b"\x4d\x3c\x2b\x1a", b"\x1a\x2b\x3c\x4d")  # the magic number in both byte orders

Frame = tuple[int, int, bytes, int, int]  # interface, time in ns since 1970, first bytes, length, direction

_CHUNK_BYTES = 1 << 20
_RESOLUTION_DEFAULT = 6  # microseconds
_POWER_OF_TWO = 0x80  # in the resolution of time stamps
_EXPONENT_MAX = 63  # 2^64 or 10^20 are finer than the field has digits
_OPTION_COMMENT, _OPTION_END = 1, 0
_OPTION_NAME, _OPTION_RESOLUTION, _OPTION_FLAGS, _OPTION_DROPPED = 2, 9, 2, 7
_PLAIN_FLAGS = b"\x02\x00\x04\x00"  # the options of a frame begin with its flags


@dataclass(frozen=True, slots=True)
class ReadInterface:
    """An interface of the file, and the number of its ticks in a second."""

    name: str
    ticks_s: int


class PcapngReader:
    """A pcapng file with one section. The comments of the section are read when it is made, the rest by `frames`.

    `interfaces` and `dropped` grow while `frames` runs.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._data, self._at, self._before = b"", 0, 0
        self._order = "<"
        self.interfaces: list[ReadInterface] = []
        self._dropped: dict[int, int] = {}
        self.comments = self._read_section()

    @property
    def dropped(self) -> int:
        """The number of frames for which the capture had no room."""
        return sum(self._dropped.values())

    def frames(self) -> Iterator[Frame]:
        """The frames in the order of the file, each with its first bytes."""
        head, fields = struct.Struct(self._order + "II"), struct.Struct(self._order + "IIIII")
        flags = struct.Struct(self._order + "I")
        is_plain = self._order == "<"
        while self._has(8):
            kind, size = head.unpack_from(self._data, self._at)
            if not 12 <= size <= BLOCK_BYTES_MAX or size % 4:
                raise self.error(f"a block has {size} bytes, which is not possible")
            if len(self._data) - self._at < size and not self._has(size):
                raise self.error(f"the file ends inside a block of {size} bytes")
            begin, end = self._at + 8, self._at + size - 4
            if head.unpack_from(self._data, end - 4)[1] != size:
                raise self.error("the two lengths of a block differ")
            if kind == pcapng.ENHANCED_PACKET:
                if size < 32:
                    raise self.error("a frame lacks its header")
                number, high, low, captured, length = fields.unpack_from(self._data, begin)
                data = begin + 20
                options = data + captured + -captured % 4
                if options > end:
                    raise self.error(f"a frame has {captured} bytes, which are more than its block")
                if is_plain and self._data[options : options + 4] == _PLAIN_FLAGS and options + 8 <= end:
                    (value,) = flags.unpack_from(self._data, options + 4)
                else:
                    value = self._flags(self._data[options:end])
                if value & 3 not in DIRECTIONS:
                    raise self.error("a frame has no direction, so vcluster has not captured it")
                yield (
                    number, self._time(number, high << 32 | low),
                    self._data[data : data + (captured if captured < HEADER_BYTES else HEADER_BYTES)],
                    length, value & 3,
                )  # fmt: skip
            else:
                self._read_other(kind, self._data[begin:end])
            self._at += size

    def _time(self, number: int, ticks: int) -> int:
        """The time of a frame in nanoseconds."""
        try:
            ticks_s = self.interfaces[number].ticks_s
        except IndexError:
            raise self.error(f"a frame is of interface {number}, and the file has {len(self.interfaces)}") from None
        return ticks if ticks_s == 1_000_000_000 else ticks * 1_000_000_000 // ticks_s

    def _flags(self, options: bytes) -> int:
        """The flags of a frame whose options begin with others; 0 without flags."""
        value = next((value for code, value in self._options(options) if code == _OPTION_FLAGS), b"")
        return struct.unpack(self._order + "I", value)[0] if len(value) == 4 else 0

    def _read_other(self, kind: int, body: bytes) -> None:
        """A block that is not a frame. Blocks of unknown types are allowed, and have nothing to read."""
        if kind == pcapng.INTERFACE_DESCRIPTION:
            self._read_interface(body)
        elif kind == pcapng.INTERFACE_STATISTICS:
            self._read_statistics(body)
        elif kind == pcapng.SECTION_HEADER:
            raise self.error("a second section begins, and a report is of one capture")

    def _read_section(self) -> list[str]:
        """The comments in the first block."""
        if not self._has(28):
            raise self.error("this is not a pcapng file: it is shorter than the header of one")
        if self._data[:4] != struct.pack("<I", pcapng.SECTION_HEADER) or self._data[8:12] not in FIRST_TEXTS:
            raise self.error("this is not a pcapng file")
        self._order = "<" if self._data[8:12] == FIRST_TEXTS[0] else ">"
        (size,) = struct.unpack_from(self._order + "I", self._data, 4)
        if not 28 <= size <= BLOCK_BYTES_MAX or size % 4:
            raise self.error(f"the first block has {size} bytes, which is not possible")
        if not self._has(size):
            raise self.error(f"the file ends inside a block of {size} bytes")
        options = self._data[24 : size - 4]
        if struct.unpack_from(self._order + "I", self._data, size - 4)[0] != size:
            raise self.error("the two lengths of a block differ")
        comments = [value.decode(errors="replace") for code, value in self._options(options) if code == _OPTION_COMMENT]
        self._at = size
        return comments

    def _read_interface(self, body: bytes) -> None:
        if len(body) < 8:
            raise self.error("an interface lacks its header")
        if len(self.interfaces) == INTERFACES_MAX:
            raise self.error(f"the file has more than {INTERFACES_MAX} interfaces")
        link_type = struct.unpack_from(self._order + "H", body)[0]
        options = dict(self._options(body[8:]))
        name = options.get(_OPTION_NAME, b"").decode(errors="replace")
        if link_type != pcapng.ETHERNET:
            raise self.error(f"interface {shown(name)} is of type {link_type}, not Ethernet")
        exponent = (options.get(_OPTION_RESOLUTION) or bytes([_RESOLUTION_DEFAULT]))[0]
        base = 2 if exponent & _POWER_OF_TWO else 10
        self.interfaces.append(ReadInterface(name, base ** min(exponent & ~_POWER_OF_TWO, _EXPONENT_MAX)))

    def _read_statistics(self, body: bytes) -> None:
        """The last statistics of an interface count."""
        if len(body) < 12:
            raise self.error("the statistics of an interface lack their header")
        number = struct.unpack_from(self._order + "I", body)[0]
        value = dict(self._options(body[12:])).get(_OPTION_DROPPED, b"")
        if number < len(self.interfaces) and len(value) == 8:
            (self._dropped[number],) = struct.unpack(self._order + "Q", value)

    def _options(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The codes and the values of options, up to their end."""
        at = 0
        while at + 4 <= len(data):
            code, size = struct.unpack_from(self._order + "HH", data, at)
            if code == _OPTION_END:
                return
            if at + 4 + size > len(data):
                raise self.error(f"an option has {size} bytes, which are more than its block")
            yield code, data[at + 4 : at + 4 + size]
            at += 4 + size + -size % 4

    def _has(self, size: int) -> bool:
        """Read on until `size` bytes are there. Returns False at the end of the file, and raises in a torn block."""
        have = len(self._data) - self._at
        if have >= size:
            return True
        self._before += self._at
        self._data, self._at = self._data[self._at :] + self._source.read(max(_CHUNK_BYTES, size - have)), 0
        if size == 8 and 0 < len(self._data) < size:
            raise self.error(f"the file ends inside a block, after {len(self._data)} bytes")
        return len(self._data) >= size

    def error(self, reason: str) -> VclusterError:
        """An error about the block that is read now."""
        return VclusterError(f"byte {self._before + self._at}: {reason}")
