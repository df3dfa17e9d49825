"""A connection by the ProxyCommand of the user's ssh configuration."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import threading

from vcluster.adapters.pipe import one_line


class ProxyCommand:
    """Runs a ProxyCommand and acts as the socket that paramiko needs."""

    def __init__(self, command: str) -> None:
        self._socket, remote = socket.socketpair()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - read after the command has ended
        with remote:
            # As ssh runs it. It has its own session, so that an interrupt from the keyboard does not end it.
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {command}"],
                stdin=remote.fileno(),
                stdout=remote.fileno(),
                stderr=self._stderr,
                start_new_session=True,
            )
        self._closing = threading.Lock()
        self._error_output = ""
        self.send, self.recv, self.settimeout = self._socket.send, self._socket.recv, self._socket.settimeout

    @property
    def _closed(self) -> bool:
        """Paramiko reads this attribute of a socket."""
        return self._socket.fileno() < 0

    def close(self) -> None:
        """End the command. A second call does nothing."""
        with self._closing:
            if self._closed:
                return
            self._socket.close()
            self._process.terminate()
            try:
                self._process.wait(2.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            with self._stderr as stderr:
                stderr.seek(0)
                self._error_output = one_line(stderr.read()[-4096:].decode(errors="replace"))

    def error_output(self) -> str:
        """End the command and return its standard error as one line."""
        self.close()
        return self._error_output
