"""The graph of a cluster with a real switch, whose kernel has its limits and counts its load. Nodes are namespaces."""

from __future__ import annotations

import json
import os
from xml.etree import ElementTree

import pytest

from tests.clusters import read_until
from tests.link_lab import NODES, Lab

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]


@pytest.fixture
def lab(cluster: Lab) -> Lab:
    return cluster


def test_the_graph_has_the_limits_of_the_kernel(lab: Lab) -> None:
    """Also what another program has changed."""
    lab.link("set", "node2", "--to", "rate=1.5mbit,queue=3000B")
    try:
        port = lab.host.json("graph")["links"][1]["switch_port"]
        lab.switch.sh(f"tc qdisc change dev {port} parent 7644:2 handle 2: bfifo limit 4000")
        found = lab.host.json("graph", "lab")
        assert [one["shaping"] for one in found["links"]] == [
            [],
            [{"direction": "to", "peer": None, "limits": "rate=1500kbit,queue=4000B"}],
            [],
        ]
        assert "to rate=1500kbit,queue=4000B" in lab.host.vcluster("graph").stdout
    finally:
        lab.host.vcluster("link", "reset")


def test_the_graph_has_the_ports_and_tunnels_of_the_kernel(lab: Lab) -> None:
    found = lab.host.json("graph")
    switch = [port for port in found["ports"] if port["bridge"] == found["switch"]["bridge"]]
    members = lab.switch.sh(f"ls /sys/class/net/{found['switch']['bridge']}/brif").split()
    assert sorted(port["name"] for port in switch) == sorted(members)
    assert {port["present"] for port in switch} == {True}
    is_remote = lab.switch != lab.host
    assert len(found["tunnels"]) == (len(NODES) if is_remote else 0)
    for tunnel in found["tunnels"]:
        shown = lab.switch.sh(f"ip -d link show {tunnel['port']}")
        assert f"vxlan id {tunnel['vni']} remote {tunnel['address']} local {tunnel['switch_address']}" in shown


def test_a_missing_port_is_shown(lab: Lab) -> None:
    """That of a node that is off, or a tunnel that another program removed."""
    name = lab.host.json("graph")["links"][2]["switch_port"]
    lab.switch.sh(f"ip link set {name} name away")
    try:
        assert "node3 (worker, 10.0.0.3, no port)" in lab.host.vcluster("graph").stdout
    finally:
        lab.switch.sh(f"ip link set away name {name}")


def test_the_load_is_that_of_the_frames_sent(lab: Lab) -> None:
    """A node sends 1000 frames of 1000 bytes while the load is counted."""
    running = lab.host.popen("graph", "-o", "json", "--load", "4s")
    read_until(running, "counting frames for 4 s")
    lab.send("node1", "node2", 1000)
    found = json.loads(running.communicate(timeout=60)[0])
    loads = {one["node"]: one["load"] for one in found["links"]}
    bits_s = 1000 * 1000 * 8 / 4
    assert 0.8 * bits_s < loads["node1"]["from_rate_bits"] <= 1.05 * bits_s
    assert 0.8 * bits_s < loads["node2"]["to_rate_bits"] <= 1.05 * bits_s
    assert loads["node1"]["to_rate_bits"] < 0.1 * bits_s


def test_the_ending_of_the_file_is_its_format(lab: Lab) -> None:
    lab.host.vcluster("graph", "-o", "/run/lab.svg", SUDO_UID="1", SUDO_GID="1")
    text = lab.host.sh("cat /run/lab.svg; stat -c %u:%g /run/lab.svg")
    assert text.splitlines()[-1] == "1:1"
    assert ElementTree.fromstring(text.rpartition("1:1")[0]).tag.endswith("svg")
    for ending, begin in (("mmd", "%% lab"), ("dot", 'graph "lab"'), ("json", "{")):
        lab.host.vcluster("graph", "-o", f"/run/lab.{ending}")
        assert lab.host.sh(f"cat /run/lab.{ending}").startswith(begin)
    refused = lab.host.vcluster("graph", "-o", "/nowhere/lab.svg", check=False)
    assert refused.returncode == 3
    assert "cannot write /nowhere/lab.svg: No such file or directory (choose another file)" in refused.stderr
    lab.host.sh("rm /run/lab.*")
