"""Blocks of the kernel's packet ring (TPACKET_V3, linux/if_packet.h) as frames of a pcapng file. Pure.

A block holds many frames. Each has a header, the address of its socket, a header of virtio if the socket was asked for
it, and its bytes.
The loop over frames is the only code here that limits the rate of a capture, so it calls no function of
vcluster for an ordinary frame.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

from vcluster.frames import pcapng, wire_frames

PACKET_OUTGOING = 4
BLOCK_HEADER = struct.Struct("=IIIIII")  # version, offset, status, number of frames, offset of the first, length
STATUS_OFFSET = 8  # of a block
READY = 1  # TP_STATUS_USER: the block or the frame belongs to the reader
VLAN_VALID, VLAN_PROTOCOL_VALID = 1 << 4, 1 << 6  # in the status of a frame
PIECE_BYTES = 1 << 23  # cut frames may be many more bytes than their block
_VLAN = 0x8100  # the protocol of a tag without TP_STATUS_VLAN_TPID_VALID
_ADDRESSES = 12  # bytes before the tag of a frame
_TAG = struct.Struct(">HH")

# tpacket3_hdr: offset of the next, seconds, nanoseconds, captured, length, status, offset of the bytes, VLAN tag, VLAN
# protocol; then sockaddr_ll: interface, packet type.
FRAME_HEADER = struct.Struct("=IIIIIIH6xIH14xI2xB9x")


class RingReader:
    """Turns blocks into pcapng blocks, and counts the frames of each interface of the file.

    `numbers` gives the number of an interface in the file by its index in the kernel; the file has `interfaces`.
    With `is_wire`, each frame has a header of virtio, and super-frames are cut.
    """

    def __init__(self, numbers: Mapping[int, int], interfaces: int, *, is_wire: bool = False) -> None:
        self._numbers = dict(numbers)
        self._layouts: dict[int, struct.Struct] = {}
        self._is_wire = is_wire
        self.delivered = [0] * interfaces
        self._added = [0] * interfaces  # frames that the switch did not see, because it saw super-frames

    @property
    def frames(self) -> int:
        """The number of frames so far."""
        return sum(self.delivered)

    @property
    def seen(self) -> list[int]:
        """The frames of each interface as the switch saw them, and as the interface counts them."""
        return [delivered - added for delivered, added in zip(self.delivered, self._added, strict=True)]

    def add(self, numbers: Mapping[int, int]) -> None:
        """Count the frames of these interfaces of the kernel too, as those of interfaces of the file that exist."""
        self._numbers.update(numbers)

    def read(self, block: bytes) -> Iterator[bytes]:
        """The frames of a block, in the order in which the kernel got them, in pieces of a limited length."""
        _, _, _, count, at, _ = BLOCK_HEADER.unpack_from(block)
        unpack, layouts, layout_of = FRAME_HEADER.unpack_from, self._layouts, pcapng.packet_layout
        numbers, delivered, outgoing = self._numbers, self.delivered, PACKET_OUTGOING
        is_wire, complete, virtio_bytes = self._is_wire, wire_frames.READY, wire_frames.HEADER_BYTES
        parts: list[bytes] = []
        added = 0
        for _ in range(count):
            step, seconds, nanoseconds, captured, length, status, start, tag, protocol, index, kind = unpack(block, at)
            start += at
            at += step
            if not status & READY:  # the kernel dropped a frame that virtio cannot describe, and left its place
                continue
            data = block[start : start + captured]
            number, at_ns = numbers[index], seconds * 1_000_000_000 + nanoseconds
            direction = 2 if kind == outgoing else 1
            virtio = start - virtio_bytes
            is_plain = not is_wire or block[virtio : virtio + 2] in complete
            # A checksum that lacks bytes stays incomplete.
            if status & VLAN_VALID or not (is_plain or (captured < length and not block[virtio + 1])):
                vlan = _vlan(status, tag, protocol)
                made = _on_wire(data, length, block[virtio:start] if is_wire else b"", vlan)
                if len(made) > 1:
                    parts += self._cut(number, at_ns, direction, made, length)
                    added += sum(map(len, parts[-len(made) :]))
                    if added > PIECE_BYTES:
                        yield b"".join(parts)
                        parts, added = [], 0
                    continue
                ((data, length),) = made
                captured = len(data)
            layout = layouts.get(captured) or layouts.setdefault(captured, layout_of(captured))
            delivered[number] += 1
            parts.append(
                layout.pack(
                    6, layout.size, number, at_ns >> 32, at_ns & 0xFFFFFFFF, captured, length, data,
                    2, 4, direction, 0, layout.size,
                )
            )  # fmt: skip
        yield b"".join(parts)

    def _cut(
        self, number: int, at_ns: int, direction: int, frames: Sequence[wire_frames.Part], length: int
    ) -> list[bytes]:
        """The frames of a super-frame, each with a comment. They have its time, because the kernel has no other."""
        self.delivered[number] += len(frames)
        self._added[number] += len(frames) - 1
        return [
            pcapng.packet(
                number, at_ns, data, size, direction, f"reconstructed: part {place} of {len(frames)} of {length} bytes"
            )
            for place, (data, size) in enumerate(frames, 1)
        ]


def _on_wire(data: bytes, length: int, virtio: bytes, vlan: bytes) -> list[wire_frames.Part]:
    """The frames that a wire would carry, of a captured one with its header of virtio and its VLAN tag, if any."""
    made = wire_frames.wire_frames(data, length, virtio) if virtio else [(data, length)]
    if not vlan:
        return made
    return [(part[:_ADDRESSES] + vlan + part[_ADDRESSES:], size + len(vlan)) for part, size in made]


def _vlan(status: int, tag: int, protocol: int) -> bytes:
    """The VLAN tag of a frame, which the kernel keeps apart from its bytes; empty without one."""
    return _TAG.pack(protocol if status & VLAN_PROTOCOL_VALID else _VLAN, tag) if status & VLAN_VALID else b""
