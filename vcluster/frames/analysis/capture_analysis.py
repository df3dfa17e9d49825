"""Follows each frame of a captured file through the switch: from its entry at one port to its exit at another. Pure.

A frame is inbound at the port of its sender, and outbound at that of its receiver. All times are of one clock.
The calls for each frame limit how fast a file is read, so they are few.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from itertools import chain
from operator import itemgetter

from vcluster.frames.analysis import frame_headers
from vcluster.frames.analysis.captured_plan import CapturedPlan, Rank
from vcluster.frames.analysis.frame_headers import CONNECTION, MPI
from vcluster.frames.analysis.pair_figures import PairFigures, PortFigures
from vcluster.frames.analysis.tcp_stream import TcpStream
from vcluster.frames.pcapng import INBOUND
from vcluster.frames.pcapng_reader import PcapngReader
from vcluster.model.quoting import shown

WAITING_MAX = 1 << 19  # frames that have entered and not left
EQUAL_MAX = 1 << 16  # of them, those with equal headers
STREAMS_MAX = 1 << 16

# A frame in the switch: the time of its entry, the figures that count it, and the bytes that had left to its receiver.
_Waiting = tuple[int, tuple[PairFigures, ...], int]


class CaptureAnalysis:
    """The figures of a file."""

    def __init__(self, plan: CapturedPlan, reader: PcapngReader) -> None:
        self.plan, self._reader = plan, reader
        self.names: list[str] = []
        self.ports: list[PortFigures] = []
        self._numbers: dict[bytes, int] = {}  # of interfaces, by the MAC address of their node
        self.pairs: dict[tuple[str, str], PairFigures] = {}
        self.rank_pairs: dict[tuple[Rank, Rank], PairFigures] = {}
        self._streams: OrderedDict[bytes, TcpStream] = OrderedDict()
        self._waiting: OrderedDict[tuple[bytes, int], list[_Waiting]] = OrderedDict()
        self._waiting_count = 0
        self.forgotten_streams = self.forgotten_frames = self.backward_frames = 0
        self.frames = 0
        self.first_ns: int | None = None
        self.last_ns = 0

    def run(self) -> None:
        """Follow all frames. Raises VclusterError if the file is wrong."""
        for number, at_ns, data, length, direction in self._reader.frames():
            if number >= len(self.ports):
                self._add_ports()
            self.frames += 1
            if self.first_ns is None:
                self.first_ns = self.last_ns = at_ns
            elif at_ns > self.last_ns:
                self.last_ns = at_ns
            if direction == INBOUND:
                self._enter(number, at_ns, data, length)
            else:
                self._leave(number, at_ns, data, length)
        self._add_ports()

    def _add_ports(self) -> None:
        """Add the ports of interfaces that the file has by now."""
        macs = {name: mac for mac, name in self.plan.nodes.items()}
        for interface in self._reader.interfaces[len(self.ports) :]:
            if interface.name not in macs or interface.name in self.names:
                raise self._reader.error(f"interface {shown(interface.name)} is not one of a node, or is there twice")
            self._numbers[macs[interface.name]] = len(self.ports)
            self.names.append(interface.name)
            self.ports.append(PortFigures())

    def _enter(self, number: int, at_ns: int, data: bytes, length: int) -> None:
        port = self.ports[number]
        port.received_frames += 1
        port.received_bytes += length
        target = self.plan.nodes.get(data[:6])
        if target is None or target == self.names[number]:
            self._count_other(port, data, length)
            return
        stream = self._stream(number, target, data) if frame_headers.has_stream(data) else None
        if stream:
            kind, figures = stream.kind, stream.figures
        else:
            kind, figures = frame_headers.kind_of(data), (self._pair(self.names[number], target),)
        counts = port.kinds[kind]
        counts[0] += 1
        counts[1] += length
        for each in figures:
            each.enter(length, kind)
            if kind == MPI:
                each.send(at_ns)
        receiver = self._numbers.get(data[:6])
        if stream and (found := frame_headers.segment(data, length)):
            self._follow(stream, found, number, receiver)
        if receiver is not None:
            self._wait(frame_headers.identity(data, length), (at_ns, figures, self.ports[receiver].sent_bytes))

    def _count_other(self, port: PortFigures, data: bytes, length: int) -> None:
        """A frame for a group of nodes, or for something that is not another node of the cluster."""
        counts = port.kinds[frame_headers.kind_of(data)]
        counts[0] += 1
        counts[1] += length
        if data[:1] and data[0] & 1:
            port.group_frames += 1
            port.group_bytes += length
        else:
            port.elsewhere_frames += 1

    def _pair(self, sender: str, receiver: str) -> PairFigures:
        return self.pairs.get((sender, receiver)) or self.pairs.setdefault((sender, receiver), PairFigures())

    def _stream(self, number: int, target: str, data: bytes) -> TcpStream:
        """The stream of a frame. A node may send frames with addresses of others, so each port has its own streams."""
        key = data[CONNECTION] + number.to_bytes(2, "big") + data[:6]
        if found := self._streams.get(key):
            self._streams.move_to_end(key)
            return found
        if len(self._streams) == STREAMS_MAX:
            self._streams.popitem(last=False)
            self.forgotten_streams += 1
        figures = [self._pair(self.names[number], target)]
        ranks = self.plan.ranks.get(key[:12])
        if ranks and (ranks[0].node, ranks[1].node) == (self.names[number], target):
            figures.append(self.rank_pairs.get(ranks) or self.rank_pairs.setdefault(ranks, PairFigures()))
        stream = TcpStream(frame_headers.kind_of(data), tuple(figures))
        self._streams[key] = stream
        return stream

    def _follow(self, stream: TcpStream, found: tuple[int, int, int], number: int, receiver: int | None) -> None:
        is_again, begins = stream.add(*found)
        is_counted = stream.kind == MPI and (len(stream.figures) > 1 or not self.plan.ranks)
        for each in stream.figures:
            each.retransmissions += is_again
            each.rounds += begins and is_counted
        if begins and is_counted:
            self.ports[number].sent_messages += 1
            if receiver is not None:
                self.ports[receiver].received_messages += 1

    def _wait(self, key: tuple[bytes, int], frame: _Waiting) -> None:
        waiting = self._waiting.get(key)
        if self._waiting_count == WAITING_MAX:
            self._forget(*next(iter(self._waiting.items())))
        elif waiting and len(waiting) == EQUAL_MAX:
            self._forget(key, waiting)
        self._waiting_count += 1
        if waiting:
            waiting.append(frame)
        else:
            self._waiting[key] = [frame]

    def _forget(self, key: tuple[bytes, int], waiting: list[_Waiting]) -> None:
        """Forget the oldest of these frames, which have not left."""
        waiting.pop(0)
        if not waiting:
            del self._waiting[key]
        self._waiting_count -= 1
        self.forgotten_frames += 1

    def _leave(self, number: int, at_ns: int, data: bytes, length: int) -> None:
        port = self.ports[number]
        port.sent_frames += 1
        port.sent_bytes += length
        if data[:1] and data[0] & 1:
            return
        if self._numbers.get(data[:6]) != number:
            port.flooded_frames += 1
            return
        key = frame_headers.identity(data, length)
        waiting = self._waiting.get(key)
        if not waiting:
            port.unmatched_frames += 1
            return
        entered_ns, figures, sent_bytes = self._taken(waiting)
        if not waiting:
            del self._waiting[key]
        self._waiting_count -= 1
        if at_ns < entered_ns:
            self.backward_frames += 1
            return
        queue_bytes = port.sent_bytes - sent_bytes
        port.queue_max_bytes = max(port.queue_max_bytes, queue_bytes)
        for each in figures:
            each.leave(at_ns - entered_ns, queue_bytes)
        figures[0].last_entry_ns = entered_ns

    @staticmethod
    def _taken(waiting: list[_Waiting]) -> _Waiting:
        """Take the frame that leaves from equal ones: the first after the last frame of the pair that has left.

        A frame before that one was dropped, unless frames overtake each other; then it is the first.
        """
        place = bisect_left(waiting, waiting[0][1][0].last_entry_ns, key=itemgetter(0)) if len(waiting) > 1 else 0
        return waiting.pop(place if place < len(waiting) else 0)

    @property
    def dropped(self) -> int:
        """The number of frames for which the capture had no room."""
        return self._reader.dropped

    @property
    def rounds(self) -> int:
        """The fewest rounds that hold all messages, if each rank sends and receives at most one in a round.

        Without a map of ranks, these are nodes. The number is the highest degree of a bipartite graph (Kőnig).
        """
        if not self.plan.ranks:
            return max(
                chain.from_iterable((each.sent_messages, each.received_messages) for each in self.ports), default=0
            )
        sent: dict[Rank, int] = {}
        received: dict[Rank, int] = {}
        for (first, second), figures in self.rank_pairs.items():
            sent[first] = sent.get(first, 0) + figures.rounds
            received[second] = received.get(second, 0) + figures.rounds
        return max((*sent.values(), *received.values()), default=0)
