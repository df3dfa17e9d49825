"""A proxy command."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import threading

from vcluster.adapters.pipe import one_line


class ProxyCommand:
    """A connection that a command of the user's ssh configuration carries, as a socket for paramiko."""

    def __init__(self, command: str) -> None:
        self._socket, theirs = socket.socketpair()
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - it is read after the command has ended
        with theirs:
            # As ssh runs it. In a session of its own: an interrupt from the keyboard must not cut it from under us.
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {command}"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._words,
                start_new_session=True,
            )
        self._closing = threading.Lock()
        self._said = ""
        self.send, self.recv, self.settimeout = self._socket.send, self._socket.recv, self._socket.settimeout

    @property
    def _closed(self) -> bool:
        """Paramiko asks a socket for this."""
        return self._socket.fileno() < 0

    def close(self) -> None:
        """End the command. A second time does nothing."""
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
            with self._words as words:
                words.seek(0)
                self._said = one_line(words.read()[-4096:].decode(errors="replace"))

    def error_output(self) -> str:
        """What the command said on its standard error, as one line."""
        self.close()
        return self._said
