"""The network interfaces of this machine, by netlink."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Collection, Mapping, Sequence

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from vcluster.adapters.network.interface_spec import Interface, InterfaceSpec, check, needs_replacement
from vcluster.adapters.network.netlink_messages import (
    IFF_UP,
    change_message,
    creation_messages,
    new_message,
    open_channel,
)
from vcluster.adapters.network.netlink_socket import NLM_F_ACK, Channel, Message
from vcluster.errors import ConflictError, MissingError, RequestError

RTM_DELLINK = 17
RTM_GETLINK = 18
_AT_ONCE = 50  # links in one message to the kernel, whose answers must fit our buffer


def interfaces() -> tuple[Interface, ...]:
    """All links of this network namespace."""
    with open_channel("the links") as channel:
        return read_interfaces(channel)


def read_interfaces(channel: Channel) -> tuple[Interface, ...]:
    messages = channel.dump(new_message(ifinfmsg, RTM_GETLINK), ifinfmsg)
    names = {message["index"]: message.get_attr("IFLA_IFNAME") for message in messages}
    return tuple(_interface(message, names) for message in messages)


def _interface(message: Message, names: Mapping[int, str]) -> Interface:
    get = message.get_attr
    info = get("IFLA_LINKINFO")
    kind = (info.get_attr("IFLA_INFO_KIND") if info else None) or ""
    data = info.get_attr("IFLA_INFO_DATA") if kind == "vxlan" else None
    vxlan = data.get_attr if data else {}.get
    count = get("IFLA_STATS64") or {}
    return Interface(
        name=get("IFLA_IFNAME"),
        index=message["index"],
        kind=kind,
        mtu=get("IFLA_MTU") or 0,
        alias=get("IFLA_IFALIAS") or "",
        is_up=bool(message["flags"] & IFF_UP),
        master=names.get(get("IFLA_MASTER"), ""),
        vni=vxlan("IFLA_VXLAN_ID") or 0,
        local=vxlan("IFLA_VXLAN_LOCAL") or "",
        remote=vxlan("IFLA_VXLAN_GROUP") or "",
        interface=names.get(vxlan("IFLA_VXLAN_LINK"), ""),
        port=vxlan("IFLA_VXLAN_PORT") or 0,
        rx_packets=count.get("rx_packets", 0),
        tx_packets=count.get("tx_packets", 0),
        rx_bytes=count.get("rx_bytes", 0),
        tx_bytes=count.get("tx_bytes", 0),
        dropped=count.get("rx_dropped", 0) + count.get("tx_dropped", 0),
    )


def create(specs: Sequence[InterfaceSpec]) -> None:
    """Make links, marked and up; those of ours that exist are brought to what is asked.

    A tunnel whose ends, VNI or port differ is replaced. Raises ConflictError, before anything is changed, when a name,
    a VNI or a bridge is somebody else's; MissingError when the kernel lacks what it takes.
    """
    with open_channel("links") as channel:
        found = {link.name: link for link in read_interfaces(channel)}
        check(specs, found)
        stale = [found[spec.name] for spec in specs if spec.name in found and needs_replacement(spec, found[spec.name])]
        _remove(channel, stale)
        left = found.keys() - {link.name for link in stale}
        for kind in ("bridge", "vxlan"):  # a bridge first: its ports name it
            wanted = [spec for spec in specs if spec.kind == kind]
            for at in range(0, len(wanted), _AT_ONCE):
                part = wanted[at : at + _AT_ONCE]
                channel.change([one for spec in part for one in creation_messages(spec, exists=spec.name in left)])


def destroy(alias: str, names: Collection[str] | None = None) -> tuple[str, ...]:
    """Remove the links with this mark, all or those of these `names`; returns their names. None left is a success."""
    if not alias:
        raise RequestError("links without a mark are nobody's to remove")
    with open_channel("links") as channel:
        marked = [
            link for link in read_interfaces(channel) if link.alias == alias and (names is None or link.name in names)
        ]
        _remove(channel, marked)
        return tuple(link.name for link in marked)


def attach(port: str, master: str) -> None:
    """Make an existing link a port of an existing bridge."""
    with open_channel(f"link {port}") as channel:
        found = {link.name: link for link in read_interfaces(channel)}
        for name in (port, master):
            if name not in found:
                raise MissingError(f"there is no link {name}", hint="vcluster status")
        if found[master].kind != "bridge":
            raise ConflictError(f"{master} is not a bridge", hint=f"ip link show {master}")
        channel.change([change_message(port, [("IFLA_MASTER", found[master].index)])])


def _remove(channel: Channel, gone: Sequence[Interface]) -> None:
    """Remove links, all in one step of the kernel: one by one each waits for all processors to let go of it."""
    if not gone:
        return
    group = secrets.randbelow(2**30) + 2**30
    grouped = [change_message("", [("IFLA_GROUP", group)], index=link.index) for link in gone]
    request = new_message(ifinfmsg, RTM_DELLINK)
    request["header"]["flags"] |= NLM_F_ACK
    request["attrs"] = [("IFLA_GROUP", group)]
    channel.change([*grouped, request], tolerated=(errno.ENODEV,))
