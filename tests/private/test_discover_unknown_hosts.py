"""`discover` lists the hosts on the cluster network: the nodes, and one unknown host."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from tests.clusters import Cluster

pytestmark = pytest.mark.vm

ROOT = Path(__file__).parent.parent.parent
MAC = "02:00:00:00:00:99"
ASK = f"""
import socket
from tests import dhcp_client
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
    wire.bind(("eth9", dhcp_client.ETH_P_IP))
    print(dhcp_client.ask(wire, "{MAC}", name="passer-by").address)
"""


@pytest.fixture
def unknown_host(cluster: Cluster) -> Iterator[str]:
    """A host that is not a node, on the cluster network: the address that it has got by DHCP."""
    host = cluster.host
    host.sh(
        "ip netns add unknown && ip link add st0 type veth peer name eth9 netns unknown && "
        f"ip link set st0 master vc-lab up && ip -n unknown link set eth9 address {MAC} up"
    )
    try:
        inside = ["ip", "netns", "exec", "unknown", "env", f"PYTHONPATH={ROOT}", sys.executable, "-c", ASK]
        address = host.server.run(inside, timeout_s=120).stdout.strip()
        host.sh(f"ip -n unknown addr add {address}/24 dev eth9")
        yield address
    finally:
        host.sh("ip netns del unknown; umount /run/netns; ip link del st0 2>/dev/null || true")


def test_an_unknown_host_gets_an_address_of_another_range_and_is_marked(cluster: Cluster, unknown_host: str) -> None:
    assert IPv4Address("10.0.0.205") <= IPv4Address(unknown_host) <= IPv4Address("10.0.0.254")
    found = {one["address"]: one for one in cluster.host.json("discover", timeout_s=300)}
    assert found[unknown_host] | {"found_by": set(found[unknown_host]["found_by"])} == {
        "name": "passer-by", "address": unknown_host, "mac": MAC, "found_by": {"lease", "neighbour", "ping"},
        "stranger": True, "misplaced": False, "present": True,
    }  # fmt: skip
    nodes = {node["address"]: node for node in cluster.host.json("status")["nodes"]}
    assert set(found) == {*nodes, unknown_host}
    for address, node in nodes.items():
        assert (found[address]["name"], found[address]["mac"]) == (node["name"], node["mac"])
        assert not found[address]["stranger"]
    assert "unknown host" in cluster.host.vcluster("discover").stdout


def test_the_lease_of_an_unknown_host_that_left_is_listed(cluster: Cluster) -> None:
    gone = next(one for one in cluster.host.json("discover", timeout_s=300) if one["mac"] == MAC)
    assert gone["found_by"] == ["lease"]
