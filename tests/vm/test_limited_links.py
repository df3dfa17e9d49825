"""Limits of links of nodes that are up: their frames are not larger than the MTU while there are limits."""

from __future__ import annotations

import statistics
import sys

import pytest

from tests.clusters import Cluster
from tests.taps import LARGEST

pytestmark = pytest.mark.vm

FRAME = 1450 + 14
TRANSFER = "head -c 3000000 /dev/zero | ssh red1 'cat >/dev/null'"
UNIT = "vcluster-offloads"


def largest_frame(cluster: Cluster) -> int:
    """The largest frame of a TCP connection from red2 to red1, at the tap of red2."""
    watch = cluster.host.server.popen([sys.executable, "-c", LARGEST, "vp-lab-2"], takes_input=True)
    assert watch.stdout
    assert watch.stdout.readline() == "ready\n"
    cluster.ssh("red2", TRANSFER)
    return int(watch.communicate("\n", timeout=60)[0])


def ping_ms(cluster: Cluster) -> float:
    """The lower quartile of times of a ping from red2 to red1: the timers of an emulated node are late, never early."""
    printed = cluster.ssh("red2", "ping -c 20 -i 0.2 red1 | grep -o 'time=[0-9.]*'")
    return statistics.quantiles(float(line.removeprefix("time=")) for line in printed.split())[0]


def test_nodes_delay_frames_where_the_switch_cannot(cluster: Cluster) -> None:
    """In each direction. This machine's kernel has no netem."""
    host = cluster.host
    plain = ping_ms(cluster)
    try:
        host.vcluster("link", "set", "red1", "--from", "delay=30ms,jitter=2ms", "--to", "delay=70ms")
        rows = host.json("link", "show")
        assert [(one["direction"], one["delay_us"], one["jitter_us"], one["where"]) for one in rows] == [
            ("from", 30_000, 2000, "guest"),
            ("to", 70_000, None, "guest"),
        ]
        assert 95 <= ping_ms(cluster) - plain <= 130
        first, second = host.json("link", "show", "--measured", "red1")
        (figure,) = first["measured"]
        assert (figure["figure"], figure["asked"], figure["unit"]) == ("delay", 100_000, "us")
        assert 95_000 <= figure["value"] <= 130_000
        assert figure["low"] <= figure["value"] <= figure["high"]
        assert second["measured"] == []  # a round trip has the delays of both directions
        assert "red1  from       -     delay=30ms,jitter=2ms  guest" in host.vcluster("link", "show").stdout
        sent = host.json("link", "show")[0]["sent_packets"]
        assert sent >= 20
        host.vcluster("link", "set", "red1", "--from", "delay=10ms,jitter=none")
        assert host.json("link", "show")[0]["sent_packets"] >= sent  # changed in place
        cluster.ssh("red1", "systemctl restart vcluster-delays", user="root")
        assert host.json("link", "show")[0]["sent_packets"] >= sent
    finally:
        host.vcluster("link", "reset")
    assert host.json("link", "show") == []
    assert ping_ms(cluster) < plain + 30
    assert "netem" not in cluster.ssh("red1", "tc qdisc show; ip -br link | grep delay || true")


@pytest.mark.rare  # a reboot of one more node
def test_delays_are_there_after_a_reboot_and_a_repair(cluster: Cluster) -> None:
    host = cluster.host
    plain = ping_ms(cluster)
    try:
        host.vcluster("link", "set", "red1", "--from", "delay=10ms", "--to", "delay=70ms")
        host.vcluster("power", "cycle", "-w", "red1", "--wait", timeout_s=300)
        assert 75 <= ping_ms(cluster) - plain <= 110
        cluster.ssh("red1", "systemctl stop vcluster-delays; tc qdisc del dev lab0 root || true", user="root")
        host.vcluster("repair", "lab")
        assert 75 <= ping_ms(cluster) - plain <= 110
    finally:
        host.vcluster("link", "reset")


def is_enabled(cluster: Cluster) -> str:
    return cluster.ssh("red3", f"systemctl is-enabled {UNIT} || true", user="root").strip()


def test_frames_are_small_while_a_link_has_limits(cluster: Cluster) -> None:
    host = cluster.host
    assert largest_frame(cluster) > FRAME
    done = host.vcluster("link", "set", "red1", "--to", "rate=50mbit,loss=0.1%")
    try:
        assert "turned off TSO, GSO and GRO: vp-lab-1, vp-lab-2, vp-lab-3 on localhost; lab0 of red[1-3]" in done.stderr
        assert largest_frame(cluster) <= FRAME
        assert is_enabled(cluster) == "enabled"
        cluster.ssh("red2", f"systemctl restart {UNIT}", user="root")
        assert largest_frame(cluster) <= FRAME
        assert host.json("link", "show")[0]["sent_packets"] > 2 * 3_000_000 / FRAME
    finally:
        reset = host.vcluster("link", "reset")
    assert "restored TSO, GSO and GRO: vp-lab-1, vp-lab-2, vp-lab-3 on localhost; lab0 of red[1-3]" in reset.stderr
    assert largest_frame(cluster) > FRAME
    assert is_enabled(cluster) in ("", "not-found")
