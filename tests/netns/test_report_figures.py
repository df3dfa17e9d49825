"""The report of a capture at a real switch: queues of a known rate, TCP with losses, and rounds of 8 nodes.

The figures are compared with those that scapy and tshark find in the same file.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.capture_lab import FILE, Lab, lab, tshark
from tests.clusters import Host
from tests.results import validated
from tests.testbed import testbed
from vcluster.frames.pcapng import INBOUND, OUTBOUND

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]

NODES = 8
# Exchanges 8 bytes with a partner in each step of recursive doubling: python -c … NUMBER NODES
DOUBLE = """
import socket, sys, time
me, nodes = map(int, sys.argv[1:])
server = socket.create_server((f"10.0.0.{me + 1}", 7000), backlog=nodes)
waiting, step = {}, 1
while step < nodes:
    partner = me ^ step
    while me < partner and partner not in waiting:
        try:
            waiting[partner] = socket.create_connection((f"10.0.0.{partner + 1}", 7000))
        except ConnectionRefusedError:
            time.sleep(0.05)
    while partner not in waiting:
        found, (address, _) = server.accept()
        waiting[int(address.split(".")[3]) - 1] = found
    waiting[partner].sendall(bytes(8))
    assert len(waiting[partner].recv(8, socket.MSG_WAITALL)) == 8
    step *= 2
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Lab]:
    with testbed("reports") as (server,), lab("local", "vp", Host(server), server, nodes=NODES) as made:
        yield made


def report(made: Lab) -> Any:
    """The report of the file, as the command prints it."""
    return validated(["capture", "report"], made.host.json("capture", "report", FILE))


def pair_of(result: Any, sender: str, receiver: str) -> Any:
    (found,) = [each for each in result["pairs"] if (each["from"], each["to"]) == (sender, receiver)]
    return found


@contextmanager
def limited(made: Lab, limits: str) -> Iterator[None]:
    """Limit frames to node2 in the block."""
    made.host.vcluster("link", "set", "node2", "--to", limits)
    try:
        yield
    finally:
        made.host.vcluster("link", "reset")


def await_empty(made: Lab) -> None:
    """Wait until no frame waits in a queue of the switch."""
    for _ in range(100):
        if not any(each["waiting_bytes"] for each in made.host.json("link", "show")):
            return
    pytest.fail("frames still wait")


def test_times_and_queues_are_those_that_scapy_finds(cluster: Lab) -> None:
    """At 8 Mbit/s, 60 frames of 1042 bytes wait: the last one for 62,520 bytes less the burst."""
    with limited(cluster, "rate=8mbit,queue=200000B"), cluster.captured():
        cluster.send("node1", "10.0.0.2", 60, 1000)
        await_empty(cluster)
    entries, exits = (
        [each.at_ns for each in cluster.frames() if (each.interface, each.direction, each.length) == (*place, 1042)]
        for place in (("node1", INBOUND), ("node2", OUTBOUND))
    )
    times = sorted(left - entered for entered, left in zip(entries, exits, strict=True))
    assert len(times) == 60
    found = pair_of(report(cluster), "node1", "node2")
    assert (found["frames"], found["crossed_frames"], found["traffic"]["udp"]["frames"]) == (60, 60, 60)
    assert (found["switch_time_least_ns"], found["switch_time_greatest_ns"]) == (times[0], times[-1])
    assert found["switch_time_median_ns"] == pytest.approx(statistics.median_low(times), rel=0.0005)
    assert found["switch_time_p99_ns"] == pytest.approx(times[-1], rel=0.0005)
    # Tokens for the burst are there at once. So no frame can leave sooner than the rate permits.
    assert times[-1] > (62_520 - 4000 - 1042) * 8 / 8e6 * 1e9 - (entries[-1] - entries[0])
    queues = [
        sum(entered <= other <= left for other in exits) * 1042 for entered, left in zip(entries, exits, strict=True)
    ]
    assert found["queue_max_bytes"] == max(queues)


def test_retransmissions_are_those_that_tshark_finds(cluster: Lab) -> None:
    """A short queue drops frames, so TCP sends their data again."""
    with limited(cluster, "rate=40mbit,queue=20000B"), cluster.captured():
        cluster.transmit(600_000)
    found = pair_of(report(cluster), "node1", "node2")
    path = cluster.host.server.path(FILE)
    entries = 'frame.interface_name == "node1" && frame.packet_flags_direction == 1 && tcp.srcport != 7000'
    again = segments_sent_again(path, entries)
    assert found["retransmissions"] == len(again) > 0
    sent = len(tshark(path, "-Y", entries, "-e", "frame.number"))
    left = len(tshark(path, "-Y", entries.replace("node1", "node2").replace("== 1", "== 2"), "-e", "frame.number"))
    assert (found["frames"], found["unmatched_frames"]) == (sent, sent - left)
    assert found["unmatched_frames"] > 0


def segments_sent_again(path: Path, filter_: str) -> list[str]:
    """The frames that tshark calls retransmissions, of a file with the entries alone."""
    entries = path.with_name("entries.pcapng")
    subprocess.run(["tshark", "-n", "-r", path, "-Y", filter_, "-w", entries], check=True, capture_output=True)
    shown = "tcp.analysis.retransmission || tcp.analysis.out_of_order"
    return tshark(entries, "-Y", shown, "-e", "frame.number")


def test_recursive_doubling_over_8_nodes_has_3_rounds(cluster: Lab) -> None:
    with cluster.captured():
        running = [cluster.popen(number + 1, DOUBLE, number, NODES) for number in range(NODES)]
        for process in running:
            assert process.wait(120) == 0, process.stderr.read() if process.stderr else ""
    result = report(cluster)
    assert (result["rounds"], result["rounds_of"]) == (3, "nodes")
    rounds = {(each["from"], each["to"]): each["rounds"] for each in result["pairs"]}
    wanted = {(f"node{one + 1}", f"node{(one ^ step) + 1}"): 1 for one in range(NODES) for step in (1, 2, 4)}
    assert rounds == wanted


def test_a_report_counts_each_frame_of_the_file(cluster: Lab) -> None:
    with cluster.captured():
        cluster.send("node1", "10.0.0.2", 500)
        cluster.sh("node2", "ping -q -c 5 -i 0.01 10.0.0.3")
        cluster.sh("node3", "ip neighbour del 10.0.0.4 dev lab0")
        cluster.sh("node3", "ping -q -c 1 -W 5 10.0.0.4")
    result = report(cluster)
    counts = Counter((each.interface, each.direction) for each in cluster.frames())
    for port in result["ports"]:
        assert (port["received_frames"], port["sent_frames"]) == (
            counts[port["node"], INBOUND],
            counts[port["node"], OUTBOUND],
        )
    assert sum(counts.values()) == result["frames"]
    (three,) = [port for port in result["ports"] if port["node"] == "node3"]
    assert (three["group_frames"], three["traffic"]["arp"]["frames"]) == (1, 1)
    assert pair_of(result, "node4", "node3")["traffic"]["arp"]["frames"] == 1
    assert pair_of(result, "node2", "node3")["traffic"]["icmp"]["frames"] == 5
    assert all(each["unmatched_frames"] == 0 for each in result["pairs"])
    plain = json.loads(cluster.host.vcluster("capture", "report", FILE, "-o", "json").stdout)
    assert plain == result
