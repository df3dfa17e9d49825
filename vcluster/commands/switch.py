"""The switch's half of a cluster by hand, on the switch's machine: for people who may not log in to it from here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from vcluster.commands.inventory import survey
from vcluster.errors import ConflictError, MissingError, RequestError
from vcluster.fleet import ledger, servers
from vcluster.fleet.context import Context
from vcluster.fleet.observation import underlay_route
from vcluster.fleet.servers import Server
from vcluster.model import naming
from vcluster.model.plan import Bridge, ServerPlan, Tunnel
from vcluster.model.spec import LOCAL, ServerSpec
from vcluster.planning.planner import check_mtu
from vcluster.resources import interfaces, rules


@dataclass(frozen=True, slots=True)
class Port:
    """A port of a switch: a tunnel's end. Packets are counted from the switch's side."""

    name: str
    vni: int
    peer: str
    mtu: int
    is_up: bool
    received_packets: int
    sent_packets: int


@dataclass(frozen=True, slots=True)
class SwitchSide:
    """A switch on this machine, `is_ours` if it was made from here."""

    cluster: str
    is_ours: bool
    bridge: str
    mtu: int
    ports: tuple[Port, ...]


@dataclass(frozen=True, slots=True)
class SwitchRequest:
    """What `switch up` is told; `count` tunnels to `peer`, with VNIs from `vni_base` on."""

    name: str
    count: int
    peer: IPv4Address
    vni_base: int
    port: int
    mtu: int
    interface: str = ""


def up(context: Context, order: SwitchRequest) -> SwitchSide:
    """Make a switch with a tunnel for each node of the peer's."""
    if not 1 <= order.count <= naming.NODES_MAX:
        raise RequestError(
            f"{order.count} tunnels make no switch", hint=f"-n takes a number from 1 to {naming.NODES_MAX}"
        )
    with context.local_server() as server, ledger.planning(context.state_root):
        servers.require_rights_on(server)
        if survey(server, order.name) or context.files(order.name).folder.exists():
            raise ConflictError(
                f"cluster {order.name} has things on this machine already",
                hint=f"vcluster switch down {order.name}, or take another --name",
            )
        planned = _plan(server, order)
        _refuse_taken(server, planned)
        try:
            rules.create(server, planned, order.name)
            interfaces.create(server, planned)
        except BaseException:
            _remove(server, order.name)
            raise
        return next(half for half in _sides(server) if half.cluster == order.name and half.is_ours)


def down(context: Context, name: str) -> bool:
    """Remove the switch of that name that was made here by hand. Returns whether there was anything."""
    with context.local_server() as server:
        if not survey(server, name):
            return False
        if context.files(name).folder.exists():
            raise ConflictError(f"{name} is a cluster made from this machine", hint=f"vcluster clear {name}")
        servers.require_rights_on(server)
        _remove(server, name)
        left = survey(server, name)
        if left:
            raise MissingError(f"left of {name}: {', '.join(map(str, left))}", hint=f"vcluster clear {name}")
        return True


def show(context: Context) -> tuple[SwitchSide, ...]:
    """Every switch that has our mark, whoever made it."""
    with context.local_server() as server:
        return tuple(_sides(server))


def _plan(server: Server, order: SwitchRequest) -> ServerPlan:
    there = underlay_route(server, order.peer, ServerSpec(LOCAL.name, interface=order.interface))
    check_mtu(order.mtu, "this machine", str(order.peer), there)
    mark = naming.alias(order.name, server.owner)
    bridge = Bridge(naming.bridge_name(order.name), order.mtu, mark)
    ends = tuple(
        Tunnel(
            naming.tunnel_name(order.name, index), bridge.name, order.vni_base + index - 1, there.local, there.remote,
            there.interface, order.port, order.mtu, mark,
        )
        for index in range(1, order.count + 1)
    )  # fmt: skip
    return ServerPlan(LOCAL.name, None, "", LOCAL.timeout_s, LOCAL.path, (bridge,), ends, "tcg")


def _refuse_taken(server: Server, planned: ServerPlan) -> None:
    found = server.call("interfaces")
    names, vnis = {link["name"] for link in found}, {link["vni"] for link in found}
    for name in planned.interface_names:
        if name in names:
            raise ConflictError(f"link {name} exists and is not ours", hint="take another --name")
    taken = next((tunnel.vni for tunnel in planned.tunnels if tunnel.vni in vnis), None)
    if taken is not None:
        raise ConflictError(f"VNI {taken} is in use here", hint="take another --vni-base, the same on both servers")


def _remove(server: Server, name: str) -> None:
    interfaces.destroy(server, name)
    rules.destroy(server, name)


def _sides(server: Server) -> Iterator[SwitchSide]:
    found: list[dict[str, Any]] = server.call("interfaces")
    for link in found:
        mark = naming.parse_alias(link["alias"])
        if mark and link["kind"] == "bridge" and link["name"] == naming.bridge_name(mark[0]):
            ports = tuple(_port(one) for one in found if one["master"] == link["name"] and one["vni"])
            yield SwitchSide(mark[0], mark[1] == server.owner, link["name"], link["mtu"], ports)


def _port(link: dict[str, Any]) -> Port:
    return Port(
        link["name"], link["vni"], link["remote"], link["mtu"], link["is_up"], link["rx_packets"], link["tx_packets"]
    )
