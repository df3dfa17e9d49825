"""Sends frames from one namespace to another and prints what arrives, as JSON. It needs nothing but Python.

The arguments are the namespaces, the MACs of their lab0, the number of frames, their size, the time between two in
microseconds, and the byte of IPv4 with the ECN bits. A frame has its number twice, so a changed bit shows.
"""

from __future__ import annotations

import ctypes
import json
import socket
import struct
import sys
import time
from pathlib import Path

IPV4, HEADER = 0x0800, 34  # of Ethernet and IPv4
SO_TIMESTAMPNS, SO_RCVBUFFORCE = 35, 33
QUIET_S = 1.5  # after this time without a frame, no more is awaited


def open_in(namespace: str, protocol: int) -> socket.socket:
    """A packet socket at lab0 in a namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", namespace).open() as file:
        if libc.setns(file.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns")
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
    opened.bind(("lab0", protocol))
    return opened


def frame(target: str, source: str, number: int, size: int, tos: int) -> bytes:
    """A frame of IPv4 with its number, and the same bytes in each frame."""
    header = struct.pack(">BBHHHBBH4s4s", 0x45, tos, size - 14, 0, 0, 64, 253, 0, bytes(4), bytes(4))
    addresses = bytes.fromhex((target + source).replace(":", ""))
    return (addresses + struct.pack(">H", IPV4) + header + struct.pack("=II", number, number)).ljust(size, b"x")


def received(data: bytes, size: int) -> tuple[int, bool, int]:
    """The number of a frame, whether it is damaged, and its ECN bits."""
    first, second = struct.unpack_from("=II", data, HEADER)
    return first, first != second or data[HEADER + 8 :] != b"x" * (size - HEADER - 8), data[15] & 3


def main() -> None:
    start, end, source, target = sys.argv[1:5]
    count, size, pause_us, tos = map(int, sys.argv[5:9])
    receiver, sender = open_in(end, IPV4), open_in(start, 0)
    receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 2**27)
    receiver.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    print("sending", flush=True)
    sent = []
    for number in range(count):
        data = frame(target, source, number, size, tos)
        sent.append(time.time_ns())
        sender.send(data)
        if pause_us:
            time.sleep(pause_us / 1e6)
    receiver.settimeout(QUIET_S)
    arrived = []
    while True:
        try:
            data, extra, _, _ = receiver.recvmsg(size + 64, 64)
        except TimeoutError:
            break
        seconds, nanoseconds = struct.unpack("=qq", extra[0][2][:16])
        number, is_damaged, ecn = received(data, size)
        at_ns = seconds * 10**9 + nanoseconds
        delay_us = (at_ns - sent[number]) // 1000 if number < count else 0
        arrived.append([number, delay_us, int(is_damaged), ecn, at_ns // 1000])
    print(json.dumps(arrived))


if __name__ == "__main__":
    main()
