"""Packet filter rules that guard tunnels, by netlink (nf_tables)."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence

from pyroute2.netlink.nfnetlink import nfgen_msg
from pyroute2.netlink.nfnetlink.nftsocket import nft_chain_msg, nft_rule_msg, nft_table_msg
from pyroute2.nftables.expressions import genex

from vcluster.adapters.network.netlink_socket import (
    NLM_F_ACK,
    NLM_F_REQUEST,
    Message,
)
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
    open_channel,
)

COMMENT = "VXLAN packets of a vcluster that do not come from its servers are dropped"
_EQUAL, _DIFFERENT = 0, 1
_NFPROTO, _L4PROTO = 15, 16  # keys of meta
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_TUNNELS = "tunnels"


def guard(table: str, tunnels: Sequence[tuple[int, str]], port: int) -> None:
    """Let nobody but its peer send into each of these tunnels, given as VNI and the peer's IPv4 address.

    The rules of a table that exists are replaced in one step: no packet passes unguarded meanwhile.
    """
    family_table = [("NFTA_TABLE_NAME", table)]
    here = [("NFTA_CHAIN_TABLE", table)]
    hook = {"attrs": [("NFTA_HOOK_HOOKNUM", INPUT), ("NFTA_HOOK_PRIORITY", EARLY)]}
    base = [("NFTA_CHAIN_NAME", "input"), ("NFTA_CHAIN_HOOK", hook), ("NFTA_CHAIN_POLICY", ACCEPT)]
    messages = [
        new_message(nft_table_msg, NEW_TABLE, family_table, flags=CREATE),  # so that there is one to delete
        new_message(nft_table_msg, DELETE_TABLE, family_table),
        new_message(nft_table_msg, NEW_TABLE, [*family_table, ("NFTA_TABLE_USERDATA", COMMENT)], flags=CREATE),
        new_message(nft_chain_msg, NEW_CHAIN, [*here, ("NFTA_CHAIN_NAME", _TUNNELS)], flags=CREATE),
        new_message(nft_chain_msg, NEW_CHAIN, [*here, *base, ("NFTA_CHAIN_TYPE", "filter")], flags=CREATE),
        _rule(table, "input", _to_port(port)),
        *(_rule(table, _TUNNELS, _from_other_source(vni, peer)) for vni, peer in tunnels),
    ]
    with open_channel(f"table {table}") as channel:
        channel.change(_batch(messages))


def remove(table: str) -> None:
    """Remove a table and its rules. One that is gone already is a success."""
    with open_channel(f"table {table}") as channel:
        channel.change(
            _batch([new_message(nft_table_msg, DELETE_TABLE, [("NFTA_TABLE_NAME", table)])]), tolerated=(errno.ENOENT,)
        )


def tables(prefix: str) -> tuple[str, ...]:
    """The names of the tables that begin so. Without nf_tables in the kernel there are none."""
    try:
        with open_channel("the tables") as channel:
            found = channel.dump(new_message(nft_table_msg, GET_TABLE, []), nft_table_msg)
    except NoTablesError:
        return ()
    names = (one.get_attr("NFTA_TABLE_NAME") for one in found)
    return tuple(name for name in names if name.startswith(prefix))


def _to_port(port: int) -> list[Message]:
    """UDP over IPv4 to this port: on to the chain that knows the tunnels."""
    return [
        *_meta(_NFPROTO, bytes([IPV4])),
        *_meta(_L4PROTO, bytes([socket.IPPROTO_UDP])),
        *_header(_TRANSPORT_HEADER, 2, _EQUAL, struct.pack(">H", port)),
        _verdict(JUMP, _TUNNELS),
    ]


def _from_other_source(vni: int, peer: str) -> list[Message]:
    """A VXLAN header with this VNI, 4 bytes behind the UDP header's 8, and another source: dropped."""
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
    """Messages that take effect together or not at all."""
    for message in messages:
        message["header"]["flags"] |= NLM_F_ACK
    return [_bracket(BATCH_BEGIN), *messages, _bracket(BATCH_END)]


def _bracket(kind: int) -> Message:
    message = nfgen_msg()
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST
    message["res_id"] = SUBSYSTEM >> 8
    return message
