"""The IPv4 addresses and routes of this machine, read by netlink."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from vcluster.adapters.network.interface_spec import Interface
from vcluster.adapters.network.netlink_interfaces import read_interfaces
from vcluster.adapters.network.netlink_messages import new_message, open_socket
from vcluster.adapters.network.netlink_socket import Message, NetlinkError, NetlinkSocket
from vcluster.errors import MissingError, RequestError

RTM_GETADDR = 22  # linux/rtnetlink.h
RTM_GETROUTE = 26
RTM_F_FIB_MATCH = 0x2000
RTN_LOCAL = 2
MAIN_TABLE = 254
_ANY = "0.0.0.0"  # noqa: S104 - nothing listens on it


@dataclass(frozen=True, slots=True)
class RouteInfo:
    """How this machine reaches an address: its own source address, the outgoing interface, and the MTU in bytes."""

    local: str
    interface: str
    mtu: int
    is_local: bool = False  # the address belongs to this machine


def addresses() -> tuple[tuple[str, IPv4Address], ...]:
    """This machine's IPv4 addresses, as pairs of interface and address."""
    with open_socket("the addresses") as netlink:
        return _addresses(netlink)


def routes() -> tuple[tuple[IPv4Network, str], ...]:
    """The IPv4 routes of this machine's main table, as pairs of network and outgoing interface."""
    with open_socket("the routes") as netlink:
        names = {interface.index: interface.name for interface in read_interfaces(netlink)}
        request = new_message(rtmsg, RTM_GETROUTE, family=socket.AF_INET)
        found = []
        for route in netlink.dump(request, rtmsg):
            if route["table"] == MAIN_TABLE:
                target = IPv4Network(f"{route.get_attr('RTA_DST') or _ANY}/{route['dst_len']}")
                found.append((target, names.get(route.get_attr("RTA_OIF"), "?")))
        return tuple(found)


def route_to(address: str, interface: str = "") -> RouteInfo:
    """How the kernel would send to an IPv4 address; only through `interface`, if it is given.

    Raises MissingError without a route. Raises RequestError for an invalid address or an unknown interface.
    """
    try:
        target = str(IPv4Address(address))
    except ipaddress.AddressValueError as error:
        raise RequestError(f"{address!r} is not an IPv4 address") from error
    with open_socket(f"the route to {target}") as netlink:
        existing = {found.name: found for found in read_interfaces(netlink)}
        if interface and interface not in existing:
            raise RequestError(f"interface {interface!r} does not exist; this server has {', '.join(existing)}")
        own = {str(own_address): name for name, own_address in _addresses(netlink)}
        if target in own:
            return RouteInfo(target, own[target], existing[own[target]].mtu, is_local=True)
        return _route(netlink, target, interface, existing)


def _route(netlink: NetlinkSocket, target: str, interface: str, existing: Mapping[str, Interface]) -> RouteInfo:
    index = existing[interface].index if interface else 0
    try:
        if interface:
            # With a given interface, the kernel answers even without a route; a lookup of the route itself then fails.
            netlink.request(_route_request(target, index, RTM_F_FIB_MATCH), rtmsg)
        route = netlink.request(_route_request(target, index), rtmsg)
    except NetlinkError as error:
        if error.code in (errno.EPERM, errno.ENOBUFS):
            raise
        through = f" through {interface}" if interface else ""
        raise MissingError(f"no route to {target}{through}", hint=f"ip route get {target}") from error
    name = next((found.name for found in existing.values() if found.index == route.get_attr("RTA_OIF")), "")
    metrics = route.get_attr("RTA_METRICS")
    limits = [existing[name].mtu if name else 0, metrics.get_attr("RTAX_MTU") if metrics else None]
    mtu = min((limit for limit in limits if limit), default=0)
    return RouteInfo(route.get_attr("RTA_PREFSRC") or "", name, mtu, is_local=route["type"] == RTN_LOCAL)


def _route_request(target: str, index: int, flags: int = 0) -> Message:
    request = new_message(rtmsg, RTM_GETROUTE, family=socket.AF_INET, dst_len=32, flags=flags)
    request["attrs"] = [("RTA_DST", target), *([("RTA_OIF", index)] if index else [])]
    return request


def _addresses(netlink: NetlinkSocket) -> tuple[tuple[str, IPv4Address], ...]:
    names = dict(socket.if_nameindex())
    messages = netlink.dump(new_message(ifaddrmsg, RTM_GETADDR, family=socket.AF_INET), ifaddrmsg)
    return tuple(
        (names[message["index"]], IPv4Address(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")))
        for message in messages
        if message["index"] in names
    )
