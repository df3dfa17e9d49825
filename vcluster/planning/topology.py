"""The bridges and tunnels of each server. Pure: the only module in which the three modes come out different.

A node on the switch's own server is a port of the switch's bridge. Every other node has its own bridge with two ports:
its tap, and its own tunnel to the switch. So two nodes of one server talk through the switch. One shared bridge or one
shared VNI would let their traffic bypass it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice

from vcluster.errors import ConflictError, MissingError, RequestError
from vcluster.model import naming
from vcluster.model.facts import Facts, UnderlayRoute
from vcluster.model.plan import Bridge, Node, Switch, Tunnel

VXLAN_OVERHEAD_BYTES = 50  # RFC 7348: IPv4 20, UDP 8, VXLAN 8, and the inner Ethernet header 14
VNI_MAX = 2**24 - 1


@dataclass(frozen=True, slots=True)
class Attachment:
    """The place of a node on the cluster network: a port of a bridge, on a server; `vni` is None without a tunnel."""

    index: int
    server: str
    bridge: str
    port: str
    vni: int | None = None


@dataclass(frozen=True, slots=True)
class Topology:
    """The switch, the bridges and tunnels of each server, and the attachment of each node."""

    switch: Switch
    bridges: dict[str, tuple[Bridge, ...]]
    tunnels: dict[str, tuple[Tunnel, ...]]
    attachments: tuple[Attachment, ...]


@dataclass(frozen=True, slots=True)
class Fabric:
    """The properties that all bridges and tunnels of a cluster share.

    `port` is the UDP port of VXLAN, `switch` the server that the switch is on, `vni_base` the lowest VNI. `owns_switch`
    is False when the switch's administrator sets up the switch side.
    """

    cluster: str
    owner: str
    mtu: int
    port: int
    switch: str
    owns_switch: bool
    vni_base: int

    def bridge(self, name: str) -> Bridge:
        """A bridge with the owner label."""
        return Bridge(name, self.mtu, naming.alias(self.cluster, self.owner))

    def tunnel(self, index: int, vni: int, bridge: str, route: UnderlayRoute) -> Tunnel:
        """One end of a node's tunnel, with the owner label."""
        label = naming.alias(self.cluster, self.owner)
        name = naming.tunnel_name(self.cluster, index)
        return Tunnel(name, bridge, vni, route.local, route.remote, route.interface, self.port, self.mtu, label)


Routes = Mapping[tuple[str, str], UnderlayRoute]  # by the names of both servers: start and end


def plan_topology(
    fabric: Fabric, facts: Mapping[str, Facts], servers: Sequence[str], *, present: Sequence[Node] = ()
) -> Topology:
    """The topology for new nodes on these servers, in order, next to the nodes that are `present`.

    Raises MissingError when the MTU does not fit the underlay, ConflictError or RequestError when no VNI is left.
    """
    remote = [server for server in servers if server != fabric.switch]
    routes = _routes(fabric, facts, remote)
    for (start, end), route in routes.items():
        check_tunnel_mtu(fabric.mtu, start, end, route)
    taken = {node.index for node in present}
    indices = islice((index for index in count(1) if index not in taken), len(servers))
    vnis = _choose_vnis(fabric, facts, remote, {node.vni for node in present})
    return _connect(fabric, dict(zip(indices, servers, strict=True)), vnis, routes)


def _routes(fabric: Fabric, facts: Mapping[str, Facts], remote: Sequence[str]) -> Routes:
    """The underlay routes of the tunnels; those from the switch only when its side is ours."""
    routes: dict[tuple[str, str], UnderlayRoute] = {}
    for server in dict.fromkeys(remote):
        routes[server, fabric.switch] = facts[server].underlay_routes[fabric.switch]
        if fabric.owns_switch:
            routes[fabric.switch, server] = facts[fabric.switch].underlay_routes[server]
    return routes


def _connect(fabric: Fabric, servers: Mapping[int, str], vnis: Sequence[int], routes: Routes) -> Topology:
    """The topology for nodes on `servers`, by index. `vnis` are for the nodes with a tunnel, in order."""
    switch = fabric.bridge(naming.bridge_name(fabric.cluster))
    bridges: dict[str, list[Bridge]] = {server: [] for server in servers.values()}
    tunnels: dict[str, list[Tunnel]] = {server: [] for server in servers.values()}
    attachments, free_vnis = [], iter(vnis)
    if fabric.owns_switch or fabric.switch in servers.values():
        bridges[fabric.switch], tunnels[fabric.switch] = [switch], []
    for index, server in servers.items():
        port = naming.port_name(fabric.cluster, index)
        if server == fabric.switch:
            attachments.append(Attachment(index, server, switch.name, port))
            continue
        bridge, vni = fabric.bridge(naming.node_bridge_name(fabric.cluster, index)), next(free_vnis)
        attachments.append(Attachment(index, server, bridge.name, port, vni))
        bridges[server].append(bridge)
        tunnels[server].append(fabric.tunnel(index, vni, bridge.name, routes[server, fabric.switch]))
        if fabric.owns_switch:
            tunnels[fabric.switch].append(fabric.tunnel(index, vni, switch.name, routes[fabric.switch, server]))
    return Topology(
        switch=Switch(fabric.switch, switch.name),
        bridges={server: tuple(made) for server, made in bridges.items()},
        tunnels={server: tuple(made) for server, made in tunnels.items()},
        attachments=tuple(attachments),
    )


def check_tunnel_mtu(mtu: int, start: str, end: str, route: UnderlayRoute) -> None:
    """Raise MissingError, with the largest MTU that fits, when the underlay's packets are too small for the tunnel."""
    fits = route.mtu - VXLAN_OVERHEAD_BYTES
    if mtu > fits:
        raise MissingError(
            f"MTU {mtu} does not fit from {start} to {end}: {route.interface} carries packets of {route.mtu} bytes, "
            f"and VXLAN needs {VXLAN_OVERHEAD_BYTES} of them",
            hint=f"--mtu {fits}, or mtu = {fits} in the file",
        )


def _choose_vnis(
    fabric: Fabric, facts: Mapping[str, Facts], remote: Sequence[str], taken: Collection[int | None]
) -> tuple[int, ...]:
    """For each node with a tunnel the first VNI that is free at both ends."""
    if not fabric.owns_switch:
        return _consecutive_vnis(fabric.vni_base, facts, remote)
    used_at_switch = {*facts[fabric.switch].vnis, *taken}
    chosen: list[int] = []
    candidate = fabric.vni_base
    for server in remote:
        while candidate in used_at_switch or candidate in facts[server].vnis:
            candidate += 1
        if candidate > VNI_MAX:
            raise ConflictError(f"all VNIs from {fabric.vni_base} on are in use", hint="use a smaller --vni-base")
        chosen.append(candidate)
        candidate += 1
    return tuple(chosen)


def _consecutive_vnis(base: int, facts: Mapping[str, Facts], remote: Sequence[str]) -> tuple[int, ...]:
    """The VNIs that `vcluster switch up` takes too, for the same number of nodes and the same base."""
    wanted = range(base, base + len(remote))
    if wanted and wanted[-1] > VNI_MAX:
        raise RequestError(
            f"VNI {wanted[-1]} is too high; the highest VNI is {VNI_MAX}", hint="use a smaller --vni-base"
        )
    taken = next((vni for server, vni in zip(remote, wanted, strict=True) if vni in facts[server].vnis), None)
    if taken is not None:
        raise ConflictError(f"VNI {taken} is in use here", hint="use another --vni-base, the same on both servers")
    return tuple(wanted)
