"""Bridges and tunnels of the cluster network. Their alias is their owner label."""

from __future__ import annotations

from dataclasses import asdict

from vcluster.adapters.network.interface_spec import InterfaceSpec
from vcluster.fleet.servers import Server
from vcluster.model import naming
from vcluster.model.plan import Bridge, Plan, ServerPlan, Tunnel
from vcluster.resources.owned import OwnedItem


def create(server: Server, plan: ServerPlan) -> None:
    """Make the bridges and tunnels of one server."""
    specs = [*map(_bridge, plan.bridges), *map(_tunnel, plan.tunnels)]
    if specs:
        server.call("create_interfaces", specs=[asdict(spec) for spec in specs])


def attach(server: Server, plan: Plan) -> tuple[str, ...]:
    """Put the nodes' taps back into their bridges. Returns the names of the taps that it moved."""
    ports = {node.port: node.bridge for node in plan.nodes_on(server.name)}
    return tuple(server.call("attach", ports=ports)) if ports else ()


def destroy(server: Server, cluster: str) -> None:
    """Remove every interface with the cluster's owner label."""
    server.call("destroy_interfaces", alias=naming.alias(cluster, server.owner))


def reduce(server: Server, before: Plan, after: Plan) -> None:
    """Remove the bridges and tunnels of the plan `before` that are not in the plan `after`."""
    removed = {*before.server(server.name).interface_names} - {*after.server(server.name).interface_names}
    if removed:
        server.call("destroy_interfaces", alias=naming.alias(before.name, server.owner), names=sorted(removed))


def observe(server: Server) -> tuple[OwnedItem, ...]:
    """All interfaces with our owner label."""
    found = server.call("interfaces")
    labels = ((interface["name"], naming.parse_alias(interface["alias"])) for interface in found)
    return tuple(OwnedItem("interface", name, label[0]) for name, label in labels if label and label[1] == server.owner)


def _bridge(bridge: Bridge) -> InterfaceSpec:
    return InterfaceSpec(bridge.name, "bridge", bridge.mtu, bridge.alias)


def _tunnel(tunnel: Tunnel) -> InterfaceSpec:
    return InterfaceSpec(
        name=tunnel.name,
        kind="vxlan",
        mtu=tunnel.mtu,
        alias=tunnel.alias,
        master=tunnel.bridge,
        vni=tunnel.vni,
        local=str(tunnel.local),
        remote=str(tunnel.remote),
        interface=tunnel.interface,
        port=tunnel.port,
    )
