"""pcapng files, read by scapy, and blocks of the kernel's ring that become frames of such files."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as some
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet
from scapy.utils import RawPcapNgReader

from tests import samples
from vcluster.commands.servers.capture import Choice, first_blocks
from vcluster.errors import RequestError
from vcluster.frames import frame_filter, pcapng, ring_blocks, wire_frames
from vcluster.frames.ring_blocks import RingReader
from vcluster.planning.hops import switch_port

INDEXES = {7: 0, 9: 1}  # of interfaces of the kernel, and their numbers in the file
HEAD = b"".join(
    (
        pcapng.section_header("vcluster", ["a comment", "another"]),
        pcapng.interface_description(pcapng.FileInterface("node1", "port vp-lab-1")),
        pcapng.interface_description(pcapng.FileInterface("node2", "port vp-lab-2", 128, "tcp")),
    )
)
NANOSECONDS = some.integers(0, 2**63 - 1)


@dataclass(frozen=True)
class Frame:
    """A frame as the kernel captured it; `tag` is the VLAN tag that it keeps apart, 0 for none.

    `virtio` is the header that describes what is left to do. The kernel dropped a frame that `is_dropped`: it could
    not make this header. Only the place of the frame is in the block then, with what an old frame left there.
    """

    index: int
    at_ns: int
    data: bytes
    length: int
    is_outgoing: bool = False
    tag: int = 0
    virtio: bytes = b""
    is_dropped: bool = False


FRAMES = some.builds(
    lambda index, at_ns, data, more, is_outgoing: Frame(index, at_ns, data, len(data) + more, is_outgoing),
    some.sampled_from(sorted(INDEXES)),
    some.integers(0, 2**32 * 10**9 - 1),  # the kernel's seconds have 32 bits
    some.binary(min_size=14, max_size=200),
    some.integers(0, 2000),
    some.booleans(),
)


def block_of(frames: Sequence[Frame]) -> bytes:
    """A block of a ring, as linux/if_packet.h lays it out: tpacket_block_desc, then tpacket3_hdr and sockaddr_ll."""
    body = b""
    for frame in frames:
        start = 48 + 20 + 14  # the two headers, and room
        size = -(-(start + len(frame.data)) // 16) * 16
        seconds, nanoseconds = divmod(frame.at_ns, 10**9)
        status = (not frame.is_dropped) | ((1 << 4 | 1 << 6) if frame.tag else 0)
        header = struct.pack(
            "=6I2H2I2H8x", size, seconds, nanoseconds, len(frame.data), frame.length, status, start, start,
            0, frame.tag, 0x88A8 if frame.tag else 0, 0,
        )  # fmt: skip
        address = struct.pack("=HHiHBB8x", 17, 0x0008, frame.index, 1, 4 if frame.is_outgoing else 0, 6)
        before = start - len(frame.virtio)
        body += (header + address).ljust(before, b"\xee") + frame.virtio + frame.data.ljust(size - start, b"\xee")
    offset = 48
    return struct.pack("=6I3Q", 1, 0, 1, len(frames), offset, offset + len(body), 0, 0, 0) + body


def converted(reader: RingReader, frames: Sequence[Frame]) -> bytes:
    """The frames as blocks of a file."""
    return b"".join(reader.read(block_of(frames)))


def read(file: bytes) -> list[tuple[bytes, int, bytes, int, int]]:
    """The frames that scapy reads: the bytes, the time, the interface, the length and the direction."""
    return [
        (data, meta.tshigh << 32 | meta.tslow, meta.ifname, meta.wirelen, meta.direction)
        for data, meta in RawPcapNgReader(io.BytesIO(file))
    ]


def blocks(file: bytes) -> list[tuple[int, bytes]]:
    """The type and the body of each block; both lengths of a block must agree."""
    found, at = [], 0
    while at < len(file):
        kind, size = struct.unpack_from("<II", file, at)
        assert size % 4 == 0
        assert struct.unpack_from("<I", file, at + size - 4) == (size,)
        found.append((kind, file[at + 8 : at + size - 4]))
        at += size
    assert at == len(file)
    return found


@given(some.integers(0, 1), NANOSECONDS, some.binary(max_size=300), some.integers(0, 70000), some.text(max_size=50))
def test_any_frame_is_read_back(interface: int, at_ns: int, data: bytes, more: int, comment: str) -> None:
    packet = pcapng.packet(interface, at_ns, data, len(data) + more, pcapng.OUTBOUND, comment)
    (found,) = read(HEAD + packet)
    assert found == (data, at_ns, (b"node1", b"node2")[interface], len(data) + more, pcapng.OUTBOUND)
    assert len(blocks(HEAD + packet)) == 4


@given(some.text(max_size=100), some.lists(some.text(max_size=100), max_size=3))
def test_any_text_fits_into_a_file(text: str, comments: list[str]) -> None:
    file = pcapng.section_header(text, comments)
    file += pcapng.interface_description(pcapng.FileInterface(text, text, 0, text))
    file += pcapng.name_resolution({IPv4Address("10.0.0.1"): text})
    file += pcapng.statistics(0, pcapng.Statistics(1, 2, 3, 4, 5, text))
    assert [kind for kind, _ in blocks(file)] == [0x0A0D0D0A, 1, 4, 5]
    assert read(file) == []


def test_a_long_text_is_cut_at_a_character() -> None:
    (_, body), *_ = blocks(pcapng.section_header("vcluster", ["é" * 40_000]))
    code, size = struct.unpack_from("<HH", body, 16)
    assert (code, size) == (1, 65534)
    assert body[20 : 20 + size].decode() == "é" * 32767


@given(some.lists(FRAMES, max_size=20))
def test_the_frames_of_any_block_are_read_back_in_order(frames: list[Frame]) -> None:
    reader = RingReader(INDEXES, len(INDEXES))
    found = read(HEAD + converted(reader, frames))
    assert found == [
        (
            frame.data, frame.at_ns, b"node1" if frame.index == 7 else b"node2", frame.length,
            pcapng.OUTBOUND if frame.is_outgoing else pcapng.INBOUND,
        )
        for frame in frames
    ]  # fmt: skip
    assert reader.frames == len(frames)
    assert reader.delivered == [sum(frame.index == index for frame in frames) for index in (7, 9)]


def test_a_tag_of_a_vlan_is_put_back() -> None:
    frame = Frame(7, 1, bytes(range(60)), 60, tag=0x2005)
    ((data, _, _, length, _),) = read(HEAD + converted(RingReader(INDEXES, len(INDEXES)), [frame]))
    assert data == frame.data[:12] + bytes.fromhex("88a82005") + frame.data[12:]
    assert length == 64


def test_a_file_that_ends_after_any_block_is_valid() -> None:
    """A file that a killed capture leaves ends after a block."""
    packets = [pcapng.packet(0, at_ns, b"x" * 60, 60, pcapng.INBOUND) for at_ns in range(5)]
    for count in range(6):
        assert len(read(HEAD + b"".join(packets[:count]))) == count


def test_a_new_interface_of_a_port_is_counted_as_the_old_one() -> None:
    reader = RingReader(INDEXES, len(INDEXES))
    reader.add({12: 1})
    assert [each[2] for each in read(HEAD + converted(reader, [Frame(12, 1, b"x" * 14, 14)]))] == [b"node2"]
    assert reader.delivered == [0, 1]


def test_the_begin_of_a_file_has_the_plan_and_the_ports() -> None:
    plan = samples.shared_plan()
    file = first_blocks(plan, plan.nodes, Choice(snap_bytes=128, only_mpi=True))
    assert [kind for kind, _ in blocks(file)] == [0x0A0D0D0A, 1, 1, 1, 4]
    for node in plan.nodes:
        assert f"port {switch_port(plan, node)} on {plan.switch.server}, VNI {node.vni}".encode() in file
        assert node.mac.encode() in file
    assert b"password" not in file


def test_the_begin_of_a_file_has_what_nodes_may_use_of_processors() -> None:
    plan = samples.plan(2, cpu_limit_percent=25, processors=(3, 1))
    file = first_blocks(plan, plan.nodes, Choice())
    assert b'"cpu_limit_percent": 25' in file
    assert b'"processors": [3]' in file
    assert b'"processors": [1]' in file


def test_a_plan_of_any_size_fits_into_a_file() -> None:
    plan = samples.plan(250)
    assert len(blocks(first_blocks(plan, plan.nodes, Choice()))) == 252


def test_a_filter_for_many_ports_fits_into_the_kernel() -> None:
    program = frame_filter.on_interfaces(range(1023), frame_filter.mpi(128))
    assert len(program) <= frame_filter.INSTRUCTIONS_MAX
    with pytest.raises(RequestError, match=r"the filter has \d+ instructions for 1023 ports; the kernel runs 4096"):
        frame_filter.on_interfaces(range(1023), frame_filter.everything(0) * 3000)


@pytest.mark.parametrize("count", [1, 2, 300])
def test_each_port_reaches_the_filter_and_others_do_not(count: int) -> None:
    body = frame_filter.everything(64)
    program = frame_filter.on_interfaces(range(10, 10 + count), body)
    assert [_result(program, index) for index in (10, 10 + count // 2, 9 + count)] == [64] * 3
    assert [_result(program, index) for index in (0, 9, 10 + count)] == [0] * 3


def _result(program: frame_filter.Program, interface: int) -> int:
    """Run the part of a program that knows the index of the interface only."""
    at = accumulator = 0
    while True:
        code, if_true, if_false, constant = program[at]
        at += 1
        if code == 0x06:
            return constant
        if code == 0x20:
            assert constant == 0xFFFFF008
            accumulator = interface
        elif code == 0x05:
            at += constant
        else:
            assert code == 0x15
            at += if_true if accumulator == constant else if_false


def test_the_header_of_a_frame_has_the_size_of_the_kernel() -> None:
    assert ring_blocks.FRAME_HEADER.size == 48 + 20


def test_a_super_frame_is_cut_and_counted_as_one_that_the_switch_has_seen() -> None:
    """Each part is marked by a comment, and has the VLAN tag of the whole."""
    size = 100
    frame = super_frame(250)
    virtio = struct.pack("=BBHHHH", 1, 1, 0, size, 34, 16)
    plain = bytes(Ether() / IP() / TCP() / b"x")
    frames = [
        Frame(7, 5, frame, len(frame), virtio=virtio),
        Frame(9, 6, frame, len(frame), is_outgoing=True, tag=5, virtio=virtio),
        Frame(9, 7, plain, len(plain), virtio=bytes(10)),
    ]
    reader = RingReader(INDEXES, len(INDEXES), is_wire=True)
    file = converted(reader, frames)
    found = read(HEAD + file)
    assert [(name, at_ns, length) for _, at_ns, name, length, _ in found] == [
        (b"node1", 5, 154), (b"node1", 5, 154), (b"node1", 5, 104),
        (b"node2", 6, 158), (b"node2", 6, 158), (b"node2", 6, 108), (b"node2", 7, 55),
    ]  # fmt: skip
    assert {data[12:16] for data, _, name, length, _ in found if name == b"node2" and length > 100} == {b"\x88\xa8\0\5"}
    for place in (1, 2, 3):
        assert file.count(f"reconstructed: part {place} of 3 of 304 bytes".encode()) == 2
    assert (reader.delivered, reader.seen, reader.frames) == ([3, 4], [1, 2], 7)


@pytest.mark.parametrize("index", [0, 7])
def test_the_place_of_a_frame_that_the_kernel_dropped_is_not_a_frame(index: int) -> None:
    """Memory that was never used has index 0; otherwise an old frame is there."""
    plain = bytes(Ether() / IP() / TCP() / b"x")
    frames = [
        Frame(index if at_ns == 1 else 7, at_ns, plain, len(plain), virtio=bytes(10), is_dropped=at_ns == 1)
        for at_ns in range(3)
    ]
    reader = RingReader(INDEXES, len(INDEXES), is_wire=True)
    assert [at_ns for _, at_ns, *_ in read(HEAD + converted(reader, frames))] == [0, 2]
    assert (reader.delivered, reader.seen) == ([2, 0], [2, 0])


def test_cut_frames_are_passed_on_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node may choose tiny parts, which need far more room than their block."""
    monkeypatch.setattr(ring_blocks, "PIECE_BYTES", 1000)
    frame = super_frame(2000)
    virtio = struct.pack("=BBHHHH", 1, 1, 0, 10, 34, 16)
    reader = RingReader(INDEXES, len(INDEXES), is_wire=True)
    pieces = list(reader.read(block_of([Frame(7, at_ns, frame, len(frame), virtio=virtio) for at_ns in range(3)])))
    assert len(pieces) == 4
    assert len(read(HEAD + b"".join(pieces))) == 600


