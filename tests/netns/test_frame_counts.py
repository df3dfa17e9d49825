"""Frames that enter the ports of a real switch are counted by class, and the counters end with their process."""

from __future__ import annotations

import os
import socket
import struct
import sys

import pytest

from tests.inside import inside
from tests.link_lab import ALL, Lab
from vcluster.errors import VclusterError

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]

TABLE = "measured-0123456789abcdef"
SEND = """
import socket, sys
out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
out.bind(("lab0", 0))
for _ in range(int(sys.argv[1])):
    out.send(bytes.fromhex(sys.argv[2]))
"""
SIZE = 200  # bytes of a frame


@pytest.fixture
def lab(cluster: Lab) -> Lab:
    return cluster


def ports(lab: Lab) -> list[str]:
    return [name for name in lab.switch.sh("ls /sys/class/net").split() if name.startswith(("vp-", "vx-"))]


def tcp(lab: Lab, node: str, source: int, target: int, header_bytes: int = 32) -> bytes:
    """IPv4 and TCP headers. A bridge may drop a frame with a wrong IPv4 checksum, or without the node's address."""
    (address,) = [each["address"] for each in lab.host.json("status", "lab")["nodes"] if each["name"] == node]
    ends = socket.inet_aton(address), socket.inet_aton("10.0.0.1")
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, SIZE - 14, 0, 0, 64, 6, 0, *ends)
    total = sum(struct.unpack(">10H", ip))
    checksum = 0xFFFF - (total % 0xFFFF)
    ip = ip[:10] + struct.pack(">H", checksum) + ip[12:]
    return b"\x08\x00" + ip + struct.pack(">HHIIBBHHH", source, target, 0, 0, header_bytes << 2, 0x10, 0, 0, 0)


def send(lab: Lab, node: str, target: str, count: int, rest: bytes) -> None:
    frame = bytes.fromhex((lab.macs[target] + lab.macs[node]).replace(":", "")) + rest
    argv = ["ip", "netns", "exec", node, sys.executable, "-c", SEND, str(count), frame.ljust(SIZE, b"\0").hex()]
    lab.host.server.run(argv, timeout_s=60)


def received(lab: Lab) -> tuple[int, int]:
    """The frames and bytes that the ports have received, by the kernel's own counters."""
    folders = " ".join(f"/sys/class/net/{port}/statistics" for port in ports(lab))
    values = [
        sum(map(int, lab.switch.sh(f"for folder in {folders}; do cat $folder/{name}; done").split()))
        for name in ("rx_packets", "rx_bytes")
    ]
    return values[0], values[1]


def tables(lab: Lab) -> str:
    return lab.switch.sh("nft list tables netdev")


def test_frames_are_counted_by_class_as_the_ports_count_them(lab: Lab) -> None:
    with inside(lab.switch.server) as call:
        call("frame_counts.count_frames", table=TABLE, ports=ports(lab))
        before = received(lab)
        nothing = {name: [0, 0] for name in ("arp", "ssh", "nfs", "options")}
        assert call("frame_counts.counted_frames", table=TABLE) == nothing
        send(lab, "node1", ALL, 3, b"\x08\x06")
        send(lab, "node1", "node2", 5, tcp(lab, "node1", 40000, 22))
        send(lab, "node2", "node1", 7, tcp(lab, "node2", 22, 40000))
        send(lab, "node3", "node1", 11, tcp(lab, "node3", 2049, 700))
        send(lab, "node2", "node3", 13, tcp(lab, "node2", 40000, 40001))
        found = call("frame_counts.counted_frames", table=TABLE)
        assert found == {"arp": [3, 3 * SIZE], "ssh": [12, 12 * SIZE], "nfs": [11, 11 * SIZE], "options": [0, 0]}
        after = received(lab)
        counted = SIZE if lab.switch is lab.host else SIZE - 14  # a tunnel counts bytes without the Ethernet header
        assert (after[0] - before[0], after[1] - before[1]) == (39, 39 * counted)
        call("frame_counts.end_frame_count", table=TABLE)
        call("frame_counts.end_frame_count", table=TABLE)
        assert TABLE not in tables(lab)


def test_options_of_tcp_are_counted_that_a_loss_adds(lab: Lab) -> None:
    """By their bytes above those of a time stamp. The headers of logins and of NFS are counted with their frames."""
    with inside(lab.switch.server) as call:
        call("frame_counts.count_frames", table=TABLE, ports=ports(lab))
        for count, header_bytes in ((2, 20), (3, 32), (5, 44), (7, 60)):
            send(lab, "node2", "node3", count, tcp(lab, "node2", 40000, 40001, header_bytes))
        send(lab, "node1", "node2", 1, tcp(lab, "node1", 40000, 22, 44))
        assert call("frame_counts.counted_frames", table=TABLE)["options"] == [12, 5 * 12 + 7 * 28]


def test_counters_are_before_limits(lab: Lab) -> None:
    """A limit redirects frames to another interface, and then no later rule of the port sees them."""
    lab.link("set", "node1", "--from", "rate=1gbit")
    try:
        with inside(lab.switch.server) as call:
            call("frame_counts.count_frames", table=TABLE, ports=ports(lab))
            send(lab, "node1", "node2", 5, tcp(lab, "node1", 40000, 22))
            assert call("frame_counts.counted_frames", table=TABLE)["ssh"] == [5, 5 * SIZE]
    finally:
        lab.link("reset")


def test_counters_end_with_their_process(lab: Lab) -> None:
    with inside(lab.switch.server) as call:
        call("frame_counts.count_frames", table=TABLE, ports=ports(lab))
        assert TABLE in tables(lab)
    lab.switch.wait_for(f"nft list tables netdev | grep -q {TABLE} || echo gone")


def test_a_count_that_has_ended_is_an_error(lab: Lab) -> None:
    with inside(lab.switch.server) as call, pytest.raises(VclusterError, match="ended before the measurement"):
        call("frame_counts.counted_frames", table=TABLE)
