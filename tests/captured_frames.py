"""A pcapng file of a switch whose times are chosen: each frame enters at its sender's port and leaves at another."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vcluster.frames import pcapng
from vcluster.frames.pcapng import INBOUND, OUTBOUND

MS = 1_000_000
BEGAN_NS = 1_700_000_000 * 10**9
ACK, PUSH, SYN, FIN = 0x10, 0x08, 0x02, 0x01
BROADCAST = b"\xff" * 6
MPI_PORTS = (40000, 35000)


def mac(node: int) -> bytes:
    """The MAC address of a node."""
    return b"\x02\0\0\0\0" + bytes([node])


def address(node: int) -> bytes:
    """The IPv4 address of a node."""
    return bytes([10, 0, 0, node])


def ipv4(sender: int, receiver: int, protocol: int, packet: bytes, number: int = 0, target: bytes = b"") -> bytes:
    """A frame with a packet of IPv4; `number` is its identification."""
    header = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + len(packet), number & 0xFFFF, 0x4000, 64, protocol, 0, address(sender),
        address(receiver),
    )  # fmt: skip
    return (target or mac(receiver)) + mac(sender) + b"\x08\x00" + header + packet


def tcp(
    sender: int, receiver: int, sequence: int, size: int = 0, flags: int = ACK | PUSH,
    ports: tuple[int, int] = MPI_PORTS, number: int = 0,
) -> bytes:  # fmt: skip
    """A segment of TCP with `size` bytes of data."""
    header = struct.pack(">HHIIBBHHH", *ports, sequence & 0xFFFFFFFF, 0, 0x50, flags, 1000, 0, 0)
    return ipv4(sender, receiver, 6, header + bytes(size), number)


def udp(sender: int, receiver: int, size: int = 100, ports: tuple[int, int] = (9, 9), number: int = 0) -> bytes:
    """A datagram."""
    return ipv4(sender, receiver, 17, struct.pack(">HHHH", *ports, size + 8, 0) + bytes(size), number)


@dataclass
class Recording:
    """The frames of a cluster whose nodes are node1, node2 and so on, one port each."""

    nodes: int
    connections: Sequence[tuple[int, int]] = ()  # pairs of nodes; the rank of a node is its number less one
    snap_bytes: int = 128
    captured: Sequence[int] = ()
    _frames: list[tuple[int, int, int, bytes, int]] = field(default_factory=list)
    _sequences: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def ports(self) -> Sequence[int]:
        """The nodes at whose ports it captures."""
        return self.captured or range(1, self.nodes + 1)

    def enter(self, at_ns: int, node: int, data: bytes) -> None:
        """A frame from a node."""
        self._add(at_ns, node, data, INBOUND)

    def leave(self, at_ns: int, node: int, data: bytes) -> None:
        """A frame to a node."""
        self._add(at_ns, node, data, OUTBOUND)

    def _add(self, at_ns: int, node: int, data: bytes, direction: int) -> None:
        if node in self.ports:
            self._frames.append((at_ns, len(self._frames), node, data, direction))

    def cross(self, at_ns: int, time_ns: int, data: bytes) -> None:
        """A frame that enters at the port of its sender and leaves at that of its receiver."""
        self.enter(at_ns, data[11], data)
        self.leave(at_ns + time_ns, data[5], data)

    def message(self, at_ns: int, sender: int, receiver: int, size: int = 8, time_ns: int = MS // 10) -> None:
        """A message of MPI in segments of 1000 bytes, 1 µs apart; each rank has one connection to each other."""
        ports = MPI_PORTS if sender < receiver else (MPI_PORTS[1], MPI_PORTS[0])
        begin = self._sequences.get((sender, receiver), 0)
        self._sequences[sender, receiver] = begin + size
        for number, done in enumerate(range(0, size, 1000)):
            part = min(1000, size - done)
            flags = ACK | (PUSH if done + part == size else 0)
            segment = tcp(sender, receiver, begin + done, part, flags, ports, number=begin + done)
            self.cross(at_ns + number * 1000, time_ns, segment)

    def file(self) -> bytes:
        """The file."""
        blocks = [self.head()]
        for at_ns, _, node, data, direction in sorted(self._frames):
            kept = data[: self.snap_bytes] if self.snap_bytes else data
            blocks.append(pcapng.packet([*self.ports].index(node), BEGAN_NS + at_ns, kept, len(data), direction))
        return b"".join(blocks)

    def head(self) -> bytes:
        """The blocks before the first frame."""
        interfaces = [pcapng.FileInterface(f"node{node}", "port", self.snap_bytes) for node in self.ports]
        return pcapng.section_header("test", [*self._comments()]) + b"".join(
            map(pcapng.interface_description, interfaces)
        )

    def _comments(self) -> Iterable[str]:
        yield json.dumps({"cluster": "lab"})
        for node in range(1, self.nodes + 1):
            yield json.dumps({"node": f"node{node}", "mac": mac(node).hex(":")})
        for pair in self.connections:
            ends = [
                {"node": f"node{node}", "address": f"10.0.0.{node}", "port": port, "rank": node - 1}
                for node, port in zip(sorted(pair), MPI_PORTS, strict=True)
            ]
            yield json.dumps({"connection": ends})
