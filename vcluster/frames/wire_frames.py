"""The frames that a wire would carry: cuts super-frames as a network card does, and completes checksums. Pure.

A node leaves both to the card. The kernel's packet socket describes what is left to do by a header of virtio
(linux/virtio_net.h). Its numbers come from a node, so no length is trusted.
"""

from __future__ import annotations

import struct

HEADER_BYTES = 10
READY = frozenset({b"\0\0", b"\2\0"})  # flags and kind of frames with nothing left to do
PARTS_MAX = 256  # of 64 KiB; more means that a node chose a tiny size

_HEADER = struct.Struct("=BBHHHH")  # flags, kind, length of headers, size of a part, start and place of the checksum
_NEEDS_CHECKSUM = 1
_TCP4, _TCP6, _UDP, _ECN = 1, 4, 5, 0x80  # kinds
_ETHERNET, _IPV4, _IPV6, _TCP_MIN, _UDP_HEADER = 14, 20, 40, 20, 8
_VERSIONS = {b"\x08\x00": 4, b"\x86\xdd": 6}  # by the type of Ethernet
_FIN_PUSH, _CONGESTION_REDUCED = 0x09, 0x80  # flags of TCP for the last part only, and for the first one only
_TCP_PROTOCOL, _UDP_PROTOCOL = 6, 17

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
    return data[:at] + _checksum(data[start:]).to_bytes(2, "big") + data[at + 2 :]


def _checksum(data: bytes) -> int:
    """The checksum of the internet (RFC 1071), which is never written as 0: the sum of 16-bit numbers modulo 65535."""
    return 0xFFFF - int.from_bytes(data + bytes(len(data) % 2), "big") % 0xFFFF


def _parts(data: bytes, length: int, kind: int, size: int, start: int) -> list[Part]:
    """The parts of a super-frame whose transport header begins at `start`; empty if it cannot be cut."""
    version = _VERSIONS.get(data[12:14])
    is_udp = kind == _UDP
    if version is None or kind not in (_TCP4, _TCP6, _UDP) or start < _ETHERNET + (_IPV4 if version == 4 else _IPV6):
        return []
    if len(data) < start + (_UDP_HEADER if is_udp else _TCP_MIN):
        return []
    end = start + (_UDP_HEADER if is_udp else (data[start + 12] >> 4) * 4)
    if not size or len(data) < end or end < start + _UDP_HEADER or not 1 < -(-(length - end) // size) <= PARTS_MAX:
        return []
    if not is_udp and end < start + _TCP_MIN:
        return []
    found = []
    for number, begin in enumerate(range(end, length, size)):
        more = min(size, length - begin)
        head = bytearray(data[:end])
        _set_lengths(head, version, start, more, number, is_udp=is_udp)
        if not is_udp:
            _set_tcp(head, start, number * size, is_first=not number, is_last=begin + more == length)
        payload = data[begin : begin + more]
        if len(payload) == more:
            _set_checksum(head, payload, version, start, is_udp=is_udp)
        found.append((bytes(head) + payload, end + more))
    return found


def _set_lengths(head: bytearray, version: int, start: int, more: int, number: int, *, is_udp: bool) -> None:
    """Lengths and the number of the packet, of a part with `more` bytes of data."""
    if version == 4:
        (identification,) = struct.unpack_from(">H", head, _ETHERNET + 4)
        struct.pack_into(">HH", head, _ETHERNET + 2, len(head) - _ETHERNET + more, (identification + number) & 0xFFFF)
        head[_ETHERNET + 10 : _ETHERNET + 12] = bytes(2)
        struct.pack_into(">H", head, _ETHERNET + 10, _checksum(bytes(head[_ETHERNET:start])))
    else:
        struct.pack_into(">H", head, _ETHERNET + 4, len(head) - _ETHERNET - _IPV6 + more)
    if is_udp:
        struct.pack_into(">H", head, start + 4, _UDP_HEADER + more)


def _set_tcp(head: bytearray, start: int, distance: int, *, is_first: bool, is_last: bool) -> None:
    """The sequence number, and the flags that only one part has."""
    (sequence,) = struct.unpack_from(">I", head, start + 4)
    struct.pack_into(">I", head, start + 4, (sequence + distance) & 0xFFFFFFFF)
    head[start + 13] &= 0xFF & ~((0 if is_last else _FIN_PUSH) | (0 if is_first else _CONGESTION_REDUCED))


def _set_checksum(head: bytearray, payload: bytes, version: int, start: int, *, is_udp: bool) -> None:
    """The checksum of the transport header, with the pseudo-header (RFC 9293, RFC 8200)."""
    at = start + (6 if is_udp else 16)
    head[at : at + 2] = bytes(2)
    addresses = head[_ETHERNET + 12 : _ETHERNET + 20] if version == 4 else head[_ETHERNET + 8 : _ETHERNET + 40]
    size = len(head) - start + len(payload)
    pseudo = bytes(addresses) + struct.pack(">II", size, _UDP_PROTOCOL if is_udp else _TCP_PROTOCOL)
    struct.pack_into(">H", head, at, _checksum(pseudo + bytes(head[start:]) + payload))
