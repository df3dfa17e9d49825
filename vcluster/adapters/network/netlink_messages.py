"""The netlink messages that create and change interfaces, and the kernel's refusals as errors."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from vcluster.adapters.network.interface_spec import InterfaceSpec
from vcluster.adapters.network.netlink_socket import NLM_F_ACK, NLM_F_REQUEST, ROUTE, Channel, Message, Refused
from vcluster.errors import ConflictError, MissingError, VclusterError

RTM_NEWLINK = 16  # linux/rtnetlink.h
CREATE_EXCLUSIVE = 0x400 | 0x200  # NLM_F_CREATE, NLM_F_EXCL
IFF_UP = 1
_NO_ADDRESS = 1  # IN6_ADDR_GEN_MODE_NONE
_IPV6_MTU = 1280  # below this a link has no IPv6 to be switched off

# A bridge like a plain switch: it forwards at once, without spanning tree; multicast goes everywhere (with snooping, a
# querier in some node would make it swallow groups it has not learned of). Frames with VLAN tags pass as they are: that
# is how a bridge begins, and a kernel without VLAN filtering refuses to be told.
_BRIDGE = (
    ("IFLA_BR_STP_STATE", 0),
    ("IFLA_BR_FORWARD_DELAY", 0),
    ("IFLA_BR_MCAST_SNOOPING", 0),
)


def creation_messages(spec: InterfaceSpec, *, exists: bool) -> list[Message]:
    """What makes one link, or mends it.

    The kernel takes no mark in the message that makes a link. So both go in one piece, which it deals with before it
    can end us: no link of ours is ever without a mark.
    """
    kind = [_kind(spec.kind, _data(spec))]
    mtu = ("IFLA_MTU", spec.mtu)
    # A bridge that is not told its MTU once it exists follows its ports. A tunnel's data cannot be told twice.
    making = [change_message(spec.name, kind if spec.kind == "bridge" else [mtu, *kind], flags=CREATE_EXCLUSIVE)]
    marking = [mtu, ("IFLA_IFALIAS", spec.alias), *(kind if spec.kind == "bridge" else [])]
    if spec.master:
        marking.append(("IFLA_MASTER", socket.if_nametoindex(spec.master)))
    if exists and spec.kind == "bridge":  # while spanning tree is on, the kernel refuses a forward delay of 0
        making = [change_message(spec.name, [_kind("bridge", _BRIDGE[:1])])]
    messages = [*([] if exists and spec.kind != "bridge" else making), change_message(spec.name, marking)]
    if spec.mtu >= _IPV6_MTU and _has_ipv6():
        # The server itself has nothing to say on the cluster's network: no address, no router solicitations.
        silent = _nested(("AF_INET6", _nested(("IFLA_INET6_ADDR_GEN_MODE", _NO_ADDRESS))))
        messages.append(change_message(spec.name, [("IFLA_AF_SPEC", silent)]))
    return [*messages, change_message(spec.name, [], is_up=True)]


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


def change_message(
    name: str, attributes: Sequence[tuple[str, Any]], *, flags: int = 0, index: int = 0, is_up: bool = False
) -> Message:
    message = new_message(ifinfmsg, RTM_NEWLINK, index=index, flags=IFF_UP * is_up, change=IFF_UP * is_up)
    message["header"]["flags"] |= NLM_F_ACK | flags
    message["attrs"] = [*([("IFLA_IFNAME", name)] if name else []), *attributes]
    return message


def new_message(kind: type[Message], number: int, **fields: int) -> Message:
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


@contextmanager
def open_channel(what: str) -> Iterator[Channel]:
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
