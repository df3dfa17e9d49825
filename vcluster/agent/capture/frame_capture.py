"""A capture of frames at ports of this server: a process that writes a pcapng file as messages, until its input ends.

A message is a line of JSON, and the number of bytes in its field `body` follow: whole blocks of the file. The first one
begins the file, and comes when the capture has begun; its field `missing` names the ports that do not exist. The last
one has the field `ended`, or `error`.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, BinaryIO

from vcluster.adapters.capture.packet_ring import PacketRing
from vcluster.adapters.network import netlink_interfaces
from vcluster.agent import request_loop
from vcluster.errors import VclusterError
from vcluster.frames import frame_filter, pcapng
from vcluster.frames.frame_filter import Instruction
from vcluster.frames.ring_blocks import RingReader
from vcluster.model import json_text, json_types

WAIT_S = 1.0
DRAIN_TIMEOUT_S = 30.0  # for the frames that wait when a capture ends
END_TIMEOUT_S = 60.0  # a controller that does not read the end of the file is gone
ALL_PORTS = "isb_osdrop counts the frames of all interfaces together: one socket captured them"
_REQUEST = {"header": str, "ports": list[str], "program": list[tuple[int, int, int, int]], "wire": bool}


@dataclass(frozen=True, slots=True)
class Request:
    """What to capture: the first blocks of the file, the ports in the file's order, and the filter of frames.

    With `is_wire`, the file has the frames that a wire would carry, and otherwise what the switch sees.
    """

    header: bytes
    ports: Sequence[str]
    program: Sequence[Instruction]
    is_wire: bool = True

    def to_json(self) -> dict[str, Any]:
        """The request as JSON."""
        return {
            "header": base64.b64encode(self.header).decode(),
            "ports": list(self.ports),
            "program": [list(instruction) for instruction in self.program],
            "wire": self.is_wire,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Request:
        """The request that `to_json` wrote. Raises VclusterError if it is not one."""
        if wrong := json_types.misfit(fields, _REQUEST, "the request"):
            raise VclusterError(f"capture: {wrong}")
        program = [tuple(instruction) for instruction in fields["program"]]
        return cls(base64.b64decode(fields["header"]), fields["ports"], program, fields["wire"])


def main() -> None:
    """Capture on this machine. The request is the first line of standard input."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    serve(source, sink, json_text.parse(source.readline()))


def serve(source: BinaryIO, sink: BinaryIO, request: Mapping[str, Any]) -> None:
    """Capture until the input ends, then end this process. An error is the last message."""
    ended = os.eventfd(0)
    threading.Thread(target=_await_end, args=(source, ended), daemon=True).start()
    with suppress(BrokenPipeError):
        try:
            _capture(Request.from_json(request), sink, ended)
        except VclusterError as error:
            _send(sink, {"error": request_loop.error_to_json(error)})
    os._exit(0)


def _await_end(source: BinaryIO, ended: int) -> None:
    """Wait for the end of the input. Then this process has a limited time to end."""
    request_loop.await_end(source)
    os.eventfd_write(ended, 1)
    timer = threading.Timer(END_TIMEOUT_S, os._exit, [1])
    timer.daemon = True
    timer.start()


def _capture(request: Request, sink: BinaryIO, ended: int) -> None:
    """Capture from the first message on, until `ended` can be read.

    Then send the frames that wait, for a limited time. Those that are left count as dropped.
    """
    ports = _Ports(request)
    reader = ports.reader
    with closing(PacketRing(has_virtio_headers=request.is_wire)) as ring:

        def send_block() -> None:
            for block in islice(ring.blocks(), 1):  # its time is limited, unlike that of all blocks
                for frames in reader.read(block):
                    _send(sink, {"frames": reader.frames, "dropped": ring.dropped}, frames)

        ports.attach_to(ring)
        _send(sink, {"missing": ports.missing}, request.header)
        while not ring.wait(WAIT_S, ended):
            send_block()
            ports.follow(ring)
        ring.detach()
        deadline_s = time.monotonic() + DRAIN_TIMEOUT_S
        while (left := ring.captured - sum(reader.seen)) > 0 and time.monotonic() < deadline_s:
            ring.wait(WAIT_S)
            send_block()
        dropped = ring.dropped + max(left, 0)
        counts = {"frames": reader.frames, "dropped": dropped, "delivered": reader.delivered, "seen": reader.seen}
        _send(sink, {**counts, "ended": True}, ports.statistics(dropped))


class _Ports:
    """The ports of a capture. A node that is powered on gets a new interface, of the same name each time."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._indexes = _indexes(request.ports)
        self._next_search_s = 0.0
        self.reader = RingReader(self._numbers(), len(request.ports), is_wire=request.is_wire)

    @property
    def missing(self) -> list[str]:
        """The ports that do not exist."""
        return [name for name in self._request.ports if name not in self._indexes]

    def attach_to(self, ring: PacketRing) -> None:
        """Begin to capture their frames."""
        self._before, self._began_ns = _counters(), time.time_ns()
        self._attach(ring)

    def follow(self, ring: PacketRing) -> None:
        """Capture at new interfaces of the same names. It searches them once a second."""
        if time.monotonic() < self._next_search_s:
            return
        self._next_search_s = time.monotonic() + WAIT_S
        found = {**self._indexes, **_indexes(self._request.ports)}
        if found != self._indexes:
            self._indexes = found
            self.reader.add(self._numbers())
            self._attach(ring)

    def statistics(self, dropped: int) -> bytes:
        """The blocks with the counts of all ports."""
        after, ended_ns = _counters(), time.time_ns()
        blocks = []
        for number, name in enumerate(self._request.ports):
            index, delivered = self._indexes.get(name, 0), self.reader.delivered[number]
            is_known = index in after and index in self._before  # a new interface is not in `_before`
            received = after[index] - self._before[index] if is_known else None
            counts = pcapng.Statistics(self._began_ns, ended_ns, delivered, received)
            if number == 0:
                counts = replace(counts, dropped=dropped, comment=ALL_PORTS if dropped else "")
            blocks.append(pcapng.statistics(number, counts))
        return b"".join(blocks)

    def _numbers(self) -> dict[int, int]:
        """The number of each port in the file, by the index of its interface."""
        return {self._indexes[name]: number for number, name in enumerate(self._request.ports) if name in self._indexes}

    def _attach(self, ring: PacketRing) -> None:
        ring.attach(frame_filter.on_interfaces(list(self._indexes.values()), self._request.program))


def _indexes(ports: Sequence[str]) -> dict[str, int]:
    """The indexes of the ports that exist."""
    present = {name: index for index, name in socket.if_nameindex()}
    return {name: present[name] for name in ports if name in present}


def _counters() -> dict[int, int]:
    """The packets that each interface has received and sent, by its index."""
    return {found.index: found.rx_packets + found.tx_packets for found in netlink_interfaces.interfaces()}


def _send(sink: BinaryIO, fields: Mapping[str, Any], body: bytes = b"") -> None:
    sink.write(json.dumps({**fields, "body": len(body)}).encode() + b"\n" + body)
    sink.flush()
