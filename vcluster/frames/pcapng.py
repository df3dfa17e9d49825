"""The blocks of a pcapng file, as bytes. Pure.

The format is that of the IETF draft "PCAP Now Generic (pcapng) Capture File Format", draft-ietf-opsawg-pcapng. A file
is a section header, a description of each interface, and then other blocks in any order. Each block is complete by
itself, so a file that ends after any block is valid.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from ipaddress import IPv4Address

SECTION_HEADER, INTERFACE_DESCRIPTION, NAME_RESOLUTION = 0x0A0D0D0A, 1, 4
INTERFACE_STATISTICS, ENHANCED_PACKET = 5, 6
INBOUND, OUTBOUND = 1, 2  # of a frame at its interface, in its flags
OPTION_BYTES_MAX = 0xFFFF
ETHERNET = 1  # LINKTYPE_ETHERNET

_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_UNKNOWN_LENGTH = -1  # of a section
_NANOSECONDS = b"\x09"  # the resolution of time stamps is 10⁻⁹ s
_END, _COMMENT = 0, 1  # options
_APPLICATION = 4  # of a section header
_NAME, _DESCRIPTION, _RESOLUTION, _FILTER = 2, 3, 9, 11  # of an interface
_FLAGS = 2  # of a packet
_BEGAN, _ENDED, _RECEIVED, _DROPPED_BY_SYSTEM, _DELIVERED = 2, 3, 4, 7, 8  # of statistics
_IPV4_RECORD = 1


@dataclass(frozen=True, slots=True)
class FileInterface:
    """An interface of a file. `snap_bytes` is the length to which frames are cut; 0 means that they are whole."""

    name: str
    description: str
    snap_bytes: int = 0
    filter: str = ""


@dataclass(frozen=True, slots=True)
class Statistics:
    """The counts of an interface from `began_ns` to `ended_ns`, in nanoseconds since 1970.

    `delivered` is the number of its frames in the file. `received` is the count of the interface itself, in both
    directions, None if it is unknown. `dropped` is the number of frames that the kernel had no room for.
    """

    began_ns: int
    ended_ns: int
    delivered: int
    received: int | None = None
    dropped: int = 0
    comment: str = ""


def section_header(application: str, comments: Sequence[str]) -> bytes:
    """The first block of a file."""
    options = [*((_COMMENT, _text(comment)) for comment in comments), (_APPLICATION, _text(application))]
    return _block(SECTION_HEADER, struct.pack("<IHHq", _BYTE_ORDER_MAGIC, 1, 0, _UNKNOWN_LENGTH) + _options(options))


def interface_description(interface: FileInterface) -> bytes:
    """The block of an interface. Interfaces are numbered in the order of these blocks, from 0."""
    options = [(_NAME, _text(interface.name)), (_DESCRIPTION, _text(interface.description))]
    options += [(_RESOLUTION, _NANOSECONDS)]
    if interface.filter:
        options += [(_FILTER, b"\0" + _text(interface.filter))]  # 0: it is a text, as libpcap reads it
    return _block(INTERFACE_DESCRIPTION, struct.pack("<HHI", ETHERNET, 0, interface.snap_bytes) + _options(options))


def name_resolution(names: Mapping[IPv4Address, str]) -> bytes:
    """A block with the names of addresses."""
    records = [_option(_IPV4_RECORD, address.packed + _text(name) + b"\0") for address, name in names.items()]
    return _block(NAME_RESOLUTION, b"".join(records) + _option(_END, b""))


def packet(interface: int, at_ns: int, data: bytes, length: int, direction: int, comment: str = "") -> bytes:
    """A frame of `length` bytes, of which `data` is the captured part."""
    text = _text(comment)
    layout = _commented_layout(len(data), len(text)) if text else packet_layout(len(data))
    remark = (_COMMENT, len(text), text) if text else ()
    high, low = divmod(at_ns, 1 << 32)
    return layout.pack(
        ENHANCED_PACKET, layout.size, interface, high, low, len(data), length, data,
        _FLAGS, 4, direction, *remark, 0, layout.size,
    )  # fmt: skip


@cache
def packet_layout(captured: int) -> struct.Struct:
    """The layout of the block of a frame with `captured` bytes and without a comment.

    Its fields are: type, size, interface, time stamp (high, low), captured length, length, data, the code, the size and
    the value of the flags, the end of options, size.
    """
    return struct.Struct(f"<IIIIIII{captured}s{-captured % 4}xHHIII")


@lru_cache(1 << 12)
def _commented_layout(captured: int, comment: int) -> struct.Struct:
    """The same with a comment of `comment` bytes: its code, size and text are after the flags."""
    return struct.Struct(f"<IIIIIII{captured}s{-captured % 4}xHHIHH{comment}s{-comment % 4}xII")


def statistics(interface: int, counts: Statistics) -> bytes:
    """A block with the counts of an interface. The last one of an interface counts."""
    options = [(_COMMENT, _text(counts.comment))] if counts.comment else []
    for code, at_ns in ((_BEGAN, counts.began_ns), (_ENDED, counts.ended_ns)):
        options.append((code, struct.pack("<II", *divmod(at_ns, 1 << 32))))
    numbers = ((_RECEIVED, counts.received), (_DROPPED_BY_SYSTEM, counts.dropped), (_DELIVERED, counts.delivered))
    options += [(code, struct.pack("<Q", number)) for code, number in numbers if number is not None]
    stamp = struct.pack("<III", interface, *divmod(counts.ended_ns, 1 << 32))
    return _block(INTERFACE_STATISTICS, stamp + _options(options))


def _block(kind: int, body: bytes) -> bytes:
    size = 12 + len(body)
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)


def _options(options: Sequence[tuple[int, bytes]]) -> bytes:
    return b"".join(_option(code, value) for code, value in (*options, (_END, b"")))


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _text(text: str) -> bytes:
    """A text as UTF-8, cut at a character if it is too long for an option."""
    data = text.encode(errors="backslashreplace")
    return data if len(data) < OPTION_BYTES_MAX else data[: OPTION_BYTES_MAX - 1].decode(errors="ignore").encode()