# Frames of a wire


def super_frame(size: int, flags: str = "PAFC") -> bytes:
    """A frame of TCP with `size` bytes of data, as a node leaves it to its card."""
    head = Ether() / IP(id=0xFFFE, flags="DF") / TCP(seq=2**32 - 150, flags=flags)
    return bytes(head) + bytes(number % 251 for number in range(size))


LAYERS = {
    "TCP": (Ether() / IP(id=7) / TCP(flags="PAFC", options=[("Timestamp", (1, 2))]), TCP, 1 | 0x80),
    "TCP over IPv6": (Ether() / IPv6() / TCP(flags="PA"), TCP, 4),
    "UDP": (Ether() / IP(id=0xFFFF, options=[IPOption_NOP()] * 4) / UDP(), UDP, 5),
    "UDP over IPv6": (Ether() / IPv6() / UDP(), UDP, 5),
}


@pytest.mark.parametrize("what", LAYERS)
@given(some.binary(min_size=2, max_size=400), some.integers(2, 200))
def test_parts_are_the_frames_that_scapy_makes(what: str, payload: bytes, size: int) -> None:
    """scapy computes all lengths and checksums of each part."""
    require_parts_of_scapy(what, payload, size)


def require_parts_of_scapy(what: str, payload: bytes, size: int) -> None:
    layers, kind, code = LAYERS[what]
    head = bytes(layers)
    start = len(head) - len(layers[kind])
    whole = head + payload
    offset = 6 if kind is UDP else 16
    found = wire_frames.wire_frames(whole, len(whole), struct.pack("=BBHHHH", 1, code, 0, size, start, offset))
    cuts = [payload[at : at + size] for at in range(0, len(payload), size)]
    if len(cuts) == 1 or len(cuts) > wire_frames.PARTS_MAX:
        assert found == [(whole, len(whole))]
        return
    for number, (data, length) in enumerate(found):
        wanted = layers.copy() / cuts[number]
        if IP in wanted:
            wanted[IP].id = (layers[IP].id + number) & 0xFFFF
        if kind is TCP:
            wanted[TCP].seq = number * size
            removed = ("" if number == len(cuts) - 1 else "FP") + ("C" if number else "")
            wanted[TCP].flags = "".join(flag for flag in str(layers[TCP].flags) if flag not in removed)
        assert data == bytes(wanted)
        assert length == len(data)
    assert len(found) == len(cuts)


