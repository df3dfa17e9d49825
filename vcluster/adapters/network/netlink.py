"""Links of this machine, by netlink. Needs nothing else of the project but the data it is given."""

from __future__ import annotations

import errno
import ipaddress
import secrets
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from vcluster.adapters.network.netlink_socket import NLM_F_ACK, NLM_F_REQUEST, ROUTE, Channel, Message, Refused
from vcluster.errors import ConflictError, MissingError, RequestError, VclusterError

VXLAN_OVERHEAD_BYTES = 50  # outer IPv4, UDP and VXLAN headers, and the inner Ethernet header

RTM_NEWLINK = 16  # linux/rtnetlink.h
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_GETADDR = 22
RTM_GETROUTE = 26
RTM_F_FIB_MATCH = 0x2000
RTN_LOCAL = 2
MAIN_TABLE = 254
_CREATE = 0x400 | 0x200  # NLM_F_CREATE, NLM_F_EXCL
_UP = 1
_NO_ADDRESS = 1  # IN6_ADDR_GEN_MODE_NONE
_IPV6_MTU = 1280  # below this a link has no IPv6 to be switched off
_AT_ONCE = 50  # links in one message to the kernel, whose answers must fit our buffer
_ANY = "0.0.0.0"  # noqa: S104 - nothing listens on it

# A bridge like a plain switch: it forwards at once, without spanning tree; multicast goes everywhere (with snooping, a
# querier in some node would make it swallow groups it has not learned of). Frames with VLAN tags pass as they are: that
# is how a bridge begins, and a kernel without VLAN filtering refuses to be told.
_BRIDGE = (
    ("IFLA_BR_STP_STATE", 0),
    ("IFLA_BR_FORWARD_DELAY", 0),
    ("IFLA_BR_MCAST_SNOOPING", 0),
)


@dataclass(frozen=True, slots=True)
class InterfaceSpec:
    """A link as it shall be. For a tunnel ("vxlan") also its fixed ends, the interface it uses, and its UDP port."""

    name: str
    kind: str  # "bridge" or "vxlan"
    mtu: int
    alias: str  # the owner's mark
    master: str = ""  # the bridge whose port it is
    vni: int = 0
    local: str = ""
    remote: str = ""
    interface: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True)
class Interface:
    """A link as the kernel shows it. What it lacks is "" or 0."""

    name: str
    index: int
    kind: str
    mtu: int
    alias: str
    is_up: bool
    master: str
    vni: int
    local: str
    remote: str
    interface: str
    port: int
    rx_packets: int
    tx_packets: int
    rx_bytes: int
    tx_bytes: int
    dropped: int


@dataclass(frozen=True, slots=True)
class RouteInfo:
    """How this machine reaches an address: from which of its own, by which interface, with what MTU."""

    local: str
    interface: str
    mtu: int
    is_local: bool = False  # the address is this machine's own


# Looking


def interfaces() -> tuple[Interface, ...]:
    """All links of this network namespace."""
    with _channel("the links") as channel:
        return _interfaces(channel)


def addresses() -> tuple[tuple[str, IPv4Address], ...]:
    """This machine's IPv4 addresses, each with its interface."""
    with _channel("the addresses") as channel:
        return _addresses(channel)


def routes() -> tuple[tuple[IPv4Network, str], ...]:
    """The IPv4 routes of this machine's main table, each with the interface it leaves by."""
    with _channel("the routes") as channel:
        names = {link.index: link.name for link in _interfaces(channel)}
        request = _message(rtmsg, RTM_GETROUTE, family=socket.AF_INET)
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
    with _channel(f"the way to {target}") as channel:
        found = {link.name: link for link in _interfaces(channel)}
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
    request = _message(rtmsg, RTM_GETROUTE, family=socket.AF_INET, dst_len=32, flags=flags)
    request["attrs"] = [("RTA_DST", target), *([("RTA_OIF", index)] if index else [])]
    return request


def _interfaces(channel: Channel) -> tuple[Interface, ...]:
    messages = channel.dump(_message(ifinfmsg, RTM_GETLINK), ifinfmsg)
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
        is_up=bool(message["flags"] & _UP),
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


def _addresses(channel: Channel) -> tuple[tuple[str, IPv4Address], ...]:
    names = dict(socket.if_nameindex())
    messages = channel.dump(_message(ifaddrmsg, RTM_GETADDR, family=socket.AF_INET), ifaddrmsg)
    return tuple(
        (names[one["index"]], IPv4Address(one.get_attr("IFA_LOCAL") or one.get_attr("IFA_ADDRESS")))
        for one in messages
        if one["index"] in names
    )


# Making


