"""The counters of a switch's ports: of their interfaces, of their root queues, and of rules that drop frames.

A sample is taken up to ten times a second, so the messages are not decoded by pyroute2, which takes 1 ms for each.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from vcluster.adapters.network.netlink_messages import open_socket
from vcluster.adapters.network.netlink_socket import NetlinkSocket
from vcluster.adapters.network.nftables_messages import BRIDGE, GET_RULE, SUBSYSTEM, NoTablesError
from vcluster.adapters.network.nftables_messages import open_socket as open_tables
from vcluster.adapters.network.readings.raw_attributes import attributes, first
from vcluster.model.traffic.port_counters import InterfaceCounters, PairCounters, TrafficSample

_RTM_GETSTATS, _RTM_GETQDISC = 94, 38  # linux/rtnetlink.h
_STATS = struct.Struct("=BBHII")  # struct if_stats_msg, linux/if_link.h: the last field is a mask of what is wanted
_LINK_64 = 1  # IFLA_STATS_LINK_64, and its bit
_COUNTS = struct.Struct("=8Q")  # the begin of struct rtnl_link_stats64
_QUEUE = struct.Struct("=BBHiIII")  # struct tcmsg
_ROOT = 0xFFFFFFFF  # TC_H_ROOT
_TCA_STATS2, _STATS_QUEUE = 7, 3
_QUEUE_COUNTS = struct.Struct("=III")  # the begin of struct gnet_stats_queue: frames, bytes, drops
_TABLE, _CHAIN, _EXPRESSIONS = 1, 2, 4  # NFTA_RULE_…
_NAME, _DATA = 1, 2  # NFTA_EXPR_…
_PACKETS = 2  # NFTA_COUNTER_PACKETS
RANDOM, COUNTER = b"numgen\0", b"counter\0"


def read(table: str, interfaces: Sequence[str], pairs: list[PairCounters] | None) -> TrafficSample:
    """The counters of these interfaces, those that exist, and of the rules of a table; with counted `pairs`.

    An empty name is for no table.
    """
    names = {index: name for name in interfaces if (index := _index(name))}
    t_ns, unix_ns = time.monotonic_ns(), time.time_ns()
    with open_socket("the counters of ports") as netlink:
        counts, queues = _counts(netlink, names), _queues(netlink)
    found = [
        InterfaceCounters(name, index, *counts[index], *queues.get(index, (0, 0)))  # type: ignore[call-arg]
        for index, name in names.items()
        if index in counts
    ]
    return TrafficSample(t_ns, unix_ns, found, _losses(table) if table else {}, pairs)


def _index(name: str) -> int:
    """The index of an interface; 0 if it does not exist."""
    with suppress(OSError):
        return socket.if_nametoindex(name)
    return 0


def _counts(netlink: NetlinkSocket, names: dict[int, str]) -> dict[int, tuple[int, ...]]:
    """Received and sent packets, received and sent bytes, and dropped frames, by the index of the interface."""
    found = {}
    for body in netlink.dump_raw(_RTM_GETSTATS, _STATS.pack(socket.AF_UNSPEC, 0, 0, 0, _LINK_64)):
        index = _STATS.unpack_from(body)[3]
        if index in names:
            *counts, _, _, received_dropped, sent_dropped = _COUNTS.unpack_from(first(body, _LINK_64, _STATS.size))
            found[index] = (*counts, received_dropped + sent_dropped)
    return found


def _queues(netlink: NetlinkSocket) -> dict[int, tuple[int, int]]:
    """The bytes that wait in the root queue of each interface, and the frames that it dropped."""
    found = {}
    for body in netlink.dump_raw(_RTM_GETQDISC, bytes(_QUEUE.size)):
        _, _, _, index, _, parent, _ = _QUEUE.unpack_from(body)
        if parent == _ROOT:
            counts = first(first(body, _TCA_STATS2, _QUEUE.size), _STATS_QUEUE)
            _, waiting, dropped = _QUEUE_COUNTS.unpack_from(counts)
            found[index] = (waiting, dropped)
    return found


def _losses(table: str) -> dict[str, int]:
    """The frames that the rules of each chain of a table dropped at random."""
    name = table.encode() + b"\0"
    asked = struct.pack("=BBH", BRIDGE, 0, 0) + struct.pack("=HH", 4 + len(name), _TABLE) + name + bytes(-len(name) % 4)
    found: dict[str, int] = {}
    try:
        with open_tables(f"table {table}") as netlink:
            for body in netlink.dump_raw(SUBSYSTEM | GET_RULE, asked):
                if RANDOM not in body:  # faster than to read the attributes of all rules
                    continue
                fields = dict(attributes(body, 4))
                if fields.get(_TABLE) == name and (dropped := _dropped(fields.get(_EXPRESSIONS, b""))) is not None:
                    chain = fields[_CHAIN].rstrip(b"\0").decode(errors="replace")
                    found[chain] = found.get(chain, 0) + dropped
    except NoTablesError:
        return {}
    return found


def _dropped(expressions: bytes) -> int | None:
    """The frames that a rule counted, if it is one that drops at random."""
    parts = dict(_parts(expressions))
    return counted(parts[COUNTER])[0] if RANDOM in parts and COUNTER in parts else None


def _parts(expressions: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The name and the data of each expression of a rule."""
    for _, part in attributes(expressions):
        yield first(part, _NAME), first(part, _DATA)


def counted(data: bytes) -> tuple[int, int]:
    """The packets and the bytes of a counter."""
    fields = dict(attributes(data))
    return int.from_bytes(fields.get(_PACKETS, b""), "big"), int.from_bytes(fields.get(1, b""), "big")
