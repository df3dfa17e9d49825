"""The netlink messages that create and change interfaces, and the kernel's errors as ours."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from vcluster.adapters.network.interface_spec import InterfaceSpec
from vcluster.adapters.network.kernel_modules import load_command
from vcluster.adapters.network.netlink_socket import (
    NLM_F_ACK,
    NLM_F_REQUEST,
    ROUTE,
    Message,
    NetlinkError,
    NetlinkSocket,
)
from vcluster.errors import ConflictError, MissingError, VclusterError

RTM_NEWLINK = 16  # linux/rtnetlink.h
CREATE_EXCLUSIVE = 0x400 | 0x200  # NLM_F_CREATE, NLM_F_EXCL
IFF_UP = 1
_ADDRESS_MODE_NONE = 1  # IN6_ADDR_GEN_MODE_NONE
_IPV6_MTU = 1280  # an interface with a smaller MTU has no IPv6

# A bridge that works like a plain switch. It forwards at once, without spanning tree. It floods multicast: with
# snooping, a querier in a node would make it drop groups that it has not learned. Frames with VLAN tags pass unchanged,
# which is the kernel's default; a kernel without VLAN filtering rejects the attribute.
_BRIDGE = (
    ("IFLA_BR_STP_STATE", 0),
    ("IFLA_BR_FORWARD_DELAY", 0),
    ("IFLA_BR_MCAST_SNOOPING", 0),
)


def creation_messages(spec: InterfaceSpec, *, exists: bool) -> list[Message]:
    """The messages that create one interface, or change an existing one to match its spec.

    The kernel rejects an alias in the message that creates an interface. All messages go out in one send, and the
    kernel handles them before a signal can end this process. So none of our interfaces is ever without an owner label.
    The interface stays down: ipv6.py changes it before it carries packets.
    """
    kind = [_kind(spec.kind, _DATA[spec.kind](spec))]
    mtu = ("IFLA_MTU", spec.mtu)
    # A bridge takes the MTU of its ports unless its own is set after its creation. A tunnel's data is set only once.
    creation = [change_message(spec.name, kind if spec.kind == "bridge" else [mtu, *kind], flags=CREATE_EXCLUSIVE)]
    attributes = [mtu, ("IFLA_IFALIAS", spec.alias), *(kind if spec.kind == "bridge" else [])]
    if spec.master:
        attributes.append(("IFLA_MASTER", socket.if_nametoindex(spec.master)))
    if exists and spec.kind == "bridge":  # while spanning tree is on, the kernel rejects a forward delay of 0
        creation = [change_message(spec.name, [_kind("bridge", _BRIDGE[:1])])]
    messages = [*([] if exists and spec.kind != "bridge" else creation), change_message(spec.name, attributes)]
    if spec.mtu >= _IPV6_MTU and _has_ipv6():
        # The server has no IPv6 on the cluster network: no address and no router solicitations.
        no_address = _nested(("AF_INET6", _nested(("IFLA_INET6_ADDR_GEN_MODE", _ADDRESS_MODE_NONE))))
        messages.append(change_message(spec.name, [("IFLA_AF_SPEC", no_address)]))
    return messages


def change_message(
    name: str, attributes: Sequence[tuple[str, Any]], *, flags: int = 0, index: int = 0, is_up: bool = False
) -> Message:
    """A message that changes, or creates, the interface with this name or index."""
    message = new_message(ifinfmsg, RTM_NEWLINK, index=index, flags=IFF_UP * is_up, change=IFF_UP * is_up)
    message["header"]["flags"] |= NLM_F_ACK | flags
    message["attrs"] = [*([("IFLA_IFNAME", name)] if name else []), *attributes]
    return message


def new_message(kind: type[Message], number: int, **fields: int) -> Message:
    """A request message of one of pyroute2's classes, with its message type and header fields."""
    message = kind()
    message["header"]["type"] = number
    message["header"]["flags"] = NLM_F_REQUEST
    for field, value in fields.items():
        message[field] = value
    return message


@contextmanager
def open_socket(subject: str) -> Iterator[NetlinkSocket]:
    """A netlink socket whose errors are translated; `subject` starts their messages."""
    with NetlinkSocket(ROUTE) as netlink:
        try:
            yield netlink
        except NetlinkError as error:
            raise _translate_error(error, subject) from error
        except OSError as error:  # an interface was removed between two calls
            raise VclusterError(f"{subject}: {error.strerror or error}") from error


def _kind(kind: str, data: Sequence[tuple[str, object]]) -> tuple[str, object]:
    return "IFLA_LINKINFO", _nested(("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", _nested(*data)))


def _vxlan(spec: InterfaceSpec) -> Sequence[tuple[str, object]]:
    return (
        ("IFLA_VXLAN_ID", spec.vni),
        ("IFLA_VXLAN_LOCAL", spec.local),
        ("IFLA_VXLAN_GROUP", spec.remote),
        ("IFLA_VXLAN_LINK", socket.if_nametoindex(spec.interface)),
        ("IFLA_VXLAN_PORT", spec.port),
        ("IFLA_VXLAN_LEARNING", 0),
    )


# The attributes of each kind of interface.
_DATA: Mapping[str, Callable[[InterfaceSpec], Sequence[tuple[str, object]]]] = {
    "bridge": lambda _: _BRIDGE,
    "vxlan": _vxlan,
}


def _nested(*attributes: tuple[str, object]) -> dict[str, object]:
    return {"attrs": list(attributes)}


def _has_ipv6() -> bool:
    return Path("/proc/sys/net/ipv6").exists()


def _translate_error(error: NetlinkError, subject: str) -> VclusterError:
    attributes = dict(error.message["attrs"]) if isinstance(error.message, ifinfmsg) else {}
    subject = f"interface {attributes['IFLA_IFNAME']}" if "IFLA_IFNAME" in attributes else subject
    if error.code in (errno.EPERM, errno.EACCES):
        return MissingError(f"{subject}: creating interfaces needs root", hint="run it with sudo")
    if error.code == errno.EOPNOTSUPP and "IFLA_LINKINFO" in attributes:
        kind = dict(attributes["IFLA_LINKINFO"]["attrs"])["IFLA_INFO_KIND"]
        return MissingError(
            f"{subject}: the kernel does not support interfaces of kind {kind}: {error.reason}", hint=load_command(kind)
        )
    if error.code == errno.EEXIST:
        return ConflictError(
            f"{subject}: {error.reason}",
            hint="a container's interface may use the same VNI; choose other numbers with --vni-base",
        )
    if error.code == errno.EADDRINUSE:
        return ConflictError(
            f"{subject}: another program uses its UDP port",
            hint="ss -lunp names the program; choose another port with --vxlan-port",
        )
    return VclusterError(f"{subject}: {error.reason}")
