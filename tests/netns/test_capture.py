"""vcluster capture at the ports of a switch, of a local and of a remote cluster. Nodes are namespaces.

The files are read by scapy and by tshark.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.utils import RawPcapNgReader

from tests.capture_lab import BEGUN, FILE, NODES, Found, Lab, lab, tshark
from tests.clusters import ENVIRONMENT, VCLUSTER, Host
from tests.inside import ROOT
from tests.testbed import kill, testbed
from vcluster.frames.pcapng import INBOUND, OUTBOUND

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]

# Prints a line, then sends a datagram every 10 ms, each with its number and the time.
TICK = """
import socket, struct, sys, time
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print(flush=True)
number = 0
while True:
    sender.sendto(struct.pack("=Qd", number, time.time()), (sys.argv[1], 9))
    number += 1
    time.sleep(0.01)
"""


@pytest.fixture(scope="module")
def local() -> Iterator[Lab]:
    with testbed("captures") as (server,), lab("local", "vp", Host(server), server) as made:
        yield made


@pytest.fixture(scope="module")
def remote() -> Iterator[Lab]:
    with testbed("nodes", "far") as (nodes, far):
        far.allow_login_of(nodes)
        with lab("remote", "vx", Host(nodes), far) as made:
            yield made


@pytest.fixture(params=["local", "remote"])
def any_lab(request: pytest.FixtureRequest) -> Lab:
    made: Lab = request.getfixturevalue(request.param)
    return made


# Frames


def test_the_frames_of_each_port_equal_its_counters(any_lab: Lab) -> None:
    with any_lab.captured() as result:
        before = any_lab.counters()
        any_lab.send("node1", "10.0.0.2", 1000)
        any_lab.send("node3", "10.0.0.1", 700)
        any_lab.sh("node2", "ping -q -c 5 -i 0.01 10.0.0.3")
        after = any_lab.counters()
    frames = any_lab.frames()
    counts = Counter((frame.interface, frame.direction) for frame in frames)
    for node in NODES:
        received, sent = (now - earlier for now, earlier in zip(after[node], before[node], strict=True))
        assert (counts[node, INBOUND], counts[node, OUTBOUND]) == (received, sent)
        assert received
    assert counts["node1", INBOUND] >= 1000
    assert result["frames"] == len(frames)
    assert result["dropped"] == 0
    assert {each["node"]: each["frames"] for each in result["ports"]} == Counter(frame.interface for frame in frames)
    assert result["bytes"] == any_lab.host.server.path(FILE).stat().st_size


def test_super_frames_are_cut_into_those_of_a_wire(any_lab: Lab) -> None:
    """One capture cuts what another keeps as the switch sees it. tshark checks all checksums."""
    made, raw = any_lab, "/run/raw.pcapng"
    made.sh("node1", "ip link set lab0 gso_max_segs 65535")
    made.host.vcluster("capture", "start", "-o", raw, "--frames", "raw")
    with made.captured() as result:
        before = made.counters()
        made.send("node1", "10.0.0.2", 400)
        made.transmit(1_000_000)
        after = made.counters()
    seen = {node: sum(after[node]) - sum(before[node]) for node in NODES}
    stopped = capture(made, "stop")
    made.sh("node1", "ip link set lab0 gso_max_segs 1")
    path = made.host.server.path(FILE)
    wire, kept = made.frames(), made.frames(raw)
    assert {each["node"]: each["seen"] for each in result["ports"]} == seen
    assert {each["node"]: each["frames"] for each in result["ports"] if each["frames"]} == Counter(
        each.interface for each in wire
    )
    assert [each["seen"] for each in stopped["ports"]] == [each["frames"] for each in stopped["ports"]]
    assert max(each.length for each in wire) == 1450 + 14
    assert max(each.length for each in kept) > 10_000
    for node, direction in (("node1", INBOUND), ("node2", OUTBOUND)):
        cut, whole = (
            [each.data for each in frames if (each.interface, each.direction) == (node, direction)]
            for frames in (wire, kept)
        )
        segments = sum(-(-len(tcp_data(each)) // 1398) or 1 for each in whole if each[23] == socket.IPPROTO_TCP)
        assert sum(each[23] == socket.IPPROTO_TCP for each in cut) == segments
        assert sum(each[23] == socket.IPPROTO_UDP for each in cut) == 400
        sent = bytes(number % 251 for number in range(1_000_000))
        assert b"".join(map(tcp_data, cut)) == b"".join(map(tcp_data, whole))
        assert stream_of(cut) == sent
    marked = tshark(path, "-Y", "frame.comment", "-e", "frame.comment")
    assert any(each.startswith("reconstructed: part 1 of ") for each in marked)
    checks = [f"-o{each}.check_checksum:TRUE" for each in ("ip", "tcp", "udp")]
    fields = [text for each in ("ip", "tcp", "udp") for text in ("-e", f"{each}.checksum.status")]
    states = Counter(tshark(path, *checks, "-Y", "ip && !icmp", *fields))
    assert states.keys() == {"1\t1\t", "1\t\t1"}, states  # 1 is good


# A node sends three datagrams by its tap. The second one is a super-frame (UFO), which the kernel cannot describe.
UNDESCRIBED = """
import fcntl, json, os, socket, struct, subprocess
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from vcluster.adapters.capture.packet_ring import PacketRing
from vcluster.frames import frame_filter
from vcluster.frames.ring_blocks import RingReader
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH", b"vp-ufo", 0x5002))  # TUNSETIFF: a tap with headers of virtio
subprocess.run("ip link set vp-ufo addrgenmode none && ip link set vp-ufo up", shell=True, check=True)
index = socket.if_nametoindex("vp-ufo")
reader, ring = RingReader({index: 0}, 1, is_wire=True), PacketRing(has_virtio_headers=True)
ring.attach(frame_filter.on_interfaces([index], frame_filter.everything(0)))
frame = bytes(Ether(dst="02:00:00:00:00:02") / IP(dst="10.0.0.2") / UDP() / bytes(3000))
for kind in (0, 3, 0):
    os.write(tap, struct.pack("=BBHHHH", bool(kind), kind, 42, 1400 if kind else 0, 34, 6) + frame)
