"""This machine's IPv4 addresses and routes, by netlink."""

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
from vcluster.adapters.network.netlink_messages import new_message, open_channel
from vcluster.adapters.network.netlink_socket import Channel, Message, Refused
from vcluster.errors import MissingError, RequestError

RTM_GETADDR = 22
RTM_GETROUTE = 26
RTM_F_FIB_MATCH = 0x2000
RTN_LOCAL = 2
MAIN_TABLE = 254
_ANY = "0.0.0.0"  # noqa: S104 - nothing listens on it


@dataclass(frozen=True, slots=True)
class RouteInfo:
    """How this machine reaches an address: from which of its own, by which interface, with what MTU."""

    local: str
    interface: str
    mtu: int
    is_local: bool = False  # the address is this machine's own


def addresses() -> tuple[tuple[str, IPv4Address], ...]:
    """This machine's IPv4 addresses, each with its interface."""
    with open_channel("the addresses") as channel:
        return _addresses(channel)


def routes() -> tuple[tuple[IPv4Network, str], ...]:
    """The IPv4 routes of this machine's main table, each with the interface it leaves by."""
    with open_channel("the routes") as channel:
        names = {link.index: link.name for link in read_interfaces(channel)}
        request = new_message(rtmsg, RTM_GETROUTE, family=socket.AF_INET)
        found = []
        for route in channel.dump(request, rtmsg):
            if route["table"] == MAIN_TABLE:
                target = IPv4Network(f"{route.get_attr('RTA_DST') or _ANY}/{route['dst_len']}")
                found.append((target, names.get(route.get_attr("RTA_OIF"), "?")))
        return tuple(found)


def route_to(address: str, interface: str = "") -> RouteInfo:
    """How the kernel would send to an IPv4 address, through `interface` alone if that is given.

    Raises MissingError when there is no route, RequestError for what is no address or no interface of this machine.
    """
    try:
        target = str(IPv4Address(address))
    except ipaddress.AddressValueError as error:
        raise RequestError(f"{address!r} is not an IPv4 address") from error
    with open_channel(f"the way to {target}") as channel:
        found = {link.name: link for link in read_interfaces(channel)}
        if interface and interface not in found:
            raise RequestError(f"there is no interface {interface!r}; there are {', '.join(found)}")
        own = {str(one): name for name, one in _addresses(channel)}
        if target in own:
            return RouteInfo(target, own[target], found[own[target]].mtu, is_local=True)
        return _way(channel, target, interface, found)


def _way(channel: Channel, target: str, interface: str, found: Mapping[str, Interface]) -> RouteInfo:
    index = found[interface].index if interface else 0
    try:
        if interface:
            # Told an interface the kernel sends by it even without a route; asked for the route itself it says so.
            channel.ask(_route_request(target, index, RTM_F_FIB_MATCH), rtmsg)
        route = channel.ask(_route_request(target, index), rtmsg)
    except Refused as error:
        if error.code in (errno.EPERM, errno.ENOBUFS):
            raise
        by = f" through {interface}" if interface else ""
        raise MissingError(f"there is no route to {target}{by}", hint=f"ip route get {target}") from error
    name = next((link.name for link in found.values() if link.index == route.get_attr("RTA_OIF")), "")
    metrics = route.get_attr("RTA_METRICS")
    limits = [found[name].mtu if name else 0, metrics.get_attr("RTAX_MTU") if metrics else None]
    mtu = min((limit for limit in limits if limit), default=0)
    return RouteInfo(route.get_attr("RTA_PREFSRC") or "", name, mtu, is_local=route["type"] == RTN_LOCAL)


def _route_request(target: str, index: int, flags: int = 0) -> Message:
    request = new_message(rtmsg, RTM_GETROUTE, family=socket.AF_INET, dst_len=32, flags=flags)
    request["attrs"] = [("RTA_DST", target), *([("RTA_OIF", index)] if index else [])]
    return request


def _addresses(channel: Channel) -> tuple[tuple[str, IPv4Address], ...]:
    names = dict(socket.if_nameindex())
    messages = channel.dump(new_message(ifaddrmsg, RTM_GETADDR, family=socket.AF_INET), ifaddrmsg)
    return tuple(
        (names[one["index"]], IPv4Address(one.get_attr("IFA_LOCAL") or one.get_attr("IFA_ADDRESS")))
        for one in messages
        if one["index"] in names
    )
