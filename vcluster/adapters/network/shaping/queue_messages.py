"""The netlink messages of queues with a rate, and queues in the kernel's answers.

The root of an interface's queues is a token bucket (htb). Each of its classes has a rate, and a queue of bytes (bfifo).
Above this queue are layers that a limit needs: see queue_layers.py.
Frames without a class pass at once. A message changes a class or a queue that exists: it keeps its frames and counters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace

from pyroute2.netlink.rtnl.tcmsg import plugins, sched_pfifo, tcmsg

from vcluster.adapters.network.netlink_messages import new_message
from vcluster.adapters.network.netlink_socket import NLM_F_ACK, Message, NetlinkSocket
from vcluster.adapters.network.shaping.queue_layers import (
    FIELDS,
    FIFO,
    HANDLES,
    NETEM,
    RED,
    TICK_NS,
    Counters,
    layers,
    options,
    read_netem,
    read_red,
)
from vcluster.adapters.network.shaping.traffic_spec import ALL, UNLIMITED_BITS, Flow, ShapedDirection
from vcluster.model.survey_answer import QueueReading

# The options of bfifo are those of pfifo (net/sched/sch_fifo.c).
plugins.setdefault(FIFO, SimpleNamespace(options=sched_pfifo.options, stats2=Counters))

RTM_NEWQDISC, RTM_GETQDISC = 36, 38  # linux/rtnetlink.h
RTM_NEWTCLASS, RTM_DELTCLASS, RTM_GETTCLASS = 40, 41, 42
_ROOT = 0xFFFFFFFF  # TC_H_ROOT
_CREATE, _REPLACE = 0x400, 0x100  # NLM_F_CREATE, NLM_F_REPLACE
_ETHERNET = 1  # TC_LINKLAYER_ETHERNET
_HTB_VERSION = 3
_OPEN_BURST = 2**24  # bytes that an opened class sends at once
_UNQUEUED_FRAMES = 1000  # of frames without a class, those that wait for a device that is busy

Found = Mapping[int, Sequence[Message]]  # qdiscs or classes, by interface


def root(index: int, major: int) -> Message:
    """Make the root of an interface's queues, in place of another root."""
    start = {"version": _HTB_VERSION, "rate2quantum": 10, "defcls": ALL, "debug": 0, "direct_pkts": 0}
    options = {"attrs": [("TCA_HTB_INIT", start), ("TCA_HTB_DIRECT_QLEN", _UNQUEUED_FRAMES)]}
    return _message(RTM_NEWQDISC, index, _ROOT, major << 16, "htb", options)


def rate(index: int, major: int, flow: Flow) -> Message:
    """Make or change the class of a flow."""
    bytes_s = flow.class_bits // 8
    ticks = flow.burst_bytes * 10**9 // (bytes_s * TICK_NS)
    parameters = {
        "rate": bytes_s, "ceil": bytes_s, "buffer": ticks, "cbuffer": ticks, "quantum": flow.frame_bytes,
        "rate___reserved": _ETHERNET, "ceil___reserved": _ETHERNET,
    }  # fmt: skip
    options = {"attrs": [("TCA_HTB_PARMS", parameters)]}
    return _message(RTM_NEWTCLASS, index, major << 16, major << 16 | flow.number, "htb", options)


def opened(index: int, major: int, flow: Flow) -> Message:
    """Take the rate off a flow's class, so its queue becomes empty at once."""
    return rate(index, major, replace(flow, rate_bits=0, burst_bytes=_OPEN_BURST))


def queue(index: int, major: int, flow: Flow, kinds: Sequence[str], *, below: str = "") -> list[Message]:
    """Make the layers of a flow's class, from the first of these kinds on, in place of what is there.

    `below` is the layer above the first one; the class itself without it.
    """
    parents = [below, *kinds]
    return [layer(index, major, flow, kind, below=parent) for kind, parent in zip(kinds, parents, strict=False)]


