"""The counters of queues in the kernel's answers."""

from __future__ import annotations

import struct

from pyroute2.netlink.rtnl.tcmsg import tcmsg

from vcluster.adapters.network.shaping import queue_messages
from vcluster.adapters.network.shaping.queue_messages import RTM_NEWQDISC, RTM_NEWTCLASS

KIND, OPTIONS, STATS2 = 1, 2, 7  # linux/rtnetlink.h
BASIC, QUEUE, PKT64 = 1, 3, 8  # linux/gen_stats.h
MAJOR = 0x7644


def attribute(number: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, number) + value.ljust(-len(value) // 4 * -4, b"\0")


def answer(number: int, handle: int, parent: int, kind: str, options: bytes, counters: bytes) -> tcmsg:
    body = struct.pack("=Bxxxi3I", 0, 3, handle, parent, 0) + attribute(KIND, kind.encode() + b"\0")
    body += attribute(OPTIONS, options) + attribute(STATS2, counters)
    message = tcmsg(struct.pack("=IHHII", len(body) + 16, number, 0, 1, 0) + body)
    message.decode()
    return message


class Netlink:
    """Answers with one class, which has a rate of 8 Mbit/s."""

    def dump(self, *_: object) -> list[tcmsg]:
        rate = struct.pack("=BxHhHI", 0, 0, 0, 0, 10**6)
        parameters = attribute(1, rate * 2 + struct.pack("=5I", 0, 0, 0, 0, 0))
        return [answer(RTM_NEWTCLASS, MAJOR << 16 | 2, MAJOR << 16, "htb", parameters, counters(0))]


def counters(packets: int) -> bytes:
    """As the kernel sends them: 64 bits only for a number that needs them."""
    found = attribute(BASIC, struct.pack("=QI4x", packets * 1000, packets % 2**32))
    found += attribute(QUEUE, struct.pack("=5I", 0, 0, 7, 0, 0))
    return found + (attribute(PKT64, struct.pack("=Q", packets)) if packets >= 2**32 else b"")


def test_packets_are_counted_beyond_32_bits() -> None:
    for packets in (5, 2**32 - 1, 2**32, 2**32 + 3, 2**40):
        queue = answer(RTM_NEWQDISC, 2 << 16, MAJOR << 16 | 2, "bfifo", struct.pack("=I", 4000), counters(packets))
        (found,) = queue_messages.read_queues(Netlink(), 3, "vp-lab-1", MAJOR, [queue])  # type: ignore[arg-type]
        assert (found.number, found.rate_bits, found.queue_bytes, found.dropped_packets) == (2, 8_000_000, 4000, 7)
        assert (found.sent_packets, found.sent_bytes) == (packets, packets * 1000)
