"""The network interfaces of this machine: list, create, attach and destroy them by netlink."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Collection, Mapping, Sequence

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from vcluster.adapters.network import ipv6
from vcluster.adapters.network.interface_spec import KINDS, Interface, InterfaceSpec, check, needs_replacement
from vcluster.adapters.network.netlink_messages import (
    IFF_UP,
    change_message,
    creation_messages,
    new_message,
    open_socket,
)
from vcluster.adapters.network.netlink_socket import NLM_F_ACK, Message, NetlinkSocket
from vcluster.errors import ConflictError, MissingError, RequestError

RTM_DELLINK = 17
RTM_GETLINK = 18
_BATCH = 50  # interfaces in one message to the kernel; its answers must fit our buffer


def interfaces() -> tuple[Interface, ...]:
    """All interfaces of this network namespace."""
    with open_socket("the interfaces") as netlink:
        return read_interfaces(netlink)


def read_interfaces(netlink: NetlinkSocket) -> tuple[Interface, ...]:
    """All interfaces, read over an open socket."""
    messages = netlink.dump(new_message(ifinfmsg, RTM_GETLINK), ifinfmsg)
    names = {message["index"]: message.get_attr("IFLA_IFNAME") for message in messages}
    return tuple(_interface(message, names) for message in messages)


def create(specs: Sequence[InterfaceSpec]) -> None:
    """Create interfaces, with their owner labels, and set them up. Existing ones of the owner are changed to match.

    A tunnel is replaced when its ends, VNI or port differ. Raises ConflictError, before any change, when a name, a VNI
    or a bridge belongs to another owner. Raises MissingError when the kernel does not support a kind.
    """
    with open_socket("interfaces") as netlink:
        existing = {interface.name: interface for interface in read_interfaces(netlink)}
        check(specs, existing)
        found = [(spec, existing[spec.name]) for spec in specs if spec.name in existing]
        stale = [interface for spec, interface in found if needs_replacement(spec, interface)]
        _remove(netlink, stale)
        current = existing.keys() - {interface.name for interface in stale}
        for kind in KINDS:
            same_kind = [spec for spec in specs if spec.kind == kind]
            for start in range(0, len(same_kind), _BATCH):
                _create(netlink, same_kind[start : start + _BATCH], current)


def _create(netlink: NetlinkSocket, specs: Sequence[InterfaceSpec], existing: Collection[str]) -> None:
    """Create or change interfaces, turn off their IPv6, and then set them up."""
    netlink.change([message for spec in specs for message in creation_messages(spec, exists=spec.name in existing)])
    ipv6.disable(spec.name for spec in specs)
    netlink.change([change_message(spec.name, [], is_up=True) for spec in specs])


def destroy(alias: str, names: Collection[str] | None = None) -> tuple[str, ...]:
    """Remove the interfaces with this owner label: all, or those in `names`. Return the names of the removed ones.

    It is a success if none exists.
    """
    if not alias:
        raise RequestError("cannot remove interfaces without an owner label")
    with open_socket("interfaces") as netlink:
        owned = [
            interface
            for interface in read_interfaces(netlink)
            if interface.alias == alias and (names is None or interface.name in names)
        ]
        _remove(netlink, owned)
        return tuple(interface.name for interface in owned)


def destroy_bridge(name: str) -> None:
    """Remove a bridge without ports, also without an owner label. It is a success if it does not exist."""
    with open_socket(f"interface {name}") as netlink:
        found = read_interfaces(netlink)
        has_ports = name in {interface.master for interface in found}
        _remove(netlink, [each for each in found if (each.name, each.kind) == (name, "bridge") and not has_ports])


def attach(port: str, master: str) -> None:
    """Make an existing interface a port of an existing bridge."""
    with open_socket(f"interface {port}") as netlink:
        existing = {interface.name: interface for interface in read_interfaces(netlink)}
        for name in (port, master):
            if name not in existing:
                raise MissingError(f"interface {name} does not exist", hint="vcluster status")
        if existing[master].kind != "bridge":
            raise ConflictError(f"{master} is not a bridge", hint=f"ip link show {master}")
        ipv6.disable([port])
        netlink.change([change_message(port, [("IFLA_MASTER", existing[master].index)])])


def _remove(netlink: NetlinkSocket, removed: Sequence[Interface]) -> None:
    """Remove interfaces in one kernel operation: removed one by one, each waits for an RCU grace period."""
    if not removed:
        return
    group = secrets.randbelow(2**30) + 2**30
    grouped = [change_message("", [("IFLA_GROUP", group)], index=interface.index) for interface in removed]
    request = new_message(ifinfmsg, RTM_DELLINK)
    request["header"]["flags"] |= NLM_F_ACK
    request["attrs"] = [("IFLA_GROUP", group)]
    netlink.change([*grouped, request], tolerated=(errno.ENODEV,))


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
