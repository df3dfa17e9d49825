"""The management network of a cluster on a server, as a libvirt network."""

from __future__ import annotations

from vcluster.fleet.servers import Server
from vcluster.model import naming
from vcluster.model.plan import ServerPlan
from vcluster.render.network_xml import network_xml
from vcluster.resources.owned import OwnedItem


def create(server: Server, plan: ServerPlan, cluster: str) -> None:
    """Make the management network of one server."""
    if plan.network:
        server.hypervisor.create_network(network_xml(cluster, server.owner, plan.network))


def destroy(server: Server, cluster: str) -> None:
    """Remove the cluster's management network, and before its definition what libvirt left of it.

    libvirt 9.0 leaves files in /run. A libvirtd that was killed while it started or stopped the network leaves its
    bridge and files of dnsmasq, and does not know them any more.
    """
    if server.libvirt is None:
        return
    names = [network.name for network in server.libvirt.networks() if network.cluster == cluster]
    for name in names:
        server.libvirt.stop_network(name)
    if names:
        bridge = naming.management_bridge_name(cluster)
        server.call("remove_traces", networks=[*names, bridge], domains=[])
        server.call("destroy_bridge", name=bridge)
    for name in names:
        server.libvirt.undefine_network(name)


def observe(server: Server) -> tuple[OwnedItem, ...]:
    """All management networks with our owner label."""
    networks = server.libvirt.networks() if server.libvirt else ()
    return tuple(OwnedItem("network", network.name, network.cluster) for network in networks)
