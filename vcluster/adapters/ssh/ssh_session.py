"""SSH, by paramiko: one connection to a node or a server, its host key checked, programs run over it.

Nodes have keys that we made and pin. Servers are the user's: how they are reached and who they are is what OpenSSH's
configuration says (ssh_config, host_keys).
"""

from __future__ import annotations

import base64
import contextlib
import errno
import io
import logging
import select
import shlex
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import paramiko
from paramiko.agent import AgentSSH

from vcluster.adapters.pipe import CHUNK, Listener, Pipe, one_line
from vcluster.adapters.process import KILLED, Completed, Output
from vcluster.adapters.ssh import host_keys, openssh_config
from vcluster.adapters.ssh.openssh_config import Target, resolve
from vcluster.errors import DeadlineError, MissingError, VclusterError
from vcluster.util.deadline import Deadline

__all__ = ["LoginRefusedError", "Output", "Session", "Target", "connect", "connect_server", "resolve"]

PORT = 22
CONNECT_TIMEOUT_S = 30.0
RETRY_S = 1.0  # OpenSSH from 9.8 on penalises clients that knock more often
SILENCE_MS = 20_000  # a server that acknowledges nothing for so long is dead
_CIPHERS = ("aes128-ctr",)
_KEX = ("curve25519-sha256@libssh.org",)
# Fastest first: with GCM paramiko is spared a second pass over the data, for the digest.
_SERVER_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
_LOOK_S = 0.5
_WINDOW = 1 << 23  # what a server may send before it hears from us, in bytes

# paramiko logs to the root logger what it also raises.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False


class LoginRefusedError(MissingError):
    """The server lets the user in by none of what was offered."""


class Session:
    """A logged-in connection to a node or a server. Use as a context manager, or close it.

    Several threads may use it at once; sshd allows ten programs at a time on one connection.
    """

    def __init__(
        self,
        name: str,
        transport: paramiko.Transport,
        deadline: Deadline,
        *,
        user: str = "",
        address: str = "",
        host_key: str = "",
    ) -> None:
        self.name = name
        self.user = user
        self.address = address  # the other end's, empty when a proxy carries the connection
        self.host_key = host_key  # the public key that was accepted
        self.deadline = deadline  # for programs that are not given another
        self._transport = transport

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_alive(self) -> bool:
        """Whether the connection stands."""
        return bool(self._transport.is_active())

    def close(self) -> None:
        """Hang up. A second time does nothing."""
        with contextlib.suppress(OSError, EOFError):  # the session that led here may be closed at the same time
            self._transport.close()

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        awaited: str,
        deadline: Deadline | None = None,
        on_output: Output | None = None,
    ) -> Completed:
        """Run a program to its end, or to the deadline (the session's if none is given); `awaited` names it.

        What it prints is passed to `on_output` as it comes, and returned as a whole.
        """
        deadline = deadline or self.deadline
        with self._errors(awaited):
            channel = self._open_session(deadline)
            try:
                channel.exec_command(shlex.join(argv))
                return self._converse(channel, stdin, awaited, deadline, on_output)
            finally:
                channel.close()

    def run_program(
        self,
        source: bytes,
        stdin: bytes,
        *,
        awaited: str,
        deadline: Deadline | None = None,
        on_output: Output | None = None,
    ) -> Completed:
        """Run a Python program on the node: its source travels ahead of its input, on the same stream."""
        return self.run(_loader(source), stdin=source + stdin, awaited=awaited, deadline=deadline, on_output=on_output)

    def start_program(self, source: bytes, *, awaited: str, deadline: Deadline | None = None) -> Pipe:
        """Start a Python program on the node, and return its streams once its source is on the way."""
        pipe = self.start(_loader(source), awaited=awaited, deadline=deadline)
        pipe.write(source, deadline or self.deadline, awaited)
        return pipe

    def start(
        self,
        argv: Sequence[str],
        *,
        on_error_output: Listener | None = None,
        deadline: Deadline | None = None,
        awaited: str = "",
    ) -> Pipe:
        """Start a program and return its streams. What it says on standard error goes to the listener."""
        with self._errors(awaited or f"the start of {argv[0]}"):
            channel = self._open_session(deadline or self.deadline)
            pipe = ChannelPipe(self.name, channel, on_error_output)
            channel.exec_command(shlex.join(argv))
        return pipe

    def open_tcp(self, address: str, port: int, *, deadline: Deadline | None = None) -> paramiko.Channel:
        """A TCP connection from the server to an address, carried by this one; it serves as a socket.

        Raises MissingError when the server forbids it, OSError when nothing answers at the address.
        """
        timeout_s = (deadline or self.deadline).remaining_s(CONNECT_TIMEOUT_S)
        try:
            return self._transport.open_channel("direct-tcpip", (address, port), ("127.0.0.1", 0), timeout=timeout_s)
        except paramiko.ChannelException as error:
            if error.code == 1:  # administratively prohibited
                raise MissingError(
                    f"{self.name}: its sshd forbids connections to nodes through it",
                    hint=f"set AllowTcpForwarding yes in /etc/ssh/sshd_config of {self.name}",
                ) from error
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"no answer at {address} from {self.name}") from error

    @contextmanager
    def _errors(self, awaited: str) -> Iterator[None]:
        try:
            yield
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise VclusterError(f"{self.name}: the connection broke during {awaited}: {_said(error)}") from error

    def _open_session(self, deadline: Deadline) -> paramiko.Channel:
        try:
            return self._transport.open_session(timeout=deadline.remaining_s(CONNECT_TIMEOUT_S))
        except paramiko.ChannelException as error:
            raise MissingError(
                f"{self.name}: its sshd lets no further program start on this connection",
                hint=f"see MaxSessions in /etc/ssh/sshd_config of {self.name} (10 is usual)",
            ) from error

    def _converse(
        self, channel: paramiko.Channel, stdin: bytes, awaited: str, deadline: Deadline, on_output: Output | None
    ) -> Completed:
        printed = {"stdout": bytearray(), "stderr": bytearray()}
        channel.settimeout(_LOOK_S)
        self._send(channel, stdin, awaited, deadline)
        arrivals = select.poll()
        arrivals.register(channel.fileno(), select.POLLIN)
        while not (channel.exit_status_ready() and (channel.eof_received or channel.closed) and _empty(channel)):
            deadline.check(f"{self.name}: {awaited}")
            for stream, data in _arrived(channel, arrivals):
                printed[stream] += data
                if on_output:
                    on_output(stream, data)
        exit_code = channel.recv_exit_status()
        if exit_code < 0 and not self.is_alive:
            raise EOFError("it ended before the program did")
        texts = {stream: data.decode(errors="backslashreplace") for stream, data in printed.items()}
        return Completed(exit_code if exit_code >= 0 else KILLED, **texts)

    def _send(self, channel: paramiko.Channel, stdin: bytes, awaited: str, deadline: Deadline) -> None:
        view = memoryview(stdin)
        while view:
            try:
                view = view[channel.send(bytes(view[:32768])) :]
            except TimeoutError:
                deadline.check(f"{self.name}: {awaited}")
        channel.shutdown_write()


