"""The report of a captured file, for files whose times and messages are chosen."""

from __future__ import annotations

import csv
import io
import json
import struct
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as some

from tests.captured_frames import ACK, BEGAN_NS, BROADCAST, FIN, MS, PUSH, SYN, Recording, ipv4, mac, tcp, udp
from tests.results import validated
from vcluster.cli.main import main
from vcluster.cli.output.traffic import traffic_report
from vcluster.commands.servers import capture_report
from vcluster.errors import RequestError, VclusterError
from vcluster.frames import pcapng
from vcluster.frames.analysis import capture_analysis
from vcluster.frames.analysis.pair_figures import TimeCounts
from vcluster.frames.pcapng_reader import PcapngReader
from vcluster.model import codec

ALL_PAIRS = list(combinations(range(1, 9), 2))
TOLERANCE = 0.0005


def report(recording: Recording, folder: Path) -> Any:
    """The JSON result."""
    path = folder / "run.pcapng"
    path.write_bytes(recording.file())
    document = json.loads(codec.to_json(traffic_report.document(path, capture_report.analyse(path))))
    return validated(["capture", "report"], document)


def pair_of(result: Any, sender: int, receiver: int) -> Any:
    (found,) = [each for each in result["pairs"] if (each["from"], each["to"]) == (f"node{sender}", f"node{receiver}")]
    return found


# Time in the switch


def test_a_delay_of_5_ms_is_a_median_of_5_ms(tmp_path: Path) -> None:
    made = Recording(2)
    for number in range(200):
        made.cross(number * MS, 5 * MS + (number % 3 - 1) * 1000, udp(1, 2, number=number))
        made.cross(number * MS, MS, udp(2, 1, number=number))
    there, back = (pair_of(report(made, tmp_path), *pair) for pair in ((1, 2), (2, 1)))
    assert there["switch_time_median_ns"] == pytest.approx(5 * MS, rel=TOLERANCE)
    assert there["switch_time_p99_ns"] == pytest.approx(5 * MS + 1000, rel=TOLERANCE)
    assert (there["switch_time_least_ns"], there["switch_time_greatest_ns"]) == (5 * MS - 1000, 5 * MS + 1000)
    assert (there["queue_growth_ns"], back["queue_growth_ns"]) == (2000, 0)
    assert back["switch_time_median_ns"] == MS
    assert (there["frames"], there["bytes"], there["crossed_frames"]) == (200, 200 * 142, 200)