def create(specs: Sequence[InterfaceSpec]) -> None:
    """Make links, marked and up; those of ours that exist are brought to what is asked.

    A tunnel whose ends, VNI or port differ is replaced. Raises ConflictError, before anything is changed, when a name,
    a VNI or a bridge is somebody else's; MissingError when the kernel lacks what it takes.
    """
    with _channel("links") as channel:
        found = {link.name: link for link in _interfaces(channel)}
        check(specs, found)
        stale = [found[spec.name] for spec in specs if spec.name in found and _must_go(spec, found[spec.name])]
        _remove(channel, stale)
        left = found.keys() - {link.name for link in stale}
        for kind in ("bridge", "vxlan"):  # a bridge first: its ports name it
            wanted = [spec for spec in specs if spec.kind == kind]
            for at in range(0, len(wanted), _AT_ONCE):
                part = wanted[at : at + _AT_ONCE]
                channel.change([one for spec in part for one in _making(spec, exists=spec.name in left)])


def destroy(alias: str, names: Collection[str] | None = None) -> tuple[str, ...]:
    """Remove the links with this mark, all or those of these `names`; returns their names. None left is a success."""
    if not alias:
        raise RequestError("links without a mark are nobody's to remove")
    with _channel("links") as channel:
        marked = [
            link for link in _interfaces(channel) if link.alias == alias and (names is None or link.name in names)
        ]
        _remove(channel, marked)
        return tuple(link.name for link in marked)


def attach(port: str, master: str) -> None:
    """Make an existing link a port of an existing bridge."""
    with _channel(f"link {port}") as channel:
        found = {link.name: link for link in _interfaces(channel)}
        for name in (port, master):
            if name not in found:
                raise MissingError(f"there is no link {name}", hint="vcluster status")
        if found[master].kind != "bridge":
            raise ConflictError(f"{master} is not a bridge", hint=f"ip link show {master}")
        channel.change([_change(port, [("IFLA_MASTER", found[master].index)])])


def check(specs: Sequence[InterfaceSpec], found: Mapping[str, Interface]) -> None:
    """Refuse what cannot be made beside the links that are there. Pure."""
    _check_distinct(specs)
    asked = {spec.name: spec for spec in specs}
    for spec in specs:
        link = found.get(spec.name)
        if link and link.alias != spec.alias:
            owner = f"carries the mark {link.alias!r}" if link.alias else "carries no mark of ours"
            raise ConflictError(f"link {spec.name} exists and {owner}", hint=f"ip link show {spec.name}")
        if spec.master:
            _check_master(spec, asked.get(spec.master) or found.get(spec.master))
        if spec.kind == "vxlan":
            _check_tunnel(spec, found)


def _check_distinct(specs: Sequence[InterfaceSpec]) -> None:
    seen: dict[object, str] = {}
    for spec in specs:
        if spec.kind not in ("bridge", "vxlan"):
            raise RequestError(f"link {spec.name}: there is no kind {spec.kind!r}; there are bridge, vxlan")
        if len(spec.name.encode()) > 15:
            raise RequestError(f"link {spec.name}: a name has 15 characters at most")
        for key in (spec.name, *([(spec.vni, spec.port)] if spec.kind == "vxlan" else [])):
            if key in seen:
                raise RequestError(f"link {spec.name}: its name or VNI is that of {seen[key]} as well")
            seen[key] = spec.name


def _check_master(spec: InterfaceSpec, master: InterfaceSpec | Interface | None) -> None:
    if master is None:
        raise MissingError(f"link {spec.name}: there is no bridge {spec.master}", hint="vcluster status")
    if master.kind != "bridge" or master.alias != spec.alias:
        raise ConflictError(f"link {spec.name}: {spec.master} is no bridge of ours", hint=f"ip link show {spec.master}")


def _check_tunnel(spec: InterfaceSpec, found: Mapping[str, Interface]) -> None:
    taken = [(link.vni, link.port) for link in found.values() if link.kind == "vxlan" and link.name != spec.name]
    if (spec.vni, spec.port) in taken:
        other = next(link for link in found.values() if (link.vni, link.port) == (spec.vni, spec.port))
        raise _vni_taken(spec, f"link {other.name}")
    below = found.get(spec.interface)
    if below is None:
        raise MissingError(
            f"tunnel {spec.name}: there is no interface {spec.interface!r}; there are {', '.join(found)}",
            hint="ip -brief address",
        )
    if below.mtu < spec.mtu + VXLAN_OVERHEAD_BYTES:
        raise RequestError(
            f"tunnel {spec.name}: an MTU of {spec.mtu} does not fit into the {below.mtu} of {below.name}",
            hint=f"--mtu {below.mtu - VXLAN_OVERHEAD_BYTES}",
        )


def _vni_taken(spec: InterfaceSpec, by: str) -> ConflictError:
    return ConflictError(
        f"tunnel {spec.name}: VNI {spec.vni} on UDP port {spec.port} is taken by {by}",
        hint="choose other numbers with --vni-base",
    )


def _must_go(spec: InterfaceSpec, link: Interface) -> bool:
    """Whether a link of ours differs in what cannot be changed."""
    wanted = (spec.kind, spec.vni, spec.local, spec.remote, spec.interface, spec.port)
    return wanted != (link.kind, link.vni, link.local, link.remote, link.interface, link.port)


# Messages


