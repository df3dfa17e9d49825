"""An SSH server in this process, on the loopback interface. It counts login attempts."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import paramiko
from paramiko.common import cMSG_CHANNEL_SUCCESS

from vcluster.adapters.ssh.openssh_config import Target
from vcluster.model import keys
from vcluster.model.keys import KeyPair

HOST, OTHER, USER, UNKNOWN = (keys.make_pair(name) for name in ("host", "other", "user", "unknown"))
RSA = paramiko.RSAKey.generate(2048)


def private(pair: KeyPair) -> paramiko.PKey:
    return paramiko.Ed25519Key.from_private_key(io.StringIO(pair.private))


def public(pair: KeyPair) -> str:
    return " ".join(pair.public.split()[:2])


@dataclass
class Rules:
    """The logins that the server accepts, and a record of the attempts."""

    host_keys: Sequence[paramiko.PKey] = field(default_factory=lambda: (private(HOST),))
    allows: str = "publickey,password"
    password: str = "right"
    authorized: KeyPair = USER
    may_forward: bool = True
    env: dict[str, str] | None = None
    login_script: str = ""  # a shell line that runs before each command, like ~/.bashrc
    tried: list[str] = field(default_factory=list)
    transports: list[paramiko.Transport] = field(default_factory=list)
    logins_to_cut: int = 0  # instead of an answer
    connections_to_cut: int = 0  # after the login, when the client opens a session
    port: int = 0

    def cut(self) -> None:
        """Break every connection without a message."""
        for transport in self.transports:
            transport.sock.shutdown(socket.SHUT_RDWR)


class ServerSide(paramiko.ServerInterface):
    """One client's server: it really runs the commands and opens the connections."""

    def __init__(self, rules: Rules, transport: paramiko.Transport) -> None:
        self.rules, self.transport = rules, transport

    def get_allowed_auths(self, username: str) -> str:  # noqa: ARG002
        return self.rules.allows

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:  # noqa: ARG002
        self.rules.tried.append("publickey")
        return self._verdict(key.get_base64() == self.rules.authorized.public.split()[1], "publickey")

    def check_auth_password(self, username: str, password: str) -> int:  # noqa: ARG002
        self.rules.tried.append("password")
        return self._verdict(password == self.rules.password, "password")

    def check_auth_interactive(self, username: str, submethods: str) -> int | paramiko.InteractiveQuery:  # noqa: ARG002
        if "keyboard-interactive" not in self.rules.allows:
            return paramiko.AUTH_FAILED
        query = paramiko.server.InteractiveQuery("", "")
        query.add_prompt("Password: ", False)
        return query

    def check_auth_interactive_response(self, responses: list[str]) -> int:
        self.rules.tried.append("keyboard-interactive")
        return self._verdict(list(responses) == [self.rules.password], "keyboard-interactive")

    def _verdict(self, is_valid: bool, method: str) -> int:
        if self.rules.logins_to_cut:
            self.rules.logins_to_cut -= 1
            self.transport.sock.shutdown(socket.SHUT_RDWR)
            return paramiko.AUTH_FAILED
        return paramiko.AUTH_SUCCESSFUL if is_valid and method in self.rules.allows else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:  # noqa: ARG002
        if self.rules.connections_to_cut:
            self.rules.connections_to_cut -= 1
            self.transport.sock.shutdown(socket.SHUT_RDWR)
        return paramiko.OPEN_SUCCEEDED

    def check_channel_direct_tcpip_request(self, chanid: int, origin: object, destination: tuple[str, int]) -> int:  # noqa: ARG002
        if not self.rules.may_forward:
            return paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED
        try:
            self.remote = socket.create_connection(destination, timeout=5)
        except OSError:
            return paramiko.OPEN_FAILED_CONNECT_FAILED
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        thread = threading.Thread(
            target=execute,
            args=(channel, f"{self.rules.login_script}\n{command.decode()}", self.rules.env),
            daemon=True,
        )
        channel.get_transport().accepted.append(thread)
        return True


