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

from tests.unbooted_cluster import image, spec_of
from vcluster.adapters.network import ipv6
from vcluster.cli import common
from vcluster.commands.steps import admission, inventory
from vcluster.commands.steps.deployment import Deployment
from vcluster.fleet import ledger
from vcluster.model import naming
from vcluster.model.keys import make_keys
from vcluster.model.plan import Node, Plan
from vcluster.resources import server_keys
from vcluster.util.deadline import Deadline


def make(mode: str, nodes: int, place: str) -> None:
    context, spec = common.context().with_owner(), spec_of(mode, nodes, place)
    files, deadline = context.files(spec.name), Deadline(60)
    with context.fleet(admission.server_requests(spec)) as fleet:
        plan, _ = admission.plan_cluster(context, fleet, spec, image=image(), accel="tcg")
        keys = make_keys(plan.name, spec.node_names, label=naming.alias(plan.name, plan.owner))
        cluster = Deployment(context, fleet, plan, keys, deadline)
        with files.locked():
            cluster.save(ledger.Ledger(ledger.VERSION, "ready", "", plan))
            fleet.each(lambda server: server_keys.create(server, keys.admin.public))
            cluster.create_networks()
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
