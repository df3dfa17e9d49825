"""The netlink messages of nf_tables, and the kernel's errors as ours."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pyroute2.netlink.nfnetlink import nfgen_msg
from pyroute2.netlink.nfnetlink.nftsocket import nft_chain_msg, nft_rule_msg, nft_table_msg
from pyroute2.nftables.expressions import genex

from vcluster.adapters.network.netlink_socket import (
    NETFILTER,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    Message,
    NetlinkError,
    NetlinkSocket,
)
from vcluster.errors import MissingError, VclusterError

SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
BATCH_BEGIN, BATCH_END = 0x10, 0x11
NEW_TABLE, GET_TABLE, DELETE_TABLE = 0, 1, 2  # linux/netfilter/nf_tables.h
NEW_CHAIN, GET_CHAIN = 3, 4
NEW_RULE, GET_RULE = 6, 7
NEW_SET, GET_ELEMENTS = 9, 13
CREATE, APPEND = 0x400, 0x800
FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
ANY_FAMILY, INET, IPV4, ARP, NETDEV, BRIDGE = 0, 1, 2, 3, 5, 7
INPUT, FORWARD, OUTPUT, ARP_INPUT, BRIDGE_PREROUTING, BRIDGE_FORWARD, INGRESS = 1, 2, 3, 0, 0, 2, 0  # hooks
ACCEPT, DROP, JUMP, RETURN = 1, 0, -3, -5
EARLY = -10  # a priority before that of other filters, which start at 0
LATE = 1000  # a priority after that of other filters: what they drop does not come so far
_OWNED = 2  # NFT_TABLE_F_OWNER: the kernel removes the table when the socket that made it closes
EQUAL, DIFFERENT, BELOW, AT_MOST, AT_LEAST = 0, 1, 2, 3, 5
PRIORITY, IIFNAME, OIFNAME, SKUID = 2, 6, 7, 10  # keys of meta
_ETHERTYPE, _NFPROTO, _L4PROTO = 1, 15, 16
FRAME_HEADER, NETWORK_HEADER, TRANSPORT_HEADER = 0, 1, 2
SOURCE, DESTINATION = 12, 16  # offsets in the IPv4 header
ARP_SENDER = 14  # offset of the sender's address in an ARP packet for IPv4
_DESTINATION_PORT = 2  # offset in the UDP and TCP headers
NAME_BYTES = 16  # of an interface: IFNAMSIZ, linux/if.h


_KINDS_OF_RULES = (
    "nft_ct nft_fib nft_fib_inet"  # the modules for our rules that a kernel may lack; the rest is built in
)


class NoTablesError(MissingError):
    """The kernel has no nf_tables, or not for this family."""


class NoRulesError(MissingError):
    """The kernel has nf_tables, but not all that our rules need."""


def new_message(
    kind: type[Message], number: int, attributes: Sequence[tuple[str, Any]], *, family: int = INET, flags: int = 0
) -> Message:
    """A request message of one of pyroute2's classes, with its nf_tables message type and attributes."""
    message = kind()
    message["header"]["type"] = SUBSYSTEM | number
    message["header"]["flags"] = NLM_F_REQUEST | flags
    message["nfgen_family"] = family
    message["attrs"] = list(attributes)
    return message


# Chains and rules


def new_chain(
    table: str, name: str, hook_number: int | None = None, *, device: str = "", priority: int = EARLY
) -> Message:
    """Create a chain, at a hook or for jumps. Only in the family netdev, a hook belongs to a device."""
    attributes: list[tuple[str, Any]] = [("NFTA_CHAIN_TABLE", table), ("NFTA_CHAIN_NAME", name)]
    if hook_number is not None:
        place = [("NFTA_HOOK_DEV", device)] if device else []
        hook = {"attrs": [("NFTA_HOOK_HOOKNUM", hook_number), ("NFTA_HOOK_PRIORITY", priority), *place]}
        attributes += [("NFTA_CHAIN_HOOK", hook), ("NFTA_CHAIN_POLICY", ACCEPT), ("NFTA_CHAIN_TYPE", "filter")]
    return new_message(nft_chain_msg, NEW_CHAIN, attributes, flags=CREATE)


def new_rule(table: str, chain: str, expressions: Sequence[Message]) -> Message:
    """Append a rule to a chain."""
    attributes = [
        ("NFTA_RULE_TABLE", table),
        ("NFTA_RULE_CHAIN", chain),
        ("NFTA_RULE_EXPRESSIONS", list(expressions)),
    ]
    return new_message(nft_rule_msg, NEW_RULE, attributes, flags=CREATE | APPEND)


def batch(messages: Sequence[Message]) -> list[Message]:
    """One transaction: all messages take effect, or none."""
    for message in messages:
        message["header"]["flags"] |= NLM_F_ACK
    return [_batch_mark(BATCH_BEGIN), *messages, _batch_mark(BATCH_END)]


def replacement(table: str, family: int, comment: str, messages: Sequence[Message]) -> list[Message]:
    """One transaction that makes a table of a family, or replaces it, with these chains and rules."""
    name = [("NFTA_TABLE_NAME", table)]
    changes = [
        new_message(nft_table_msg, NEW_TABLE, name, flags=CREATE),  # otherwise the deletion could fail
        new_message(nft_table_msg, DELETE_TABLE, name),
        new_message(nft_table_msg, NEW_TABLE, [*name, ("NFTA_TABLE_USERDATA", comment)], flags=CREATE),
        *messages,
    ]
    return _of_family(family, changes)


