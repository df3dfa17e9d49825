"""Make a cluster whose nodes are network namespaces: python -m tests.cabled_cluster MODE NODES [SWITCH]

With the arguments `plug NODE` it makes the namespace of a node again.

It runs on a server of the testbed. The ledger, the networks, the switch and the tunnels are made by vcluster's own
code. In the place of a node's tap is a veth; its other end is lab0 in the namespace with the name of the node. So nodes
exchange frames over the switch within a second, and no QEMU runs. They send nothing by themselves: they have no IPv6,
and know each other's MAC address.
"""

from __future__ import annotations

import subprocess
import sys

from tests.unbooted_cluster import networks
from vcluster.adapters.network import ipv6
from vcluster.cli import common
from vcluster.commands.steps import inventory
from vcluster.model.plan import Node, Plan


def make(mode: str, nodes: int, place: str) -> None:
    with networks(mode, nodes, place) as (_, plan):
        for node in plan.nodes:
            plug(plan, node)


def plug(plan: Plan, node: Node) -> None:
    """Make the namespace of a node, and connect it to the node's bridge."""
    outside = (
        f"link add {node.port} mtu {plan.mtu} type veth peer name lab0 netns {node.name}",
        f"link set {node.port} master {node.bridge}",
    )
    inside = (
        "link set lo up",
        f"link set lab0 address {node.mac} mtu {plan.mtu} up",
        f"address add {node.address}/{plan.subnet.prefixlen} dev lab0",
        *(f"neighbour add {each.address} lladdr {each.mac} dev lab0" for each in plan.nodes if each is not node),
    )
    subprocess.run(["ip", "netns", "add", node.name], check=True)
    argv = ["ip", "netns", "exec", node.name, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"]
    subprocess.run(argv, check=True)
    for argv, lines in ((["ip"], outside), (["ip", "-n", node.name], inside)):
        subprocess.run([*argv, "-batch", "-"], input="\n".join(lines), text=True, check=True)
    ipv6.disable([node.port])
    subprocess.run(["ip", "link", "set", node.port, "up"], check=True)


if __name__ == "__main__":
    what, which, *rest = sys.argv[1:]
    if what == "plug":
        plan = inventory.read_ledger(common.context().files("lab")).plan
        plug(plan, plan.node(which))
    else:
        make(what, int(which), (rest or [""])[0])
