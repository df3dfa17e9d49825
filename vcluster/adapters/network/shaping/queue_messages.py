"""The netlink messages of queues with a rate, and queues in the kernel's answers.

The root of an interface's queues is a token bucket (htb). Each of its classes has a rate, and a queue of bytes (bfifo).
Frames without a class pass at once. A message changes a class or a queue that exists: it keeps its frames and counters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace

from pyroute2.netlink.rtnl.tcmsg import plugins, sched_pfifo, tcmsg
from pyroute2.netlink.rtnl.tcmsg.common import stats2

from vcluster.adapters.network.netlink_messages import new_message
from vcluster.adapters.network.netlink_socket import NLM_F_ACK, Message, NetlinkSocket
from vcluster.adapters.network.shaping.traffic_spec import ALL, Flow
from vcluster.model.survey_answer import QueueReading


class _Counters(stats2):  # type: ignore[misc]  # pyroute2 has no types
    """With the 64-bit number of packets, which the kernel adds when it does not fit into 32 bits."""

    nla_map = (
        *stats2.nla_map,
        ("TCA_STATS_RATE_EST64", "hex"), ("TCA_STATS_PAD", "hex"), ("TCA_STATS_BASIC_HW", "hex"),
        ("TCA_STATS_PKT64", "uint64"),
    )  # fmt: skip  # linux/gen_stats.h


# The options of bfifo are those of pfifo (net/sched/sch_fifo.c).
plugins.setdefault("bfifo", SimpleNamespace(options=sched_pfifo.options, stats2=_Counters))

RTM_NEWQDISC, RTM_GETQDISC = 36, 38  # linux/rtnetlink.h
RTM_NEWTCLASS, RTM_DELTCLASS, RTM_GETTCLASS = 40, 41, 42
_ROOT = 0xFFFFFFFF  # TC_H_ROOT
_CREATE, _REPLACE = 0x400, 0x100  # NLM_F_CREATE, NLM_F_REPLACE
_TICK_NS = 64  # the unit of times in messages (PSCHED_SHIFT)
_ETHERNET = 1  # TC_LINKLAYER_ETHERNET
_HTB_VERSION = 3
_UNQUEUED_FRAMES = 1000  # of frames without a class, those that wait for a device that is busy

Found = Mapping[int, Sequence[Message]]  # qdiscs or classes, by interface


def root(index: int, major: int) -> Message:
    """Make the root of an interface's queues, in place of another root."""
    start = {"version": _HTB_VERSION, "rate2quantum": 10, "defcls": ALL, "debug": 0, "direct_pkts": 0}
    options = {"attrs": [("TCA_HTB_INIT", start), ("TCA_HTB_DIRECT_QLEN", _UNQUEUED_FRAMES)]}
    return _message(RTM_NEWQDISC, index, _ROOT, major << 16, "htb", options)


def rate(index: int, major: int, flow: Flow) -> Message:
    """Make or change the class of a flow."""
    bytes_s = flow.rate_bits // 8
    ticks = flow.burst_bytes * 10**9 // (bytes_s * _TICK_NS)
    parameters = {
        "rate": bytes_s, "ceil": bytes_s, "buffer": ticks, "cbuffer": ticks, "quantum": flow.frame_bytes,
        "rate___reserved": _ETHERNET, "ceil___reserved": _ETHERNET,
    }  # fmt: skip
    options = {"attrs": [("TCA_HTB_PARMS", parameters)]}
    return _message(RTM_NEWTCLASS, index, major << 16, major << 16 | flow.number, "htb", options)


def queue(index: int, major: int, flow: Flow) -> Message:
    """Make or change the queue of a flow's class."""
    return _message(
        RTM_NEWQDISC, index, major << 16 | flow.number, flow.number << 16, "bfifo", {"limit": flow.queue_bytes}
    )


def no_class(index: int, major: int, number: int) -> Message:
    """Remove a class with its queue."""
    return _message(RTM_DELTCLASS, index, major << 16, major << 16 | number, flags=0)


def no_queues(index: int) -> Message:
    """Remove all queues of an interface. Tunnels have none, and libvirt gives none to its taps."""
    return _message(RTM_NEWQDISC, index, _ROOT, kind="noqueue")


def _message(
    number: int,
    index: int,
    parent: int,
    handle: int = 0,
    kind: str = "",
    options: object = None,
    *,
    flags: int = _CREATE | _REPLACE,
) -> Message:
    message = new_message(tcmsg, number, index=index, parent=parent, handle=handle)
    message["header"]["flags"] |= NLM_F_ACK | flags
    attributes = (("TCA_KIND", kind), ("TCA_OPTIONS", options))
    message["attrs"] = [(name, value) for name, value in attributes if value]
    return message


# Reading


def read_qdiscs(netlink: NetlinkSocket) -> Found:
    """The qdiscs of all interfaces."""
    found: dict[int, list[Message]] = {}
    for message in netlink.dump(new_message(tcmsg, RTM_GETQDISC), tcmsg):
        found.setdefault(message["index"], []).append(message)
    return found


def has_root(qdiscs: Sequence[Message], major: int) -> bool:
    """Whether these qdiscs of an interface have our root."""
    return any(
        (each["parent"], each["handle"], each.get_attr("TCA_KIND")) == (_ROOT, major << 16, "htb") for each in qdiscs
    )


def read_queues(
    netlink: NetlinkSocket, index: int, interface: str, major: int, qdiscs: Sequence[Message]
) -> Iterator[QueueReading]:
    """The queues of an interface that has our root."""
    queues = {each["parent"]: each for each in qdiscs if each.get_attr("TCA_KIND") == "bfifo"}
    for each in netlink.dump(new_message(tcmsg, RTM_GETTCLASS, index=index), tcmsg):
        leaf, number = queues.get(each["handle"]), each["handle"] & 0xFFFF
        if each["index"] != index or each["handle"] >> 16 != major or each.get_attr("TCA_KIND") != "htb":
            continue
        parameters = each.get_attr("TCA_OPTIONS").get_attr("TCA_HTB_PARMS")
        counted = (leaf or each).get_attr("TCA_STATS2")
        basic, waiting = counted.get_attr("TCA_STATS_BASIC"), counted.get_attr("TCA_STATS_QUEUE")
        packets = counted.get_attr("TCA_STATS_PKT64")
        yield QueueReading(
            interface=interface,
            major=major,
            number=number,
            rate_bits=parameters["rate"] * 8,
            queue_bytes=leaf.get_attr("TCA_OPTIONS")["limit"] if leaf else 0,
            sent_packets=basic["packets"] if packets is None else packets,
            sent_bytes=basic["bytes"],
            dropped_packets=waiting["drops"],
            waiting_bytes=waiting["backlog"],
        )
