"""libvirt's own protocol over the one connection to a server, also for users who may do nothing there but by sudo.

libvirt here connects to a socket of this machine; each connection is joined with a process on the server that is root
and speaks with libvirt's socket there.
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
_LOOK_S = 0.5


class RelayStarter(Protocol):
    """What starts a process on the server that relays to libvirt's socket: the agent."""

    name: str

    def start_relay(self, deadline: Deadline) -> Pipe:
        """A stream to libvirt's socket."""


class LibvirtProxy:
    """A socket of this machine that leads to a server's libvirt. Use as a context manager.

    `failure` is why the last connection could not be joined: libvirt itself only sees it closed.
    """

    def __init__(self, relays: RelayStarter, folder: Path | None = None) -> None:
        self.name = relays.name
        self.failure: VclusterError | None = None
        self._relays = relays
        self._lock = threading.Lock()
        self._is_open = True
        self._joints: set[_Splice] = set()
        self._folder = Path(tempfile.mkdtemp(prefix="vc-", dir=folder))  # for us alone, mode 0700
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
        """What libvirt is to open."""
        return f"qemu+unix:///system?socket={quote(str(self._path))}"

    def __enter__(self) -> LibvirtProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cut every connection and remove the socket. A second time does nothing."""
        with self._lock:
            self._is_open = False
            joints = tuple(self._joints)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for joint in joints:
            joint.cut()
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
        """Join one connection until either side closes."""
        with local:
            try:
                pipe = self._relays.start_relay(Deadline(START_TIMEOUT_S))
            except VclusterError as error:
                self.failure = error
                return
            joint = _Splice(local, pipe)
            with self._lock:
                if not self._is_open:
                    pipe.close()
                    return
                self._joints.add(joint)
            joint.run()
            with self._lock:
                self._joints.discard(joint)


class _Splice:
    """A local connection and a stream to the server, each pouring into the other."""

    def __init__(self, local: socket.socket, pipe: Pipe) -> None:
        self._local, self._pipe = local, pipe

    def run(self) -> None:
        """Pour both ways until one of them ends."""
        outward = threading.Thread(target=self._pour_out, daemon=True)
        outward.start()
        self._pour_in()
        self.cut()
        outward.join()

    def cut(self) -> None:
        """End both."""
        with contextlib.suppress(OSError):
            self._local.shutdown(socket.SHUT_RDWR)
        self._pipe.close()

    def _pour_out(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while data := self._local.recv(CHUNK):
                view = memoryview(data)
                while view:
                    with contextlib.suppress(TimeoutError):
                        view = view[self._pipe.transmit(view, _LOOK_S) :]
        self.cut()

    def _pour_in(self) -> None:
        with contextlib.suppress(OSError, EOFError, ValueError):
            while True:
                try:
                    data = self._pipe.receive(_LOOK_S)
                except TimeoutError:
                    continue
                if not data:
                    return
                self._local.sendall(data)
