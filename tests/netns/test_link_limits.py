"""Limits of links at a real switch: the kernel's queues and rules, with frames that cross them.

See link_lab.py for the nodes and the switch.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Iterator

import pytest

from tests import broken_promises, idle_nodes
from tests.clusters import Host
from tests.fault_lab import HOLDERS
from tests.inside import ROOT
from tests.link_lab import ALL, NODES, Lab, features, labs
from tests.taps import LARGEST, RECEIVE
from tests.testbed import testbed

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]


@pytest.fixture
def lab(cluster: Lab) -> Iterator[Lab]:
    """The bridges know the MACs of all nodes, so they flood no frame of a test."""
    cluster.teach_bridges()
    yield cluster
    cluster.host.vcluster("link", "reset")
    assert cluster.qdiscs() == {}


def test_a_queue_holds_its_bytes_and_drops_the_rest(lab: Lab) -> None:
    """At 1000 bytes a second, the burst passes, ten frames wait, and the rest is dropped."""
    lab.link("set", "node1", "--from", "rate=8kbit,queue=10000B")
    before = lab.received("node2")
    lab.send("node1", "node2", 100)
    lab.send("node3", "node2", 7)
    found = lab.one("node1", "from")
    assert found["waiting_bytes"] <= 10_000
    assert found["sent_packets"] + found["dropped_packets"] + found["waiting_bytes"] // 1000 == 100
    assert 50 <= found["dropped_packets"] <= 88  # fewer if the sender has to wait for a processor
    assert lab.received("node2") - before >= 7
    lab.link("set", "node1", "--from", "rate=1gbit")
    found = lab.when_empty("node1", "from")
    assert found["sent_packets"] + found["dropped_packets"] == 100
    assert lab.received("node2") - before == found["sent_packets"] + 7


def test_each_direction_has_its_own_limits(lab: Lab) -> None:
    lab.link("set", "node1", "--from", "rate=1gbit", "--to", "rate=8kbit,queue=5000B")
    lab.send("node1", "node2", 50)
    lab.send("node2", "node1", 50)
    assert (lab.one("node1", "from")["sent_packets"], lab.one("node1", "from")["dropped_packets"]) == (50, 0)
    assert 20 <= lab.one("node1", "to")["dropped_packets"] <= 43
    lab.link("set", "node1", "--to", "rate=1gbit")
    assert lab.when_empty("node1", "to")["sent_packets"] + lab.one("node1", "to")["dropped_packets"] == 50


def test_frames_are_dropped_at_random(lab: Lab) -> None:
    """Within four standard deviations, and only in one direction."""
    lab.link("set", "node1", "--to", "loss=10%")
    before = {node: lab.received(node) for node in NODES}
    lab.send("node2", "node1", 10_000, 100)
    lab.send("node1", "node2", 1000, 100)
    dropped = lab.one("node1", "to")["dropped_packets"]
    assert abs(dropped - 1000) < 4 * math.sqrt(10_000 * 0.1 * 0.9)
    assert lab.received("node1") - before["node1"] == 10_000 - dropped
    assert lab.received("node2") - before["node2"] == 1000


def test_all_frames_of_a_direction_can_be_dropped(lab: Lab) -> None:
    lab.link("set", "node1", "--from", "loss=100%")
    before = {node: lab.received(node) for node in NODES}
    lab.send("node1", "node2", 100)
    lab.send("node2", "node1", 100)
    assert lab.received("node2") == before["node2"]
    assert lab.received("node1") - before["node1"] == 100


def test_a_frame_passes_the_limits_of_both_nodes(lab: Lab) -> None:
    lab.link("set", "node1", "--from", "rate=1gbit,loss=50%")
    lab.link("set", "node2", "--to", "rate=1gbit")
    before = lab.received("node2")
    lab.send("node1", "node2", 400)
    sent, received = lab.one("node1", "from"), lab.one("node2", "to")
    assert sent["sent_packets"] == 400
    dropped = sent["dropped_packets"]
    assert 100 < dropped < 300
    assert received["sent_packets"] == lab.received("node2") - before == 400 - dropped


def test_a_peer_has_limits_of_its_own(lab: Lab) -> None:
    lab.link("set", "node1", "--both", "rate=1gbit")
    lab.link("set", "node1", "--from", "rate=500mbit", "--to", "rate=200mbit,loss=100%", "--peer", "node3")
    before = {node: lab.received(node) for node in NODES}
    for start, end, count in (
        ("node1", "node2", 30),
        ("node1", "node3", 20),
        ("node2", "node1", 10),
        ("node3", "node1", 5),
    ):
        lab.send(start, end, count)
    counted = {(one["direction"], one["peer"]): one["sent_packets"] for one in lab.link("show", "node1")}
    assert counted == {("from", None): 30, ("from", "node3"): 20, ("to", None): 10, ("to", "node3"): 0}
    assert lab.one("node1", "to", "node3")["dropped_packets"] == 5
    assert [lab.received(node) - before[node] for node in NODES] == [10, 30, 20]


def test_a_broadcast_is_not_a_frame_of_a_peer(lab: Lab) -> None:
    """It has the limits for all frames, for example an ARP request that the switch floods to the peer."""
    lab.link("set", "node1", "--both", "rate=1gbit")
    lab.link("set", "node1", "--both", "rate=500mbit,loss=100%", "--peer", "node3")
    before = {node: lab.received(node) for node in NODES}
    lab.send("node1", ALL, 20)
    lab.send("node3", ALL, 7)
    assert [lab.received(node) - before[node] for node in NODES] == [7, 27, 20]
    counted = {(one["direction"], one["peer"]): one["sent_packets"] for one in lab.link("show", "node1")}
    assert counted == {("from", None): 20, ("from", "node3"): 0, ("to", None): 7, ("to", "node3"): 0}


def test_a_change_during_a_transfer_loses_no_frame(lab: Lab) -> None:
    """The queues of other links keep their handles and counters, and so does the one that changes."""
    lab.link("set", "node1", "node2", "--both", "rate=1gbit")
    lab.send("node1", "node2", 10)
    before, received = lab.qdiscs(), lab.received("node2")
    sending = lab.sending("node1", "node2")
    assert sending.stdout.readline() == "sending\n"
    lab.link("set", "node1", "--from", "rate=2gbit")
    lab.link("set", "node1", "--from", "queue=1MiB", "--to", "rate=3gbit")
    lab.link("set", "node3", "--from", "rate=10mbit", "--to", "loss=1%")
    lab.link("set", "node1", "--from", "rate=1gbit", "--peer", "node3")
    sending.terminate()
    sent = int(sending.communicate(timeout=60)[0])
    assert lab.received("node2") - received == sent > 1000
    after = lab.qdiscs()
    assert before.keys() <= after.keys()
    assert all(after[key]["packets"] >= before[key]["packets"] for key in before)
    assert sum(after[key]["drops"] for key in after) == 0


TRANSMIT = """
import socket
out = socket.create_connection(("10.0.0.2", 7000))
out.sendall(bytes(4_000_000))
"""


def largest_frame(host: Host) -> int:
    """The largest frame of a TCP connection from node1 to node2, at the tap of node1."""

    def in_node(node: str, program: str) -> list[str]:
        return ["ip", "netns", "exec", node, sys.executable, "-c", program]

    watch = host.server.popen([sys.executable, "-c", LARGEST, "vp-lab-1"], takes_input=True)
    receiver = host.server.popen(in_node("node2", RECEIVE))
    for process in (watch, receiver):
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    host.server.run(in_node("node1", TRANSMIT), timeout_s=60)
    assert receiver.wait(60) == 0
    return int(watch.communicate("\n", timeout=60)[0])


def test_offloads_are_off_while_there_are_limits(lab: Lab) -> None:
    """And on again after that, as they were before, also when a command was killed in between."""
    servers = {lab.host.server.name: lab.host, lab.switch.server.name: lab.switch}
    ports = [(lab.host, f"vp-lab-{number}") for number in (1, 2, 3)]
    if len(servers) == 2:
        ports += [(host, f"vx-lab-{number}") for host in servers.values() for number in (1, 2, 3)]
    lab.switch.sh(f"ip link show {ports[-1][1]} >/dev/null")
    before = [features(*each) for each in ports]
    assert all("tso" in each and "gso" in each for each in before)
    done = lab.host.vcluster("link", "set", "node1", "--to", "loss=1%")
    assert "turned off TSO, GSO and GRO: vp-lab-1, vp-lab-2, vp-lab-3" in done.stderr
    assert [features(*each) for each in ports] == [[]] * len(ports)
    again = lab.host.vcluster("link", "set", "node1", "--to", "loss=2%")
    assert "TSO" not in again.stderr
    broken_promises.restore(lab.host)
    done = lab.host.vcluster("link", "reset")
    assert "restored TSO, GSO and GRO: vp-lab-1, vp-lab-2, vp-lab-3" in done.stderr
    assert [features(*each) for each in ports] == before
    owner = lab.host.sh("cat /var/lib/vcluster/owner").strip()
    killed = (
        "from vcluster.adapters.network.shaping import offloads\n"
        f"offloads.turn_off('vcluster:lab:{owner}', {[name for host, name in ports if host is lab.host]!r})"
    )
    lab.host.server.run([sys.executable, "-c", killed], timeout_s=30, cwd=ROOT)
    assert features(*ports[0]) == []
    lab.host.vcluster("link", "reset")
    assert [features(*each) for each in ports] == before
    assert all(host.sh("ls -A /run/vcluster 2>/dev/null || true") == "" for host in servers.values())


def test_the_program_of_nodes_keeps_frames_small(lab: Lab) -> None:
    """TCP data of a node whose lab0 has no offloads leaves it in frames that are not larger than the MTU."""
    for number, node in enumerate(NODES, start=1):
        lab.host.sh(f"ip -n {node} address replace 10.0.0.{number}/24 dev lab0")
    program = f"{sys.executable} {ROOT}/vcluster/guest/node_offloads.py"
    steps = ["mount -t tmpfs x /run", f"{program} off lab0; {program} off lab0", f"{program} restore lab0"]
    line = "".join(f"{step}; echo done; read line; " for step in steps)
    argv = ["ip", "netns", "exec", "node1", "unshare", "-m", "sh", "-c", line]
    node = lab.host.server.popen(argv, takes_input=True)
    for is_small in (False, True, False):
        assert node.stdout.readline() == "done\n"
        assert (largest_frame(lab.host) <= 1450 + 14) == is_small
        node.stdin.write("\n")
        node.stdin.flush()
    assert node.wait(30) == 0


def test_the_kernel_is_read(lab: Lab) -> None:
    """Also what was changed by hand. The text has what `link set` takes."""
    lab.link("set", "node2", "--to", "rate=1.5mbit,queue=3000B,loss=0.25%")
    shown = lab.host.vcluster("link", "show").stdout
    assert "node2  to         -     rate=1500kbit,queue=3000B,loss=0.25%  switch" in shown
    port = "vx-lab-2" if lab.switch != lab.host else "vp-lab-2"
    lab.switch.sh(f"tc qdisc change dev {port} parent 7644:2 handle 2: bfifo limit 4000")
    assert lab.one("node2", "to")["queue_bytes"] == 4000
    lab.link("set", "node2", "--to", "loss=none")
    assert (lab.one("node2", "to")["queue_bytes"], lab.one("node2", "to")["loss_ppm"]) == (3000, None)
    assert lab.host.json("link", "reset", "node1") == {"name": "lab", "reset": []}
    assert lab.host.json("link", "reset", "node2") == {"name": "lab", "reset": ["node2"]}
    assert lab.link("show") == []
    assert lab.switch.sh("nft list tables | grep links || true") == ""


def test_limits_last_until_the_cluster_is_cleared() -> None:
    """A node gets them when it starts, a repair restores them, and nothing of them stays."""
    with labs("local") as lab:
        host = lab.host
        host.sh("ip link del vp-lab-3")
        done = host.vcluster("link", "set", "node1", "node3", "--both", "rate=1mbit,loss=1%")
        assert "node3 is off; its link gets its limits when it starts" in done.stderr
        assert {(one["node"], one["direction"]) for one in lab.link("show")} == {("node1", "from"), ("node1", "to")}
        host.vcluster("power", "on", "-w", "node3")
        assert {each[0] for each in lab.qdiscs()} >= {"vp-lab-1", "vi-lab-1", "vp-lab-3", "vi-lab-3"}
        assert features(host, "vp-lab-3") == []
        assert [node["limits"] for node in host.json("status", "lab")["nodes"]] == [
            ["from rate=1mbit,queue=64KiB,loss=1%", "to rate=1mbit,queue=64KiB,loss=1%"],
            [],
            ["from rate=1mbit,queue=64KiB,loss=1%", "to rate=1mbit,queue=64KiB,loss=1%"],
        ]
        for line in (
            "tc qdisc del dev vp-lab-3 root",
            "nft delete table bridge $(nft list tables bridge | grep -o 'vcluster.*-links')",
            "nft delete table netdev $(nft list tables netdev | grep -o 'vcluster.*-links')",
            "ip link del vi-lab-1",
        ):
            host.sh(line)
            assert "limits of frames" in str(host.json("status", "lab")["missing"])
            broken = [each for each in broken_promises.broken(host) if each["id"] == "link-limits"]
            assert broken
            assert all("vcluster repair lab" in each["fix"] for each in broken)
            broken_promises.restore(host)
            assert [each for each in broken_promises.broken(host) if each["id"] in ("link-limits", "unplanned")] == []
        host.vcluster("link", "reset", "node3")
        assert host.sh("tc qdisc show dev vp-lab-3").startswith("qdisc noqueue ")  # as libvirt made it
        host.server.path("/run/rates.csv").write_text("t_s,from\n0,1mbit\n0.1,2mbit\n")
        host.vcluster("link", "trace", "node1", "/run/rates.csv", "--repeat")
        assert host.sh(HOLDERS) != ""
        host.vcluster("clear", "lab", "-y")
        assert host.sh(HOLDERS) == ""
        assert host.json("clear", "lab", "--verify", "-y")["left"] == []
        left = (
            "ip -br link | grep -E 'v[ipcx]-lab'; nft list tables | grep vcluster; ls -A /run/vcluster; tc qdisc show"
        )
        assert host.sh(f"({left}) 2>/dev/null | grep -vE 'noqueue|vp-lab-[12]' || true") == ""


def test_a_create_makes_the_limits_and_its_rollback_removes_them() -> None:
    with testbed("link-create") as (server,):
        host = Host(server)
        idle_nodes.provide(host)
        limits = ("--link", "node2:both:rate=1mbit,loss=1%", "--link", "node1:from:node2:loss=5%")
        process = idle_nodes.created(host, "local", "create", *idle_nodes.options("lab"), *limits)
        host.wait_for("tc qdisc show dev vp-lab-2 | grep 'htb 7644:'")
        host.wait_for("nft list ruleset | grep 'fwd to \"vi-lab-2\"'")
        found = {(one["node"], one["direction"], one["peer"]) for one in host.json("link", "show")}
        assert found == {("node1", "from", "node2"), ("node2", "from", None), ("node2", "to", None)}
        assert features(host, "vp-lab-1") == []
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130
        assert host.json("clear", "--all", "--verify", "-y")["left"] == []
        left = "ip -br link | grep -E 'v[ipcx]-lab'; nft list tables | grep vcluster; ls -A /run/vcluster"
        assert host.sh(f"({left}) 2>/dev/null || true") == ""