@given(some.lists(some.integers(0, 2**40), min_size=1, max_size=200), some.integers(1, 100))
def test_quantiles_are_those_of_the_sorted_times(times: list[int], percent: int) -> None:
    counts = TimeCounts()
    for each in times:
        counts.add(each)
    exact = sorted(times)[-(-len(times) * percent // 100) - 1]
    assert counts.quantile(percent) == pytest.approx(exact, rel=TOLERANCE)
    assert (counts.least, counts.greatest) == (min(times), max(times))


def test_the_queue_is_what_left_while_a_frame_was_in_the_switch(tmp_path: Path) -> None:
    """Ten frames of 1000 bytes enter together, and one leaves each ms. So the last one waits for nine others."""
    made = Recording(3)
    for number in range(10):
        made.cross(number, (number + 1) * MS - number, udp(1, 2, 958, number=number))
    made.cross(5, 10 * MS, udp(3, 2, 58))
    result = report(made, tmp_path)
    found = pair_of(result, 1, 2)
    assert found["queue_max_bytes"] == 10_000
    assert found["queue_growth_ns"] == 9 * MS - 9
    assert pair_of(result, 3, 2)["queue_max_bytes"] == 10_100
    assert [port["queue_max_bytes"] for port in result["ports"]] == [0, 10_100, 0]


def test_a_frame_that_does_not_leave_is_unmatched_and_changes_no_queue(tmp_path: Path) -> None:
    made = Recording(2)
    for number in range(10):
        (made.enter if number == 4 else lambda at, _, data: made.cross(at, MS, data))(
            number * 2 * MS, 1, udp(1, 2, 958, number=number)
        )
    found = pair_of(report(made, tmp_path), 1, 2)
    assert (found["frames"], found["crossed_frames"], found["unmatched_frames"]) == (10, 9, 1)
    assert (found["queue_max_bytes"], found["switch_time_greatest_ns"]) == (1000, MS)


def test_equal_frames_are_matched_in_order_and_after_a_dropped_one(tmp_path: Path) -> None:
    made = Recording(2)
    for number in range(20):
        made.cross(number * MS, 3 * MS, udp(1, 2))
    assert pair_of(report(made, tmp_path), 1, 2)["switch_time_greatest_ns"] == 3 * MS
    made = Recording(2)
    made.enter(0, 1, udp(1, 2))
    made.cross(MS, MS, udp(1, 2, number=7))
    made.cross(50 * MS, 2 * MS, udp(1, 2))
    found = pair_of(report(made, tmp_path), 1, 2)
    assert (found["switch_time_greatest_ns"], found["unmatched_frames"]) == (2 * MS, 1)


def test_a_checksum_that_is_completed_in_the_switch_is_no_difference(tmp_path: Path) -> None:
    made = Recording(2)
    for frame, place in ((tcp(1, 2, 0, 100), 50), (udp(1, 2), 40)):
        made.enter(0, 1, frame)
        made.leave(MS, 2, frame[:place] + b"\x12\x34" + frame[place + 2 :])
    assert pair_of(report(made, tmp_path), 1, 2)["crossed_frames"] == 2


@pytest.mark.parametrize("before", [1, 2])
def test_a_mark_of_the_switch_is_no_difference(tmp_path: Path, before: int) -> None:
    """The switch sets both bits of ECN, and completes the checksum of IPv4. Other bits of the byte still count."""
    made = Recording(2)
    ip6 = mac(2) + mac(1) + b"\x86\xdd\x60" + bytes(39)
    options = ipv4(1, 2, 17, bytes(12))
    for frame, shift in (
        (tcp(1, 2, 0, 100), 0), (udp(1, 2), 0), (ipv4(1, 2, 1, bytes(8)), 0), (ip6, 4),
        (options[:14] + b"\x46" + options[15:], 0),
    ):  # fmt: skip
        entered = frame[:15] + bytes([frame[15] | before << shift]) + frame[16:]
        left = frame[:15] + bytes([frame[15] | 3 << shift]) + frame[16:]
        made.enter(0, 1, entered)
        made.leave(MS, 2, left if shift else left[:24] + b"\x12\x34" + left[26:])
        made.enter(2 * MS, 1, entered)
        made.leave(3 * MS, 2, left[:15] + bytes([left[15] ^ 4 << shift]) + left[16:])
    found = pair_of(report(made, tmp_path), 1, 2)
    assert (found["crossed_frames"], found["unmatched_frames"]) == (5, 5)


def test_a_port_that_was_not_captured_has_no_exits(tmp_path: Path) -> None:
    made = Recording(3, captured=(1, 2))
    made.cross(0, MS, udp(1, 3))
    made.cross(0, MS, udp(3, 1))
    made.cross(0, MS, udp(1, 2))
    result = report(made, tmp_path)
    found = pair_of(result, 1, 3)
    assert (found["frames"], found["crossed_frames"], found["switch_time_median_ns"]) == (1, None, None)
    assert pair_of(result, 1, 2)["unmatched_frames"] == 0
    assert [port["unmatched_frames"] for port in result["ports"]] == [1, 0]
    assert len(result["pairs"]) == 2


# Rounds


def recursive_doubling(made: Recording, delays: Callable[[], int], size: int = 8) -> None:
    """Each rank sends to its partner when it has what the step before needs."""
    ready = {node: delays() for node in range(1, 9)}
    for step in (1, 2, 4):
        sent = {node: ready[node] + delays() for node in ready}
        for node in ready:
            made.message(sent[node], node, ((node - 1) ^ step) + 1, size)
        received = {node: sent[((node - 1) ^ step) + 1] + MS for node in ready}
        ready = {node: max(sent[node], received[node]) for node in ready}


@pytest.mark.parametrize("size", [8, 4000])
@pytest.mark.parametrize("connections", [ALL_PAIRS, []], ids=["ranks", "nodes"])
@pytest.mark.parametrize("skew_ms", [0, 1, 100])
def test_recursive_doubling_over_8_ranks_has_3_rounds(
    tmp_path: Path, size: int, connections: list[tuple[int, int]], skew_ms: int
) -> None:
    random = Random(skew_ms)
    made = Recording(8, connections)
    recursive_doubling(made, lambda: random.randint(0, skew_ms * MS), size)
    result = report(made, tmp_path)
    assert result["rounds"] == 3
    assert result["rounds_of"] == ("ranks" if connections else "nodes")
    assert {each["rounds"] for each in result["pairs"]} == {1}
    assert len(result["pairs"]) == 24
    ranks = [(each["from_rank"], each["to_rank"], each["rounds"]) for each in result["rank_pairs"]]
    assert ranks == sorted((rank, rank ^ step, 1) for rank in range(8) for step in (1, 2, 4) if connections)


def test_rounds_of_other_algorithms(tmp_path: Path) -> None:
    def rounds(*messages: tuple[int, int]) -> int:
        made = Recording(8, ALL_PAIRS)
        for number, (sender, receiver) in enumerate(messages):
            made.message(number * MS, sender + 1, receiver + 1)
        return int(report(made, tmp_path)["rounds"])

    ring = [(rank, (rank + 1) % 8) for _ in range(7) for rank in range(8)]
    assert rounds(*ring) == 7  # allgather
    assert rounds((0, 4), (0, 2), (4, 6), (0, 1), (2, 3), (4, 5), (6, 7)) == 3  # broadcast by a binomial tree
    assert rounds(*((rank, 0) for rank in range(1, 8))) == 7  # gather without a tree
    assert rounds(*((0, 1), (1, 0)) * 5) == 5  # ping-pong
    assert rounds() == 0


def test_only_connections_of_ranks_have_rounds_if_ranks_are_known(tmp_path: Path) -> None:
    """The connections of mpiexec are MPI too, but not of ranks."""
    made = Recording(2, [(1, 2)])
    made.message(0, 1, 2)
    for number in range(5):
        made.cross(number * MS, MS, tcp(1, 2, number * 10, 10, ports=(41000, 36000), number=number))
    result = report(made, tmp_path)
    assert (result["rounds"], pair_of(result, 1, 2)["rounds"]) == (1, 1)
    assert pair_of(result, 1, 2)["traffic"]["mpi"]["frames"] == 6
    assert [each["frames"] for each in result["rank_pairs"]] == [1]


def test_a_node_cannot_send_for_ranks_of_another(tmp_path: Path) -> None:
    made = Recording(3, [(1, 2)])
    made.message(0, 1, 2)
    forged = tcp(1, 2, 500, 100)
    made.enter(MS, 3, forged)
    made.leave(2 * MS, 2, forged)
    result = report(made, tmp_path)
    assert [each["frames"] for each in result["rank_pairs"]] == [1]
    assert pair_of(result, 3, 2)["frames"] == 1


# TCP


def test_retransmissions_are_segments_with_data_that_was_sent_before(tmp_path: Path) -> None:
    made = Recording(2)
    top = 2**32 - 300  # the sequence numbers begin again at 0
    sent = [
        (top - 1, 0, SYN), (top - 1, 0, SYN), (top, 100, ACK), (top + 100, 100, ACK | PUSH), (top, 100, ACK),
        (top + 200, 0, ACK), (top + 200, 200, ACK | PUSH), (top + 199, 0, ACK), (top + 300, 200, ACK | PUSH),
        (top + 500, 0, ACK | FIN), (top + 500, 0, ACK | FIN), (99, 0, SYN), (100, 10, ACK | PUSH),
    ]  # fmt: skip
    for number, (sequence, size, flags) in enumerate(sent):
        made.cross(number * MS, MS, tcp(1, 2, sequence, size, flags, number=number))
    found = pair_of(report(made, tmp_path), 1, 2)
    # The second SYN, the first data again, a part of it again with a new message, and the second FIN.
    assert (found["retransmissions"], found["rounds"]) == (4, 4)


@pytest.mark.parametrize(
    ("sent", "rounds"),
    [
        # The end of a message is sent with what was sent before. The next segment begins a message.
        ([(0, 100, ACK), (50, 100, ACK | PUSH), (150, 10, ACK | PUSH)], 2),
        # The begin of a message is, so the next segment is the rest of it.
        ([(0, 100, ACK | PUSH), (50, 100, ACK), (150, 10, ACK | PUSH)], 2),
        ([(0, 100, ACK | PUSH), (0, 100, ACK), (100, 10, ACK | PUSH)], 2),
        ([(0, 100, ACK | PUSH), (50, 50, ACK | PUSH | FIN)], 1),
    ],
)
def test_new_data_of_a_retransmission_belongs_to_a_message(
    tmp_path: Path, sent: list[tuple[int, int, int]], rounds: int
) -> None:
    made = Recording(2)
    for number, (sequence, size, flags) in enumerate(sent):
        made.cross(number * MS, MS, tcp(1, 2, sequence, size, flags, number=number))
    found = pair_of(report(made, tmp_path), 1, 2)
    assert (found["retransmissions"], found["rounds"]) == (1, rounds)


def test_silences_are_pauses_of_more_than_100_ms_between_frames_of_mpi(tmp_path: Path) -> None:
    made = Recording(2)
    for number, at_ms in enumerate((0, 100, 201, 250, 1250)):
        made.cross(at_ms * MS, MS, tcp(1, 2, number * 10, 10))
    made.cross(700 * MS, MS, tcp(1, 2, 0, 10, ports=(40000, 22)))
    found = pair_of(report(made, tmp_path), 1, 2)
    assert (found["silences"], found["silence_max_ns"], found["silent_ns"]) == (2, 1000 * MS, 1101 * MS)


# Kinds of frames


def test_frames_are_counted_by_kind_and_each_once(tmp_path: Path) -> None:
    made = Recording(3)
    arp = b"\x08\x06" + bytes(46)
    for frame in (
        tcp(1, 2, 0, 10),
        tcp(1, 2, 0, 10, ports=(22, 40000)),
        tcp(1, 2, 0, 10, ports=(800, 2049)),
        tcp(1, 2, 0, 10, ports=(40000, 80)),
        udp(1, 2, ports=(2049, 700)),
        udp(1, 2),
        ipv4(1, 2, 1, bytes(8)),
        mac(2) + mac(1) + arp,
        mac(2) + mac(1) + b"\x86\xdd" + bytes(40),
    ):
        made.cross(0, MS, frame)
    broadcast = BROADCAST + mac(1) + arp
    made.enter(0, 1, broadcast)
    for node in (2, 3):
        made.leave(MS, node, broadcast)
    flooded = udp(1, 2, number=3)
    made.enter(0, 1, flooded)
    for node in (3, 2):
        made.leave(MS, node, flooded)
    made.enter(0, 1, udp(1, 9))
    result = report(made, tmp_path)
    counts = {kind: found["frames"] for kind, found in pair_of(result, 1, 2)["traffic"].items()}
    assert counts == {"mpi": 1, "ssh": 1, "nfs": 2, "tcp": 1, "udp": 2, "icmp": 1, "arp": 1, "other": 1}
    one, two, three = result["ports"]
    assert {kind: found["frames"] for kind, found in one["traffic"].items()} == {**counts, "arp": 2, "udp": 3}
    assert sum(found["frames"] for found in one["traffic"].values()) == one["received_frames"] == 12
    assert (one["group_frames"], one["group_bytes"], one["elsewhere_frames"]) == (1, 60, 1)
    assert (two["sent_frames"], three["sent_frames"], three["flooded_frames"]) == (11, 2, 1)
    assert pair_of(result, 1, 2)["unmatched_frames"] == 0


@pytest.mark.parametrize("cut", [14, 20, 34, 38, 47, 48, 60])
def test_lengths_in_frames_are_not_trusted(tmp_path: Path, cut: int) -> None:
    made = Recording(2, snap_bytes=cut)
    good = tcp(1, 2, 0, 10)
    for total, offset in ((0, 0x50), (0xFFFF, 0xF0), (20, 0), (1, 0xF0)):
        made.cross(0, MS, good[:16] + struct.pack(">H", total) + good[18:46] + bytes([offset]) + good[47:])
    for header in (b"\x4f", b"\x41", b"\x65", b"\x00"):
        made.cross(0, MS, good[:14] + header + good[15:])
    made.cross(0, MS, good[:20] + b"\x20\x01" + good[22:])
    found = pair_of(report(made, tmp_path), 1, 2)
    assert (found["frames"], found["unmatched_frames"]) == (9, 0)


# Limits of memory


def test_frames_and_streams_are_forgotten_when_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_analysis, "WAITING_MAX", 10)
    monkeypatch.setattr(capture_analysis, "STREAMS_MAX", 5)
    made = Recording(2)
    for number in range(30):
        made.enter(number, 1, tcp(1, 2, 0, 10, ports=(40000 + number, 35000)))
    made.leave(MS, 2, tcp(1, 2, 0, 10, ports=(40029, 35000)))
    made.leave(MS, 2, tcp(1, 2, 0, 10, ports=(40000, 35000)))
    result = report(made, tmp_path)
    assert (result["forgotten_frames"], result["forgotten_streams"]) == (20, 25)
    assert (pair_of(result, 1, 2)["crossed_frames"], result["ports"][1]["unmatched_frames"]) == (1, 1)
    monkeypatch.setattr(capture_analysis, "EQUAL_MAX", 3)
    made = Recording(2)
    for number in range(5):
        made.enter(number, 1, udp(1, 2))
    assert report(made, tmp_path)["forgotten_frames"] == 2


def test_a_stream_in_use_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other connections of the node are forgotten. Each segment would begin a message otherwise."""
    monkeypatch.setattr(capture_analysis, "STREAMS_MAX", 5)
    made = Recording(2)
    for number in range(20):
        made.enter(number, 1, tcp(1, 2, number * 10, 10, PUSH if number == 19 else ACK))
        made.enter(number, 1, tcp(1, 2, 0, 10, ports=(50000 + number, 80)))
    result = report(made, tmp_path)
    assert (result["forgotten_streams"], pair_of(result, 1, 2)["rounds"]) == (16, 1)


# Files


def test_an_empty_capture_has_a_report(tmp_path: Path) -> None:
    result = report(Recording(2), tmp_path)
    assert (result["frames"], result["began_ns"], result["duration_ns"], result["pairs"]) == (0, None, 0, [])
    assert [port["node"] for port in result["ports"]] == ["node1", "node2"]


def test_a_file_of_any_length_is_read_in_parts(tmp_path: Path) -> None:
    made = Recording(2, snap_bytes=0)
    for number in range(3000):
        made.cross(number * 1000, MS, udp(1, 2, 1000 + number % 7, number=number))
    result = report(made, tmp_path)
    assert (tmp_path / "run.pcapng").stat().st_size > 3 << 20
    assert (result["frames"], pair_of(result, 1, 2)["crossed_frames"]) == (6000, 3000)
    assert (result["began_ns"], result["duration_ns"]) == (BEGAN_NS, 2999 * 1000 + MS)


def test_dropped_frames_and_other_resolutions_and_byte_orders_are_read() -> None:
    def block(kind: int, body: bytes) -> bytes:
        return struct.pack(">II", kind, len(body) + 12) + body + struct.pack(">I", len(body) + 12)

    name = struct.pack(">HH", 2, 5) + b"node1\0\0\0"
    file = block(0x0A0D0D0A, struct.pack(">IHHq", 0x1A2B3C4D, 1, 0, -1))
    file += block(1, struct.pack(">HHI", 1, 0, 0) + name + struct.pack(">HHB3x", 9, 1, 0x8A))  # 2⁻¹⁰ s
    file += block(1, struct.pack(">HHI", 1, 0, 0) + name)  # microseconds
    file += block(0x7777, b"unknown!")
    comment = struct.pack(">HH", 1, 3) + b"abc\0"
    flags = struct.pack(">HHI", 2, 4, 2)
    file += block(6, struct.pack(">IIIII", 0, 1, 1024, 4, 99) + b"data" + comment + flags)
    file += block(6, struct.pack(">IIIII", 1, 0, 7, 3, 3) + b"abc\0" + flags)
    for count in (3, 5):
        file += block(5, struct.pack(">III", 0, 0, 0) + struct.pack(">HHQ", 7, 8, count))
    reader = PcapngReader(io.BytesIO(file))
    frames = list(reader.frames())
    assert frames == [(0, (2**32 + 1024) * 10**9 // 1024, b"data", 99, 2), (1, 7000, b"abc", 3, 2)]
    assert reader.dropped == 5


HEAD = Recording(2).head()
FRAME = pcapng.packet(0, BEGAN_NS, udp(1, 2), 142, 1)


def changed(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + struct.pack("<I", value) + data[at + 4 :]


@pytest.mark.parametrize(
    ("file", "offset", "reason"),
    [
        (b"", 0, "this is not a pcapng file"),
        (bytes(100), 0, "this is not a pcapng file"),
        (changed(HEAD, 4, 1 << 31), 0, "the first block has 2147483648 bytes"),
        (HEAD[:40], 0, "the file ends inside a block"),
        (HEAD + FRAME[:5], len(HEAD), "the file ends inside a block, after 5 bytes"),
        (HEAD + FRAME + FRAME[:-4], len(HEAD + FRAME), f"the file ends inside a block of {len(FRAME)} bytes"),
        (HEAD + changed(FRAME, 4, 0), len(HEAD), "a block has 0 bytes, which is not possible"),
        (HEAD + changed(FRAME, 4, 0xFFFFFFFC), len(HEAD), "a block has 4294967292 bytes"),
        (HEAD + changed(FRAME, len(FRAME) - 4, 8), len(HEAD), "the two lengths of a block differ"),
        (HEAD + changed(FRAME, 8, 2), len(HEAD), "a frame is of interface 2, and the file has 2"),
        (HEAD + changed(FRAME, 20, 0xFFFFFFFF), len(HEAD), "a frame has 4294967295 bytes, which are more than"),
        (HEAD + changed(FRAME, len(FRAME) - 12, 0), len(HEAD), "a frame has no direction"),
        (HEAD + struct.pack("<III", 6, 12, 12), len(HEAD), "a frame lacks its header"),
        (HEAD + HEAD, len(HEAD), "a second section begins"),
        (HEAD + struct.pack("<IIHHII", 1, 20, 113, 0, 0, 20), len(HEAD), "interface '' is of type 113, not Ethernet"),
        (HEAD + struct.pack("<III", 1, 12, 12), len(HEAD), "an interface lacks its header"),
        (HEAD + struct.pack("<III", 5, 12, 12), len(HEAD), "the statistics of an interface lack their header"),
        (HEAD + changed(FRAME, 172, 0xFFFF0002), len(HEAD), "an option has 65535 bytes, which are more than"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_with_the_place(tmp_path: Path, file: bytes, offset: int, reason: str) -> None:
    (tmp_path / "x").write_bytes(file)
    with pytest.raises(VclusterError) as caught:
        capture_report.analyse(tmp_path / "x")
    assert caught.value.message.startswith(f"{tmp_path / 'x'}: byte {offset}: {reason}")
    assert caught.value.hint == "vcluster capture run -o FILE"


NODE = {"node": "node1", "mac": "02:00:00:00:00:01"}
END = {"node": "node1", "address": "10.0.0.1", "port": 1, "rank": 0}


@pytest.mark.parametrize(
    ("comments", "reason"),
    [
        ([], "the file has no plan of a cluster"),
        (["not JSON", 7, None, []], "the file has no plan of a cluster"),
        ([{"cluster": "../x"}], "comment 1: cluster name '../x' is not a name"),
        ([{"cluster": 5}], "comment 1: the name of the cluster is not a text"),
        ([{"cluster": "lab"}, {"node": "\x1b[2J", "mac": "02"}], "comment 2: "),
        ([{"cluster": "lab"}, {"node": "node1"}], "comment 2: the node.mac is missing"),
        ([{"cluster": "lab"}, {"node": "node1", "mac": "02:xy"}], "comment 2: the MAC address of node1 is wrong"),
        ([{"cluster": "lab"}, NODE, NODE], "comment 3: node1, or its MAC address, is there twice"),
        ([{"cluster": "lab"}, NODE, {"connection": 5}], "comment 3: the connection is not a list"),
        ([{"cluster": "lab"}, NODE, {"connection": [END, 5]}], "comment 3: the connection[1] is not an object"),
        ([{"cluster": "lab"}, NODE, {"connection": [END, {**END, "node": "x"}]}], "comment 3: the connection is of an"),
        ([{"cluster": "lab"}, NODE, {"connection": [END, {**END, "port": -1}]}], "comment 3: the connection has an im"),
        ([{"cluster": "lab"}, NODE, {"connection": [END, {**END, "address": "x"}]}], "comment 3: the connection has a"),
        ([{"cluster": "lab"}, NODE], "byte 0: interface 'node2' is not one of a node, or is there twice"),
    ],
)
def test_a_bad_plan_is_refused_with_the_comment(tmp_path: Path, comments: list[Any], reason: str) -> None:
    head = pcapng.section_header("x", [json.dumps(comment) for comment in comments])
    file = head + pcapng.interface_description(pcapng.FileInterface("node2", ""))
    (tmp_path / "x").write_bytes(file)
    with pytest.raises(VclusterError) as caught:
        capture_report.analyse(tmp_path / "x")
    wanted = reason.replace("byte 0", f"byte {len(file)}")
    assert caught.value.message.startswith(f"{tmp_path / 'x'}: {wanted}")
    assert "\x1b" not in caught.value.message


# The command


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    made = Recording(8, ALL_PAIRS)
    recursive_doubling(made, lambda: 0)
    (tmp_path / "run.pcapng").write_bytes(made.file())
    monkeypatch.setenv("VCLUSTER_STATE_DIR", str(tmp_path / "state"))
    command = ["capture", "report"]
    return lambda *given, **options: CliRunner().invoke(main, [*command, *given], prog_name="vcluster", **options)


def test_the_report_is_text_json_or_csv(run: Callable[..., Any], tmp_path: Path) -> None:
    path = str(tmp_path / "run.pcapng")
    document = json.loads(run(path, "-o", "json").stdout)
    shown = run(path)
    assert shown.exit_code == 0
    assert shown.stdout == traffic_report.text(document) + "\n"
    assert f"{path}: cluster lab, 48 frames of 8 ports, 0.002 s, 3 rounds of ranks" in shown.stdout
    rows = list(csv.DictReader(io.StringIO(run(path, "-o", "csv").stdout)))
    pairs = [*document["pairs"], *document["rank_pairs"]]
    assert [row["of"] for row in rows] == ["nodes"] * 24 + ["ranks"] * 24
    for row, pair in zip(rows, pairs, strict=True):
        for name, value in row.items():
            if name in pair:
                assert value == str(pair[name])
        assert row["mpi_bytes"] == str(pair["traffic"]["mpi"]["bytes"])
    assert {*pairs[0], *pairs[-1]} - {"traffic"} <= rows[0].keys()


def test_a_file_that_is_missing_is_one_line(run: Callable[..., Any], tmp_path: Path) -> None:
    done = run(str(tmp_path / "none"))
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"File '{tmp_path / 'none'}' does not exist" in done.stderr
    with pytest.raises(RequestError, match=r"cannot read .*: Is a directory"):
        capture_report.analyse(tmp_path)


def test_the_text_has_what_makes_figures_wrong(tmp_path: Path) -> None:
    made = Recording(2)
    made.cross(0, -5, udp(1, 2))
    result = report(made, tmp_path) | {"dropped": 3, "forgotten_frames": 4, "forgotten_streams": 5}
    remarks = traffic_report.text(result).splitlines()
    assert "the capture dropped 3 frames, which no figure contains" in remarks
    assert "4 frames were in the switch for too long, and count as unmatched" in remarks
    assert "there were too many connections: 5 of them were followed in parts" in remarks
