"""Bridges of the cluster network, marked by their alias."""

from __future__ import annotations

from vcluster import naming
from vcluster.hosts import netlink
from vcluster.model import ServerPlan
from vcluster.resources.found import Found
from vcluster.servers import Server


def create(plan: ServerPlan) -> None:
    """Make the bridges of one server."""
    for bridge in plan.bridges:
        netlink.create_bridge(bridge.name, mtu=bridge.mtu, alias=bridge.alias)


def destroy(_: Server, cluster: str) -> None:
    """Remove every link that carries the cluster's mark."""
    for link in netlink.links():
        if naming.cluster_of_alias(link.alias) == cluster:
            netlink.destroy_link(link.index, link.name)


def observe(_: Server) -> tuple[Found, ...]:
    """All links of ours."""
    found = ((link, naming.cluster_of_alias(link.alias)) for link in netlink.links())
    return tuple(Found("link", link.name, cluster) for link, cluster in found if cluster)


def names() -> frozenset[str]:
    """The names of all links, whoever made them."""
    return frozenset(link.name for link in netlink.links())
