"""The frames that a wire would carry: cuts super-frames as a network card does, and completes checksums. Pure.

A node leaves both to the card. The kernel's packet socket describes what is left to do by a header of virtio
(linux/virtio_net.h). Its numbers come from a node, so no length is trusted.
"""

from __future__ import annotations

import struct

from vcluster.frames.frame_filter import ETHERNET_BYTES

HEADER_BYTES = 10
READY = frozenset({b"\0\0", b"\2\0"})  # flags and kind of frames with nothing left to do
PARTS_MAX = 256  # of 64 KiB; more means that a node chose a tiny size

_HEADER = struct.Struct("=BBHHHH")  # flags, kind, length of headers, size of a part, start and place of the checksum
_SHORT, _TWO_SHORTS, _LONG = struct.Struct(">H"), struct.Struct(">HH"), struct.Struct(">I")
_NEEDS_CHECKSUM = 1
_TCP4, _TCP6, _UDP, _ECN = 1, 4, 5, 0x80  # kinds
_IPV4, _IPV6, _TCP_MIN, _UDP_HEADER = 20, 40, 20, 8
_VERSIONS = {b"\x08\x00": 4, b"\x86\xdd": 6}  # by the type of Ethernet
_FIN_PUSH, _CONGESTION_REDUCED = 0x09, 0x80  # flags of TCP for the last part only, and for the first one only
_TCP_PROTOCOL, _UDP_PROTOCOL = 6, 17
_TCP_CHECKSUM, _UDP_CHECKSUM = 16, 6  # offsets in their headers

Part = tuple[bytes, int]  # the captured bytes, and the length of the frame


def wire_frames(data: bytes, length: int, header: bytes) -> list[Part]:
    """The frames of a captured one, of which `data` is the begin, with its header of virtio.

    Checksums need all bytes, so a frame that is cut short keeps its incomplete one. A frame that cannot be cut is
    returned as it is.
    """
    flags, kind, _, size, start, offset = _HEADER.unpack(header)
    if kind:
        return _parts(data, length, kind & ~_ECN, size, start) or [(data, length)]
    if flags & _NEEDS_CHECKSUM and len(data) == length:
        return [(_completed(data, start, offset), length)]
    return [(data, length)]


def _completed(data: bytes, start: int, offset: int) -> bytes:
    """A frame whose checksum has the sum of the pseudo-header only, with the rest added."""
    at = start + offset
    if at + 2 > len(data):
        return data
    checksum = _checksum(_sum(data[start:]), is_udp=offset == _UDP_CHECKSUM)
    return data[:at] + checksum.to_bytes(2, "big") + data[at + 2 :]


def _checksum(total: int, *, is_udp: bool = False) -> int:
    """The checksum of the internet (RFC 1071) by a sum. In UDP, 0 means that there is none, so 0xFFFF stands for it."""
    return -total % 0xFFFF or (0xFFFF if is_udp else 0)


def _parts(data: bytes, length: int, kind: int, size: int, start: int) -> list[Part]:
    """The parts of a super-frame whose transport header begins at `start`; empty if it cannot be cut."""
    version = _VERSIONS.get(data[12:14])
    is_udp = kind == _UDP
    if (
        version is None
        or kind not in (_TCP4, _TCP6, _UDP)
        or start < ETHERNET_BYTES + (_IPV4 if version == 4 else _IPV6)
    ):
        return []
    if len(data) < start + (_UDP_HEADER if is_udp else _TCP_MIN):
        return []
    end = start + (_UDP_HEADER if is_udp else (data[start + 12] >> 4) * 4)
    if not size or len(data) < end or end < start + _UDP_HEADER or not 1 < -(-(length - end) // size) <= PARTS_MAX:
        return []
    if not is_udp and end < start + _TCP_MIN:
        return []
    head = _Head(data[:end], version, start, is_udp=is_udp)
    found = []
    for number, begin in enumerate(range(end, length, size)):
        payload = data[begin : begin + size]
        more = min(size, length - begin)
        made = head.part(number, number * size, more, payload if len(payload) == more else None, begin + more == length)
        found.append((made + payload, end + more))
    return found


class _Head:
    """The headers of parts. A checksum is a sum modulo 65535, so what all parts share is added once."""

    def __init__(self, data: bytes, version: int, start: int, *, is_udp: bool) -> None:
        self._head, self._version, self._start, self._is_udp = bytearray(data), version, start, is_udp
        self._checksum_at = start + (_UDP_CHECKSUM if is_udp else _TCP_CHECKSUM)
        if not is_udp:
            (self._sequence,) = _LONG.unpack_from(data, start + 4)
            self._flags = data[start + 13]
        if version == 4:
            (self._identification,) = _SHORT.unpack_from(data, ETHERNET_BYTES + 4)
        self._packet_sum, self._segment_sum = self._shared_sums()

    def _shared_sums(self) -> tuple[int, int]:
        """The sums of both headers without what differs between parts, the second with the pseudo-header."""
        start, blank = self._start, bytearray(self._head)
        blank[self._checksum_at : self._checksum_at + 2] = bytes(2)
        if self._is_udp:
            blank[start + 4 : start + 6] = bytes(2)
        else:
            blank[start + 4 : start + 8] = bytes(4)
            blank[start + 13] = 0
        addresses = blank[ETHERNET_BYTES + 12 : ETHERNET_BYTES + 20]
        if self._version == 6:
            addresses = blank[ETHERNET_BYTES + 8 : ETHERNET_BYTES + 40]
        else:
            blank[ETHERNET_BYTES + 2 : ETHERNET_BYTES + 6] = bytes(4)
            blank[ETHERNET_BYTES + 10 : ETHERNET_BYTES + 12] = bytes(2)
        protocol = _UDP_PROTOCOL if self._is_udp else _TCP_PROTOCOL
        return _sum(blank[ETHERNET_BYTES:start]), _sum(addresses) + protocol + _sum(blank[start:])

    def part(self, number: int, distance: int, more: int, payload: bytes | None, is_last: bool) -> bytes:
        """The headers of a part with `more` bytes of data, which are `distance` bytes after the first.

        Without all of its payload, the checksum of TCP or UDP stays as it is.
        """
        head, start = self._head, self._start
        segment_bytes = len(head) - start + more
        total = self._segment_sum + segment_bytes
        if self._version == 4:
            size, identification = len(head) - ETHERNET_BYTES + more, (self._identification + number) & 0xFFFF
            _TWO_SHORTS.pack_into(head, ETHERNET_BYTES + 2, size, identification)
            _SHORT.pack_into(head, ETHERNET_BYTES + 10, _checksum(self._packet_sum + size + identification))
        else:
            _SHORT.pack_into(head, ETHERNET_BYTES + 4, len(head) - ETHERNET_BYTES - _IPV6 + more)
        if self._is_udp:
            _SHORT.pack_into(head, start + 4, segment_bytes)
            total += segment_bytes
        else:
            sequence = (self._sequence + distance) & 0xFFFFFFFF
            removed = (0 if is_last else _FIN_PUSH) | (_CONGESTION_REDUCED if number else 0)
            _LONG.pack_into(head, start + 4, sequence)
            head[start + 13] = self._flags & ~removed
            total += sequence + head[start + 13]
        if payload is not None:
            _SHORT.pack_into(head, self._checksum_at, _checksum(total + _sum(payload), is_udp=self._is_udp))
        return bytes(head)


def _sum(data: bytes | bytearray) -> int:
    """The sum of the 16-bit numbers in some bytes, modulo 65535."""
    return int.from_bytes(data + bytes(len(data) % 2), "big") % 0xFFFF
