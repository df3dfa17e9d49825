"""A serial channel of a node."""

from __future__ import annotations

import queue
from typing import Any

import libvirt

from vcluster.adapters.libvirt.libvirt_errors import errors
from vcluster.errors import VclusterError
from vcluster.util.deadline import Deadline

_PIECE = 1 << 16  # of what is sent to a node's channel goes out at once, in bytes
_ROOM_S = 0.02  # how often a full channel is tried again


class SerialChannel:
    """Lines that a node writes to one of its channels. They arrive on libvirt's event loop and are awaited here.

    And what is said to it there.
    """

    def __init__(self, domain: str, stream: libvirt.virStream) -> None:
        self.domain = domain
        self._stream = stream
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._has_ended = False
        self._rest = b""
        events = libvirt.VIR_STREAM_EVENT_READABLE | libvirt.VIR_STREAM_EVENT_HANGUP | libvirt.VIR_STREAM_EVENT_ERROR
        stream.eventAddCallback(events, self._arrived, None)

    def next(self, deadline: Deadline, awaited: str) -> str:
        """The next line. Raises DeadlineError naming what was awaited."""
        while True:
            deadline.check(awaited)
            try:
                return self._lines.get(timeout=deadline.remaining_s(0.5))
            except queue.Empty:
                continue

    def say(self, text: str | bytes, deadline: Deadline, awaited: str) -> None:
        """Send all of it to the node; one thread at a time. Raises DeadlineError in time, VclusterError at the end."""
        view = memoryview(text.encode() if isinstance(text, str) else text)
        while view:
            deadline.check(awaited)
            self.check(awaited)
            with errors(f"{self.domain}: {awaited}"):
                sent = self._stream.send(bytes(view[:_PIECE]))
            if sent > 0:
                view = view[sent:]
            else:  # it would block
                deadline.pause(_ROOM_S, awaited)

    def check(self, awaited: str) -> None:
        """Raise VclusterError when the node has stopped running: its channel ends with it."""
        if self._has_ended:
            raise VclusterError(f"{self.domain} stopped running, waiting for {awaited}")

    def close(self) -> None:
        """Stop listening."""
        try:
            self._stream.eventRemoveCallback()
            self._stream.abort()
        except libvirt.libvirtError:
            pass  # the domain is gone, and the stream with it

    def _arrived(self, stream: libvirt.virStream, events: int, _: Any) -> None:
        try:
            data = stream.recv(4096) if events & libvirt.VIR_STREAM_EVENT_READABLE else b""
        except libvirt.libvirtError:
            data = b""
        if data == -2:  # nothing to read after all
            return
        if not data:
            stream.eventRemoveCallback()
            self._has_ended = True
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._lines.put(line.decode(errors="replace").strip())
