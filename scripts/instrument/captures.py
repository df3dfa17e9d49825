"""Frames that a capture loses, and their order, against a tcpdump at each port and mergecap."""

from __future__ import annotations

import re
import signal
import struct
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from scripts.instrument.outcomes import Round, Row, commands, judge_capture
from scripts.instrument.sides import NODES, Labs, await_line, type_line
from tests.capture_lab import FILE, Lab
from tests.testbed import kill

DATAGRAMS, DATAGRAMS_A_SECOND, DATA_BYTES = 300_000, 110_000, 100
NUMBER_AT, FRAME_BYTES = 42, 142  # the data of a datagram, and a frame of it
SNAP = "128"
READ_S = 2.0  # tcpdump reads what waits
MERGED = "/run/merged.pcapng"
FILES = [f"/run/{number}.pcap" for number in range(1, NODES + 1)]
DUMPS = tuple(f"tcpdump -i vp-lab-{number} -s {SNAP} -w {file}" for number, file in enumerate(FILES, 1))
MERGE = f"mergecap -I none -w {MERGED} {' '.join(FILES)}"
# Sends COUNT numbered datagrams of SIZE bytes to port 9 of ADDRESS, at most PER_SECOND. Prints the seconds.
# Its priority is high: the traffic of real nodes does not depend on what else the server does.
SEND = """
import os, socket, sys, time
os.nice(-20)
address, count, size, per_second = sys.argv[1], *map(int, sys.argv[2:])
data = memoryview(b"".join(number.to_bytes(4, "big") + bytes(size - 4) for number in range(count)))
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.setsockopt(socket.IPPROTO_UDP, 103, size)  # UDP_SEGMENT: many with each call (udp(7))
began = time.perf_counter()
for first in range(0, count, 40):
    while time.perf_counter() < began + first / per_second:
        pass
    sender.sendto(data[first * size : (first + 40) * size], (address, 9))
print(time.perf_counter() - began)
"""


def captures(labs: Labs) -> list[Row]:
    """Small frames from node1 to node2. Each is counted at both ports."""
    row = partial(Row, "capture", goal="0 lost at 200000/s", judge=judge_capture)
    effort = commands(f"vcluster capture -o {FILE} --snap {SNAP}")
    rows = [row(side=side, effort=effort, work=partial(_capture, made)) for side, made in labs.sides().items()]
    work = partial(_tcpdumps, labs.local)
    return [*rows, row(side="tcpdump, mergecap", effort=commands(*DUMPS, MERGE), work=work)]


def _capture(made: Lab) -> Round:
    with made.captured("--snap", SNAP, "--allow-drops"):
        sent = _send(made)
    return sent | _found(made.host.server.path(FILE), sent)


def _tcpdumps(made: Lab) -> Round:
    running = [made.switch.popen(line.split()) for line in DUMPS]
    try:
        for process in running:
            await_line(process, "listening", is_error=True)
        sent = _send(made)
        time.sleep(READ_S)
        for process in running:
            process.send_signal(signal.SIGINT)
        reports = [process.communicate(timeout=60)[1] for process in running]
    finally:
        for process in running:
            kill(process)
    type_line(made, MERGE)
    dropped = sum(int(re.findall(r"(\d+) packets? dropped by kernel", text)[0]) for text in reports)
    return sent | {"reported_lost": dropped} | _found(made.switch.path(MERGED), sent)


def _send(made: Lab) -> Round:
    """The seconds of the traffic, and the frames that each port counted."""
    numbers = map(str, (DATAGRAMS, DATA_BYTES, DATAGRAMS_A_SECOND))
    argv = ["ip", "netns", "exec", "node1", sys.executable, "-c", SEND, "10.0.0.2", *numbers]
    before = made.counters()
    seconds = float(made.host.server.run(argv, timeout_s=120).stdout)
    after = made.counters()
    counters = {node: sum(after[node]) - sum(before[node]) for node in after}
    return {"seconds": seconds, "frames": sum(counters.values()), "counters": counters}


def _found(path: Path, sent: Round) -> Round:
    """What a file has of this traffic."""
    in_file: Counter[str] = Counter()
    places = {port: array("q", [0]) * DATAGRAMS for port in ("node1", "node2")}
    for place, (port, length, data) in enumerate(frames(path), 1):
        in_file[port] += 1
        if length == FRAME_BYTES and port in places:
            places[port][int.from_bytes(data[NUMBER_AT : NUMBER_AT + 4], "big")] = place
    unordered = sum(0 < left < entered for entered, left in zip(places["node1"], places["node2"], strict=True))
    counted = {node: in_file[node] for node in sent["counters"]}
    return {"in_file": counted, "lost": sent["frames"] - sum(counted.values()), "unordered": unordered}


def frames(path: Path) -> Iterator[tuple[str, int, bytes]]:
    """The port, the length and the kept bytes of each frame of a pcapng file, in the order of the file.

    vcluster names its interfaces. mergecap does not, and gives them in the order of its arguments.
    """
    ports: list[str] = []
    with path.open("rb") as file:
        while header := file.read(8):
            kind, length = struct.unpack("=II", header)
            body = file.read(length - 8)[:-4]
            if kind == 1:  # an interface
                ports.append(_name(body) or f"node{len(ports) + 1}")
            elif kind == 6:  # a frame
                port, _, _, kept, whole = struct.unpack_from("=IIIII", body)
                yield ports[port], whole, body[20 : 20 + kept]


def _name(body: bytes) -> str:
    """The option if_name (2) of an interface."""
    at = 8
    while at + 4 <= len(body):
        code, length = struct.unpack_from("=HH", body, at)
        if code == 2:
            return body[at + 4 : at + 4 + length].decode()
        at += 4 + -(-length // 4) * 4
    return ""
