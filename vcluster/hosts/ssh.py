"""SSH to nodes, by paramiko: one connection each, a pinned host key, programs run with data on standard input."""

from __future__ import annotations

import base64
import io
import logging
import shlex
import socket
import time
from collections.abc import Sequence
from types import TracebackType

import paramiko

from vcluster.errors import VclusterError
from vcluster.events import Deadline
from vcluster.hosts.shell import Completed

PORT = 22
CONNECT_TIMEOUT_S = 30.0
RETRY_S = 1.0  # OpenSSH from 9.8 on penalises clients that knock more often
_CIPHERS = ("aes128-ctr",)
_KEX = ("curve25519-sha256@libssh.org",)

# paramiko logs to the root logger what it also raises.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False


class Session:
    """A logged-in connection to one node. Use as a context manager, or close it."""

    def __init__(self, name: str, transport: paramiko.Transport, deadline: Deadline) -> None:
        self.name = name
        self._transport = transport
        self._deadline = deadline

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. A second time does nothing."""
        self._transport.close()

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", awaited: str) -> Completed:
        """Run a program on the node to its end, or to the session's deadline; `awaited` names it in messages."""
        try:
            channel = self._transport.open_session(timeout=self._deadline.remaining_s(CONNECT_TIMEOUT_S))
            channel.exec_command(shlex.join(argv))
            return self._converse(channel, stdin, awaited)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise VclusterError(f"{self.name}: the connection broke during {awaited}: {_said(error)}") from error

    def run_program(self, source: bytes, stdin: bytes, *, awaited: str) -> Completed:
        """Run a Python program on the node: its source travels ahead of its input, on the same stream."""
        loader = f"import sys; exec(compile(sys.stdin.buffer.read({len(source)}), 'vcluster', 'exec'))"
        return self.run(["python3", "-I", "-S", "-c", loader], stdin=source + stdin, awaited=awaited)

    def _converse(self, channel: paramiko.Channel, stdin: bytes, awaited: str) -> Completed:
        output, errors = io.BytesIO(), io.BytesIO()
        channel.settimeout(0.5)
        self._send(channel, stdin, awaited)
        while not (channel.exit_status_ready() and channel.eof_received and _empty(channel)):
            self._deadline.check(f"{self.name}: {awaited}")
            _receive(channel, output, errors)
        completed = Completed(channel.recv_exit_status(), output.getvalue().decode(), errors.getvalue().decode())
        channel.close()
        return completed

    def _send(self, channel: paramiko.Channel, stdin: bytes, awaited: str) -> None:
        view = memoryview(stdin)
        while view:
            try:
                view = view[channel.send(bytes(view[:32768])) :]
            except TimeoutError:
                self._deadline.check(f"{self.name}: {awaited}")
        channel.shutdown_write()


def connect(name: str, address: str, *, user: str, private_key: str, host_key: str, deadline: Deadline) -> Session:
    """Log in to a node whose sshd is known to be up or about to be; refuses any host key but the pinned one.

    Raises DeadlineError when nothing answers in time, VclusterError when the node is somebody else or refuses the key.
    """
    key = paramiko.Ed25519Key.from_private_key(io.StringIO(private_key))
    pinned = paramiko.Ed25519Key(data=base64.b64decode(host_key.split()[1]))
    while True:
        try:
            return Session(name, _log_in(name, address, user, key, pinned), deadline)
        except paramiko.AuthenticationException as error:
            raise VclusterError(f"{name} at {address} refuses the cluster's key for {user}") from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            deadline.pause(RETRY_S, f"{name}: a login by ssh ({_said(error)})")


def _log_in(name: str, address: str, user: str, key: paramiko.PKey, pinned: paramiko.PKey) -> paramiko.Transport:
    transport = paramiko.Transport(socket.create_connection((address, PORT), timeout=CONNECT_TIMEOUT_S))
    try:
        # A node on a loaded host answers late; paramiko's own limits are for the internet.
        transport.banner_timeout = transport.auth_timeout = transport.handshake_timeout = CONNECT_TIMEOUT_S
        options = transport.get_security_options()
        options.ciphers = [name for name in options.ciphers if name in _CIPHERS]
        options.kex = [name for name in options.kex if name in _KEX]
        transport.start_client(timeout=CONNECT_TIMEOUT_S)
        _compare(transport.get_remote_server_key(), pinned, f"{name} at {address}")
        transport.auth_publickey(user, key)
    except BaseException:
        transport.close()
        raise
    transport.set_keepalive(15)
    return transport


def _compare(shown: paramiko.PKey, pinned: paramiko.PKey, who: str) -> None:
    if shown != pinned:
        raise VclusterError(f"{who} shows another host key than the one it was given")


def _receive(channel: paramiko.Channel, output: io.BytesIO, errors: io.BytesIO) -> None:
    if channel.recv_stderr_ready():
        errors.write(channel.recv_stderr(65536))
    if channel.recv_ready():
        output.write(channel.recv(65536))
    elif not channel.exit_status_ready():
        try:
            output.write(channel.recv(65536))
        except TimeoutError:
            return
    else:
        time.sleep(0.005)  # the exit status has come, the last bytes are on their way


def _empty(channel: paramiko.Channel) -> bool:
    return not channel.recv_ready() and not channel.recv_stderr_ready()


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
