"""Capture of frames: one packet socket, whose ring the kernel fills block by block (packet(7), TPACKET_V3)."""

from __future__ import annotations

import ctypes
import mmap
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

from vcluster.errors import MissingError, VclusterError
from vcluster.frames import frame_filter, ring_blocks
from vcluster.frames.frame_filter import Program

BLOCK_BYTES = 1 << 20
BLOCKS = 64
RETIRE_MS = 100  # a block that is not full is handed over after this time

_ETH_P_ALL = 3
_SOL_PACKET = 263
_PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION, _PACKET_VNET_HDR = 5, 6, 10, 15
_TPACKET_V3 = 2
_FRAME_BYTES = 2048  # the kernel checks this number, and does not use it
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h


class PacketRing:
    """A ring of 64 MiB. It captures nothing until `attach`; after `detach` it has the frames that came before.

    With `has_virtio_headers`, a header of virtio is before the bytes of each frame.
    """

    def __init__(self, *, has_virtio_headers: bool = False) -> None:
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        except PermissionError as error:
            raise MissingError("capturing frames needs root", hint="run it with sudo") from error
        self._counted = self._dropped = self._next = 0
        try:
            self.detach()
            self._socket.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, has_virtio_headers)
            size = BLOCK_BYTES * BLOCKS
            ring = struct.pack("7I", BLOCK_BYTES, BLOCKS, _FRAME_BYTES, size // _FRAME_BYTES, RETIRE_MS, 0, 0)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_RX_RING, ring)  # it also drops what came before the filter
            self._memory = mmap.mmap(self._socket.fileno(), size)
            self._statistics()
            self._counted = self._dropped = 0
        except OSError as error:
            self._socket.close()
            raise VclusterError(f"cannot make a ring for frames: {error.strerror or error}") from error

    def attach(self, program: Program) -> None:
        """Capture the frames that this program keeps, from now on."""
        packed = frame_filter.packed(program)
        buffer = ctypes.create_string_buffer(packed)
        argument = struct.pack("HL", len(program), ctypes.addressof(buffer))
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, argument)
        except OSError as error:
            raise VclusterError(f"the kernel refuses the filter of frames: {error.strerror or error}") from error

    def detach(self) -> None:
        """Capture nothing from now on."""
        self.attach(frame_filter.NOTHING)

    @property
    def dropped(self) -> int:
        """The number of frames for which the ring had no room, so far."""
        self._statistics()
        return self._dropped

    @property
    def captured(self) -> int:
        """The number of frames that the ring got, so far. A block may have more places: those of dropped frames."""
        self._statistics()
        return self._counted - self._dropped

    def wait(self, timeout_s: float, end: int | None = None) -> bool:
        """Wait for a block, at most `timeout_s` seconds. Returns whether the descriptor `end` can be read."""
        awaited = [self._socket.fileno()] + ([] if end is None else [end])
        ready, _, _ = select.select(awaited, [], [], timeout_s)
        return end in ready

    def blocks(self) -> Iterator[bytes]:
        """The blocks that are ready; without an end, if the kernel fills them faster than they are read.

        Each one is copied, so that the kernel can fill it again at once.
        """
        while True:
            at = self._next * BLOCK_BYTES
            _, _, status, _, _, length = ring_blocks.BLOCK_HEADER.unpack_from(self._memory, at)
            if not status & ring_blocks.READY:
                return
            block = self._memory[at : at + length]
            struct.pack_into("=I", self._memory, at + ring_blocks.STATUS_OFFSET, 0)
            self._next = (self._next + 1) % BLOCKS
            yield block

    def close(self) -> None:
        """Free the ring."""
        self._memory.close()
        with suppress(OSError):
            self._socket.close()

    def _statistics(self) -> None:
        """Add the kernel's counts since the last call: it starts again at 0."""
        counted, dropped, _ = struct.unpack("3I", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 12))
        self._counted += counted
        self._dropped += dropped