class ChannelPipe(Pipe):
    """A program at the other end of a connection."""

    def __init__(self, name: str, channel: paramiko.Channel, on_error_output: Listener | None = None) -> None:
        super().__init__(name, on_error_output)
        self._channel = channel
        self._packet = channel.out_max_packet_size - 64  # what goes out at once without being cut again
        channel.settimeout(_LOOK_S)
        self._listener = threading.Thread(target=self._listen, name=f"stderr of {name}", daemon=True)
        self._listener.start()

    @property
    def is_alive(self) -> bool:
        return not (self._channel.closed or self._channel.eof_received)

    def receive(self, timeout_s: float) -> bytes:
        # The channel's own timeout is not touched: another thread may be writing under it.
        if timeout_s == 0 and not self._channel.recv_ready():
            raise TimeoutError
        return bytes(self._channel.recv(CHUNK))

    def transmit(self, data: memoryview, timeout_s: float) -> int:  # noqa: ARG002 - see receive
        sent = self._channel.send(bytes(data[: self._packet]))
        if not sent:
            raise BrokenPipeError(errno.EPIPE, "the other end has closed")
        return int(sent)

    def shut(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            self._channel.shutdown_write()

    def close(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            self._channel.close()

    def wait(self, timeout_s: float) -> int | None:
        self._channel.status_event.wait(timeout_s)
        return int(self._channel.exit_status) if self._channel.exit_status >= 0 else None

    def reason(self) -> str:
        transport = self._channel.get_transport()
        if not transport.is_active():
            error = transport.get_exception()
            return str(error or "") or "the server hung up or fell silent"
        code = self.wait(1.0)
        self._listener.join(1.0)
        return self.error_output or ("" if code is None else f"the program ended with exit code {code}")

    def _listen(self) -> None:
        while True:
            try:
                data = self._channel.recv_stderr(65536)
            except TimeoutError:
                continue
            except (OSError, EOFError):
                return
            if not data:
                return
            self.said(data)


# Nodes


def connect(
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
            deadline.pause(RETRY_S, f"{name}: a login by ssh ({_said(error)})")
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
            _give_password(name, transport, user, proof)
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


# Servers


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
            with _auth_errors(who, deadline):
                _authenticate(who, transport, target, key, password, cluster_key)
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
        said = carrier.last_words() if isinstance(carrier, _ProxyCommand) else ""
        deadline.check(f"{who}: its greeting by ssh")
        raise VclusterError(f"{who}: the connection broke during the greeting: {said or _said(error)}") from error
    except BaseException:
        transport.close()
        raise
    return transport, address


def _raise_if_ended(transport: paramiko.Transport) -> None:
    if not transport.is_active():
        raise transport.get_exception() or EOFError("it hung up")


def _connect_socket(who: str, target: Target, deadline: Deadline) -> tuple[socket.socket | _ProxyCommand, str]:
    command = openssh_config.proxy_command(target)
    if command:
        return _ProxyCommand(command), ""
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


class _ProxyCommand:
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

    def last_words(self) -> str:
        """What the command said on its standard error, as one line."""
        self.close()
        return self._said


@contextmanager
def _auth_errors(who: str, deadline: Deadline) -> Iterator[None]:
    try:
        yield
    except paramiko.AuthenticationException as error:
        deadline.check(f"{who}: an answer to the login")
        raise VclusterError(f"{who}: the login failed: {_said(error)}") from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise VclusterError(f"{who}: the connection broke during the login: {_said(error)}") from error


def _authenticate(
    who: str,
    transport: paramiko.Transport,
    target: Target,
    key: Path | None,
    password: str | None,
    cluster_key: str | None,
) -> None:
    user = target.user
    if cluster_key is not None:
        pair = paramiko.Ed25519Key.from_private_key(io.StringIO(cluster_key))
        if not _accepts(who, transport, user, pair):
            raise LoginRefusedError(f"{who} refuses the cluster's key for user {user}", hint=_key_hint(target))
    elif password is not None:
        _give_password(who, transport, user, password)
    else:
        with _agent_keys(target) as held:
            if key is None:
                _try_identities(who, transport, target, held)
            elif not _accepts(who, transport, user, _key_of(key, held)):
                raise LoginRefusedError(f"{who} refuses the key {key} for user {user}", hint=_key_hint(target, key))


def _accepts(who: str, transport: paramiko.Transport, user: str, key: paramiko.PKey) -> bool:
    """Whether the server lets the user in by this key."""
    try:
        _complete(who, user, transport.auth_publickey(user, key))
    except paramiko.AuthenticationException as error:
        if "timeout" in str(error).lower():
            raise
        return False
    return True


def _complete(who: str, user: str, further: list[str]) -> None:
    if further:
        raise MissingError(f"{who} wants more than one proof from user {user}: {', '.join(further)} as well")


def _give_password(who: str, transport: paramiko.Transport, user: str, password: str) -> None:
    """One attempt, by the one way that the server offers: a second could lock the account."""
    try:
        transport.auth_none(user)
    except paramiko.BadAuthenticationType as error:
        offered = error.allowed_types
    else:
        return
    try:
        if "password" in offered:
            _complete(who, user, transport.auth_password(user, password, fallback=False))
        elif "keyboard-interactive" in offered:
            _complete(who, user, _answer(who, user, transport, password))
        else:
            raise LoginRefusedError(
                f"{who} takes no passwords from user {user}, only {', '.join(offered)}", hint="configure a key instead"
            )
    except paramiko.AuthenticationException as error:
        if "timeout" in str(error).lower():
            raise
        raise LoginRefusedError(f"{who} refuses the password for user {user}") from error


def _answer(who: str, user: str, transport: paramiko.Transport, password: str) -> list[str]:
    """Answer a server that asks for the password in a conversation; it gets the password once."""
    answers = [password]
    unexpected: list[str] = []

    def reply(title: str, instructions: str, questions: list[tuple[str, bool]]) -> list[str]:
        if not questions:
            return []
        if answers and len(questions) == 1 and not questions[0][1]:
            return [answers.pop()]
        unexpected.append(one_line(f"{title} {instructions} {questions[0][0]}"))
        return [""] * len(questions)

    try:
        further: list[str] = transport.auth_interactive(user, reply)
    except paramiko.AuthenticationException:
        if not unexpected:
            raise
        raise MissingError(f"{who} asks user {user} for more than a password: {unexpected[0].strip()}") from None
    return further


def _try_identities(who: str, transport: paramiko.Transport, target: Target, held: Sequence[paramiko.PKey]) -> None:
    """What ssh tries without being told: the agent's keys, then the identity files."""
    tried, locked = 0, []
    wanted = [_public_half(path) for path in target.identity_files]
    chosen = sorted(held, key=lambda key: _blob(key) not in wanted)
    if target.identities_only:
        chosen = [key for key in chosen if _blob(key) in wanted]
    files = [path for path in target.identity_files if path.is_file()]
    for source in (*chosen, *files):
        try:
            key = _load(source) if isinstance(source, Path) else source
        except MissingError:
            locked.append(str(source))
            continue
        if isinstance(source, Path) and _blob(key) in map(_blob, chosen):
            continue
        tried += 1
        if _accepts(who, transport, target.user, key):
            return
        if not transport.is_active():
            raise LoginRefusedError(
                f"{who} hung up after {tried} keys, none of which it takes for user {target.user}",
                hint="name the right one: key = FILE in the configuration, or IdentityFile with IdentitiesOnly for ssh",
            )
    left = f" ({', '.join(locked)}: locked or not readable)" if locked else ""
    took = f"none of {tried} keys" if tried else "there is no key to try"
    raise LoginRefusedError(f"{who} refuses user {target.user}: {took}{left}", hint=_key_hint(target))


def _key_hint(target: Target, key: Path | None = None) -> str:
    port = [] if target.port == PORT else ["-p", str(target.port)]
    which = ["-i", str(key)] if key else []
    return shlex.join(["ssh-copy-id", *which, *port, f"{target.user}@{target.asked}"])


def _key_of(path: Path, held: Sequence[paramiko.PKey]) -> paramiko.PKey:
    """The key of a file; of one that is locked, what the agent holds of it."""
    public = _public_half(path)
    same = [key for key in held if public and _blob(key) == public]
    return same[0] if same else _load(path)


def _load(path: Path) -> paramiko.PKey:
    try:
        return paramiko.PKey.from_path(path)
    except FileNotFoundError as error:
        raise MissingError(f"there is no key {path}") from error
    except OSError as error:
        raise MissingError(f"the key {path} cannot be read: {error.strerror}") from error
    except (TypeError, paramiko.PasswordRequiredException) as error:
        raise MissingError(f"the key {path} is locked by a passphrase", hint=f"ssh-add {path}") from error
    except Exception as error:  # whatever a file that is no key makes the cryptography libraries say
        raise MissingError(f"{path} is not a private key of a kind that can be used here: {_said(error)}") from error


def _public_half(path: Path) -> str:
    """The key blob of FILE.pub, empty without one."""
    try:
        return path.with_name(path.name + ".pub").read_text().split()[1]
    except (OSError, ValueError, IndexError):
        return ""


class _Agent(AgentSSH):  # type: ignore[misc]  # paramiko has no types
    """The agent at a given socket; paramiko's own looks at the environment alone."""

    def __init__(self, path: str) -> None:
        super().__init__()
        line = socket.socket(socket.AF_UNIX)
        try:
            line.settimeout(10)
            line.connect(path)
            self._connect(line)
        except BaseException:
            line.close()
            raise


@contextmanager
def _agent_keys(target: Target) -> Iterator[Sequence[paramiko.PKey]]:
    """The keys that the user's agent holds, to sign with while it lasts; none without an agent."""
    try:
        agent = _Agent(target.agent_socket) if target.agent_socket else None
    except (OSError, paramiko.SSHException):
        agent = None
    try:
        yield agent.get_keys() if agent else ()
    finally:
        if agent:
            agent._close()


def _blob(key: paramiko.PKey) -> str:
    return str(key.get_base64())


def _public(key: paramiko.PKey) -> str:
    return f"{key.get_name()} {key.get_base64()}"


def _loader(source: bytes) -> list[str]:
    program = f"import sys; exec(compile(sys.stdin.buffer.read({len(source)}), 'vcluster', 'exec'))"
    return ["python3", "-I", "-S", "-c", program]


def _arrived(channel: paramiko.Channel, arrivals: select.poll) -> Iterator[tuple[str, bytes]]:
    """What has come on either stream; waits a moment for more where there is none."""
    if _empty(channel):
        if channel.eof_received:
            channel.status_event.wait(_LOOK_S)
        else:
            arrivals.poll(_LOOK_S * 1000)
    if channel.recv_stderr_ready():
        yield "stderr", channel.recv_stderr(65536)
    if channel.recv_ready():
        yield "stdout", channel.recv(65536)


def _empty(channel: paramiko.Channel) -> bool:
    return not channel.recv_ready() and not channel.recv_stderr_ready()


def _said(error: BaseException) -> str:
    return one_line(str(error)) or type(error).__name__
