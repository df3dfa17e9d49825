"""Create the switch side of a cluster by hand, on the switch server; for users who cannot log in to it by SSH."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from vcluster.commands.steps import lost_clusters
from vcluster.commands.steps.inventory import survey
from vcluster.errors import ConflictError, MissingError, RequestError
from vcluster.fleet import ledger, servers
from vcluster.fleet.context import Context
from vcluster.fleet.observation import underlay_route
from vcluster.fleet.servers import Fleet, Server
from vcluster.model import naming
from vcluster.model.plan import Bridge, ServerPlan, Tunnel
from vcluster.model.spec import LOCAL, ServerSpec
from vcluster.planning.topology import check_tunnel_mtu
from vcluster.resources import interfaces, rules
from vcluster.util.deadline import Deadline

PLANNING_TIMEOUT_S = 60.0  # to wait for another command that plans a cluster


@dataclass(frozen=True, slots=True)
class Port:
    """A port of a switch: the end of a tunnel. The switch counts the packets."""

    name: str
    vni: int
    peer: str
    mtu: int
    is_up: bool
    received_packets: int
    sent_packets: int


@dataclass(frozen=True, slots=True)
class SwitchSide:
    """A switch on this machine; `is_ours` if this machine's vcluster created it."""

    cluster: str
    is_ours: bool
    bridge: str
    mtu: int
    ports: tuple[Port, ...]


@dataclass(frozen=True, slots=True)
class SwitchRequest:
    """The request of `switch up`: `count` tunnels to `peer`, with VNIs from `vni_base` on."""

    name: str
    count: int
    peer: IPv4Address
    vni_base: int
    port: int
    mtu: int
    interface: str = ""


def up(context: Context, request: SwitchRequest) -> SwitchSide:
    """Create a switch with a tunnel for each node of the peer."""
    if not 1 <= request.count <= naming.NODES_MAX:
        raise RequestError(
            f"a switch cannot have {request.count} tunnels", hint=f"-n takes a number from 1 to {naming.NODES_MAX}"
        )
    context = context.with_owner()
    deadline = Deadline(PLANNING_TIMEOUT_S)
    with context.local_server() as server, ledger.planning(context.state_root, deadline, context.report):
        servers.require_rights_on(server)
        if survey(server, request.name) or context.files(request.name).folder.exists():
            raise ConflictError(
                f"this machine has parts of a cluster {request.name} already",
                hint=f"vcluster switch down {request.name}, or use another --name",
            )
        planned = _plan(server, request)
        _refuse_taken(server, planned)
        try:
            rules.create(server, planned, request.name)
            interfaces.create(server, planned)
        except BaseException:
            _remove(server, request.name)
            raise
        return next(side for side in _sides(server) if side.cluster == request.name and side.is_ours)


def down(context: Context, name: str) -> bool:
    """Remove a switch that `up` created. Returns whether there was anything."""
    was_there = _take_down(context, name)
    ledger.remove_empty_folders(context.state_root)  # of an `up` that was killed
    return was_there


def _take_down(context: Context, name: str) -> bool:
    with context.local_server() as server:
        if not survey(server, name):
            lost_clusters.report(context, Fleet({server.name: server}, {}), name)
            return False
        if context.files(name).folder.exists():
            text = f"{name} is a whole cluster, so this command does not remove it"
            raise ConflictError(text, hint=f"vcluster clear {name}")
        servers.require_rights_on(server)
        _remove(server, name)
        left = survey(server, name)
        if left:
            raise MissingError(
                f"parts of cluster {name} are left: {', '.join(map(str, left))}", hint=f"vcluster clear {name}"
            )
        return True


def show(context: Context) -> tuple[SwitchSide, ...]:
    """Every switch with an owner label of vcluster, also of other controllers."""
    with context.local_server() as server:
        return tuple(_sides(server))


def _plan(server: Server, request: SwitchRequest) -> ServerPlan:
    route = underlay_route(server, request.peer, ServerSpec(LOCAL.name, interface=request.interface))
    check_tunnel_mtu(request.mtu, "this machine", str(request.peer), route)
    label = naming.alias(request.name, server.owner)
    bridge = Bridge(naming.bridge_name(request.name), request.mtu, label)
    tunnels = tuple(
        Tunnel(
            naming.tunnel_name(request.name, index), bridge.name, request.vni_base + index - 1,
            route.local, route.remote, route.interface, request.port, request.mtu, label,
        )
        for index in range(1, request.count + 1)
    )  # fmt: skip
    return ServerPlan(LOCAL.name, None, "", LOCAL.timeout_s, LOCAL.path, (bridge,), tunnels, "tcg")


def _refuse_taken(server: Server, planned: ServerPlan) -> None:
    found = server.call("interfaces")
    names, vnis = {link["name"] for link in found}, {link["vni"] for link in found}
    for name in planned.interface_names:
        if name in names:
            raise ConflictError(
                f"interface {name} exists and does not belong to this cluster", hint="use another --name"
            )
    taken = next((tunnel.vni for tunnel in planned.tunnels if tunnel.vni in vnis), None)
    if taken is not None:
        raise ConflictError(f"VNI {taken} is in use here", hint="use another --vni-base, the same on both servers")


def _remove(server: Server, name: str) -> None:
    interfaces.destroy(server, name)
    rules.destroy(server, name)


def _sides(server: Server) -> Iterator[SwitchSide]:
    found: list[dict[str, Any]] = server.call("interfaces")
    for link in found:
        label = naming.parse_alias(link["alias"])
        if label and link["kind"] == "bridge" and link["name"] == naming.bridge_name(label[0]):
            ports = tuple(_port(port) for port in found if port["master"] == link["name"] and port["vni"])
            yield SwitchSide(label[0], label[1] == server.owner, link["name"], link["mtu"], ports)


def _port(link: dict[str, Any]) -> Port:
    return Port(
        link["name"], link["vni"], link["remote"], link["mtu"], link["is_up"], link["rx_packets"], link["tx_packets"]
    )
