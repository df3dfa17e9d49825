"""The interfaces of a cluster with their settings, and the addresses and routes that they have, IPv6 included."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator
from dataclasses import asdict
from typing import Any

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from vcluster.adapters.network import ipv6
from vcluster.adapters.network.netlink_interfaces import RTM_GETLINK, read_interfaces
from vcluster.adapters.network.netlink_messages import new_message, open_socket
from vcluster.adapters.network.netlink_routes import RTM_GETADDR, RTM_GETROUTE
from vcluster.adapters.network.netlink_socket import Message, NetlinkSocket

_LOCAL_TABLE, _BY_KERNEL = 255, 2  # linux/rtnetlink.h
_ANYWHERE = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}  # noqa: S104 - nothing listens on it
_SETTINGS = {
    "bridge": ("IFLA_BR_STP_STATE", "IFLA_BR_FORWARD_DELAY", "IFLA_BR_MCAST_SNOOPING"),
    "vxlan": ("IFLA_VXLAN_LEARNING",),
}


def interface_states(names: Collection[str], alias: str) -> dict[str, dict[str, Any]]:
    """The interfaces with these names or this owner label, and the ports of those that are bridges.

    Each has the fields of Interface, `settings` of its kind, `ipv6`, `addresses` and `routes`. `is_named` is false for
    one whose name is not given.
    """
    with open_socket("the interfaces") as netlink:
        every = read_interfaces(netlink)
        named = {one.name for one in every if one.name in names or one.alias == alias}
        chosen = {one.index: one for one in every if one.name in named or one.master in named}
        settings = dict(_settings(netlink, chosen))
        addresses, routes = list(_addresses(netlink)), list(_routes(netlink))
    return {
        one.name: {
            **asdict(one),
            "is_named": one.name in names,
            "settings": settings.get(index, {}),
            "ipv6": ipv6.read(one.name),
            "addresses": sorted(text for owner, text in addresses if owner == index),
            "routes": sorted(text for owner, text in routes if owner == index),
        }
        for index, one in chosen.items()
    }


def _settings(netlink: NetlinkSocket, chosen: Collection[int]) -> Iterator[tuple[int, dict[str, int]]]:
    for message in netlink.dump(new_message(ifinfmsg, RTM_GETLINK), ifinfmsg):
        info = message.get_attr("IFLA_LINKINFO")
        kind = info.get_attr("IFLA_INFO_KIND") if info else ""
        data = info.get_attr("IFLA_INFO_DATA") if message["index"] in chosen and kind in _SETTINGS else None
        if data:
            yield message["index"], {name: data.get_attr(name) for name in _SETTINGS[kind]}


def _addresses(netlink: NetlinkSocket) -> Iterator[tuple[int, str]]:
    """The addresses of both families, each with the index of its interface."""
    for message in netlink.dump(new_message(ifaddrmsg, RTM_GETADDR), ifaddrmsg):
        address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        yield message["index"], f"{address}/{message['prefixlen']}"


def _routes(netlink: NetlinkSocket) -> Iterator[tuple[int, str]]:
    """The routes of both families and all tables, each with the index of an interface that it leads to.

    Those that the kernel derives from each address in the table `local` are left out.
    """
    for family, anywhere in _ANYWHERE.items():
        for message in netlink.dump(new_message(rtmsg, RTM_GETROUTE, family=family), rtmsg):
            if message["family"] != family or (message["table"], message["proto"]) == (_LOCAL_TABLE, _BY_KERNEL):
                continue
            target = f"{message.get_attr('RTA_DST') or anywhere}/{message['dst_len']}"
            yield from ((index, target) for index in _outgoing(message))


def _outgoing(route: Message) -> Iterator[int]:
    """The indices of the interfaces that a route leads to."""
    if index := route.get_attr("RTA_OIF"):
        yield index
    for hop in route.get_attr("RTA_MULTIPATH") or ():
        yield hop["oif"]
