"""An IPv6 router advertisement (RFC 4861), as root of a node can send it."""

from __future__ import annotations

import struct
from ipaddress import IPv6Address

PREFIX = "2001:db8:bad::"  # hosts that obey have an address with it
_ROUTER, _ALL_NODES = IPv6Address("fe80::1"), IPv6Address("ff02::1")
_ETHERNET = bytes.fromhex("333300000001" + "020000000001" + "86dd")
_ICMPV6 = 58


def frame() -> bytes:
    """The Ethernet frame: a default router of high preference, and a prefix from which hosts make an address."""
    prefix = struct.pack(">BBBBIII16s", 3, 4, 64, 0xC0, 3600, 3600, 0, IPv6Address(PREFIX).packed)
    body = struct.pack(">BBHBBHII", 134, 0, 0, 64, 0x08, 1800, 0, 0) + prefix
    pseudo_header = _ROUTER.packed + _ALL_NODES.packed + struct.pack(">II", len(body), _ICMPV6)
    body = body[:2] + struct.pack(">H", _checksum(pseudo_header + body)) + body[4:]
    return (
        _ETHERNET
        + struct.pack(">IHBB16s16s", 6 << 28, len(body), _ICMPV6, 255, _ROUTER.packed, _ALL_NODES.packed)
        + body
    )


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
