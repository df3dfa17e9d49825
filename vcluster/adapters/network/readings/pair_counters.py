"""Count the frames that a switch forwards from each of its ports to each other one.

A table of the packet filter has a set of pairs of ports, each with a counter; the kernel adds a pair with its first
frame. Its chain is the last one, so frames that other rules drop are not counted. The table belongs to a socket: the
kernel removes it when this process ends, also if it is killed. Each process has its own table, so several can count.
"""

from __future__ import annotations

import errno
import functools
import secrets
import struct
import threading
from collections.abc import Iterator, Sequence

from pyroute2.netlink.nfnetlink.nftsocket import nft_contains_expr, nft_set_msg
from pyroute2.nftables.expressions import genex

from vcluster.adapters.network.kernel_modules import load_command
from vcluster.adapters.network.netlink_socket import NETFILTER, Message, NetlinkError, NetlinkSocket
from vcluster.adapters.network.nftables_messages import (
    BRIDGE,
    BRIDGE_FORWARD,
    CREATE,
    GET_ELEMENTS,
    IIFNAME,
    LATE,
    NAME_BYTES,
    NEW_SET,
    OIFNAME,
    SUBSYSTEM,
    interface,
    new_chain,
    new_message,
    new_rule,
    owned,
)
from vcluster.adapters.network.readings.raw_attributes import attributes, first
from vcluster.adapters.network.readings.traffic_counters import COUNTER, counted
from vcluster.errors import MissingError, VclusterError
from vcluster.model.traffic.port_counters import PairCounters

nft_contains_expr.nft_expr.nft_dynset.rule_expr = nft_contains_expr.nft_expr  # pyroute2 0.9 names it, and lacks it

PAIRS_MAX = 2**16  # a switch of 256 ports; later pairs are not counted
_SET, _HOOK, _SET_ID = "pairs", "forward", 1
_UPDATE = 1  # NFT_DYNSET_OP_UPDATE: add an element, or change the one that exists
_TWO_NAMES = 41 << 6 | 41  # as nft(8) numbers the type ifname . ifname, which it then can list
_EVAL = frozenset({"NFT_SET_EVAL"})  # rules add its elements
_TABLE, _NAME, _ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_…
_KEY, _EXPRESSION, _EXPRESSIONS, _VALUE = 1, 7, 11, 1  # NFTA_SET_ELEM_…, NFTA_DATA_VALUE
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2  # NFTA_EXPR_…

# An element: its attributes up to the key, both names, those up to the counter, bytes, and packets.
_ELEMENT = struct.Struct("12s 16s 16s 24s 8s 4s 8s")

# What a kernel answers that lacks nf_tables, the family, or a part of the rules.
_LACKS = (errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EINVAL)

_lock = threading.Lock()
_counting: tuple[NetlinkSocket, str] | None = None  # the socket and the name of its table


def start(table: str, prefixes: Sequence[str]) -> None:
    """Count frames from ports whose names begin with one of these prefixes, until `stop` or the end of this process.

    Raises MissingError if the kernel cannot count them.
    """
    global _counting  # noqa: PLW0603
    name = f"{table} {secrets.token_hex(4)}"
    with _lock:
        _close()
        netlink = NetlinkSocket(NETFILTER)
        try:
            netlink.change(owned(name, BRIDGE, _messages(name, prefixes)))
        except NetlinkError as error:
            netlink.close()
            raise _lack(error) from error
        _counting = netlink, name


def stop() -> None:
    """Remove the table, if `start` has made one."""
    with _lock:
        _close()


def _close() -> None:
    global _counting  # noqa: PLW0603
    if _counting:
        _counting[0].close()
    _counting = None