def _making(spec: InterfaceSpec, *, exists: bool) -> list[Message]:
    """What makes one link, or mends it.

    The kernel takes no mark in the message that makes a link. So both go in one piece, which it deals with before it
    can end us: no link of ours is ever without a mark.
    """
    kind = [_kind(spec.kind, _data(spec))]
    mtu = ("IFLA_MTU", spec.mtu)
    # A bridge that is not told its MTU once it exists follows its ports. A tunnel's data cannot be told twice.
    making = [_change(spec.name, kind if spec.kind == "bridge" else [mtu, *kind], flags=_CREATE)]
    marking = [mtu, ("IFLA_IFALIAS", spec.alias), *(kind if spec.kind == "bridge" else [])]
    if spec.master:
        marking.append(("IFLA_MASTER", socket.if_nametoindex(spec.master)))
    if exists and spec.kind == "bridge":  # while spanning tree is on, the kernel refuses a forward delay of 0
        making = [_change(spec.name, [_kind("bridge", _BRIDGE[:1])])]
    messages = [*([] if exists and spec.kind != "bridge" else making), _change(spec.name, marking)]
    if spec.mtu >= _IPV6_MTU and _has_ipv6():
        # The server itself has nothing to say on the cluster's network: no address, no router solicitations.
        silent = _nested(("AF_INET6", _nested(("IFLA_INET6_ADDR_GEN_MODE", _NO_ADDRESS))))
        messages.append(_change(spec.name, [("IFLA_AF_SPEC", silent)]))
    return [*messages, _change(spec.name, [], is_up=True)]


def _kind(kind: str, data: Sequence[tuple[str, object]]) -> tuple[str, object]:
    return "IFLA_LINKINFO", _nested(("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", _nested(*data)))


def _data(spec: InterfaceSpec) -> Sequence[tuple[str, object]]:
    if spec.kind == "bridge":
        return _BRIDGE
    return (
        ("IFLA_VXLAN_ID", spec.vni),
        ("IFLA_VXLAN_LOCAL", spec.local),
        ("IFLA_VXLAN_GROUP", spec.remote),
        ("IFLA_VXLAN_LINK", socket.if_nametoindex(spec.interface)),
        ("IFLA_VXLAN_PORT", spec.port),
        ("IFLA_VXLAN_LEARNING", 0),
    )


def _remove(channel: Channel, gone: Sequence[Interface]) -> None:
    """Remove links, all in one step of the kernel: one by one each waits for all processors to let go of it."""
    if not gone:
        return
    group = secrets.randbelow(2**30) + 2**30
    grouped = [_change("", [("IFLA_GROUP", group)], index=link.index) for link in gone]
    request = _message(ifinfmsg, RTM_DELLINK)
    request["header"]["flags"] |= NLM_F_ACK
    request["attrs"] = [("IFLA_GROUP", group)]
    channel.change([*grouped, request], tolerated=(errno.ENODEV,))


def _change(
    name: str, attributes: Sequence[tuple[str, Any]], *, flags: int = 0, index: int = 0, is_up: bool = False
) -> Message:
    message = _message(ifinfmsg, RTM_NEWLINK, index=index, flags=_UP * is_up, change=_UP * is_up)
    message["header"]["flags"] |= NLM_F_ACK | flags
    message["attrs"] = [*([("IFLA_IFNAME", name)] if name else []), *attributes]
    return message


def _message(kind: type[Message], number: int, **fields: int) -> Message:
    message = kind()
    message["header"]["type"] = number
    message["header"]["flags"] = NLM_F_REQUEST
    for field, value in fields.items():
        message[field] = value
    return message


def _nested(*attributes: tuple[str, object]) -> dict[str, object]:
    return {"attrs": list(attributes)}


def _has_ipv6() -> bool:
    return Path("/proc/sys/net/ipv6").exists()


# Errors


@contextmanager
def _channel(what: str) -> Iterator[Channel]:
    """A channel whose refusals are told in our words."""
    with Channel(ROUTE) as channel:
        try:
            yield channel
        except Refused as error:
            raise _translate_error(error, what) from error
        except OSError as error:  # an interface went away between two looks
            raise VclusterError(f"{what}: {error.strerror or error}") from error


def _translate_error(error: Refused, what: str) -> VclusterError:
    asked = dict(error.message["attrs"]) if isinstance(error.message, ifinfmsg) else {}
    what = f"link {asked['IFLA_IFNAME']}" if "IFLA_IFNAME" in asked else what
    if error.code in (errno.EPERM, errno.EACCES):
        return MissingError(f"{what}: making links needs root", hint="run it with sudo")
    if error.code == errno.EOPNOTSUPP and "IFLA_LINKINFO" in asked:
        kind = dict(asked["IFLA_LINKINFO"]["attrs"])["IFLA_INFO_KIND"]
        return MissingError(f"{what}: the kernel makes no {kind}: {error.reason}", hint=f"modprobe {kind}")
    if error.code == errno.EEXIST:
        return ConflictError(
            f"{what}: {error.reason}",
            hint="a container's link may hold the same VNI; choose other numbers with --vni-base",
        )
    if error.code == errno.EADDRINUSE:
        return ConflictError(
            f"{what}: another program holds its UDP port", hint="ss -lunp names it; choose another with --vxlan-port"
        )
    return VclusterError(f"{what}: {error.reason}")
