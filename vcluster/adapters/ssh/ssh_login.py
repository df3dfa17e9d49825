"""Connections to nodes and servers."""

from __future__ import annotations

import base64
import io
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import paramiko

from vcluster.adapters.pipe import error_line, one_line
from vcluster.adapters.ssh import host_keys, openssh_config
from vcluster.adapters.ssh.authentication import LoginRefusedError, authenticate, give_password, translated_errors
from vcluster.adapters.ssh.openssh_config import PORT, Target
from vcluster.adapters.ssh.proxy_command import ProxyCommand
from vcluster.adapters.ssh.ssh_session import CONNECT_TIMEOUT_S, Session
from vcluster.errors import DeadlineError, MissingError, VclusterError
from vcluster.util.deadline import Deadline

RETRY_S = 1.0  # OpenSSH from 9.8 on penalises clients that knock more often
SILENCE_MS = 20_000  # a server that acknowledges nothing for so long is dead
_CIPHERS = ("aes128-ctr",)
_KEX = ("curve25519-sha256@libssh.org",)
# Fastest first: with GCM paramiko is spared a second pass over the data, for the digest.
_SERVER_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
_WINDOW = 1 << 23  # what a server may send before it hears from us, in bytes


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
    """Log in to a node whose sshd is known to be up or about to be; refuses any host key but the pinned one.

    By the private key, or by the password where there is none. `via` is the session that the node is reached through,
    where that is not this machine. Raises DeadlineError when nothing answers in time, RefusedError when the node
    refuses the key or the password, VclusterError when it is somebody else.
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
                raise VclusterError(
                    f"{name}: the connection to {via.name}, through which it is reached, broke"
                ) from error
            deadline.pause(RETRY_S, f"{name}: a login by ssh ({error_line(error)})")
        else:
            return Session(name, transport, deadline, user=user, address=address, host_key=host_key)


def _log_in(
    name: str,
    address: str,
    user: str,
    proof: paramiko.PKey | str,
    pinned: paramiko.PKey,
    via: Session | None,
    deadline: Deadline,
) -> paramiko.Transport:
    if via:
        carrier = via.open_tcp(address, PORT, deadline=deadline)
    else:
        carrier = socket.create_connection((address, PORT), timeout=CONNECT_TIMEOUT_S)
    transport = paramiko.Transport(carrier)
    try:
        # A node on a loaded host answers late; paramiko's own limits are for the internet.
        transport.banner_timeout = transport.auth_timeout = transport.handshake_timeout = CONNECT_TIMEOUT_S
        options = transport.get_security_options()
        options.ciphers = [name for name in options.ciphers if name in _CIPHERS]
        options.kex = [name for name in options.kex if name in _KEX]
        transport.start_client(timeout=CONNECT_TIMEOUT_S)
        _compare(transport.get_remote_server_key(), pinned, f"{name} at {address}")
        if isinstance(proof, str):
            give_password(name, transport, user, proof)
        else:
            transport.auth_publickey(user, proof)
    except BaseException:
        transport.close()
        raise
    transport.set_keepalive(15)
    return transport


def _compare(shown: paramiko.PKey, pinned: paramiko.PKey, who: str) -> None:
    if shown != pinned:
        raise VclusterError(f"{who} shows another host key than the one it was given")


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
    """Log in to a server of the user's.

    Its host key must be the `pinned` one, else have the `fingerprint`, else be on file with ssh; one that is not on
    file is shown to `ask`, and kept if that says yes. Only one kind of login is tried: the cluster's own private key,
    else the password, once, else the key in the file `key`, else what ssh would try: the agent and its identities.

    Raises MissingError, ConflictError for a changed host key, DeadlineError, VclusterError: one line each.
    """
    who = f"{name} ({target.address})" if name != target.hostname or target.port != PORT else name
    trust = host_keys.trust(who, target, fingerprint=fingerprint, pinned=pinned)
    shown: list[str] = []
    for types in trust.offers():
        transport, address = _negotiate(who, target, types, deadline)
        try:
            if transport is None:
                continue
            public = _public(transport.get_remote_server_key())
            shown.append(public)
            if not trust.fits(public):
                if trust.fingerprint:
                    transport.close()
                    continue
                _confirm_host_key(who, target, public, ask)
            with translated_errors(who, deadline):
                authenticate(who, transport, target, key, password, cluster_key)
            transport.set_keepalive(5)
            return Session(name, transport, deadline, user=target.user, address=address, host_key=public)
        except BaseException:
            if transport is not None:
                transport.close()
            raise
    raise trust.changed_from_fingerprint(shown)


def _confirm_host_key(who: str, target: Target, public: str, ask: Callable[[str], bool] | None) -> None:
    """Have the user vouch for a server nothing is known of."""
    question = f"{who} is not known yet. Its host key is {host_keys.described(public)}. Is that the one it should show?"
    if ask is None or not ask(question):
        raise host_keys.unknown(who, target, public)
    if target.known_hosts:
        host_keys.remember(target, public)


def _negotiate(
    who: str, target: Target, types: tuple[str, ...], deadline: Deadline
) -> tuple[paramiko.Transport | None, str]:
    """Reach a server and agree on keys; no transport when it has no host key of these types. And its address."""
    carrier, address = _connect_socket(who, target, deadline)
    transport = paramiko.Transport(carrier, default_window_size=_WINDOW)
    try:
        transport.banner_timeout = transport.auth_timeout = transport.handshake_timeout = max(1, deadline.remaining_s())
        options = transport.get_security_options()
        options.ciphers = [name for name in _SERVER_CIPHERS if name in options.ciphers]
        options.key_types = [name for name in types if name in options.key_types]
        done = threading.Event()
        transport.start_client(event=done)
        while not done.wait(0.05):
            deadline.check(f"{who}: its greeting by ssh")
        _raise_if_ended(transport)
    except paramiko.ssh_exception.IncompatiblePeer as error:
        transport.close()
        if "host key" in str(error) and len(types) < 4:
            return None, address
        raise VclusterError(f"{who}: no common ways of encryption: {one_line(str(error))}") from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        transport.close()
        said = carrier.error_output() if isinstance(carrier, ProxyCommand) else ""
        deadline.check(f"{who}: its greeting by ssh")
        raise VclusterError(f"{who}: the connection broke during the greeting: {said or error_line(error)}") from error
    except BaseException:
        transport.close()
        raise
    return transport, address


def _raise_if_ended(transport: paramiko.Transport) -> None:
    if not transport.is_active():
        raise transport.get_exception() or EOFError("it hung up")


def _connect_socket(who: str, target: Target, deadline: Deadline) -> tuple[socket.socket | ProxyCommand, str]:
    command = openssh_config.proxy_command(target)
    if command:
        return ProxyCommand(command), ""
    try:
        deadline.check(f"{who}: a connection")
        carrier = socket.create_connection((target.hostname, target.port), timeout=max(0.1, deadline.remaining_s()))
    except socket.gaierror as error:
        raise MissingError(
            f"{who}: the name {target.hostname} cannot be resolved: {error.strerror}",
            hint="give its address, or a Host entry in ~/.ssh/config",
        ) from error
    except TimeoutError as error:
        raise DeadlineError(f"{who}: no answer from {target.address} within {deadline.timeout_s:.0f} s") from error
    except ConnectionRefusedError as error:
        raise MissingError(
            f"{who}: connection refused: nothing listens on port {target.port}", hint=f"is sshd running on {who}?"
        ) from error
    except OSError as error:
        raise MissingError(f"{who}: no way to {target.address}: {error.strerror or error}") from error
    carrier.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    carrier.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_MS)
    return carrier, str(carrier.getpeername()[0])


def _public(key: paramiko.PKey) -> str:
    return f"{key.get_name()} {key.get_base64()}"
