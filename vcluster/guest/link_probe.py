"""Sends frames over a link, so that the switch and this node can measure it.

The controller sends it to a node, where python3 runs it as root. It reads a JSON request, one line of standard input:
  {"do": "round_trips", "address", "count", "seconds"}
      ping the address, each time after the answer to the time before, for so many seconds at most. The answer is
      {"sent": N, "times_ns": [...]}
  {"do": "stream", "address", "payload", "first", "count", "bits_s", "seconds"}
      send `first` datagrams at once, and then up to `count` ones at this rate of whole frames, until the input ends or
      for so many seconds. The answer is {"began": true} after the first ones, and {"sent": N} at the end
An answer is a line; {"error"} is one too.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
import time
from typing import Any, Dict

Request = Dict[str, Any]

ANSWER_S = 25.0  # the wait for an answer to a ping: the longest delays of a round trip are 20 s
PAUSE_S, AT_ONCE = 0.001, 64
DISCARD = 9  # the port of datagrams that no program needs (RFC 863)
HEADERS_BYTES = 42  # Ethernet, IPv4 and UDP


def checksum(data: bytes) -> int:
    """RFC 1071, for an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def echo(identifier: int, number: int) -> bytes:
    """An ICMP echo request, RFC 792."""
    return struct.pack("!BBHHH", 8, 0, checksum(struct.pack("!BBHHH", 8, 0, 0, identifier, number)), identifier, number)


def round_trip(ping: socket.socket, address: str, message: bytes, end_s: float) -> int | None:
    """The time until a ping is answered; None without an answer until then."""
    began_ns = time.monotonic_ns()
    ping.sendto(message, (address, 0))
    while (left_s := end_s - time.monotonic()) > 0 and select.select([ping], [], [], left_s)[0]:
        packet = ping.recv(2048)
        answer = packet[(packet[0] & 15) * 4 :]  # after the IP header
        if answer[:1] == b"\0" and answer[4:8] == message[4:8]:
            return time.monotonic_ns() - began_ns
    return None


def round_trips(request: Request) -> None:
    end_s, times, sent = time.monotonic() + request["seconds"], [], 0
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as ping:
        while sent < request["count"] and (now_s := time.monotonic()) < end_s:
            message = echo(os.getpid() & 0xFFFF, sent)
            sent += 1
            time_ns = round_trip(ping, request["address"], message, min(end_s, now_s + ANSWER_S))
            if time_ns is not None:
                times.append(time_ns)
    answer({"sent": sent, "times_ns": times})


def stream(request: Request) -> None:
    data, target = bytes(request["payload"]), (request["address"], DISCARD)
    frame_s = (request["payload"] + HEADERS_BYTES) * 8 / request["bits_s"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        for _ in range(request["first"]):
            out.sendto(data, target)
        answer({"began": True})
        began_s, sent = time.monotonic(), 0
        while sent < request["count"] and (passed_s := time.monotonic() - began_s) < request["seconds"]:
            due = min(int(passed_s / frame_s) + 1, request["count"]) - sent
            for _ in range(min(due, AT_ONCE)):
                out.sendto(data, target)
            sent += min(due, AT_ONCE)
            if select.select([sys.stdin], [], [], PAUSE_S if due <= AT_ONCE else 0)[0]:
                break
    answer({"sent": request["first"] + sent})


def answer(message: Dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def main() -> None:
    request = json.loads(sys.stdin.readline())
    try:
        {"round_trips": round_trips, "stream": stream}[request["do"]](request)
    except OSError as error:
        answer({"error": str(error)})


if __name__ == "__main__":
    main()
