"""A cluster as a graph of servers, nodes, ports, tunnels and links. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from vcluster.model.plan import Node, Plan
from vcluster.planning import link_spec, traffic_plan
from vcluster.planning.hops import switch_port
from vcluster.planning.traffic.port_rates import PortTraffic
from vcluster.planning.traffic_plan import LinkReading

TAP, TUNNEL = "tap", "tunnel"


@dataclass(frozen=True, slots=True)
class GraphServer:
    """A server, with its bridges of the cluster network. `has_switch` is true for the server of the switch."""

    name: str
    has_switch: bool
    bridges: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GraphNode:
    """A node; `switch_port` is its port of the switch."""

    name: str
    role: str
    server: str
    address: str
    mac: str
    switch_port: str


@dataclass(frozen=True, slots=True)
class GraphPort:
    """A port of a bridge: the tap of a node, or an end of its tunnel.

    `present` is null if vcluster cannot read it: it reads the ports of the switch only.
    """

    name: str
    kind: str
    server: str
    bridge: str
    node: str
    present: bool | None


@dataclass(frozen=True, slots=True)
class GraphTunnel:
    """The tunnel of a node from its server to that of the switch. Both ends have the name of the port."""

    node: str
    port: str
    vni: int
    server: str
    switch_server: str
    address: str
    switch_address: str


@dataclass(frozen=True, slots=True)
class GraphShaping:
    """The limits of one direction of a link, written for `link set`; `peer` is null if they are about all frames."""

    direction: str
    peer: str | None
    limits: str


@dataclass(frozen=True, slots=True)
class GraphLoad:
    """The bits a second that a node sent and received; null if they could not be counted."""

    from_rate_bits: int | None
    to_rate_bits: int | None


@dataclass(frozen=True, slots=True)
class GraphLink:
    """The link of a node to the switch.

    `shaping` is null if it cannot be read. `faults` describe what disturbs the link on purpose. `load` is null if it
    was not measured.
    """

    node: str
    switch_port: str
    shaping: tuple[GraphShaping, ...] | None
    faults: tuple[str, ...]
    load: GraphLoad | None


@dataclass(frozen=True, slots=True)
class GraphSwitch:
    """The bridge that all frames between nodes cross, and its server."""

    server: str
    bridge: str


@dataclass(frozen=True, slots=True)
class ClusterGraph:
    """The whole graph; the field names are a contract with scripts. `load_s` is null if no load was measured."""

    name: str
    mode: str
    subnet: str
    mtu: int
    switch: GraphSwitch
    load_s: float | None
    servers: tuple[GraphServer, ...]
    nodes: tuple[GraphNode, ...]
    ports: tuple[GraphPort, ...]
    tunnels: tuple[GraphTunnel, ...]
    links: tuple[GraphLink, ...]


def graph_of(
    plan: Plan,
    limits: Sequence[LinkReading] | None = None,
    present: Collection[str] = (),
    *,
    faults: Mapping[str, tuple[str, ...]] | None = None,
    load: Sequence[PortTraffic] = (),
    load_s: float | None = None,
) -> ClusterGraph:
    """The graph of a plan with what the kernel of the switch's server has.

    `limits` are None if it cannot be read. `present` are the nodes whose port of the switch exists. `faults` are texts
    about links, by node.
    """
    loads = {one.node: GraphLoad(one.from_rate_bits, one.to_rate_bits) for one in load}
    links = tuple(
        GraphLink(
            node.name,
            switch_port(plan, node),
            None if limits is None else tuple(_shaping(node, limits)),
            (faults or {}).get(node.name, ()),
            loads.get(node.name),
        )
        for node in plan.nodes
    )
    return ClusterGraph(
        name=plan.name,
        mode=plan.mode,
        subnet=str(plan.subnet),
        mtu=plan.mtu,
        switch=GraphSwitch(plan.switch.server, plan.switch.bridge),
        load_s=load_s,
        servers=tuple(_servers(plan)),
        nodes=tuple(
            GraphNode(node.name, node.role, node.server, str(node.address), node.mac, switch_port(plan, node))
            for node in plan.nodes
        ),
        ports=tuple(
            port for node in plan.nodes for port in _ports(plan, node, None if limits is None else node.name in present)
        ),
        tunnels=tuple(_tunnels(plan)),
        links=links,
    )


def _servers(plan: Plan) -> Iterator[GraphServer]:
    """First that of the switch, also if its administrator made it and the plan has no login for it."""
    bridges = {server.name: tuple(bridge.name for bridge in server.bridges) for server in plan.servers}
    order = sorted({plan.switch.server: (), **bridges}, key=lambda name: name != plan.switch.server)
    for name in order:
        is_switch = name == plan.switch.server
        yield GraphServer(name, is_switch, bridges.get(name, (plan.switch.bridge,) if is_switch else ()))


def _ports(plan: Plan, node: Node, is_present: bool | None) -> Iterator[GraphPort]:
    """Those of a node, from its tap to the switch."""
    if node.vni is None:
        yield GraphPort(node.port, TAP, node.server, node.bridge, node.name, is_present)
        return
    name = switch_port(plan, node)
    yield GraphPort(node.port, TAP, node.server, node.bridge, node.name, None)
    yield GraphPort(name, TUNNEL, node.server, node.bridge, node.name, None)
    yield GraphPort(name, TUNNEL, plan.switch.server, plan.switch.bridge, node.name, is_present)


def _tunnels(plan: Plan) -> Iterator[GraphTunnel]:
    ends = {(server.name, tunnel.vni): tunnel for server in plan.servers for tunnel in server.tunnels}
    for node in plan.nodes:
        if node.vni is not None:
            own = ends[node.server, node.vni]
            yield GraphTunnel(
                node.name, own.name, node.vni, node.server, plan.switch.server, str(own.local), str(own.remote)
            )


def _shaping(node: Node, limits: Sequence[LinkReading]) -> Iterator[GraphShaping]:
    for one in limits:
        if one.node == node.name:
            shape = traffic_plan.shape_of(asdict(one))
            yield GraphShaping(one.direction, one.peer, link_spec.text_of(shape))
