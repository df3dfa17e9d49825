"""What the packet filter tables of a cluster on one server are made for. Pure."""

from __future__ import annotations

from typing import Any

from vcluster.model import naming
from vcluster.model.plan import Plan, ServerPlan


def guard_arguments(plan: ServerPlan, *, owner: str, cluster: str, whole: Plan | None = None) -> dict[str, Any]:
    """The arguments of the agent's operation guard for one server.

    With the `whole` plan, its rules also guard the other servers of the cluster.
    """
    network = plan.network
    nodes = [str(whole.node_range)] if whole else []
    return {
        "table": naming.table_name(cluster, owner),
        "tunnels": [(one.vni, str(one.remote), one.interface, str(one.local)) for one in plan.tunnels],
        "port": plan.tunnels[0].port if plan.tunnels else 0,
        "closed": naming.closed_interfaces(cluster),
        "management": (network.bridge, str(network.gateway), [str(network.subnet), *nodes]) if network else None,
        "servers": [*map(str, whole.underlay_addresses)] if whole else [],
    }