class Transport(paramiko.Transport):
    """Starts a command after the answer to its request, as sshd does. It may end at once, and close the channel."""

    def __init__(self, client: socket.socket) -> None:
        super().__init__(client)
        self.accepted: list[threading.Thread] = []

    def _send_user_message(self, data: paramiko.Message) -> None:
        super()._send_user_message(data)
        if data.asbytes().startswith(cMSG_CHANNEL_SUCCESS):
            while self.accepted:
                self.accepted.pop().start()


def execute(channel: paramiko.Channel, command: str, env: dict[str, str] | None) -> None:
    """Run a command with its streams joined to the channel's, as sshd does."""
    pipe = subprocess.PIPE
    environment = {**os.environ, **env} if env else None
    with subprocess.Popen(
        ["sh", "-c", command], stdin=pipe, stdout=pipe, stderr=pipe, env=environment, start_new_session=True
    ) as process:

        def feed_input() -> None:
            with contextlib.suppress(OSError, EOFError), process.stdin:
                while data := channel.recv(65536):
                    os.write(process.stdin.fileno(), data)

        def send_errors() -> None:
            with contextlib.suppress(OSError, EOFError):
                while data := os.read(process.stderr.fileno(), 65536):
                    channel.sendall_stderr(data)

        threads = [threading.Thread(target=work, daemon=True) for work in (feed_input, send_errors)]
        for thread in threads:
            thread.start()
        with contextlib.suppress(OSError, EOFError):
            while data := os.read(process.stdout.fileno(), 65536):
                channel.sendall(data)
        threads[1].join()
        with contextlib.suppress(OSError, EOFError):
            code = process.wait()
            channel.send_exit_status(code if code >= 0 else 128 - code)
            channel.close()
        threads[0].join(5)


def join(channel: paramiko.Channel, remote: socket.socket) -> None:
    def out() -> None:
        with contextlib.suppress(OSError, EOFError):
            while data := channel.recv(65536):
                remote.sendall(data)
        with contextlib.suppress(OSError):
            remote.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=out, daemon=True).start()
    with remote, contextlib.suppress(OSError, EOFError):
        while data := remote.recv(65536):
            channel.sendall(data)
    with contextlib.suppress(OSError, EOFError):
        channel.close()


@contextlib.contextmanager
def serving(rules: Rules) -> Iterator[Rules]:
    """A server with these rules, at `rules.port`."""

    def serve(client: socket.socket) -> None:
        transport = Transport(client)
        rules.transports.append(transport)
        for key in rules.host_keys:
            transport.add_server_key(key)
        side = ServerSide(rules, transport)
        try:
            transport.start_server(server=side)
            channels = []  # paramiko closes a channel without a reference
            while transport.is_active():
                channel = transport.accept(0.2)
                channels.append(channel)
                if channel is not None and hasattr(side, "remote"):
                    threading.Thread(target=join, args=(channel, side.remote), daemon=True).start()
                    del side.remote
        except (paramiko.SSHException, EOFError, OSError):
            return

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        rules.port = listener.getsockname()[1]
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield rules
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        for transport in rules.transports:
            transport.close()
            transport.join(5)


def target(rules: Rules, folder: Path, *, identities: Sequence[Path] = ()) -> Target:
    """The server as a target of ssh, with a known_hosts file in the test's folder."""
    return Target(
        asked="127.0.0.1",
        hostname="127.0.0.1",
        user="root",
        port=rules.port,
        identity_files=tuple(identities),
        known_hosts=(folder / "ssh" / "known_hosts",),
    )


def know(target: Target, *lines: str) -> None:
    """Add lines for this server to its known_hosts file, each with an optional @marker."""
    target.known_hosts[0].parent.mkdir(exist_ok=True)
    with target.known_hosts[0].open("a") as file:
        for line in lines:
            marker, _, key = line.rpartition("| ")
            file.write(f"{marker} {target.key_name} {key}\n".lstrip())


__all__ = [
    "HOST",
    "OTHER",
    "RSA",
    "UNKNOWN",
    "USER",
    "Rules",
    "know",
    "private",
    "public",
    "serving",
    "target",
]
