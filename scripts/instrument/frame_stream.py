"""Sends frames between nodes until SIGTERM, and prints when those of each pair stopped to arrive, as JSON.

Its argument is a JSON object: `macs` by namespace, and `pairs` and `controls`, lists of [start, end]. One thread with
real-time priority sends all frames in turn on one processor, so the switch gets them in that order. Frames of a control
always pass. So when one arrives, the switch has decided about all frames that were sent before it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import time
from array import array

from scripts.instrument.figures import Change
from tests.frame_flow import SO_RCVBUFFORCE, SO_TIMESTAMPNS, open_in
from tests.testbed import PACKET_STATISTICS, SOL_PACKET

PROTOCOL = 0x88B5  # for local experiments (IEEE 802)
FRAME_BYTES, RECEIVE_BYTES, LONGEST_S = 60, 2**29, 20.0
PAUSE_S = 2e-5  # the kernel stops a program with this priority that never pauses
Pair = tuple[str, str]


def turns(pairs: list[Pair], controls: list[Pair]) -> list[Pair]:
    """The order of one turn: a frame of a control follows each one of a pair."""
    return [each for number, pair in enumerate(pairs) for each in (pair, controls[number % len(controls)])]


def changes(
    order: list[Pair], controls: list[Pair], sent_ns: array[int], arrived_ns: dict[int, int]
) -> dict[Pair, Change]:
    """When frames of each pair that is no control stopped. Frames are numbered; `arrived_ns` has those that passed."""
    found = {}
    for place, pair in enumerate(order):
        if pair in controls:
            continue
        numbers = range(place, len(sent_ns), len(order))
        dropped = next(number for number in numbers if number not in arrived_ns)
        if dropped == place:
            raise ValueError(f"no frame of {pair} passed")
        if any(number in arrived_ns for number in numbers if number > dropped):
            raise ValueError(f"frames of {pair} passed after one was dropped")
        decided = next(number for number in range(dropped + 1, len(sent_ns)) if order[number % len(order)] in controls)
        found[pair] = Change(sent_ns[dropped - len(order)], arrived_ns[decided])
    return found


def stream(macs: dict[str, str], order: list[Pair]) -> array[int]:
    """Send frames until a signal. Returns the time before each one."""
    ends: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ends.append(number))
    senders = {node: open_in(node, 0) for node in macs}
    frames = [
        (senders[start], bytes.fromhex((macs[end] + macs[start]).replace(":", "")) + struct.pack(">H", PROTOCOL))
        for start, end in order
    ]
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    sent, filler = array("q"), bytes(FRAME_BYTES - 18)
    print("sending", flush=True)
    until_ns = time.time_ns() + int(LONGEST_S * 1e9)
    while not ends and time.time_ns() < until_ns:
        for sender, header in frames:
            number = len(sent).to_bytes(4, "big")
            sent.append(time.time_ns())
            sender.send(header + number + filler)
        time.sleep(PAUSE_S)
    return sent


def arrivals(receiver: socket.socket) -> dict[int, int]:
    """The numbers of the frames that a node received, with the kernel's times."""
    found = {}
    receiver.setblocking(False)
    try:
        while True:
            data, extra, _, _ = receiver.recvmsg(FRAME_BYTES + 64, 64)
            seconds, nanoseconds = struct.unpack("=qq", extra[0][2][:16])
            found[int.from_bytes(data[14:18], "big")] = seconds * 10**9 + nanoseconds
    except BlockingIOError:
        pass
    _, lost = struct.unpack("II", receiver.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    if lost:
        sys.exit(f"the socket of a node lost {lost} frames")
    return found


def main() -> None:
    asked = json.loads(sys.argv[1])
    pairs, controls = ([(start, end) for start, end in asked[name]] for name in ("pairs", "controls"))
    receivers = [open_in(node, PROTOCOL) for node in asked["macs"]]
    for receiver in receivers:
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BYTES)
        receiver.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    order = turns(pairs, controls)
    sent_ns = stream(asked["macs"], order)
    arrived_ns = {number: at_ns for receiver in receivers for number, at_ns in arrivals(receiver).items()}
    found = changes(order, controls, sent_ns, arrived_ns)
    print(json.dumps([[one.after_ns, one.before_ns] for one in found.values()]))


if __name__ == "__main__":
    main()
