"""The bytes of messages about netem and red are those of tc, and each value is read as it was written."""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from vcluster.adapters.network.netlink_socket import NetlinkError
from vcluster.adapters.network.shaping import queue_messages, shaper, shaping_trials
from vcluster.adapters.network.shaping.queue_layers import FIELDS, FIFO, NETEM, RED, layers, read_red
from vcluster.adapters.network.shaping.traffic_spec import ALL, MAJORS, Flow, ShapedDirection
from vcluster.errors import MissingError
from vcluster.model.survey_answer import QueueReading

HEADER_BYTES = 16  # of a message
CLASS_BYTES = 20  # of struct tcmsg, before the attributes
STRUCT_BYTES = 24  # of struct tc_netem_qopt, before its attributes
# What tc of iproute2 6.1 sends, behind the header of the message, for
#   tc qdisc replace dev lo parent 7644:2 handle 2002: netem limit 2000 delay 5ms 1ms duplicate 1% reorder 25% \
#       corrupt 0.1% gap 1
DAMAGE = (
    "0000000001000000000002200200447600000000" "0a0001006e6574656d000000"
    "340002002d310100d00700000000000001000000295c8f02093d00000c00030000000040000000000c0004003789410000000000"
)  # fmt: skip
#   … netem limit 1000 loss gemodel 0.2525% 25%
BURSTS = (
    "0000000001000000000002200200447600000000" "0a0001006e6574656d000000"
    "3400020000000000e8030000000000000000000000000000000000001800058014000200787aa500000000400000000000000000"
)  # fmt: skip


def encoded(kind: str, flow: Flow) -> bytes:
    message = queue_messages.layer(1, MAJORS["to"], flow, kind)
    message.encode()
    return bytes(message.data)[HEADER_BYTES:]


