"""Packet filter rules of a cluster. They guard its tunnels, and its servers against its nodes.

VXLAN has no authentication, so only the two servers may send into a tunnel. Root of a node is not trusted, so it
reaches only DNS and DHCP of its management network.

Each cluster has one table, and the name of the table is its owner label. Its rules match our own VNIs and interfaces
only.
"""

from __future__ import annotations

from vcluster.fleet.servers import Server
from vcluster.model import naming
from vcluster.model.plan import Plan, ServerPlan
from vcluster.planning.packet_filter import guard_arguments
from vcluster.resources.owned import OwnedItem


def create(server: Server, plan: ServerPlan, cluster: str, *, whole: Plan | None = None) -> tuple[tuple[str, str], ...]:
    """Guard one server and its tunnels; with the `whole` plan, also the other servers of the cluster.

    Returns what root of a node can still do with this server, and why, if its kernel lacks something.
    """
    gaps = server.call("guard", **guard_arguments(plan, owner=server.owner, cluster=cluster, whole=whole))
    return tuple((str(what), str(why)) for what, why in gaps)


def destroy(server: Server, cluster: str) -> None:
    """Remove the cluster's tables, also those of links and faults."""
    names = naming.table_name, naming.links_table_name, naming.faults_table_name
    own = {name(cluster, server.owner) for name in names}
    for name in server.call("guards", prefix=naming.table_name(cluster, server.owner)):
        if name in own:
            server.call("remove_guard", table=name)


def reduce(server: Server, before: Plan, after: Plan) -> None:
    """Guard the nodes and tunnels of the plan `after`, if that takes other rules than in the plan `before`."""
    plan = after.server(server.name)
    former, wanted = (
        guard_arguments(each.server(server.name), owner=server.owner, cluster=each.name, whole=each)
        for each in (before, after)
    )
    if former != wanted:
        create(server, plan, after.name, whole=after)


def observe(server: Server) -> tuple[OwnedItem, ...]:
    """All tables with our owner label."""
    names = server.call("guards", prefix=f"{naming.PREFIX}-")
    labels = ((name, naming.parse_table_name(name)) for name in names)
    return tuple(OwnedItem("table", name, label[0]) for name, label in labels if label and label[1] == server.owner)


def lacking(server: Server, plan: Plan) -> tuple[str, ...]:
    """Of the cluster's tables, inet, arp and bridge, those that a server lacks although its kernel supports them."""
    return tuple(map(str, server.call("lacking_guards", table=naming.table_name(plan.name, plan.owner))))