def owned(table: str, family: int, messages: Sequence[Message]) -> list[Message]:
    """One transaction that makes a table with these sets, chains and rules. It goes when the socket of it closes.

    So it goes too when the process of the socket is killed.
    """
    attributes = [("NFTA_TABLE_NAME", table), ("NFTA_TABLE_FLAGS", _OWNED)]
    return _of_family(family, [new_message(nft_table_msg, NEW_TABLE, attributes, flags=CREATE), *messages])


def trial(table: str, family: int, messages: Sequence[Message]) -> list[Message]:
    """One transaction that makes a table with these chains and rules, and removes it: it shows what a kernel lacks."""
    name = [("NFTA_TABLE_NAME", table)]
    made = new_message(nft_table_msg, NEW_TABLE, name, flags=CREATE)
    return _of_family(family, [made, *messages, new_message(nft_table_msg, DELETE_TABLE, name)])


def _of_family(family: int, messages: Sequence[Message]) -> list[Message]:
    for message in messages:
        message["nfgen_family"] = family
    return batch(messages)


def _batch_mark(kind: int) -> Message:
    message = nfgen_msg()
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST
    message["res_id"] = SUBSYSTEM >> 8
    return message


# Expressions: the parts of a rule


def verdict(code: int, chain: str = "") -> Message:
    """The end of a rule; a jump goes to a chain."""
    attributes = [("NFTA_VERDICT_CODE", code), *([("NFTA_VERDICT_CHAIN", chain)] if chain else [])]
    return genex("immediate", {"dreg": 0, "data": {"attrs": [("NFTA_DATA_VERDICT", {"attrs": attributes})]}})


def is_ipv4() -> list[Message]:
    """Go on with IPv4."""
    return meta(_NFPROTO, bytes([IPV4]))


def is_ethertype(number: int) -> list[Message]:
    """Go on with frames of this type."""
    return meta(_ETHERTYPE, number.to_bytes(2, "big"))


def is_protocol(number: int) -> list[Message]:
    """Go on with packets of this protocol over IPv4 or IPv6."""
    return meta(_L4PROTO, bytes([number]))


def is_sent_to(protocol: int, port: int) -> list[Message]:
    """Go on with packets of UDP or TCP to this port."""
    return [*is_protocol(protocol), *header(TRANSPORT_HEADER, _DESTINATION_PORT, EQUAL, port.to_bytes(2, "big"))]


def address(offset: int, operator: int, wanted: str) -> list[Message]:
    """Compare an address of the IPv4 header."""
    return [*is_ipv4(), *header(NETWORK_HEADER, offset, operator, socket.inet_aton(wanted))]


def interface(name: str, operator: int = EQUAL, key: int = IIFNAME) -> list[Message]:
    """Compare the interface on which the packet arrived, or leaves; "*" at the end of the name is any end."""
    value = name.encode().ljust(NAME_BYTES, b"\0") if name[-1] != "*" else name[:-1].encode()
    return meta(key, value, operator)


def meta(key: int, value: bytes, operator: int = EQUAL) -> list[Message]:
    """Compare a property of the packet; a value that is shorter than the property is its beginning."""
    return [genex("meta", {"key": key, "dreg": 1}), compare(operator, value)]


def header(base: int, offset: int, operator: int, value: bytes) -> list[Message]:
    """Compare a field of a header."""
    load = genex("payload", {"dreg": 1, "base": base, "offset": offset, "len": len(value)})
    return [load, compare(operator, value)]


def compare(operator: int, value: bytes) -> Message:
    """Compare the register, and go on if it is so."""
    return genex("cmp", {"sreg": 1, "op": operator, "data": data(value)})


def masked(mask: bytes) -> Message:
    """Keep the bits of the register that are set in the mask."""
    constants = {"mask": data(mask), "xor": data(bytes(len(mask)))}
    return genex("bitwise", {"sreg": 1, "dreg": 1, "len": len(mask), **constants})


def data(value: bytes) -> dict[str, Any]:
    """A constant."""
    return {"attrs": [("NFTA_DATA_VALUE", value)]}


# The kernel


@contextmanager
def open_socket(subject: str, protocol: int = NETFILTER) -> Iterator[NetlinkSocket]:
    """A netlink socket whose errors are translated; `subject` starts their messages."""
    try:
        with NetlinkSocket(protocol) as netlink:
            yield netlink
    except NetlinkError as error:
        raise _translate_error(error, subject) from error


def _translate_error(error: NetlinkError, subject: str) -> VclusterError:
    if error.code in (errno.EPERM, errno.EACCES):
        return MissingError(f"{subject}: packet filter rules need root", hint="run it with sudo")
    if _has_no_tables(error):
        return NoTablesError(f"{subject}: the kernel has no nf_tables", hint="modprobe nf_tables")
    if _lacks(error, NEW_RULE):
        return NoRulesError(f"{subject}: the kernel lacks {_KINDS_OF_RULES}", hint=f"modprobe -a {_KINDS_OF_RULES}")
    return VclusterError(f"{subject}: {error.reason}")


def _has_no_tables(error: NetlinkError) -> bool:
    """Whether the kernel rejects nf_tables itself: batches as not supported, questions as invalid (nfnetlink.c).

    Before Linux 6.7 a kernel accepts tables of a family that it lacks, and rejects the first chain (nf_tables_api.c).
    """
    if error.code in (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT) or _lacks(error, NEW_CHAIN):
        return True
    is_question = error.message is None or bool(error.message["header"]["flags"] & NLM_F_DUMP)
    return error.code == errno.EINVAL and is_question


def _lacks(error: NetlinkError, number: int) -> bool:
    """Whether the kernel does not know something in a message with this nf_tables message type."""
    kind = error.message["header"]["type"] if error.message else None
    return error.code == errno.ENOENT and kind == SUBSYSTEM | number