def attributes(data: bytes) -> dict[bytes, bytes]:
    """The parts of the options of a message, by the bytes of their type."""
    found, rest = {}, data
    while len(rest) >= 4:
        length = int.from_bytes(rest[:2], "little")
        found[rest[2:4]] = rest[4:length]
        rest = rest[(length + 3) // 4 * 4 :]
    return found


def options(message: bytes) -> bytes:
    """The options, of a message without its header."""
    return attributes(message[CLASS_BYTES:])[b"\x02\x00"]


def test_delay_and_damage_are_the_bytes_of_tc() -> None:
    flow = Flow(
        number=ALL, delay_us=5000, jitter_us=1000, duplicate_ppm=10_000, reorder_ppm=250_000, corrupt_ppm=1000,
        delay_frames=2000,
    )  # fmt: skip
    assert encoded(NETEM, flow).hex() == DAMAGE


def test_bursts_are_the_bytes_of_tc() -> None:
    """A loss of 1 % in bursts of 4 frames: 25 % leave a burst, and 25 % / 99 enter one, which tc got as 0.2525 %."""
    flow = Flow(number=ALL, burst_loss_ppm=10_000, burst_frames=4, delay_frames=1000)
    ours, of_tc = (options(each) for each in (encoded(NETEM, flow), bytes.fromhex(BURSTS)))
    assert ours[:STRUCT_BYTES] == of_tc[:STRUCT_BYTES]
    mine, theirs = (attributes(attributes(each[STRUCT_BYTES:])[b"\x05\x80"])[b"\x02\x00"] for each in (ours, of_tc))
    assert abs(int.from_bytes(mine[:4], "little") - int.from_bytes(theirs[:4], "little")) < 2000
    assert mine[4:] == theirs[4:]


def test_marks_are_the_structures_of_the_kernel() -> None:
    """struct tc_red_qopt and TCA_RED_* of linux/pkt_sched.h: parameters, table, probability, flags ECN and NODROP."""
    found = attributes(options(encoded(RED, Flow(number=ALL, ecn_bytes=20_480))))
    assert {key[0]: value for key, value in found.items()} == {
        1: struct.pack("=3I4B", 0, 20_480, 20_480, 0, 0, 0, 0),
        2: b"\x1f" * 256,
        3: b"\xff" * 4,
        4: struct.pack("=II", 9, 9),
    }


def test_layers_hang_below_each_other() -> None:
    flow = Flow(number=ALL, rate_bits=8000, ecn_bytes=1, delay_us=1)
    messages = queue_messages.queue(1, MAJORS["to"], flow, layers(flow))
    assert [(each["parent"], each["handle"], each.get_attr("TCA_KIND")) for each in messages] == [
        (0x7644_0002, 0x2002_0000, NETEM),
        (0x2002_0001, 0x4002_0000, RED),
        (0x4002_0001, 0x0002_0000, FIFO),
    ]


def test_only_needed_layers_are_made() -> None:
    assert layers(Flow(number=ALL, rate_bits=8000)) == (FIFO,)
    assert layers(Flow(number=ALL, rate_bits=8000, ecn_bytes=1)) == (RED, FIFO)
    assert layers(Flow(number=ALL, corrupt_ppm=1)) == (NETEM, FIFO)


def sent(before: Flow | None, after: Flow) -> list[tuple[str, int]]:
    """The messages that change a queue, by the kind of what they are about, with its parent."""
    direction = ShapedDirection("vp-lab-1", "to", "vi-lab-1", (after,))
    messages = queue_messages.changes(direction, 1, {ALL: reading(before)} if before else None)
    return [(each.get_attr("TCA_KIND"), each["parent"]) for each in messages]


def reading(flow: Flow) -> QueueReading:
    """The queue of a flow as the kernel reports it."""
    values = {name: getattr(flow, name) for kind in FIELDS for name in FIELDS[kind]}
    place: dict[str, Any] = {"interface": "vp-lab-1", "major": MAJORS["to"], "number": ALL, "rate_bits": 8000}
    counters = dict.fromkeys(("sent_packets", "sent_bytes", "dropped_packets", "waiting_bytes"), 0)
    return QueueReading(**values, **place, **counters, layers=[*layers(flow)])


PLAIN = Flow(number=ALL, rate_bits=8000, queue_bytes=9000, burst_bytes=3000, frame_bytes=1464, delay_frames=1000)
ROOT, CLASS = 0xFFFFFFFF, 0x7644_0000


def test_a_layer_is_made_with_those_below_it_and_the_rest_stays() -> None:
    delayed, marked = replace(PLAIN, delay_us=1), replace(PLAIN, delay_us=1, ecn_bytes=9)
    assert sent(None, PLAIN) == [("htb", ROOT), ("htb", CLASS), (FIFO, CLASS | ALL)]
    assert sent(PLAIN, PLAIN) == []
    assert sent(PLAIN, delayed) == [(NETEM, CLASS | ALL), (FIFO, 0x2002_0001)]
    assert sent(delayed, marked) == [(RED, 0x2002_0001), (FIFO, 0x4002_0001)]
    assert sent(marked, replace(marked, delay_us=2)) == [(NETEM, CLASS | ALL)]
    assert sent(marked, replace(marked, ecn_bytes=8, queue_bytes=9001)) == [(RED, 0x2002_0001), (FIFO, 0x4002_0001)]


class Attributes(dict[str, Any]):
    """A message of the kernel."""

    def get_attr(self, name: str) -> Any:
        return self.get(name)


def qdisc(kind: str, parent: int, handle: int, waiting: int) -> Attributes:
    counters = Attributes(TCA_STATS_QUEUE={"backlog": waiting})
    return Attributes(parent=parent, handle=handle, TCA_KIND=kind, TCA_STATS2=counters)


class NoNetlink:
    """A socket that takes each message."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def change(self, messages: Sequence[Any]) -> None:
        self.messages += messages


def test_frames_that_are_only_delayed_hold_up_no_new_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """netem counts them, and keeps them. The frames in the queue below, where `ecn` needs a layer, pass first."""
    before, waiting = replace(PLAIN, delay_us=10**7), [5000, 3000, 0, 0, 0]
    found = {ALL: replace(reading(before), waiting_bytes=10**6)}
    direction = ShapedDirection("vp-lab-1", "to", "vi-lab-1", (replace(before, ecn_bytes=9),))

    def read_qdiscs(_: object) -> dict[int, list[Attributes]]:
        root = qdisc("htb", ROOT, CLASS, 0)
        netem = qdisc(NETEM, CLASS | ALL, 0x2002_0000, 10**6)
        return {7: [root, netem, qdisc(FIFO, 0x2002_0001, 0x0002_0000, waiting.pop(0))]}

    monkeypatch.setattr(queue_messages, "read_qdiscs", read_qdiscs)
    monkeypatch.setattr(queue_messages, "read_queues", lambda *_: found.values())
    netlink: Any = NoNetlink()
    present: Any = {"vp-lab-1": SimpleNamespace(index=7)}
    assert shaper._empty(netlink, direction, present, found) == found
    assert waiting == [0, 0]
    (opened,) = netlink.messages
    assert opened["handle"] == CLASS | ALL


@pytest.mark.parametrize(
    ("others", "code", "hint"),
    [
        ([replace(PLAIN, number=0x1001, delay_us=1)], errno.EINVAL, "remove it: duplicate=none"),
        ([replace(PLAIN, number=0x1001, delay_us=1)], errno.ENOENT, "modprobe sch_netem"),
        ([], errno.EINVAL, "modprobe sch_netem"),
    ],
)
def test_a_kernel_that_refuses_to_duplicate_next_to_a_delay_is_named(
    monkeypatch: pytest.MonkeyPatch, others: list[Flow], code: int, hint: str
) -> None:
    class Refusing(nullcontext[Any]):
        def __enter__(self) -> Refusing:
            return self

        def change(self, messages: Sequence[Any]) -> None:
            *_, last = (each for each in messages if each.get_attr("TCA_KIND") == NETEM)
            raise NetlinkError(last, code, "cannot mix duplicating netems with other netems in tree")

    monkeypatch.setattr(shaping_trials, "NetlinkSocket", Refusing)
    monkeypatch.setattr(shaping_trials, "load_command", lambda module: f"modprobe {module}")
    direction = ShapedDirection("vp-lab-1", "to", "vi-lab-1", (replace(PLAIN, duplicate_ppm=1), *others))
    with pytest.raises(MissingError, match=r": netem: cannot mix duplicating netems") as raised:
        shaping_trials.require_support([direction])
    assert raised.value.hint == hint


def test_a_layer_without_work_stays() -> None:
    """Its removal would drop the frames that wait."""
    marked = replace(PLAIN, delay_us=1, ecn_bytes=9)
    assert sent(marked, PLAIN) == [(NETEM, CLASS | ALL), (RED, 0x2002_0001)]
    assert sent(replace(marked, delay_us=0), marked) == [(NETEM, CLASS | ALL), (RED, 0x2002_0001), (FIFO, 0x4002_0001)]


def test_marks_of_red_are_read_as_the_kernel_sends_them() -> None:
    """TCA_XSTATS (4) of linux/rtnetlink.h has struct tc_red_xstats of linux/pkt_sched.h."""
    counters = struct.pack("=HH4I", 20, 4, 1, 2, 3, 70_000)  # early, pdrop, other, marked
    body = encoded(RED, Flow(number=ALL, ecn_bytes=20_480)) + counters
    message = tcmsg(struct.pack("=IHHII", HEADER_BYTES + len(body), 36, 0, 0, 0) + body)
    message.decode()
    assert read_red(message) == {"ecn_bytes": 20_480, "marked_packets": 70_000}
