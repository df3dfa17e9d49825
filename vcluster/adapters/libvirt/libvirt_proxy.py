"""A local socket that leads to the libvirt of a server over SSH, also for users who need sudo there.

The libvirt client connects to a socket on this machine. For each connection, the agent starts a process on the server
as root that relays to libvirt's socket there.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Protocol
from urllib.parse import quote

from vcluster.adapters.pipe import CHUNK, Pipe
from vcluster.errors import RequestError, VclusterError
from vcluster.util.deadline import Deadline

START_TIMEOUT_S = 30.0
_PATH_LIMIT = 107  # bytes in the address of a unix socket
_POLL_S = 0.5


class RelayStarter(Protocol):
    """Starts a process on the server that relays to libvirt's socket. RemoteAgent implements it."""

    name: str

    def start_relay(self, deadline: Deadline) -> Pipe:
        """Return a stream to libvirt's socket."""


class LibvirtProxy:
    """A socket on this machine that leads to a server's libvirt. Use as a context manager.

    `failure` is the reason why the last connection could not be relayed: libvirt only sees it closed.
    """

    def __init__(self, relays: RelayStarter, folder: Path | None = None) -> None:
        self.name = relays.name
        self.failure: VclusterError | None = None
        self._relays = relays
        self._lock = threading.Lock()
        self._is_open = True
        self._splices: set[_Splice] = set()
        self._folder = Path(tempfile.mkdtemp(prefix="vc-", dir=folder))  # mode 0700: only for this user
        self._path = self._folder / "libvirt.sock"
        if len(str(self._path).encode()) > _PATH_LIMIT:
            self._folder.rmdir()
            raise RequestError(f"{self._path} is too long for a socket", hint="set TMPDIR to a shorter path")
        try:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(self._path))
            self._path.chmod(0o600)
            self._listener.listen()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._thread = threading.Thread(target=self._accept, name=f"libvirt of {self.name}", daemon=True)
        self._thread.start()

    @property
    def uri(self) -> str:
        """The URI for libvirt to open."""
        return f"qemu+unix:///system?socket={quote(str(self._path))}"

    def __enter__(self) -> LibvirtProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection and remove the socket. A second call does nothing."""
        with self._lock:
            self._is_open = False
            splices = tuple(self._splices)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for splice in splices:
            splice.cut()
        self._thread.join(START_TIMEOUT_S)
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _accept(self) -> None:
        while True:
            try:
                local, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(local,), name=f"libvirt of {self.name}", daemon=True).start()

    def _serve(self, local: socket.socket) -> None:
        """Relay one connection until either side closes."""
        with local:
            try:
                pipe = self._relays.start_relay(Deadline(START_TIMEOUT_S))
            except VclusterError as error:
                self.failure = error
                return
            splice = _Splice(local, pipe)
            with self._lock:
                if not self._is_open:
                    pipe.close()
                    return
                self._splices.add(splice)
            splice.run()
            with self._lock:
                self._splices.discard(splice)


class _Splice:
    """Copies data between a local connection and a stream to the server, in both directions."""

    def __init__(self, local: socket.socket, pipe: Pipe) -> None:
        self._local, self._pipe = local, pipe

    def run(self) -> None:
        """Copy in both directions until one side ends."""
        outward = threading.Thread(target=self._copy_out, daemon=True)
        outward.start()
        self._copy_in()
        self.cut()
        outward.join()

    def cut(self) -> None:
        """Close both sides."""
        with contextlib.suppress(OSError):
            self._local.shutdown(socket.SHUT_RDWR)
        self._pipe.close()

    def _copy_out(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while data := self._local.recv(CHUNK):
                view = memoryview(data)
                while view:
                    with contextlib.suppress(TimeoutError):
                        view = view[self._pipe.transmit(view, _POLL_S) :]
        self.cut()

    def _copy_in(self) -> None:
        with contextlib.suppress(OSError, EOFError, ValueError):
            while True:
                try:
                    data = self._pipe.receive(_POLL_S)
                except TimeoutError:
                    continue
                if not data:
                    return
                self._local.sendall(data)
