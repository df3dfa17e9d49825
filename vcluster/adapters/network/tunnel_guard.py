"""Packet filter rules that guard tunnels, by netlink (nf_tables). No other program is needed.

VXLAN has no authentication: a host that can reach the UDP port can send frames into a cluster. So each cluster has a
table that checks VXLAN packets with its VNIs: it drops those that do not come from the VNI's peer. All other packets
pass.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence

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
    GET_TABLE,
    INPUT,
    IPV4,
    JUMP,
    NEW_CHAIN,
    NEW_RULE,
    NEW_TABLE,
    SUBSYSTEM,
    NoTablesError,
    new_message,
    open_socket,
)

COMMENT = "VXLAN packets of a vcluster that do not come from its servers are dropped"
_EQUAL, _DIFFERENT = 0, 1
_NFPROTO, _L4PROTO = 15, 16  # keys of meta
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_TUNNELS = "tunnels"


def guard(table: str, tunnels: Sequence[tuple[int, str]], port: int) -> None:
    """Drop packets for each tunnel that do not come from its peer. A tunnel is its VNI and its peer's IPv4 address.

    The rules of an existing table are replaced in one transaction, so no packet passes unchecked.
    """
    table_name = [("NFTA_TABLE_NAME", table)]
    chain_table = [("NFTA_CHAIN_TABLE", table)]
    hook = {"attrs": [("NFTA_HOOK_HOOKNUM", INPUT), ("NFTA_HOOK_PRIORITY", EARLY)]}
    base = [("NFTA_CHAIN_NAME", "input"), ("NFTA_CHAIN_HOOK", hook), ("NFTA_CHAIN_POLICY", ACCEPT)]
    messages = [
        new_message(nft_table_msg, NEW_TABLE, table_name, flags=CREATE),  # otherwise the deletion could fail
        new_message(nft_table_msg, DELETE_TABLE, table_name),
        new_message(nft_table_msg, NEW_TABLE, [*table_name, ("NFTA_TABLE_USERDATA", COMMENT)], flags=CREATE),
        new_message(nft_chain_msg, NEW_CHAIN, [*chain_table, ("NFTA_CHAIN_NAME", _TUNNELS)], flags=CREATE),
        new_message(nft_chain_msg, NEW_CHAIN, [*chain_table, *base, ("NFTA_CHAIN_TYPE", "filter")], flags=CREATE),
        _rule(table, "input", _jump_if_port(port)),
        *(_rule(table, _TUNNELS, _drop_unless_from(peer, vni)) for vni, peer in tunnels),
    ]
    with open_socket(f"table {table}") as netlink:
        netlink.change(_batch(messages))


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


def _jump_if_port(port: int) -> list[Message]:
    """Send UDP over IPv4 to this port on to the chain with the tunnels' rules."""
    return [
        *_meta(_NFPROTO, bytes([IPV4])),
        *_meta(_L4PROTO, bytes([socket.IPPROTO_UDP])),
        *_header(_TRANSPORT_HEADER, 2, _EQUAL, struct.pack(">H", port)),
        _verdict(JUMP, _TUNNELS),
    ]


def _drop_unless_from(peer: str, vni: int) -> list[Message]:
    """Drop packets with this VNI and another source. The VNI is 4 bytes after the 8 bytes of the UDP header."""
    return [
        *_header(_TRANSPORT_HEADER, 12, _EQUAL, vni.to_bytes(3, "big")),
        *_meta(_NFPROTO, bytes([IPV4])),
        *_header(_NETWORK_HEADER, 12, _DIFFERENT, socket.inet_aton(peer)),
        _verdict(DROP),
    ]


def _meta(key: int, value: bytes) -> list[Message]:
    return [genex("meta", {"key": key, "dreg": 1}), _compare(_EQUAL, value)]


def _header(base: int, offset: int, operator: int, value: bytes) -> list[Message]:
    load = genex("payload", {"dreg": 1, "base": base, "offset": offset, "len": len(value)})
    return [load, _compare(operator, value)]


def _compare(operator: int, value: bytes) -> Message:
    return genex("cmp", {"sreg": 1, "op": operator, "data": {"attrs": [("NFTA_DATA_VALUE", value)]}})


def _verdict(code: int, chain: str = "") -> Message:
    verdict = [("NFTA_VERDICT_CODE", code), *([("NFTA_VERDICT_CHAIN", chain)] if chain else [])]
    return genex("immediate", {"dreg": 0, "data": {"attrs": [("NFTA_DATA_VERDICT", {"attrs": verdict})]}})


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
