"""A channel of a running node (virtio-serial), by a stream of libvirt: lines in both directions."""

from __future__ import annotations

import queue
from contextlib import suppress
from typing import Any

import libvirt

from vcluster.adapters.libvirt.domain_run import DomainRun
from vcluster.adapters.libvirt.libvirt_errors import translated_errors
from vcluster.util.deadline import Deadline

_CHUNK_BYTES = 1 << 16  # sent to libvirt at a time
_RETRY_S = 0.02  # how often to retry when the channel is full
_POLL_S = 0.5


class SerialChannel:
    """The lines that a node writes to its channel, and those we write to it.

    Lines arrive in the thread of libvirt's event loop and wait in a queue for `read_line`. Every wait ends with the
    node's run, also if libvirt does not report the end of the stream.
    """

    def __init__(self, run: DomainRun, stream: libvirt.virStream) -> None:
        self._run = run
        self._stream = stream
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._has_ended = False
        self._rest = b""
        events = libvirt.VIR_STREAM_EVENT_READABLE | libvirt.VIR_STREAM_EVENT_HANGUP | libvirt.VIR_STREAM_EVENT_ERROR
        stream.eventAddCallback(events, self._on_event, None)

    def read_line(self, deadline: Deadline, awaited: str) -> str:
        """The next line. Raises DeadlineError, which names `awaited`, or VclusterError when the node has stopped."""
        while True:
            deadline.check(awaited)
            with suppress(queue.Empty):
                return self._lines.get(timeout=deadline.remaining_s(_POLL_S))
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
        """Close the stream."""
        try:
            self._stream.eventRemoveCallback()
            self._stream.abort()
        except libvirt.libvirtError:
            pass  # the domain and its stream have ended

    def _check(self, awaited: str) -> None:
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
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._lines.put(line.decode(errors="replace").strip())
