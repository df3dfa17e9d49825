"""Reads from the kernel what TCP knows of this node's connections, by sock_diag(7), until its input ends.

The request has the local port of the connections, the address of the other node, the time between two readings, and the
largest number of samples. The first line is {} when the reading has begun; {"error"} may be a line too.

The samples are printed after the end, so that no output disturbs what is measured. First there is a line with all
connections, and the number of samples: {"connections": [...], "samples": N}. Then each sample has a line. The values of
a connection are those at its end: the kernel announces it (SKNLGRP_INET_TCP_DESTROY, linux/sock_diag.h).
"""

from __future__ import annotations

import errno
import json
import select
import socket
import struct
import sys
import time
from typing import Any, Dict, Iterator, List, Tuple

Fields = Dict[str, Tuple[int, str]]

SOCK_DIAG, BY_FAMILY, DESTROYED = 4, 20, 1  # NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, the group as a mask
DUMP, ERROR, DONE = 0x301, 2, 3  # NLM_F_REQUEST | NLM_F_DUMP; NLMSG_ERROR, NLMSG_DONE
HEADER, ATTRIBUTE = struct.Struct("=LHHLL"), struct.Struct("=HH")  # nlmsghdr, nlattr
REQUEST = struct.Struct("=BBBxLHH44x")  # inet_diag_req_v2: family, protocol, kinds, states, ports
MESSAGE = struct.Struct("=BB2x2sH16s4s12x4xQ20x")  # inet_diag_msg: family, state, ports, addresses, cookie
INFO, CONGESTION = 2, 4  # INET_DIAG_INFO, INET_DIAG_CONG
STATES = sum(1 << state for state in (1, 4, 5, 8, 9, 11))  # those with data: no listener, no time wait
# tcp_info, linux/tcp.h: the offset and the format of a field
FIELDS: Fields = {
    "unacked": (24, "=L"), "rtt_us": (68, "=L"), "rttvar_us": (72, "=L"), "ssthresh": (76, "=L"), "cwnd": (80, "=L"),
    "retransmits": (100, "=L"), "acked_bytes": (120, "=Q"), "min_rtt_us": (148, "=L"), "delivery_rate": (160, "=Q"),
}  # fmt: skip
TOTALS: Fields = {"received_bytes": (128, "=Q"), "sent_bytes": (200, "=Q")}
INFO_MIN = 208
UNKNOWN = {"ssthresh": 0x7FFFFFFF, "min_rtt_us": 0xFFFFFFFF}  # the kernel's values until it knows them
END_S, END_READ_S = 10.0, 0.1  # how long connections may last after the input, and how often they are read then
BUFFER = 1 << 20


def values(info: bytes, fields: Fields) -> Dict[str, Any]:
    """Fields of a tcp_info; None for those that the kernel does not know yet."""
    found = {name: struct.unpack_from(kind, info, offset)[0] for name, (offset, kind) in fields.items()}
    return {name: None if UNKNOWN.get(name) == value else value for name, value in found.items()}


