"""A socket that leads to libvirt, counts the calls, and delays each one as a distant server would.

    with Relay(delay_s=0.1) as relay:
        libvirt.open(relay.uri)
        relay.drop()
    relay.calls

Calls run side by side: the delay is the time that a call takes, not a pause between calls.

    python -m tests.libvirt_relay

It prints its URI, and breaks all connections for each line of its standard input.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path

LIBVIRT = "/run/libvirt/libvirt-sock"
# src/rpc/virnetprotocol.x in libvirt: the length of the message, then program, version, procedure, type, serial, status
HEADER = struct.Struct(">IIIiiIi")
CALL, REPLY = 0, 1
KEEP_ALIVE = 0x6B656570


class Relay:
    """Counts calls to libvirt, by all connections to it. `calls` are their messages."""

    def __init__(self, delay_s: float) -> None:
        self.calls: list[bytes] = []
        self.most_at_once = 0
        self._delay_s, self._now, self._lock = delay_s, 0, threading.Lock()
        self._clients: list[socket.socket] = []
        self._folder = tempfile.TemporaryDirectory(prefix="vc-")
        self._path = Path(self._folder.name, "libvirt.sock")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._folder.cleanup()

    @property
    def uri(self) -> str:
        """The URI for libvirt to open."""
        return f"qemu+unix:///system?socket={self._path}"

    def count(self, text: str = "") -> int:
        """The number of calls, or of those that contain a text, for example the name of a domain."""
        return sum(text.encode() in call for call in self.calls)

    def drop(self) -> None:
        """Break all connections. New ones are accepted."""
        for client in self._clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, server = self._listener.accept()[0], socket.socket(socket.AF_UNIX)
                server.connect(LIBVIRT)
                self._clients.append(client)
                waiting: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
                for work, arguments in (
                    (self._receive_calls, (client, waiting)),
                    (self._send_calls, (waiting, server)),
                    (self._return_replies, (server, client)),
                ):
                    threading.Thread(target=work, args=arguments, daemon=True).start()

    def _receive_calls(self, client: socket.socket, waiting: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        while message := _read(client):
            self._note(message, CALL, 1)
            waiting.put((time.monotonic() + self._delay_s, message))
        waiting.put((0.0, b""))

    def _send_calls(self, waiting: queue.SimpleQueue[tuple[float, bytes]], server: socket.socket) -> None:
        due_s, message = waiting.get()
        while message:
            time.sleep(max(0.0, due_s - time.monotonic()))
            server.sendall(message)
            due_s, message = waiting.get()
        server.shutdown(socket.SHUT_RDWR)

    def _return_replies(self, server: socket.socket, client: socket.socket) -> None:
        while message := _read(server):
            self._note(message, REPLY, -1)
            client.sendall(message)
        client.close()

    def _note(self, message: bytes, kind: int, step: int) -> None:
        _, program, _, _, found, _, _ = HEADER.unpack_from(message)
        if found != kind or program == KEEP_ALIVE:
            return
        with self._lock:
            self._now += step
            self.most_at_once = max(self.most_at_once, self._now)
            if kind == CALL:
                self.calls.append(message)


def _read(source: socket.socket) -> bytes:
    """The next message, or nothing at the end."""
    try:
        length = source.recv(4, socket.MSG_WAITALL)
        return length + source.recv(int.from_bytes(length, "big") - 4, socket.MSG_WAITALL) if length else b""
    except OSError:
        return b""


if __name__ == "__main__":
    with Relay(delay_s=0.0) as printed:
        print(printed.uri, flush=True)
        for _ in sys.stdin:
            printed.drop()