found = 0
while found < 2:
    ring.wait(10)
    found += sum(piece.count(frame) for block in ring.blocks() for piece in reader.read(block))
print(json.dumps([found, ring.dropped, ring.captured, reader.seen]))
"""


def test_a_frame_that_the_kernel_cannot_describe_is_dropped_and_counted(local: Lab) -> None:
    done = local.host.server.run([sys.executable, "-c", UNDESCRIBED], timeout_s=60, cwd=ROOT)
    assert json.loads(done.stdout) == [2, 1, 2, [2]]


def stream_of(frames: list[bytes]) -> bytes:
    """The data of the only TCP stream with data. On a busy machine, TCP sends some of it again, and later."""
    parts = [(int.from_bytes(each[38:42], "big"), data) for each in frames if (data := tcp_data(each))]
    stream = bytearray()
    for sequence, data in sorted(parts, key=lambda part: (part[0] - parts[0][0]) % 2**32):
        at = (sequence - parts[0][0]) % 2**32
        assert at <= len(stream), "some data are in no frame"
        stream[at : at + len(data)] = data
    return bytes(stream)


def tcp_data(frame: bytes) -> bytes:
    """The data of a TCP segment; none for another frame."""
    if frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_TCP:
        return b""
    return frame[34 + (frame[46] >> 4) * 4 : 14 + int.from_bytes(frame[16:18], "big")]


def test_headers_of_super_frames_are_enough_to_cut_them(local: Lab) -> None:
    local.sh("node1", "ip link set lab0 gso_max_segs 65535")
    with local.captured("--snap", "128", "--filter", "tcp") as result:
        local.transmit(500_000)
    local.sh("node1", "ip link set lab0 gso_max_segs 1")
    entries = [each for each in local.frames() if (each.interface, each.direction) == ("node1", INBOUND)]
    assert sum(each.length - 66 for each in entries if each.length > 66 + 10) == 500_000
    assert max(each.length for each in entries) == 1450 + 14
    assert result["ports"][0]["seen"] < result["ports"][0]["frames"]


def test_a_frame_leaves_the_switch_after_it_has_entered_it(any_lab: Lab) -> None:
    """One socket sees all ports, so the order in the file is that of the kernel, and there is one clock."""
    with any_lab.captured():
        any_lab.send("node1", "10.0.0.2", 2000, 60)
    seen = [(frame.interface, frame.at_ns) for frame in any_lab.frames() if frame.data[23] == socket.IPPROTO_UDP]
    entered = [at_ns for interface, at_ns in seen if interface == "node1"]
    left = [at_ns for interface, at_ns in seen if interface == "node2"]
    assert len(entered) == len(left) == 2000
    assert all(before <= after for before, after in zip(entered, left, strict=True))
    order = [interface for interface, _ in seen]
    waiting = 0
    for interface in order:
        waiting += 1 if interface == "node1" else -1
        assert waiting >= 0, "a frame left before it entered"


def test_a_file_names_ports_nodes_and_the_plan(remote: Lab) -> None:
    with remote.captured():
        remote.sh("node1", "ping -q -c 1 10.0.0.2")
    path = remote.host.server.path(FILE)
    nodes = remote.host.json("status", "lab")["nodes"]
    shown = set(tshark(path, "-e", "frame.interface_name", "-e", "frame.interface_description"))
    assert {f"node{n}\tport vx-lab-{n} on {remote.switch.name}, VNI {nodes[n - 1]['vni']}" for n in (1, 2)} <= shown
    resolved = subprocess.run(
        ["tshark", "-N", "n", "-r", path, "-T", "fields", "-e", "ip.src_host"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"node1", "node2"} <= set(resolved.stdout.split())
    report = subprocess.run(["capinfos", path], capture_output=True, text=True, check=True).stdout
    comments = [json.loads(line.split(":", 1)[1]) for line in report.splitlines() if line.startswith("Capture comment")]
    assert comments[0]["cluster"] == "lab"
    assert comments[0]["switch"] == {"server": remote.switch.name, "bridge": "vc-lab"}
    assert [each["mac"] for each in comments[1:]] == [node["mac"] for node in nodes]


def test_only_the_chosen_ports_and_bytes_are_kept(local: Lab) -> None:
    with local.captured("--ports", "node[2-3]", "--snap", "64") as result:
        local.send("node1", "10.0.0.2", 40, 1000)
    frames = local.frames()
    sent = [frame for frame in frames if frame.length == 1000 + 42]
    assert {frame.interface for frame in sent} == {"node2"}
    assert [len(frame.data) for frame in sent] == [64] * 40
    assert [each["node"] for each in result["ports"]] == ["node2", "node3"]


def test_a_filter_keeps_the_frames_that_fit(any_lab: Lab) -> None:
    with any_lab.captured("--filter", "udp dst port 7 and src host 10.0.0.1") as result:
        any_lab.send("node1", "10.0.0.2", 80, port=9)
        any_lab.send("node3", "10.0.0.2", 80, port=7)
        any_lab.send("node1", "10.0.0.2", 40, port=7)
    assert Counter(frame.interface for frame in any_lab.frames()) == {"node1": 40, "node2": 40}
    assert result["frames"] == 80


def test_traffic_of_other_interfaces_is_not_captured(local: Lab) -> None:
    with local.captured() as result:
        local.host.sh("ping -q -c 3 -i 0.01 127.0.0.1")
    assert all(frame.data[12:14] != b"\x08\x00" for frame in local.frames())
    assert result["dropped"] == 0


def test_a_node_that_is_plugged_in_again_is_captured_again(local: Lab) -> None:
    with local.captured() as result:
        local.unplug("node3")
        local.plug("node3")
        await_ping(local, "node3")
    assert [each["node"] for each in result["ports"]] == list(NODES)


def test_a_node_that_is_off_is_captured_when_it_starts(local: Lab) -> None:
    local.unplug("node3")
    running = local.host.popen("capture", "-o", FILE, "--ranks", "--output", "json")
    assert running.stderr is not None
    try:
        notes = ""
        while not (line := running.stderr.readline()).startswith(BEGUN):
            assert line, f"the capture ended: {notes}"
            notes += line
        local.plug("node3")
        await_ping(local, "node3")
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate(timeout=60)
    finally:
        kill(running)
    assert running.returncode == 0, stderr
    assert [each["node"] for each in json.loads(stdout)["ports"] if each["frames"]] == ["node1", "node3"]
    assert "the switch has no port of node3; a node is captured when it starts" in notes
    # No node of this cluster is a domain of libvirt, so none runs.
    assert "not running: node[1-3]; the map of ranks does not contain their connections" in notes


def await_ping(made: Lab, node: str) -> None:
    """Send from a node until the file has a frame of it."""
    for _ in range(100):
        made.sh(node, "ping -q -c 1 10.0.0.1")
        if any(frame.interface == node and is_icmp(frame) for frame in made.frames(is_complete=False)):
            return
    pytest.fail(f"{node} is not captured")


def is_icmp(frame: Found) -> bool:
    return frame.data[12:14] == b"\x08\x00" and frame.data[23] == socket.IPPROTO_ICMP


# Filters in the kernel, on a pair of sockets


@pytest.mark.parametrize(
    ("what", "protocol", "ports", "is_kept"),
    [
        ("a connection of ranks", 6, (40000, 35001), True),
        ("its answer", 6, (35001, 40000), True),
        ("ssh", 6, (40000, 22), False),
        ("an answer of ssh", 6, (22, 40000), False),
        ("NFS", 6, (800, 2049), False),
        ("NFS of a program", 6, (40000, 2049), False),
        ("an answer of NFS", 6, (2049, 40000), False),
        ("UDP", 17, (40000, 35001), False),
    ],
)
def test_only_mpi_keeps_connections_of_programs(
    what: str, protocol: int, ports: tuple[int, int], is_kept: bool
) -> None:
    from vcluster.frames import frame_filter

    program = frame_filter.mpi(60)
    options = b"\x01" * 4  # an IPv4 header may have options, so its length varies
    assert what
    for length, more in ((5, b""), (6, options)):
        packet = struct.pack(
            ">BBHHHBBH4s4s", 0x40 + length, 0, 100, 0, 0x4000, 64, protocol, 0, b"\x0a\0\0\1", b"\x0a\0\0\2"
        )
        frame = bytes(12) + b"\x08\x00" + packet + more + struct.pack(">HH", *ports) + bytes(60)
        assert kept(program, frame) == (60 if is_kept else 0)
        fragment = frame[:20] + b"\x00\x10" + frame[22:]
        assert kept(program, fragment) == 0
    assert kept(program, bytes(12) + b"\x08\x06" + bytes(60)) == 0


def test_an_expression_of_libpcap_is_compiled() -> None:
    from vcluster.adapters.capture.pcap_compiler import compile_filter

    program = compile_filter("arp or ether proto 0x1234", 50)
    assert kept(program, bytes(12) + b"\x08\x06" + bytes(60)) == 50
    assert kept(program, bytes(12) + b"\x12\x34" + bytes(60)) == 50
    assert kept(program, bytes(12) + b"\x08\x00" + bytes(60)) == 0


def kept(program: Any, frame: bytes) -> int:
    """How many bytes of a frame the kernel keeps."""
    import ctypes

    from vcluster.frames import frame_filter

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        buffer = ctypes.create_string_buffer(frame_filter.packed(program))
        theirs.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HL", len(program), ctypes.addressof(buffer)))
        theirs.setblocking(False)
        ours.send(frame)
        try:
            return len(theirs.recv(2000))
        except BlockingIOError:
            return 0


# Rates and losses


def test_two_hundred_thousand_frames_a_second_are_captured(local: Lab) -> None:
    """The kernel drops none of 400,000 frames, which come as fast as a node can send."""
    with local.captured("--snap", "128") as result:
        before = local.counters()
        local.send("node1", "10.0.0.2", 200_000)
        after = local.counters()
    total = sum(sum(after[node]) - sum(before[node]) for node in NODES)
    assert total > 400_000
    assert (result["frames"], result["dropped"]) == (total, 0)
    with RawPcapNgReader(str(local.host.server.path(FILE))) as reader:
        times = [meta.tshigh << 32 | meta.tslow for _, meta in reader if meta.wirelen == 142]
    assert len(times) >= 400_000
    print(f"{len(times) / (times[-1] - times[0]) * 1e9:.0f} frames a second")


def test_dropped_frames_are_counted_and_fail_the_command(local: Lab) -> None:
    for arguments, code in (((), 1), (("--allow-drops",), 0)):
        running = local.start("--output", "json", *arguments)
        before = local.counters()
        agent = process_of(local.host, "frame_capture")
        local.host.sh(f"kill -STOP {agent}")  # the ring fills: it holds 64 MiB
        local.send("node1", "10.0.0.2", 60_000, 1400)
        total = sum(sum(now) - sum(before[node]) for node, now in local.counters().items())
        local.host.sh(f"kill -CONT {agent}")
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate(timeout=120)
        result = json.loads(stdout)
        assert running.returncode == code, stderr
        assert result["dropped"] > 0
        assert result["frames"] + result["dropped"] == total
        assert (f"the capture dropped {result['dropped']} frames" in stderr) == (code == 1)
        report = subprocess.run(
            ["capinfos", "-M", "-c", local.host.server.path(FILE)], capture_output=True, text=True, check=True
        )
        assert str(result["frames"]) in report.stdout.split()


def process_of(host: Host, text: str) -> int:
    """The only process of a server whose command line has this text."""
    return int(host.sh(f"pgrep -f '[{text[0]}]{text[1:]}'"))


# In the background


def capture(made: Lab, *arguments: str) -> Any:
    """The JSON result of a command about a capture."""
    return made.host.json("capture", *arguments)


def test_a_capture_in_the_background_outlives_its_command(any_lab: Lab) -> None:
    assert capture(any_lab, "status")["running"] is False
    done = any_lab.host.vcluster("capture", "start", "-o", FILE, "--snap", "128", "--filter", "udp")
    assert done.stdout == f"capturing into {FILE}; end it by: vcluster capture stop\n"
    any_lab.send("node1", "10.0.0.2", 400)
    again = any_lab.host.vcluster("capture", "start", "-o", "/run/other.pcapng", check=False)
    assert (again.returncode, again.stderr.count("\n")) == (4, 1)
    assert "a capture was started and not stopped" in again.stderr
    deadline_s = time.monotonic() + 60
    while (shown := capture(any_lab, "status"))["frames"] < 800:
        assert time.monotonic() < deadline_s
    assert (shown["running"], shown["file"], shown["dropped"]) == (True, FILE, 0)
    result = capture(any_lab, "stop")
    assert (result["frames"], result["dropped"]) == (800, 0)
    assert len(any_lab.frames()) == 800
    assert capture(any_lab, "status")["running"] is False
    assert any_lab.host.vcluster("capture", "stop", check=False).returncode == 1


def test_a_capture_in_the_background_ends_at_its_limit(local: Lab) -> None:
    local.host.vcluster("capture", "start", "-o", FILE, "--limit", "1")
    local.send("node1", "10.0.0.2", 2000, 1400)
    deadline_s = time.monotonic() + 60
    while capture(local, "status")["running"]:
        assert time.monotonic() < deadline_s
    result = capture(local, "stop")
    assert result["bytes"] > 1 << 20
    assert result["frames"] == len(local.frames())


def test_a_killed_capture_in_the_background_is_reported(local: Lab) -> None:
    local.host.vcluster("capture", "start", "-o", FILE)
    local.send("node1", "10.0.0.2", 40)
    deadline_s = time.monotonic() + 60
    while not local.frames(is_complete=False):
        assert time.monotonic() < deadline_s
    local.host.sh("pkill -KILL -f '[c]apture run'")
    shown = capture(local, "status")
    assert (shown["running"], shown["file"]) == (False, FILE)
    done = local.host.vcluster("capture", "stop", check=False)
    assert done.returncode == 1
    assert f"the capture ended early: its process was killed; {FILE} has what came before" in done.stderr
    assert local.frames()
    assert capture(local, "status")["file"] is None


def test_a_capture_that_cannot_begin_leaves_nothing(local: Lab) -> None:
    done = local.host.vcluster("capture", "start", "-o", FILE, "--filter", "no such filter", check=False)
    assert done.returncode == 2
    assert "--filter is not an expression of pcap-filter" in done.stderr
    assert capture(local, "status")["file"] is None


def test_clear_ends_a_capture_and_keeps_its_file() -> None:
    with testbed("clearing") as (server,):
        host = Host(server)
        with lab("local", "vp", host, server) as made:
            host.vcluster("capture", "start", "-o", FILE)
            made.send("node1", "10.0.0.2", 40)
            host.vcluster("clear", "lab", "-y", "--verify")
            assert host.sh("pgrep -f '[c]apture run' || true") == ""
            assert "node1" in {frame.interface for frame in made.frames()}


# Killed parts

COMMAND, LOCAL_AGENT = "[v]cluster.cli.main.*capture -o", "[f]rame_capture"
REMOTE_AGENT, CONNECTION = "[v]cluster-", "[s]shd: root"
WRITER = "source, file = sy[s].stdin"


@pytest.mark.parametrize(
    ("mode", "side", "what"),
    [
        ("local", "host", COMMAND),
        ("local", "host", LOCAL_AGENT),
        ("remote", "host", COMMAND),
        ("remote", "switch", REMOTE_AGENT),
        ("remote", "switch", CONNECTION),
    ],
)
def test_a_killed_capture_leaves_a_valid_file(request: pytest.FixtureRequest, mode: str, side: str, what: str) -> None:
    """The file has every frame that is older than a second."""
    made: Lab = request.getfixturevalue(mode)
    running = made.start("--filter", "udp dst port 9")
    argv = ["ip", "netns", "exec", "node1", sys.executable, "-c", TICK, "10.0.0.2"]
    ticking = made.host.server.popen(argv)
    try:
        deadline_s = time.monotonic() + 60
        while len(ticks(made, is_complete=False)) < 200:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        killed_on = made.host if side == "host" else Host(made.switch)
        killed_on.sh(f"pkill -KILL -f '{what}'")
        killed_s = time.time()
        running.communicate(timeout=60)
        made.host.wait_for(f"pgrep -f '{WRITER}' >/dev/null || echo ended")
    finally:
        kill(ticking)
        kill(running)
    assert running.returncode != 0
    found = ticks(made)
    numbers = [number for number, _ in found]
    assert len(numbers) >= 200
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert found[-1][1] > killed_s - 1.0


def ticks(made: Lab, *, is_complete: bool = True) -> list[tuple[int, float]]:
    """The datagrams of TICK that entered the switch: their numbers and times."""
    frames = [frame for frame in made.frames(is_complete=is_complete) if frame.interface == "node1"]
    return [struct.unpack("=Qd", frame.data[42:58]) for frame in frames]


def test_a_stream_has_its_result_on_standard_error(local: Lab) -> None:
    argv = [
        "sh",
        "-c",
        'exec "$@" >/run/stream',
        "sh",
        *VCLUSTER,
        "capture",
        "-o",
        "-",
        "--for",
        "0",
        "--output",
        "json",
    ]
    done = local.host.server.run(argv, timeout_s=60, env=ENVIRONMENT)
    result = json.loads(done.stderr[done.stderr.index("{") :])
    assert result["bytes"] == local.host.server.path("/run/stream").stat().st_size


def test_a_stream_is_read_while_it_is_captured(local: Lab) -> None:
    argv = ["sh", "-c", 'exec "$@" | head -c 1000 | wc -c', "sh", *VCLUSTER, "capture", "-o", "-"]
    running = local.host.server.popen(argv, env=ENVIRONMENT)
    assert running.stderr is not None
    assert running.stderr.readline().startswith(BEGUN)
    local.sh("node1", "ping -q -c 30 -i 0.02 10.0.0.2")
    stdout, stderr = running.communicate(timeout=60)
    assert (stdout.strip(), stderr) == ("1000", "")
