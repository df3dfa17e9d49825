"""Which links each server has. Pure: the one place where local, remote and shared clusters come out different.

A node on the switch's own server is a port of the switch's bridge. Every other node has a bridge of its own with two
ports, its tap and its own tunnel to the switch, so that two nodes of the same server still talk through the switch: one
bridge or one VNI for both would let their traffic take a short cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from vcluster.model import naming
from vcluster.model.facts import UnderlayRoute
from vcluster.model.plan import Bridge, Switch, Tunnel


@dataclass(frozen=True, slots=True)
class Attachment:
    """Where a node joins the cluster network: a port of a bridge, on a server; `vni` None without a tunnel."""

    index: int
    server: str
    bridge: str
    port: str
    vni: int | None = None


@dataclass(frozen=True, slots=True)
class Topology:
    """The links of each server, where each node is attached, and where the switch is."""

    switch: Switch
    bridges: dict[str, tuple[Bridge, ...]]
    tunnels: dict[str, tuple[Tunnel, ...]]
    attachments: tuple[Attachment, ...]


@dataclass(frozen=True, slots=True)
class Fabric:
    """What all links of a cluster have in common."""

    cluster: str
    owner: str
    mtu: int
    port: int

    def bridge(self, name: str) -> Bridge:
        """A bridge, marked."""
        return Bridge(name, self.mtu, naming.alias(self.cluster, self.owner))

    def tunnel(self, index: int, vni: int, bridge: str, local: IPv4Address, remote: IPv4Address, via: str) -> Tunnel:
        """One end of a node's tunnel, marked."""
        mark = naming.alias(self.cluster, self.owner)
        name = naming.tunnel_name(self.cluster, index)
        return Tunnel(name, bridge, vni, local, remote, via, self.port, self.mtu, mark)


def lay_out(
    fabric: Fabric,
    places: Mapping[int, str],
    switch: str,
    *,
    vnis: Sequence[int],
    ways: Mapping[tuple[str, str], UnderlayRoute],
) -> Topology:
    """The links for nodes on these servers, by the nodes' indices and in their order, joined by the switch.

    `vnis` are for the nodes that need a tunnel, in order; `ways` are keyed by both servers' names. A way that leads
    from the switch may be missing: then the switch's half is somebody else's, and is left out.
    """
    middle = fabric.bridge(naming.bridge_name(fabric.cluster))
    bridges: dict[str, list[Bridge]] = {server: [] for server in places.values()}
    tunnels: dict[str, list[Tunnel]] = {server: [] for server in places.values()}
    attachments, numbers = [], iter(vnis)
    is_ours = switch in places.values() or any(start == switch for start, _ in ways)
    if is_ours:
        bridges[switch] = [middle]
        tunnels[switch] = []
    for index, server in places.items():
        port = naming.port_name(fabric.cluster, index)
        if server == switch:
            attachments.append(Attachment(index, server, middle.name, port))
            continue
        own, vni = fabric.bridge(naming.node_bridge_name(fabric.cluster, index)), next(numbers)
        attachments.append(Attachment(index, server, own.name, port, vni))
        there = ways[server, switch]
        bridges[server].append(own)
        tunnels[server].append(fabric.tunnel(index, vni, own.name, there.local, there.remote, there.interface))
        if is_ours:
            back = ways[switch, server]
            tunnels[switch].append(fabric.tunnel(index, vni, middle.name, back.local, back.remote, back.interface))
    return Topology(
        switch=Switch(switch, middle.name),
        bridges={server: tuple(made) for server, made in bridges.items()},
        tunnels={server: tuple(made) for server, made in tunnels.items()},
        attachments=tuple(attachments),
    )
