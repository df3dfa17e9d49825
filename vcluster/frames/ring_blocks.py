"""Blocks of the kernel's packet ring (TPACKET_V3, linux/if_packet.h) as frames of a pcapng file. Pure.

A block holds many frames. Each has a header, the address of its socket, perhaps a header of virtio, and its bytes.
The loop over frames is the only code here that limits the rate of a capture, so it calls no function of
vcluster for an ordinary frame.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from vcluster.frames import pcapng

PACKET_OUTGOING = 4
BLOCK_HEADER = struct.Struct("=IIIIII")  # version, offset, status, number of frames, offset of the first, length
STATUS_OFFSET = 8  # of a block
READY = 1  # TP_STATUS_USER: the block belongs to the reader
VLAN_VALID, VLAN_PROTOCOL_VALID = 1 << 4, 1 << 6  # in the status of a frame
_VLAN = 0x8100  # the protocol of a tag without TP_STATUS_VLAN_TPID_VALID
_ADDRESSES = 12  # bytes before the tag of a frame

# tpacket3_hdr: offset of the next, seconds, nanoseconds, captured, length, status, offset of the bytes, VLAN tag, VLAN
# protocol; then sockaddr_ll: interface, packet type.
FRAME_HEADER = struct.Struct("=IIIIIIH6xIH14xI2xB9x")


class RingReader:
    """Turns blocks into pcapng blocks, and counts the frames of each interface of the file.

    `numbers` gives the number of an interface in the file by its index in the kernel; the file has `interfaces`.
    """

    def __init__(self, numbers: Mapping[int, int], interfaces: int) -> None:
        self._numbers = dict(numbers)
        self._layouts: dict[int, struct.Struct] = {}
        self.delivered = [0] * interfaces

    @property
    def frames(self) -> int:
        """The number of frames so far."""
        return sum(self.delivered)

    def add(self, numbers: Mapping[int, int]) -> None:
        """Count the frames of these interfaces of the kernel too, as those of interfaces of the file that exist."""
        self._numbers.update(numbers)

    def read(self, block: bytes) -> bytes:
        """The frames of a block, in the order in which the kernel got them."""
        _, _, _, count, at, _ = BLOCK_HEADER.unpack_from(block)
        unpack, layouts, layout_of = FRAME_HEADER.unpack_from, self._layouts, pcapng.packet_layout
        numbers, delivered, outgoing = self._numbers, self.delivered, PACKET_OUTGOING
        parts = []
        for _ in range(count):
            step, seconds, nanoseconds, captured, length, status, start, tag, protocol, index, kind = unpack(block, at)
            start += at
            data = block[start : start + captured]
            if status & VLAN_VALID:
                data = tagged(data, tag, protocol if status & VLAN_PROTOCOL_VALID else _VLAN)
                captured, length = len(data), length + 4
            layout = layouts.get(captured) or layouts.setdefault(captured, layout_of(captured))
            number, at_ns = numbers[index], seconds * 1_000_000_000 + nanoseconds
            delivered[number] += 1
            parts.append(
                layout.pack(
                    6, layout.size, number, at_ns >> 32, at_ns & 0xFFFFFFFF, captured, length, data,
                    2, 4, 2 if kind == outgoing else 1, 0, layout.size,
                )
            )  # fmt: skip
            at += step
        return b"".join(parts)


def tagged(data: bytes, tag: int, protocol: int) -> bytes:
    """A frame with its VLAN tag, which the kernel keeps apart from its bytes."""
    return data[:_ADDRESSES] + struct.pack(">HH", protocol, tag) + data[_ADDRESSES:]
