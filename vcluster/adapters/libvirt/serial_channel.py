"""A channel of a running node (virtio-serial), by a stream of libvirt: lines in both directions."""

from __future__ import annotations

import queue
from contextlib import suppress
from typing import Any

import libvirt

from vcluster.adapters.libvirt.domain_run import DomainRun
from vcluster.adapters.libvirt.libvirt_errors import translated_errors
from vcluster.adapters.pipe import LineJoiner
from vcluster.errors import VclusterError
from vcluster.util.deadline import Deadline

_CHUNK_BYTES = 1 << 16  # sent to libvirt at a time
_RETRY_S = 0.02  # how often to retry when the channel is full
_POLL_S = 0.5
_LINE_BYTES_MAX = 1 << 20
_WAITING_BYTES_MAX = 1 << 24
_LINE_COST_BYTES = 64  # of an empty line that waits


class SerialChannel:
    """The lines that a node writes to its channel, and those we write to it.

    Lines arrive in the thread of libvirt's event loop and wait in a queue for `read_line`. Every wait ends with the
    node's run, also if libvirt does not report the end of the stream.
    """

    def __init__(self, run: DomainRun, stream: libvirt.virStream) -> None:
        self._run = run
        self._stream = stream
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._arrived_bytes = self._read_bytes = 0  # each is changed by one thread only
        self._has_ended = False
        self._failure = ""
        self._joiner = LineJoiner()
        events = libvirt.VIR_STREAM_EVENT_READABLE | libvirt.VIR_STREAM_EVENT_HANGUP | libvirt.VIR_STREAM_EVENT_ERROR
        stream.eventAddCallback(events, self._on_event, None)

    def read_line(self, deadline: Deadline, awaited: str) -> str:
        """The next line. Raises DeadlineError, which names `awaited`, or VclusterError when the node has stopped."""
        while True:
            deadline.check(awaited)
            with suppress(queue.Empty):
                line = self._lines.get(timeout=deadline.remaining_s(_POLL_S))
                self._read_bytes += len(line) + _LINE_COST_BYTES
                return line.decode(errors="replace").strip()
            self._check(awaited)

    def send(self, text: str | bytes, deadline: Deadline, awaited: str) -> None:
        """Send all of `text` to the node; only one thread may send at a time.

        Raises DeadlineError, or VclusterError when the node has stopped.
        """
        view = memoryview(text.encode() if isinstance(text, str) else text)
        while view:
            deadline.check(awaited)
            self._check(awaited)
            with translated_errors(f"{self._run.name}: {awaited}"):
                sent = self._stream.send(bytes(view[:_CHUNK_BYTES]))
            if sent > 0:
                view = view[sent:]
            else:  # it would block
                deadline.pause(_RETRY_S, awaited)

    def close(self) -> None:
        """Close the stream. Each step fails if it was done before, or if the domain has ended."""
        for step in (self._stream.eventRemoveCallback, self._stream.abort):
            with suppress(libvirt.libvirtError):
                step()

    def _check(self, awaited: str) -> None:
        if self._failure:
            raise VclusterError(f"{self._run.name}: {self._failure}")
        if self._has_ended:
            raise self._run.stopped(awaited)
        self._run.check(awaited)

    def _on_event(self, stream: libvirt.virStream, events: int, _: Any) -> None:
        try:
            data = stream.recv(4096) if events & libvirt.VIR_STREAM_EVENT_READABLE else b""
        except libvirt.libvirtError:
            data = b""
        if data == -2:  # nothing to read, despite the event
            return
        if not data:
            self._has_ended = True
            stream.eventRemoveCallback()
            return
        for line in self._joiner.add(data):
            self._lines.put(line)
            self._arrived_bytes += len(line) + _LINE_COST_BYTES
        self._failure = self._excess()
        if self._failure:
            stream.eventRemoveCallback()

    def _excess(self) -> str:
        """What a node that is not trusted has sent too much of; empty if nothing."""
        if len(self._joiner.rest) > _LINE_BYTES_MAX:
            return f"it sent a line of more than {_LINE_BYTES_MAX >> 20} MiB over its serial port"
        if self._arrived_bytes - self._read_bytes > _WAITING_BYTES_MAX:
            return "it sends faster over its serial port than vcluster can read"
        return ""
