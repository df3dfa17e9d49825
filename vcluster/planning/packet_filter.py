"""What the packet filter tables of a cluster on one server are made for. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vcluster.model import naming
from vcluster.model.plan import Node, Plan, ServerPlan

Range = tuple[str, str]  # the first and the last address


def guard_arguments(plan: ServerPlan, *, owner: str, cluster: str, whole: Plan | None = None) -> dict[str, Any]:
    """The arguments of the agent's operation guard for one server.

    With the `whole` plan, its rules also guard the other servers of the cluster.
    """
    network = plan.network
    here = [node for node in whole.nodes if node.server == plan.name] if whole else []
    nodes = [str(whole.node_range)] if whole else []
    return {
        "table": naming.table_name(cluster, owner),
        "tunnels": [(one.vni, str(one.remote), one.interface, str(one.local)) for one in plan.tunnels],
        "port": plan.tunnels[0].port if plan.tunnels else 0,
        "closed": naming.closed_interfaces(cluster),
        "management": (network.bridge, str(network.gateway), [str(network.subnet), *nodes]) if network else None,
        "servers": [*map(str, whole.underlay_addresses)] if whole else [],
        "macs": [(str(node.management.address), node.management.mac) for node in here if node.management],
        "ports": _ports(whole, here) if whole and here else None,
    }


def _ports(plan: Plan, nodes: Sequence[Node]) -> tuple[str, str, list[Range], list[tuple[str, str, bool]]]:
    """The taps of all nodes, the addresses of all nodes, and the ports of these nodes. Only a head serves DHCP."""
    taps = naming.management_ports(plan.name), naming.ports(plan.name)
    ports = [(node.port, str(node.address), node.is_head or not plan.dhcp_range) for node in nodes]
    return *taps, _ranges(plan), ports


def _ranges(plan: Plan) -> list[Range]:
    """The addresses of all nodes on the cluster network, in as few ranges as possible: each one is a rule."""
    addresses = sorted(node.address for node in plan.nodes)
    before, after = {address + 1 for address in addresses}, {address - 1 for address in addresses}
    firsts = (str(address) for address in addresses if address not in before)
    lasts = (str(address) for address in addresses if address not in after)
    return list(zip(firsts, lasts, strict=True))
