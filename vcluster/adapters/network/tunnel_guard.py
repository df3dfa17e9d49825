"""Packet filter rules that guard tunnels, by netlink (nf_tables). No other program is needed.

VXLAN has no authentication: a host that can reach the UDP port can send frames into a cluster. So each cluster has a
table on each of its servers. It drops VXLAN packets with the cluster's VNIs in three places:
- input: packets that do not come from the VNI's peer, or arrive on an interface that is not the tunnel's. A node or a
  container of this server could give its packets the peer's address. With an asymmetric route, packets to the peer
  leave by one interface, and those from the peer arrive on another: then the tunnel has both.
- forward: packets to the VNI's peer. Only a node, a container or another host sends them; NAT would give them the
  address of this server, which the peer trusts.
- output: packets to the VNI's peer from a socket of a user other than root. The kernel's tunnels have no socket.
All other packets pass.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyroute2.netlink.nfnetlink import nfgen_msg
from pyroute2.netlink.nfnetlink.nftsocket import nft_chain_msg, nft_rule_msg, nft_table_msg
from pyroute2.nftables.expressions import genex

from vcluster.adapters.network.netlink_socket import NLM_F_ACK, NLM_F_REQUEST, Message
from vcluster.adapters.network.nftables_messages import (
    ACCEPT,
    APPEND,
    BATCH_BEGIN,
    BATCH_END,
    CREATE,
    DELETE_TABLE,
    DROP,
    EARLY,
    FORWARD,
    GET_TABLE,
    INPUT,
    IPV4,
    JUMP,
    NEW_CHAIN,
    NEW_RULE,
    NEW_TABLE,
    OUTPUT,
    SUBSYSTEM,
    NoTablesError,
    new_message,
    open_socket,
)

COMMENT = "VXLAN packets of a vcluster that do not come from its servers are dropped"
_EQUAL, _DIFFERENT, _AT_MOST, _AT_LEAST = 0, 1, 3, 5
_IIFNAME, _SKUID, _NFPROTO, _L4PROTO = 6, 10, 15, 16  # keys of meta
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_SOURCE, _DESTINATION = 12, 16  # offsets in the IPv4 header
_DESTINATION_PORT, _VNI = 2, 12  # offsets in the UDP header; the VNI is 4 bytes after it
_NAME_BYTES = 16  # IFNAMSIZ, linux/if.h
_ARRIVING, _FORGED = "arriving", "forged"

Tunnel = tuple[int, str, Sequence[str]]  # its VNI, its peer's IPv4 address, and its underlay interfaces


@dataclass(frozen=True, slots=True)
class _Group:
    """Tunnels with consecutive VNIs, from the first to the last, that have the same peer and interfaces."""

    first: int
    last: int
    peer: str
    interfaces: Sequence[str]


def guard(table: str, tunnels: Sequence[Tunnel], port: int) -> None:
    """Drop packets for each tunnel that its two servers did not send.

    The rules of an existing table are replaced in one transaction, so no packet passes unchecked.
    """
    table_name = [("NFTA_TABLE_NAME", table)]
    vxlan, groups = _is_ipv4_udp(port), _groups(tunnels)
    messages = [
        new_message(nft_table_msg, NEW_TABLE, table_name, flags=CREATE),  # otherwise the deletion could fail
        new_message(nft_table_msg, DELETE_TABLE, table_name),
        new_message(nft_table_msg, NEW_TABLE, [*table_name, ("NFTA_TABLE_USERDATA", COMMENT)], flags=CREATE),
        *(_chain(table, name) for name in (_ARRIVING, _FORGED)),
        *(_chain(table, name, hook) for name, hook in (("input", INPUT), ("forward", FORWARD), ("output", OUTPUT))),
        _rule(table, "input", [*vxlan, _verdict(JUMP, _ARRIVING)]),
        _rule(table, "forward", [*vxlan, _verdict(JUMP, _FORGED)]),
        _rule(table, "output", [*_meta(_SKUID, bytes(4), _DIFFERENT), *vxlan, _verdict(JUMP, _FORGED)]),
        *(_rule(table, _ARRIVING, expressions) for group in groups for expressions in _drops_of_arriving(group)),
        *(_rule(table, _FORGED, _drop_of_forged(group)) for group in groups),
    ]
    with open_socket(f"table {table}") as netlink:
        netlink.change(_batch(messages))


def _groups(tunnels: Sequence[Tunnel]) -> list[_Group]:
    """The tunnels in as few groups as possible: each group is a rule that packets pass one after the other."""
    groups: list[_Group] = []
    for vni, peer, interfaces in sorted(tunnels, key=lambda tunnel: (*tunnel[1:], tunnel[0])):
        if groups and groups[-1] == _Group(groups[-1].first, vni - 1, peer, interfaces):
            groups[-1] = replace(groups[-1], last=vni)
        else:
            groups.append(_Group(vni, vni, peer, interfaces))
    return groups


def remove(table: str) -> None:
    """Remove a table and its rules. It is a success if the table does not exist."""
    with open_socket(f"table {table}") as netlink:
        netlink.change(
            _batch([new_message(nft_table_msg, DELETE_TABLE, [("NFTA_TABLE_NAME", table)])]), tolerated=(errno.ENOENT,)
        )


def tables(prefix: str) -> tuple[str, ...]:
    """The names of the tables that start with `prefix`; none if the kernel has no nf_tables."""
    try:
        with open_socket("the tables") as netlink:
            found = netlink.dump(new_message(nft_table_msg, GET_TABLE, []), nft_table_msg)
    except NoTablesError:
        return ()
    names = (message.get_attr("NFTA_TABLE_NAME") for message in found)
    return tuple(name for name in names if name.startswith(prefix))


def _is_ipv4_udp(port: int) -> list[Message]:
    """Go on with UDP over IPv4 to this port."""
    return [
        *_meta(_NFPROTO, bytes([IPV4])),
        *_meta(_L4PROTO, bytes([socket.IPPROTO_UDP])),
        *_header(_TRANSPORT_HEADER, _DESTINATION_PORT, _EQUAL, struct.pack(">H", port)),
    ]


def _drops_of_arriving(group: _Group) -> tuple[list[Message], list[Message]]:
    """Drop packets from another source, and those that arrive on another interface."""
    names = [name.encode().ljust(_NAME_BYTES, b"\0") for name in group.interfaces]
    is_elsewhere = [part for name in names for part in _meta(_IIFNAME, name, _DIFFERENT)]
    return (
        [*_is_in(group), *_address(_SOURCE, _DIFFERENT, group.peer), _verdict(DROP)],
        [*_is_in(group), *is_elsewhere, _verdict(DROP)],
    )


def _drop_of_forged(group: _Group) -> list[Message]:
    """Drop packets to the peer."""
    return [*_is_in(group), *_address(_DESTINATION, _EQUAL, group.peer), _verdict(DROP)]


def _is_in(group: _Group) -> list[Message]:
    """Go on with packets that have a VNI of the group."""
    first, last = (vni.to_bytes(3, "big") for vni in (group.first, group.last))
    if first == last:
        return _header(_TRANSPORT_HEADER, _VNI, _EQUAL, first)
    return [
        *_header(_TRANSPORT_HEADER, _VNI, _AT_LEAST, first),
        *_header(_TRANSPORT_HEADER, _VNI, _AT_MOST, last),
    ]


def _address(offset: int, operator: int, address: str) -> list[Message]:
    return [*_meta(_NFPROTO, bytes([IPV4])), *_header(_NETWORK_HEADER, offset, operator, socket.inet_aton(address))]


def _meta(key: int, value: bytes, operator: int = _EQUAL) -> list[Message]:
    return [genex("meta", {"key": key, "dreg": 1}), _compare(operator, value)]


def _header(base: int, offset: int, operator: int, value: bytes) -> list[Message]:
    load = genex("payload", {"dreg": 1, "base": base, "offset": offset, "len": len(value)})
    return [load, _compare(operator, value)]


def _compare(operator: int, value: bytes) -> Message:
    return genex("cmp", {"sreg": 1, "op": operator, "data": {"attrs": [("NFTA_DATA_VALUE", value)]}})


def _verdict(code: int, chain: str = "") -> Message:
    verdict = [("NFTA_VERDICT_CODE", code), *([("NFTA_VERDICT_CHAIN", chain)] if chain else [])]
    return genex("immediate", {"dreg": 0, "data": {"attrs": [("NFTA_DATA_VERDICT", {"attrs": verdict})]}})


def _chain(table: str, name: str, hook_number: int | None = None) -> Message:
    """Create a chain, at a hook or for jumps."""
    attributes: list[tuple[str, Any]] = [("NFTA_CHAIN_TABLE", table), ("NFTA_CHAIN_NAME", name)]
    if hook_number is not None:
        hook = {"attrs": [("NFTA_HOOK_HOOKNUM", hook_number), ("NFTA_HOOK_PRIORITY", EARLY)]}
        attributes += [("NFTA_CHAIN_HOOK", hook), ("NFTA_CHAIN_POLICY", ACCEPT), ("NFTA_CHAIN_TYPE", "filter")]
    return new_message(nft_chain_msg, NEW_CHAIN, attributes, flags=CREATE)


def _rule(table: str, chain: str, expressions: Sequence[Message]) -> Message:
    attributes = [
        ("NFTA_RULE_TABLE", table),
        ("NFTA_RULE_CHAIN", chain),
        ("NFTA_RULE_EXPRESSIONS", list(expressions)),
    ]
    return new_message(nft_rule_msg, NEW_RULE, attributes, flags=CREATE | APPEND)


def _batch(messages: Sequence[Message]) -> list[Message]:
    """One transaction: all messages take effect, or none."""
    for message in messages:
        message["header"]["flags"] |= NLM_F_ACK
    return [_batch_mark(BATCH_BEGIN), *messages, _batch_mark(BATCH_END)]


def _batch_mark(kind: int) -> Message:
    message = nfgen_msg()
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST
    message["res_id"] = SUBSYSTEM >> 8
    return message