def attributes(data: bytes) -> Dict[int, bytes]:
    """The attributes of a message, by kind."""
    found: Dict[int, bytes] = {}
    offset = 0
    while offset + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if length < ATTRIBUTE.size:
            break
        found[kind] = data[offset + ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


def messages(data: bytes) -> Iterator[Tuple[int, bytes]]:
    """The messages in what the kernel sent: the kind and the rest of each."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind = HEADER.unpack_from(data, offset)[:2]
        if length < HEADER.size:
            break
        yield kind, data[offset + HEADER.size : offset + length]
        offset += (length + 3) & ~3


class Connection:
    """A connection: its other port, its congestion control, and its tcp_info at its end."""

    def __init__(self, port: int) -> None:
        self.port, self.congestion = port, ""
        self.end: bytes | None = None


class Sampler:
    """The connections from a local port to an address, and their samples."""

    def __init__(self, port: int, address: str, samples_max: int) -> None:
        self._port, self._address, self._samples_max = port, socket.inet_aton(address), samples_max
        self._requests = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, SOCK_DIAG)
        self._ends = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, SOCK_DIAG)
        self._ends.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self._ends.bind((0, DESTROYED))
        self._ends.setblocking(False)
        self.connections: Dict[int, Connection] = {}  # by cookie
        self.samples: List[Tuple[int, int, int, bytes]] = []  # time, other port, state, tcp_info

    @property
    def has_ended(self) -> bool:
        """Whether the last values of all connections are known."""
        return all(one.end is not None for one in self.connections.values())

    def wait_for_end(self, longest_s: float) -> None:
        """Wait until a connection of this node ends."""
        select.select([self._ends], [], [], longest_s)

    def read(self) -> None:
        """Add a sample of each connection, and keep the last values of those that have ended since the last time."""
        before_ns = time.monotonic_ns()
        dumped = list(self._dumped())
        t_ns = (before_ns + time.monotonic_ns()) // 2  # this process may wait for a processor in between
        for data in dumped:
            parsed = self._parsed(data)
            if parsed is None:
                continue
            cookie, port, state, info, congestion = parsed
            # iperf3 chooses the congestion control of a connection that has already begun.
            self.connections.setdefault(cookie, Connection(port)).congestion = congestion
            if len(self.samples) >= self._samples_max:
                raise OSError(errno.ENOBUFS, "there are more samples than expected")
            self.samples.append((t_ns, port, state, info))
        self._read_ends()

    def _read_ends(self) -> None:
        while True:
            try:
                data = self._ends.recv(BUFFER)
            except BlockingIOError:
                return
            for kind, rest in messages(data):
                parsed = self._parsed(rest, is_end=True) if kind == BY_FAMILY else None
                if parsed and parsed[0] in self.connections:
                    self.connections[parsed[0]].end = parsed[3]

    def _parsed(self, data: bytes, *, is_end: bool = False) -> Tuple[int, int, int, bytes, str] | None:
        """The cookie, other port, state, tcp_info and congestion control of a message; None for other connections.

        At its end, a connection has lost its local port.
        """
        _, state, local, remote, _, address, cookie = MESSAGE.unpack_from(data)
        found = attributes(data[MESSAGE.size :])
        is_known = is_end or int.from_bytes(local, "big") == self._port
        if address != self._address or not is_known or INFO not in found:
            return None
        if len(found[INFO]) < INFO_MIN:
            raise OSError(errno.ENOTSUP, "the kernel is too old: its tcp_info lacks the bytes that were sent")
        congestion = found.get(CONGESTION, b"").rstrip(b"\0").decode(errors="replace")
        return cookie, socket.ntohs(remote), state, found[INFO], congestion

    def _dumped(self) -> Iterator[bytes]:
        """The kernel's messages about connections from the local port."""
        kinds = (1 << (INFO - 1)) | (1 << (CONGESTION - 1))
        port = socket.htons(self._port)
        body = REQUEST.pack(socket.AF_INET, socket.IPPROTO_TCP, kinds, STATES, port, 0)
        self._requests.send(HEADER.pack(HEADER.size + len(body), BY_FAMILY, DUMP, 1, 0) + body)
        while True:
            for kind, rest in messages(self._requests.recv(BUFFER)):
                if kind == DONE:
                    return
                if kind == ERROR:
                    code = -struct.unpack_from("=l", rest)[0]
                    raise OSError(code, "sock_diag: " + errno.errorcode.get(code, str(code)))
                yield rest


def answer(message: Dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def report(sampler: Sampler) -> None:
    kept = dict({name: FIELDS[name] for name in ("retransmits", "min_rtt_us")}, **TOTALS)
    connections = [
        dict({"port": one.port, "congestion": one.congestion}, **(values(one.end, kept) if one.end else {}))
        for one in sampler.connections.values()
    ]
    answer({"connections": connections, "samples": len(sampler.samples)})
    for t_ns, port, state, info in sampler.samples:
        print(json.dumps(dict({"t_ns": t_ns, "port": port, "state": state}, **values(info, FIELDS))))
    sys.stdout.flush()


def sample(request: Dict[str, Any]) -> None:
    sampler, every_s = Sampler(request["port"], request["address"], request["samples_max"]), request["every_s"]
    sampler.read()
    answer({})
    due_s = time.monotonic() + every_s
    while not select.select([0], [], [], max(0.0, due_s - time.monotonic()))[0]:
        sampler.read()
        due_s = max(due_s + every_s, time.monotonic())
    end_s = time.monotonic() + END_S
    sampler.read()
    while not sampler.has_ended and time.monotonic() < end_s:
        sampler.wait_for_end(END_READ_S)
        sampler.read()
    report(sampler)


def main() -> None:
    request = json.loads(sys.stdin.buffer.readline())
    try:
        sample(request)
    except OSError as error:
        answer({"error": error.strerror or str(error)})


if __name__ == "__main__":
    main()
