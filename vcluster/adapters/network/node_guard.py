"""Packet filter rules that guard servers and other nodes against the nodes of a cluster. Pure.

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
address of nodes. A node asks in the name of its cluster address when it answers packets to that address. A node could
also claim the address of another node, which this server would then not reach. So ARP is dropped whose sender has the
management address of a node, but not its MAC.
All other packets pass, and so do frames between ports of a bridge; with br_netfilter, these are forwarded packets that
leave by the bridge on which they arrived.

Bridges forward what a node sends, so root of a node could take over the traffic of other nodes, of which root there
sends some. So the table for bridges drops, on the server of the node that sends:
- on the management network, everything from one node to another. It is for the server and the outside only.
- on the cluster network, ARP of a sender that has the address of another node.
- on the cluster network, what changes routes of other nodes: ICMP redirects, and router advertisements of IPv6.
- on the cluster network, answers of a DHCP server, if only the head may be one.
- on the cluster network, frames with two VLAN tags of which the first one has the id 0. A host removes all tags with
  this id, and the kernel of the server only one, so the rules above would not see the packet.
Nodes may use further addresses that no node has, and VLANs with other ids, which other nodes must have too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from ipaddress import IPv4Network
from socket import IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP, inet_aton

from pyroute2.nftables.expressions import genex

from vcluster.adapters.network.netlink_socket import Message
from vcluster.adapters.network.nftables_messages import (
    ACCEPT,
    ARP_SENDER,
    AT_LEAST,
    AT_MOST,
    BRIDGE_FORWARD,
    BRIDGE_PREROUTING,
    DESTINATION,
    DIFFERENT,
    DROP,
    EQUAL,
    FRAME_HEADER,
    JUMP,
    NETWORK_HEADER,
    OIFNAME,
    RETURN,
    TRANSPORT_HEADER,
    address,
    compare,
    header,
    interface,
    is_ethertype,
    is_protocol,
    is_sent_to,
    masked,
    new_chain,
    new_rule,
    verdict,
)

_CHAIN, _CLAIMS = "from_nodes", "claims"
_DNS, _DHCP, _DHCP_CLIENT, _BROADCAST = 53, 67, 68, "255.255.255.255"
_STATE, _DIRECTION = 0, 1  # keys of ct
_ESTABLISHED, _RELATED, _REPLY = 2, 4, b"\1"
_INTERFACE = ("NFT_FIB_RESULT_UNSPEC",)  # NFT_FIB_RESULT_OIF, which is 1; pyroute2 has it as bit 1
_BY_SOURCE, _BY_INTERFACE = 1, 8  # flags of fib

_ETH_P_ARP, _ETH_P_8021Q, _ETH_P_8021AD = 0x0806, 0x8100, 0x88A8  # linux/if_ether.h
_VLAN_TAG, _VLAN_ID = 14, b"\x0f\xff"  # offset of the first tag in a frame, and the bits of its id
_REDIRECT = 5  # RFC 792
_ROUTER_ADVERTISEMENT, _REDIRECT_OF_IPV6 = 134, 137  # RFC 4861
_ARP_SENDER_MAC = 8  # offset of the sender's MAC in an ARP packet

# The bridge of the management network, its gateway, and the networks that have the addresses of ARP senders.
Management = tuple[str, str, Sequence[str]]
Macs = Sequence[tuple[str, str]]  # the addresses of nodes on the management network, each with its MAC
# A node's tap of the cluster network, its address there, and whether it may be a DHCP server.
Port = tuple[str, str, bool]
# The taps of the management network and those of the cluster network, each as a name with "*" at its end; the addresses
# of all nodes, as ranges of the first and the last address; and the ports on this server.
Ports = tuple[str, str, Sequence[tuple[str, str]], Sequence[Port]]


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


def arp_messages(table: str, closed: Sequence[str], management: Management | None, macs: Macs) -> list[Message]:
    """Drop ARP from nodes, except from senders of the management network that have the right MAC.

    Bridges forward it all the same.
    """
    drop = verdict(DROP)
    drops = [new_rule(table, "input", [*interface(name), drop]) for name in closed]
    if management is None:
        return drops
    bridge, _, subnets = management
    is_outside = [part for subnet in subnets for part in _is_arp_from_outside(IPv4Network(subnet))]
    drops += [new_rule(table, "input", [*interface(bridge), *is_outside, drop])]
    if not macs:
        return drops
    return [
        new_chain(table, _CLAIMS),
        *drops,
        new_rule(table, "input", [*interface(bridge), verdict(JUMP, _CLAIMS)]),
        *(new_rule(table, _CLAIMS, [*_is_false_claim(*claim), drop]) for claim in macs),
    ]


def _is_false_claim(claimed: str, mac: str) -> list[Message]:
    """Go on with ARP whose sender has this address, and another MAC."""
    return [
        *header(NETWORK_HEADER, ARP_SENDER, EQUAL, inet_aton(claimed)),
        *header(NETWORK_HEADER, _ARP_SENDER_MAC, DIFFERENT, bytes.fromhex(mac.replace(":", ""))),
    ]


def _is_arp_from_outside(subnet: IPv4Network) -> list[Message]:
    """Go on with ARP from a sender that is not in the subnet."""
    return [
        genex("payload", {"dreg": 1, "base": NETWORK_HEADER, "offset": ARP_SENDER, "len": 4}),
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


def bridge_messages(table: str, ports: Ports) -> list[Message]:
    """Drop frames by which a node would take over the traffic of other nodes."""
    management, cluster, addresses, nodes = ports
    drop = verdict(DROP)
    serving = [tap for tap, _, may_serve in nodes if may_serve]
    drops = [
        *(_is_hidden(tag) for tag in (_ETH_P_8021Q, _ETH_P_8021AD)),
        [*is_protocol(IPPROTO_ICMP), *_has_type(_REDIRECT)],
        [*is_protocol(IPPROTO_ICMPV6), *_has_type(_ROUTER_ADVERTISEMENT)],
        [*is_protocol(IPPROTO_ICMPV6), *_has_type(_REDIRECT_OF_IPV6)],
        *([_is_dhcp_answer(serving)] if len(serving) < len(nodes) else []),
    ]
    return [
        new_chain(table, "prerouting", BRIDGE_PREROUTING),
        new_chain(table, "forward", BRIDGE_FORWARD),
        *(new_chain(table, name) for name in (_CHAIN, _CLAIMS)),
        new_rule(table, "prerouting", [*interface(cluster), verdict(JUMP, _CHAIN)]),
        new_rule(table, "forward", [*interface(management), *interface(management, key=OIFNAME), drop]),
        new_rule(table, _CHAIN, [*is_ethertype(_ETH_P_ARP), verdict(JUMP, _CLAIMS)]),
        *(new_rule(table, _CHAIN, [*expressions, drop]) for expressions in drops),
        *(new_rule(table, _CLAIMS, [*interface(tap), *_is_of(own, own), verdict(RETURN)]) for tap, own, _ in nodes),
        *(new_rule(table, _CLAIMS, [*_is_of(first, last), drop]) for first, last in addresses),
    ]


def _is_hidden(tag: int) -> list[Message]:
    """Go on with frames that have a further VLAN tag, of this type, after a first one with the id 0.

    The kernel has removed the first one: the type of the frame is that of the second one.
    """
    first_id = genex("payload", {"dreg": 1, "base": FRAME_HEADER, "offset": _VLAN_TAG, "len": 2})
    return [*is_ethertype(tag), first_id, masked(_VLAN_ID), compare(EQUAL, bytes(2))]


def _has_type(kind: int) -> list[Message]:
    return header(TRANSPORT_HEADER, 0, EQUAL, bytes([kind]))


def _is_dhcp_answer(serving: Sequence[str]) -> list[Message]:
    """Go on with packets to the port of DHCP clients, except from these taps. Clients accept any source port."""
    return [*is_sent_to(IPPROTO_UDP, _DHCP_CLIENT), *(part for tap in serving for part in interface(tap, DIFFERENT))]


def _is_of(first: str, last: str) -> list[Message]:
    """Go on with ARP of a sender that has an address from the first one to the last one."""
    if first == last:
        return header(NETWORK_HEADER, ARP_SENDER, EQUAL, inet_aton(first))
    return [
        *header(NETWORK_HEADER, ARP_SENDER, AT_LEAST, inet_aton(first)),
        *header(NETWORK_HEADER, ARP_SENDER, AT_MOST, inet_aton(last)),
    ]