def balanced(layers: Packet, kind: type[Packet]) -> bytes:
    """Two bytes of data with which the sum of a segment is 0."""
    return bytes((layers / b"\0\0")[kind])[6 if kind is UDP else 16 :][:2]


@pytest.mark.parametrize("what", LAYERS)
def test_a_part_whose_sum_is_0_has_the_checksum_of_scapy(what: str) -> None:
    """It is 0 for TCP, and 0xFFFF for UDP."""
    layers, kind, _ = LAYERS[what]
    last = layers.copy()
    if IP in last:
        last[IP].id = (layers[IP].id + 1) & 0xFFFF
    if kind is TCP:
        last[TCP].seq = 2
        last[TCP].flags = "".join(flag for flag in str(layers[TCP].flags) if flag != "C")
    require_parts_of_scapy(what, b"xy" + balanced(last, kind), 2)


def test_a_header_whose_sum_is_0_has_the_checksum_0() -> None:
    without = IP(bytes(IP(id=0) / UDP() / b"ab"))
    whole = bytes(Ether() / IP(id=without.chksum) / UDP() / b"abcd")
    (data, _), _ = wire_frames.wire_frames(whole, len(whole), struct.pack("=BBHHHH", 1, 5, 0, 2, 34, 6))
    assert data == bytes(Ether() / IP(id=without.chksum) / UDP() / b"ab")
    assert IP(data[14:]).chksum == 0


