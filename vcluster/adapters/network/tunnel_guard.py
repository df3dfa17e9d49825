"""Packet filter rules that guard tunnels. Pure.

VXLAN has no authentication: a host that can reach the UDP port can send frames into a cluster. So the table of a
cluster drops VXLAN packets with the cluster's VNIs in three places:
- input: packets that do not come from the VNI's peer, or arrive on an interface that is not the tunnel's. A node or a
  container of this server could give its packets the peer's address. With an asymmetric route, packets to the peer
  leave by one interface, and those from the peer arrive on another: then the tunnel has both.
- forward: packets to the VNI's peer. Only a node, a container or another host sends them; NAT would give them the
  address of this server, which the peer trusts.
- output: packets to the VNI's peer from a socket of a user other than root. The kernel's tunnels have no socket.
All other VXLAN packets pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from socket import IPPROTO_UDP

from vcluster.adapters.network.netlink_socket import Message
from vcluster.adapters.network.nftables_messages import (
    AT_LEAST,
    AT_MOST,
    DESTINATION,
    DIFFERENT,
    DROP,
    EQUAL,
    JUMP,
    OUTPUT,
    SKUID,
    SOURCE,
    TRANSPORT_HEADER,
    address,
    header,
    interface,
    is_ipv4,
    is_sent_to,
    meta,
    new_chain,
    new_rule,
    verdict,
)

_VNI = 12  # offset of the VNI from the UDP header
_ARRIVING, _FORGED = "arriving", "forged"

Tunnel = tuple[int, str, Sequence[str]]  # its VNI, its peer's IPv4 address, and its underlay interfaces


@dataclass(frozen=True, slots=True)
class _Group:
    """Tunnels with consecutive VNIs, from the first to the last, that have the same peer and interfaces."""

    first: int
    last: int
    peer: str
    interfaces: Sequence[str]


def messages(table: str, tunnels: Sequence[Tunnel], port: int) -> list[Message]:
    """Drop packets to this UDP port, for each tunnel, that its two servers did not send."""
    vxlan, groups = [*is_ipv4(), *is_sent_to(IPPROTO_UDP, port)], _groups(tunnels)
    return [
        new_chain(table, "output", OUTPUT),
        *(new_chain(table, name) for name in (_ARRIVING, _FORGED)),
        new_rule(table, "input", [*vxlan, verdict(JUMP, _ARRIVING)]),
        new_rule(table, "forward", [*vxlan, verdict(JUMP, _FORGED)]),
        new_rule(table, "output", [*meta(SKUID, bytes(4), DIFFERENT), *vxlan, verdict(JUMP, _FORGED)]),
        *(new_rule(table, _ARRIVING, expressions) for group in groups for expressions in _drops_of_arriving(group)),
        *(new_rule(table, _FORGED, _drop_of_forged(group)) for group in groups),
    ]


def _groups(tunnels: Sequence[Tunnel]) -> list[_Group]:
    """The tunnels in as few groups as possible: each group is a rule that packets pass one after the other."""
    groups: list[_Group] = []
    for vni, peer, interfaces in sorted(tunnels, key=lambda tunnel: (*tunnel[1:], tunnel[0])):
        if groups and groups[-1] == _Group(groups[-1].first, vni - 1, peer, interfaces):
            groups[-1] = replace(groups[-1], last=vni)
        else:
            groups.append(_Group(vni, vni, peer, interfaces))
    return groups


def _drops_of_arriving(group: _Group) -> tuple[list[Message], list[Message]]:
    """Drop packets from another source, and those that arrive on another interface."""
    is_elsewhere = [part for name in group.interfaces for part in interface(name, DIFFERENT)]
    return (
        [*_is_in(group), *address(SOURCE, DIFFERENT, group.peer), verdict(DROP)],
        [*_is_in(group), *is_elsewhere, verdict(DROP)],
    )


def _drop_of_forged(group: _Group) -> list[Message]:
    """Drop packets to the peer."""
    return [*_is_in(group), *address(DESTINATION, EQUAL, group.peer), verdict(DROP)]


def _is_in(group: _Group) -> list[Message]:
    """Go on with packets that have a VNI of the group."""
    first, last = (vni.to_bytes(3, "big") for vni in (group.first, group.last))
    if first == last:
        return header(TRANSPORT_HEADER, _VNI, EQUAL, first)
    return [
        *header(TRANSPORT_HEADER, _VNI, AT_LEAST, first),
        *header(TRANSPORT_HEADER, _VNI, AT_MOST, last),
    ]
