"""Connect and log in by SSH, with a check of the host key.

vcluster makes the keys of nodes and pins them. Servers belong to the user: the OpenSSH configuration describes their
address, identities and host keys (openssh_config, host_keys).
"""

from __future__ import annotations

import base64
import errno
import io
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import paramiko

from vcluster.adapters.pipe import error_line, one_line
from vcluster.adapters.ssh import host_keys, openssh_config
from vcluster.adapters.ssh.authentication import LoginRefusedError, authenticate, give_password, login_errors
from vcluster.adapters.ssh.openssh_config import PORT, Target
from vcluster.adapters.ssh.proxy_command import ProxyCommand
from vcluster.adapters.ssh.ssh_session import CONNECT_TIMEOUT_S, Session
from vcluster.errors import DeadlineError, MissingError, VclusterError
from vcluster.util.deadline import Deadline

RETRY_S = 1.0  # OpenSSH 9.8 and later penalises clients that connect more often
POLL_S = 0.05
SILENCE_MS = 20_000  # a server without an acknowledgement for this time is dead
ANSWER_S = 10.0  # for a connection to a server; its kernel answers, also if it is busy
_CIPHERS = ("aes128-ctr",)
_KEX = ("curve25519-sha256@libssh.org",)
# Fastest first: with GCM, paramiko needs no second pass over the data for the digest.
_SERVER_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
_WINDOW = 1 << 23  # bytes that a server may send before we acknowledge them


def connect_node(
    name: str,
    address: str,
    *,
    user: str,
    private_key: str = "",
    password: str = "",
    host_key: str,
    deadline: Deadline,
    via: Session | None = None,
) -> Session:
    """Log in to a node whose sshd runs or is about to start. Only the pinned host key is accepted.

    The login uses the private key, or else the password. `via` is the session of the server in between, if any.
    Raises DeadlineError when nothing answers. Raises LoginRefusedError when the node refuses the key or the password.
    Raises VclusterError when the node presents another host key.
    """
    key = paramiko.Ed25519Key.from_private_key(io.StringIO(private_key)) if private_key else None
    pinned = paramiko.Ed25519Key(data=base64.b64decode(host_key.split()[1]))
    while True:
        try:
            transport = _log_in(name, address, user, key or password, pinned, via, deadline)
        except paramiko.AuthenticationException as error:
            raise LoginRefusedError(f"{name} at {address} refuses the cluster's key for {user}") from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            if via and not via.is_alive:
                raise VclusterError(f"{name}: the connection through {via.name} broke") from error
            deadline.pause(RETRY_S, f"the SSH login to {name} ({error_line(error)})")
        else:
            return Session(name, transport, deadline, user=user, address=address, host_key=host_key)


def _log_in(
    name: str,
    address: str,
    user: str,
    credential: paramiko.PKey | str,
    pinned: paramiko.PKey,
    via: Session | None,
    deadline: Deadline,
) -> paramiko.Transport:
    carrier = via.open_tcp(address, PORT, deadline=deadline) if via else _connect_node(name, address, deadline)
    transport = paramiko.Transport(carrier)
    try:
        # A node on a busy host answers late; paramiko's own limits are too short.
        transport.banner_timeout = transport.auth_timeout = transport.handshake_timeout = CONNECT_TIMEOUT_S
        options = transport.get_security_options()
        options.ciphers = [name for name in options.ciphers if name in _CIPHERS]
        options.kex = [name for name in options.kex if name in _KEX]
        done = threading.Event()
        transport.start_client(event=done)
        _await(done, transport, name, deadline)
        _require_pinned(transport.get_remote_server_key(), pinned, f"{name} at {address}")
        if isinstance(credential, str):
            give_password(name, transport, user, credential)
        else:
            done = threading.Event()
            transport.auth_publickey(user, credential, event=done)
            _await(done, transport, name, deadline)
            _raise_unless_authenticated(transport)
    except BaseException:
        transport.close()
        raise
    transport.set_keepalive(15)
    return transport


def _connect_node(name: str, address: str, deadline: Deadline) -> socket.socket:
    """Connect to a node, within CONNECT_TIMEOUT_S. The wait also ends when the deadline's checks fail."""
    carrier = socket.socket()
    try:
        carrier.setblocking(False)
        _await_connection(carrier, carrier.connect_ex((address, PORT)), name, deadline)
        carrier.settimeout(CONNECT_TIMEOUT_S)
    except BaseException:
        carrier.close()
        raise
    return carrier


def _await_connection(carrier: socket.socket, number: int, name: str, deadline: Deadline) -> None:
    """Wait for the end of a connect that returned `number`. Raises OSError if it fails."""
    answers, end_s = select.poll(), time.monotonic() + CONNECT_TIMEOUT_S
    answers.register(carrier, select.POLLOUT)
    while number == errno.EINPROGRESS:
        deadline.check(f"the SSH login to {name}")
        if answers.poll(POLL_S * 1000):
            number = carrier.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        elif time.monotonic() > end_s:
            number = errno.ETIMEDOUT
    if number:
        raise OSError(number, os.strerror(number))


def _raise_unless_authenticated(transport: paramiko.Transport) -> None:
    if not transport.is_authenticated():
        raise transport.get_exception() or paramiko.AuthenticationException("the key is refused")


def _await(done: threading.Event, transport: paramiko.Transport, name: str, deadline: Deadline) -> None:
    """Wait for a step of a login, at most CONNECT_TIMEOUT_S. The wait also ends when the deadline's checks fail."""
    end_s = time.monotonic() + CONNECT_TIMEOUT_S
    while not done.wait(POLL_S):
        deadline.check(f"the SSH login to {name}")
        if time.monotonic() > end_s:
            raise TimeoutError("no answer")
    _raise_if_ended(transport)


