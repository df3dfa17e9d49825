"""Limits of links of nodes that are up: their frames are not larger than the MTU while there are limits."""

from __future__ import annotations

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
