"""What the headers of a frame show: its kind of traffic, its identity, and its part of a TCP stream. Pure.

Frames come from nodes, so no length in them is trusted.
"""

from __future__ import annotations

import struct

from vcluster.frames.frame_filter import ETHERNET_BYTES, FIRST_FREE_PORT, NFS_PORT

KINDS = ("mpi", "tcp", "ssh", "nfs", "udp", "icmp", "arp", "other")
MPI, TCP, SSH, NFS, UDP, ICMP, ARP, OTHER = range(len(KINDS))
CONNECTION = slice(26, 38)  # of a frame of TCP without options of IPv4: addresses and ports
SYN, FIN, PUSH = 0x02, 0x01, 0x08

_IPV4, _TCP_HEADER_END = 20, 54
_IP, _IP6, _ARP = b"\x08\x00", b"\x86\xdd", b"\x08\x06"
# The second byte of a header without the two bits of ECN: of the type of service, and of the traffic class of IPv6.
_WITHOUT_ECN, _WITHOUT_ECN6 = bytes(byte & 0xFC for byte in range(256)), bytes(byte & 0xCF for byte in range(256))
_PLAIN_IP = 0x45  # version 4, without options
_ICMP_PROTOCOL, _TCP_PROTOCOL, _UDP_PROTOCOL = 1, 6, 17
_TCP_BYTE, _UDP_BYTE = b"\x06", b"\x11"
_SSH_PORT = 22
_IP_FIELDS = struct.Struct(">BxHxxHxB")  # version and length of the header, total length, fragment, protocol
_PORTS = struct.Struct(">HH")
_TCP_FIELDS = struct.Struct(">I4xBB")  # sequence number, length of the header, flags


def kind_of(data: bytes) -> int:
    """The kind of traffic: an index of KINDS."""
    protocol = data[12:14]
    if protocol == _ARP:
        return ARP
    if protocol != _IP or len(data) < ETHERNET_BYTES + _IPV4:
        return OTHER
    version, _, fragment, protocol_number = _IP_FIELDS.unpack_from(data, ETHERNET_BYTES)
    if protocol_number == _ICMP_PROTOCOL:
        return ICMP
    at = ETHERNET_BYTES + (version & 15) * 4
    if version >> 4 != 4 or fragment & 0x1FFF or len(data) < at + 4:
        return OTHER
    if protocol_number not in (_TCP_PROTOCOL, _UDP_PROTOCOL):
        return OTHER
    source, target = _PORTS.unpack_from(data, at)
    if NFS_PORT in (source, target):
        return NFS
    if protocol_number == _UDP_PROTOCOL:
        return UDP
    if _SSH_PORT in (source, target):
        return SSH
    return MPI if source >= FIRST_FREE_PORT and target >= FIRST_FREE_PORT else TCP


def identity(data: bytes, length: int) -> tuple[bytes, int]:
    """What a frame has in common at both of its ports.

    Checksums are left out, because nodes leave them to a network card; ECN too, because the switch marks frames.
    TCP headers tell frames apart, so their data is left out too: a frame may be cut at different lengths.
    """
    kind = data[12:14]
    if kind == _IP:
        protocol, head = data[23:24], data[:15] + data[15:16].translate(_WITHOUT_ECN) + data[16:24]
        if data[14:15] != b"\x45":
            return head + data[26:], length
        if protocol == _TCP_BYTE:
            return head + data[26:50], length
        if protocol == _UDP_BYTE:
            return head + data[26:40] + data[42:], length
        return head + data[26:], length
    if kind == _IP6:
        return data[:15] + data[15:16].translate(_WITHOUT_ECN6) + data[16:], length
    return data, length


def has_stream(data: bytes) -> bool:
    """Whether a frame is of TCP, without options of IPv4, and begins its packet."""
    return data[12:15] == b"\x08\x00\x45" and data[23:24] == _TCP_BYTE and not (data[20] & 0x1F or data[21])


def segment(data: bytes, length: int) -> tuple[int, int, int] | None:
    """The sequence number, the length in the stream, and the flags of a segment; None if the frame is cut before them.

    The frame is one with `has_stream`. SYN and FIN have a length of 1. The end of the Ethernet frame limits the length
    that the headers state.
    """
    if len(data) < _TCP_HEADER_END - 4:
        return None
    total = data[16] << 8 | data[17]
    sequence, offset, flags = _TCP_FIELDS.unpack_from(data, 38)
    on_wire = length - ETHERNET_BYTES
    payload = (total if 0 < total < on_wire else on_wire) - _IPV4 - (offset >> 4) * 4
    return sequence, (payload if payload > 0 else 0) + bool(flags & SYN) + bool(flags & FIN), flags