def layer(index: int, major: int, flow: Flow, kind: str, *, below: str = "") -> Message:
    """Make or change one layer of a flow's class."""
    parent = handle_of(below, flow.number) | 1 if below else major << 16 | flow.number
    return _message(RTM_NEWQDISC, index, parent, handle_of(kind, flow.number), kind, options(kind, flow))


def handle_of(kind: str, number: int) -> int:
    """The handle of a layer of the class with this number."""
    return (number + HANDLES[kind]) << 16


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


def split_layers(flow: Flow, one: QueueReading) -> tuple[list[str], list[str]]:
    """The layers of a queue that stay, and those below them that are made. A layer stays when it has no work."""
    wanted = [kind for kind in HANDLES if kind in layers(flow) or kind in one.layers]
    stays = [kind for kind, present in zip(wanted, one.layers, strict=False) if kind == present]
    return stays, wanted[len(stays) :]


def changes(each: ShapedDirection, index: int, found: Mapping[int, QueueReading] | None) -> Iterator[Message]:
    """The messages that give an interface the queues of a direction."""
    major = each.major
    if found is None:
        yield root(index, major)
    found = found or {}
    for flow in each.queued:
        one = found.get(flow.number)
        if one is None or one.rate_bits != flow.rate_bits // 8 * 8:
            yield rate(index, major, flow)
        stays, made = split_layers(flow, one) if one else ([], list(layers(flow)))
        for above, kind in zip(["", *stays], stays, strict=False):
            if any(getattr(one, name) != getattr(flow, name) for name in FIELDS[kind]):
                yield layer(index, major, flow, kind, below=above)
        yield from queue(index, major, flow, made, below=stays[-1] if stays else "")
    for number in found.keys() - {flow.number for flow in each.queued}:
        yield no_class(index, major, number)


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
    by_parent = {each["parent"]: each for each in qdiscs}
    for each in netlink.dump(new_message(tcmsg, RTM_GETTCLASS, index=index), tcmsg):
        if each["index"] == index and each["handle"] >> 16 == major and each.get_attr("TCA_KIND") == "htb":
            yield _reading(each, interface, _layers_below(each["handle"], by_parent))


def waiting_bytes(qdiscs: Sequence[Message], major: int, number: int, kind: str) -> int:
    """The bytes that wait in one layer of a class; 0 if it has no such layer."""
    found = _layers_below(major << 16 | number, {each["parent"]: each for each in qdiscs}).get(kind)
    return int(found.get_attr("TCA_STATS2").get_attr("TCA_STATS_QUEUE")["backlog"]) if found else 0


def _layers_below(parent: int, by_parent: Mapping[int, Message]) -> dict[str, Message]:
    """The layers of a class, by kind, from top to bottom."""
    found: dict[str, Message] = {}
    while (one := by_parent.get(parent)) is not None and one.get_attr("TCA_KIND") in HANDLES.keys() - found.keys():
        found[one.get_attr("TCA_KIND")] = one
        parent = one["handle"] | 1
    return found


def _reading(found: Message, interface: str, below: Mapping[str, Message]) -> QueueReading:
    """The uppermost layer counts the frames of all layers."""
    rate_bits = found.get_attr("TCA_OPTIONS").get_attr("TCA_HTB_PARMS")["rate"] * 8
    counted = next(iter(below.values()), found).get_attr("TCA_STATS2")
    basic, waiting = counted.get_attr("TCA_STATS_BASIC"), counted.get_attr("TCA_STATS_QUEUE")
    packets = counted.get_attr("TCA_STATS_PKT64")
    return QueueReading(
        interface=interface,
        major=found["handle"] >> 16,
        number=found["handle"] & 0xFFFF,
        rate_bits=rate_bits if rate_bits != UNLIMITED_BITS else 0,
        queue_bytes=below[FIFO].get_attr("TCA_OPTIONS")["limit"] if FIFO in below else 0,
        sent_packets=basic["packets"] if packets is None else packets,
        sent_bytes=basic["bytes"],
        dropped_packets=waiting["drops"],
        waiting_bytes=waiting["backlog"],
        layers=[*below],
        **(read_netem(below[NETEM]) if NETEM in below else {}),
        **(read_red(below[RED]) if RED in below else {}),
    )
