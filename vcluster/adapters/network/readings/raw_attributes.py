"""The attributes of a netlink message, not decoded: a reader of many messages a second takes only what it needs."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_HEADER = struct.Struct("=HH")  # length, type
_KIND = 0x3FFF  # without the marks for nested attributes and for the order of bytes


def attributes(data: bytes, at: int = 0) -> Iterator[tuple[int, bytes]]:
    """The type and the value of each attribute from an offset on. It ends at one that does not fit."""
    while at + _HEADER.size <= len(data):
        length, kind = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            return
        yield kind & _KIND, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def first(data: bytes, kind: int, at: int = 0) -> bytes:
    """The value of the first attribute of a type; empty without one."""
    return next((value for found, value in attributes(data, at) if found == kind), b"")