def _require_pinned(presented: paramiko.PKey, pinned: paramiko.PKey, server: str) -> None:
    if presented != pinned:
        raise VclusterError(
            f"{server} presents a host key that differs from the one that the cluster recorded",
            hint="the connection may be intercepted; or the key was replaced, for example by a new installation",
        )


def connect_server(
    name: str,
    target: Target,
    *,
    key: Path | None = None,
    password: str | None = None,
    cluster_key: str | None = None,
    fingerprint: str = "",
    pinned: str = "",
    ask: Callable[[str], bool] | None = None,
    deadline: Deadline,
) -> Session:
    """Log in to one of the user's servers.

    The host key must be `pinned`, or else have the `fingerprint`, or else be in known_hosts. For an unknown key, `ask`
    gets the question; if it returns True, the key is added to known_hosts. Only one kind of login is tried: the
    cluster's private key, else the password (once), else the key in file `key`, else what ssh would try: the agent and
    its identities.

    Raises MissingError, ConflictError for a changed host key, DeadlineError, or VclusterError, each with one line.
    """
    server = f"{name} ({target.address})" if name != target.hostname or target.port != PORT else name
    policy = host_keys.policy_for(server, target, fingerprint=fingerprint, pinned=pinned)
    presented: list[str] = []
    for types in policy.type_groups():
        transport, address = _negotiate(server, target, types, deadline)
        try:
            if transport is None:
                continue
            public = _public(transport.get_remote_server_key())
            presented.append(public)
            if not policy.accepts(public):
                if policy.fingerprint:
                    transport.close()
                    continue
                _confirm_host_key(server, target, public, ask)
            with login_errors(server, deadline):
                authenticate(server, transport, target, key, password, cluster_key)
            transport.set_keepalive(5)
            return Session(name, transport, deadline, user=target.user, address=address, host_key=public)
        except BaseException:
            if transport is not None:
                transport.close()
            raise
    raise policy.changed_from_fingerprint(presented)


def _confirm_host_key(server: str, target: Target, public: str, ask: Callable[[str], bool] | None) -> None:
    """Ask the user to confirm the host key of an unknown server."""
    question = f"{server} is an unknown host. Its host key is {host_keys.described(public)}. Is this its correct key?"
    if ask is None or not ask(question):
        raise host_keys.unknown(server, target, public)
    if target.known_hosts:
        host_keys.remember(target, public)


def _negotiate(
    server: str, target: Target, types: tuple[str, ...], deadline: Deadline
) -> tuple[paramiko.Transport | None, str]:
    """Connect to a server and exchange keys. Return the transport and the server's address.

    The transport is None when the server has no host key of these types.
    """
    carrier, address = _connect_socket(server, target, deadline)
    transport = paramiko.Transport(carrier, default_window_size=_WINDOW)
    try:
        transport.banner_timeout = transport.auth_timeout = transport.handshake_timeout = max(1, deadline.remaining_s())
        options = transport.get_security_options()
        options.ciphers = [name for name in _SERVER_CIPHERS if name in options.ciphers]
        options.key_types = [name for name in types if name in options.key_types]
        done = threading.Event()
        transport.start_client(event=done)
        while not done.wait(0.05):
            deadline.check(f"the SSH greeting of {server}")
        _raise_if_ended(transport)
    except paramiko.ssh_exception.IncompatiblePeer as error:
        transport.close()
        if "host key" in str(error) and len(types) < 4:
            return None, address
        raise VclusterError(f"{server}: no common encryption algorithms: {one_line(str(error))}") from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        transport.close()
        reason = carrier.error_output() if isinstance(carrier, ProxyCommand) else ""
        deadline.check(f"the SSH greeting of {server}")
        raise VclusterError(
            f"{server}: the connection broke during the greeting: {reason or error_line(error)}"
        ) from error
    except BaseException:
        transport.close()
        raise
    return transport, address


def _raise_if_ended(transport: paramiko.Transport) -> None:
    if not transport.is_active():
        raise transport.get_exception() or EOFError("the server closed it")


def _connect_socket(server: str, target: Target, deadline: Deadline) -> tuple[socket.socket | ProxyCommand, str]:
    command = openssh_config.proxy_command(target)
    if command:
        return ProxyCommand(command), ""
    limit_s = max(0.1, deadline.remaining_s(ANSWER_S))
    try:
        deadline.check(f"a connection to {server}")
        carrier = socket.create_connection((target.hostname, target.port), timeout=limit_s)
    except socket.gaierror as error:
        raise MissingError(
            f"{server}: cannot resolve the name {target.hostname}: {error.strerror}",
            hint=f"use its address, or add a Host entry to {openssh_config.ssh_folder()}/config",
        ) from error
    except TimeoutError as error:
        raise DeadlineError(
            f"timed out after {limit_s:.0f} s waiting for an answer from {server} at {target.address}",
            hint=f"is {target.hostname} up, and does its firewall let TCP port {target.port} in?",
        ) from error
    except ConnectionRefusedError as error:
        raise MissingError(
            f"{server}: connection refused: nothing listens on port {target.port}", hint=f"is sshd running on {server}?"
        ) from error
    except OSError as error:
        raise MissingError(f"{server}: cannot connect to {target.address}: {error.strerror or error}") from error
    carrier.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    carrier.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_MS)
    return carrier, str(carrier.getpeername()[0])


def _public(key: paramiko.PKey) -> str:
    return f"{key.get_name()} {key.get_base64()}"