@given(some.binary(min_size=1, max_size=300), some.booleans())
def test_a_checksum_is_completed(payload: bytes, is_udp: bool) -> None:
    """The kernel leaves the sum of the pseudo-header in its place."""
    layers = Ether() / IP() / (UDP() if is_udp else TCP())
    for each in (payload, balanced(layers, UDP if is_udp else TCP)):
        require_completed(layers / each, is_udp=is_udp)


def require_completed(layers: Packet, *, is_udp: bool) -> None:
    good = bytes(layers)
    at = 34 + (6 if is_udp else 16)
    size = len(good) - 34
    words = struct.unpack(">6H", good[26:34] + struct.pack(">HH", 17 if is_udp else 6, size))
    partial = sum(words)
    while partial > 0xFFFF:
        partial = (partial & 0xFFFF) + (partial >> 16)
    frame = good[:at] + partial.to_bytes(2, "big") + good[at + 2 :]
    header = struct.pack("=BBHHHH", 1, 0, 0, 0, 34, at - 34)
    assert wire_frames.wire_frames(frame, len(frame), header) == [(good, len(good))]
    assert wire_frames.wire_frames(frame[:-1], len(frame), header) == [(frame[:-1], len(frame))]


def test_a_super_frame_that_is_cut_short_has_all_lengths() -> None:
    whole = super_frame(250)
    found = wire_frames.wire_frames(whole[:80], len(whole), struct.pack("=BBHHHH", 1, 1, 0, 100, 34, 16))
    assert [(len(data), length) for data, length in found] == [(80, 154), (54, 154), (54, 104)]
    assert [IP(data[14:]).len for data, _ in found] == [140, 140, 90]
    assert [TCP(data[34:]).seq for data, _ in found] == [2**32 - 150, 2**32 - 50, 50]


@given(some.binary(max_size=120), some.integers(0, 70_000), some.binary(min_size=10, max_size=10))
def test_no_header_of_a_node_harms_the_capture(data: bytes, more: int, header: bytes) -> None:
    for begin in (b"", bytes(12) + b"\x08\x00\x45", bytes(12) + b"\x86\xdd"):
        for kind in (header[1:2], b"\1", b"\4", b"\5"):
            frame = begin + data
            found = wire_frames.wire_frames(frame, len(frame) + more, header[:1] + kind + header[2:])
            assert 1 <= len(found) <= wire_frames.PARTS_MAX
            assert sum(len(part) for part, _ in found) <= len(frame) * wire_frames.PARTS_MAX