def read() -> list[PairCounters] | None:
    """The counters of all pairs that had a frame; None if `start` was not called."""
    with _lock:
        if _counting is None:
            return None
        netlink, table = _counting
        asked = struct.pack("=BBH", BRIDGE, 0, 0) + _text(_TABLE, table) + _text(_NAME, _SET)
        try:
            bodies = netlink.dump_raw(SUBSYSTEM | GET_ELEMENTS, asked)
        except NetlinkError as error:
            raise VclusterError(f"cannot read the frames between ports: {error.reason}") from error
    # The kernel may list an element twice while its set grows.
    found = {key: counts for body in bodies for key, counts in _elements(body)}
    return [PairCounters(*key, *counts) for key, counts in found.items()]


def _messages(table: str, prefixes: Sequence[str]) -> list[Message]:
    fields = [
        ("NFTA_SET_TABLE", table), ("NFTA_SET_NAME", _SET), ("NFTA_SET_FLAGS", _EVAL), ("NFTA_SET_ID", _SET_ID),
        ("NFTA_SET_KEY_TYPE", _TWO_NAMES), ("NFTA_SET_KEY_LEN", 2 * NAME_BYTES),
        ("NFTA_SET_DESC", {"attrs": [("NFTA_SET_DESC_SIZE", PAIRS_MAX)]}),
    ]  # fmt: skip
    count = genex("counter", {})
    update = genex("dynset", {"set_name": _SET, "set_id": _SET_ID, "op": _UPDATE, "sreg_key": 1, "expr": count})
    pair = [genex("meta", {"key": IIFNAME, "dreg": 1}), genex("meta", {"key": OIFNAME, "dreg": 2})]
    return [
        new_message(nft_set_msg, NEW_SET, fields, flags=CREATE),
        new_chain(table, _HOOK, BRIDGE_FORWARD, priority=LATE),
        *(new_rule(table, _HOOK, [*interface(f"{prefix}*"), *pair, update]) for prefix in prefixes),
    ]


def _lack(error: NetlinkError) -> VclusterError:
    if error.code in (errno.EPERM, errno.EACCES):
        return MissingError("counting frames between ports needs root", hint="run it with sudo")
    if error.code in _LACKS:
        hint = load_command("nf_tables")
        return MissingError(f"the kernel cannot count frames between ports: {error.reason}", hint=hint)
    return VclusterError(f"counting frames between ports: {error.reason}")


def _text(kind: int, text: str) -> bytes:
    value = text.encode() + b"\0"
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _elements(body: bytes) -> Iterator[tuple[tuple[str, str], tuple[int, int]]]:
    """The ports of each element of a message, and its packets and bytes.

    All elements have the form of the first one, so their values are at the same places: this takes a quarter of the
    time. Elements of another form are read attribute by attribute.
    """
    elements = first(body, _ELEMENTS, 4)
    if len(elements) % _ELEMENT.size == 0 and elements:
        forms, found = set(), []
        for head, start, end, middle, size, between, packets in _ELEMENT.iter_unpack(elements):
            forms.add((head, middle, between))
            found.append(((_name(start), _name(end)), (int.from_bytes(packets, "big"), int.from_bytes(size, "big"))))
        if len(forms) == 1 and list(_slow_elements(elements[: _ELEMENT.size])) == found[:1]:
            yield from found
            return
    yield from _slow_elements(elements)


def _slow_elements(elements: bytes) -> Iterator[tuple[tuple[str, str], tuple[int, int]]]:
    for _, element in attributes(elements):
        fields = dict(attributes(element))
        key = first(fields.get(_KEY, b""), _VALUE)
        expression = fields.get(_EXPRESSION) or first(fields.get(_EXPRESSIONS, b""), 1)
        if len(key) == 2 * NAME_BYTES and first(expression, _EXPRESSION_NAME) == COUNTER:
            names = _name(key[:NAME_BYTES]), _name(key[NAME_BYTES:])
            yield names, counted(first(expression, _EXPRESSION_DATA))


@functools.lru_cache(maxsize=4096)
def _name(key: bytes) -> str:
    return key.rstrip(b"\0").decode(errors="replace")
