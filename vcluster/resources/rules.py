"""VXLAN knows no passwords, so the packet filter lets nobody but its peer send into a tunnel of ours.

A table for each cluster, marked by its name; it speaks of our own VNIs and leaves all other packets alone.
"""

from __future__ import annotations

from vcluster.fleet.servers import Server
from vcluster.model import naming
from vcluster.model.plan import Plan, ServerPlan
from vcluster.resources.owned import OwnedItem


def create(server: Server, plan: ServerPlan, cluster: str) -> None:
    """Guard the tunnels of one server."""
    if plan.tunnels:
        tunnels = [(tunnel.vni, str(tunnel.remote)) for tunnel in plan.tunnels]
        server.call("guard", table=naming.table_name(cluster, server.owner), tunnels=tunnels, port=plan.tunnels[0].port)


def destroy(server: Server, cluster: str) -> None:
    """Remove the cluster's table."""
    name = naming.table_name(cluster, server.owner)
    if name in server.call("guards", prefix=name):
        server.call("remove_guard", table=name)


def reduce(server: Server, before: Plan, after: Plan) -> None:
    """Guard what is left of the tunnels, if that is less."""
    left = after.server(server.name)
    if left.tunnels == before.server(server.name).tunnels:
        return
    if left.tunnels:
        create(server, left, after.name)
    else:
        destroy(server, after.name)


def observe(server: Server) -> tuple[OwnedItem, ...]:
    """All tables of ours."""
    names = server.call("guards", prefix=f"{naming.PREFIX}-")
    marks = ((name, naming.parse_table_name(name)) for name in names)
    return tuple(OwnedItem("table", name, mark[0]) for name, mark in marks if mark and mark[1] == server.owner)
