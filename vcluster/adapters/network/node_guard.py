"""Packet filter rules that guard servers against the nodes of a cluster. Pure.

Root of a node is not trusted, and servers may have services for their own users. So the table of a cluster drops what
its nodes send to this server, to any of its addresses:
- on the management network, everything but DNS and DHCP of the gateway, and answers to connections that this server
  opened. An answer must come from an address that this server reaches by that network: a node could otherwise answer
  for another host.
- on the cluster network, everything: this server has no address there. This counts for its bridges, and for tunnels and
  taps whose bridge was removed; they hand their frames to this server.
It also drops packets that this server would forward: from the cluster network all, and from the management network
those to other servers of the cluster, which would take them for packets of this server (NAT).
ARP requests make entries in the ARP cache of this server, which has room for about 1000. A node could fill it, and the
server would reach no new host. So ARP is dropped that does not come by the management network, or whose sender has no
address of nodes. A node asks in the name of its cluster address when it answers packets to that address.
All other packets pass, and so do frames between ports of a bridge; with br_netfilter, these are forwarded packets that
leave by the bridge on which they arrived.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from ipaddress import IPv4Network
from socket import IPPROTO_TCP, IPPROTO_UDP

from pyroute2.nftables.expressions import genex

from vcluster.adapters.network.netlink_socket import Message
from vcluster.adapters.network.nftables_messages import (
    ACCEPT,
    DESTINATION,
    DIFFERENT,
    DROP,
    EQUAL,
    JUMP,
    NETWORK_HEADER,
    OIFNAME,
    address,
    compare,
    interface,
    is_sent_to,
    masked,
    new_chain,
    new_rule,
    verdict,
)

_CHAIN = "from_nodes"
_DNS, _DHCP, _BROADCAST = 53, 67, "255.255.255.255"
_STATE, _DIRECTION = 0, 1  # keys of ct
_ESTABLISHED, _RELATED, _REPLY = 2, 4, b"\1"
_INTERFACE = ("NFT_FIB_RESULT_UNSPEC",)  # NFT_FIB_RESULT_OIF, which is 1; pyroute2 has it as bit 1
_BY_SOURCE, _BY_INTERFACE = 1, 8  # flags of fib

_ARP_SENDER = 14  # offset of the sender's address in an ARP packet for IPv4

# The bridge of the management network, its gateway, and the networks that have the addresses of ARP senders.
Management = tuple[str, str, Sequence[str]]


def messages(table: str, closed: Sequence[str], management: Management | None, servers: Sequence[str]) -> list[Message]:
    """Drop packets from nodes: from `closed` interfaces all, from the management network all but a few."""
    drop = verdict(DROP)
    drops = [new_rule(table, "input", [*interface(name), drop]) for name in closed]
    drops += [
        new_rule(table, "forward", [*interface(name), *interface(name, DIFFERENT, OIFNAME), drop]) for name in closed
    ]
    if management is None:
        return drops
    bridge, gateway, _ = management
    return [
        new_chain(table, _CHAIN),
        new_rule(table, "input", [*interface(bridge), verdict(JUMP, _CHAIN)]),
        *(new_rule(table, _CHAIN, expressions) for expressions in _accepted(gateway)),
        new_rule(table, _CHAIN, [drop]),
        *(
            new_rule(table, "forward", [*interface(bridge), *address(DESTINATION, EQUAL, server), drop])
            for server in servers
        ),
        *drops,
    ]


def arp_messages(table: str, closed: Sequence[str], management: Management | None) -> list[Message]:
    """Drop ARP from nodes, except from senders of the management network. Bridges forward it all the same."""
    drop = verdict(DROP)
    drops = [new_rule(table, "input", [*interface(name), drop]) for name in closed]
    if management is None:
        return drops
    bridge, _, subnets = management
    is_outside = [part for subnet in subnets for part in _is_arp_from_outside(IPv4Network(subnet))]
    return [*drops, new_rule(table, "input", [*interface(bridge), *is_outside, drop])]


def _is_arp_from_outside(subnet: IPv4Network) -> list[Message]:
    """Go on with ARP from a sender that is not in the subnet."""
    return [
        genex("payload", {"dreg": 1, "base": NETWORK_HEADER, "offset": _ARP_SENDER, "len": 4}),
        masked(subnet.netmask.packed),
        compare(DIFFERENT, subnet.network_address.packed),
    ]


def _accepted(gateway: str) -> list[list[Message]]:
    to_gateway, to_all = (address(DESTINATION, EQUAL, each) for each in (gateway, _BROADCAST))
    dhcp, accept = is_sent_to(IPPROTO_UDP, _DHCP), verdict(ACCEPT)
    return [
        [*to_gateway, *dhcp, accept],
        [*to_all, *dhcp, accept],  # its sender may have no address yet
        [*_has_foreign_source(), verdict(DROP)],
        [*to_gateway, *is_sent_to(IPPROTO_UDP, _DNS), accept],
        [*to_gateway, *is_sent_to(IPPROTO_TCP, _DNS), accept],
        [*_is_answer(), accept],
    ]


def _has_foreign_source() -> list[Message]:
    """Go on with packets whose source this server does not reach by the interface on which they arrive."""
    lookup = {"dreg": 1, "result": _INTERFACE, "flags": _BY_SOURCE | _BY_INTERFACE}
    return [genex("fib", lookup), compare(EQUAL, bytes(4))]


def _is_answer() -> list[Message]:
    """Go on with answers to packets of this server, and with errors about such packets."""
    return [
        genex("ct", {"key": _DIRECTION, "dreg": 1}),
        compare(EQUAL, _REPLY),
        genex("ct", {"key": _STATE, "dreg": 1}),
        masked((_ESTABLISHED | _RELATED).to_bytes(4, sys.byteorder)),
        compare(DIFFERENT, bytes(4)),
    ]
