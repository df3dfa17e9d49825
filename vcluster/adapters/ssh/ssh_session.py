"""An SSH connection to a node or a server, by paramiko, and the programs that run over it."""

from __future__ import annotations

import contextlib
import errno
import logging
import select
import shlex
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

import paramiko

from vcluster.adapters.pipe import CHUNK, Listener, LoginOutput, Pipe, Printed, error_line
from vcluster.adapters.process import KILLED, Completed, Output
from vcluster.errors import ConnectionLostError, MissingError, VclusterError
from vcluster.util.deadline import Deadline
from vcluster.util.events import timed_call

CONNECT_TIMEOUT_S = 30.0
_POLL_S = 0.5

# Silence paramiko's log: it logs errors that it also raises.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False


class NotStartedError(VclusterError):
    """The connection broke before the program started."""


class Session:
    """A connection with a completed login to a node or a server. Use as a context manager, or close it.

    Several threads may use it at once. By default sshd allows ten programs at a time on one connection.
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
        self.address = address  # the remote address; empty when a proxy carries the connection
        self.host_key = host_key  # the accepted public key
        self.deadline = deadline  # for programs without their own
        self._transport = transport

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_alive(self) -> bool:
        """Whether the connection is open."""
        return bool(self._transport.is_active())

    def close(self) -> None:
        """Close the connection. A second call does nothing."""
        with contextlib.suppress(OSError, EOFError):  # another thread may close the session in between
            self._transport.close()

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = b"",
        awaited: str,
        deadline: Deadline | None = None,
        on_output: Output | None = None,
    ) -> Completed:
        """Run a program until it ends or the deadline expires (by default, the session's).

        Its standard input ends after `stdin`; if that is None, when the program ends.

        `awaited` names the program in messages. Its output is passed to `on_output` as it arrives, and is returned.
        """
        return self._run(argv, stdin, Printed(f"{self.name}: {awaited}", on_output), None, awaited, deadline)

    def _run(
        self,
        argv: Sequence[str],
        stdin: bytes | None,
        printed: Printed,
        login: LoginOutput | None,
        awaited: str,
        deadline: Deadline | None,
    ) -> Completed:
        deadline = deadline or self.deadline
        with timed_call(self.name, f"run {awaited}"), self._errors(awaited, deadline):
            channel = self._open_session(awaited, deadline)
            try:
                channel.exec_command(shlex.join(argv))
                return self._communicate(channel, stdin, printed, login, awaited, deadline)
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
        """Run a Python program on the node. Its source is sent before its input, on the same stream."""
        login, printed = LoginOutput(self.name), Printed(f"{self.name}: {awaited}", on_output)
        return self._run(_loader(source, login.mark), source + stdin, printed, login, awaited, deadline)

    def start_program(self, source: bytes, *, awaited: str, deadline: Deadline | None = None) -> Pipe:
        """Start a Python program on the node, send its source, and return its streams."""
        login = LoginOutput(self.name)
        pipe = self._start(_loader(source, login.mark), None, deadline or self.deadline, awaited, login)
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
        """Start a program and return its streams. Its standard error goes to the listener."""
        return self._start(argv, on_error_output, deadline or self.deadline, awaited or f"the start of {argv[0]}")

    def _start(
        self,
        argv: Sequence[str],
        on_error_output: Listener | None,
        deadline: Deadline,
        awaited: str,
        login: LoginOutput | None = None,
    ) -> Pipe:
        with self._errors(awaited, deadline):
            channel = self._open_session(awaited, deadline)
            pipe = SessionPipe(self.name, channel, on_error_output, login)
            channel.exec_command(shlex.join(argv))
        return pipe

    def open_tcp(self, address: str, port: int, *, deadline: Deadline | None = None) -> paramiko.Channel:
        """Open a TCP connection from the server to an address, through this connection. The result acts as a socket.

        Raises MissingError when the server forbids it, OSError when nothing answers at the address.
        """
        timeout_s = (deadline or self.deadline).remaining_s(CONNECT_TIMEOUT_S)
        try:
            return self._transport.open_channel("direct-tcpip", (address, port), ("127.0.0.1", 0), timeout=timeout_s)
        except paramiko.ChannelException as error:
            if error.code == 1:  # administratively prohibited
                raise MissingError(
                    f"{self.name}: its sshd forbids connections through it to nodes",
                    hint=f"set AllowTcpForwarding yes in /etc/ssh/sshd_config of {self.name}",
                ) from error
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"no answer at {address} from {self.name}") from error

    @contextmanager
    def _errors(self, awaited: str, deadline: Deadline) -> Iterator[None]:
        try:
            yield
        except (paramiko.SSHException, OSError, EOFError) as error:
            deadline.check(f"{awaited} on {self.name}")  # it may know the cause
            message = f"{self.name}: the connection broke during {awaited}: {error_line(error)}"
            raise ConnectionLostError(message, peer=self.name) from error

    def _open_session(self, awaited: str, deadline: Deadline) -> paramiko.Channel:
        try:
            return self._transport.open_session(timeout=deadline.remaining_s(CONNECT_TIMEOUT_S))
        except paramiko.ChannelException as error:
            raise MissingError(
                f"{self.name}: its sshd allows no more programs on this connection",
                hint=f"raise MaxSessions in /etc/ssh/sshd_config of {self.name} (default: 10)",
            ) from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            deadline.check(f"{awaited} on {self.name}")  # it may know the cause
            raise NotStartedError(
                f"{self.name}: the connection broke before {awaited} started: {error_line(error)}"
            ) from error

    def _communicate(
        self,
        channel: paramiko.Channel,
        stdin: bytes | None,
        printed: Printed,
        login: LoginOutput | None,
        awaited: str,
        deadline: Deadline,
    ) -> Completed:
        channel.settimeout(_POLL_S)
        if stdin is not None:
            self._send(channel, stdin, awaited, deadline)
        arrivals = select.poll()
        arrivals.register(channel.fileno(), select.POLLIN)
        while not (channel.exit_status_ready() and (channel.eof_received or channel.closed) and _empty(channel)):
            deadline.check(f"{awaited} on {self.name}")
            for stream, data in _output_of(channel, arrivals):
                own = login.after_mark(data) if login and stream == "stdout" else data
                if own:
                    printed.add(stream, own)
        exit_code = channel.recv_exit_status()
        if exit_code < 0 and not self.is_alive:
            raise EOFError("it closed before the program ended")
        if login and login.rest:
            printed.add("stdout", login.rest)
        return printed.completed(exit_code if exit_code >= 0 else KILLED)

    def _send(self, channel: paramiko.Channel, stdin: bytes, awaited: str, deadline: Deadline) -> None:
        view = memoryview(stdin)
        while view:
            try:
                view = view[channel.send(bytes(view[:32768])) :]
            except TimeoutError:
                deadline.check(f"{awaited} on {self.name}")
        channel.shutdown_write()


class SessionPipe(Pipe):
    """A program that runs over an SSH connection. What `login` drops is not part of its output."""

    def __init__(
        self,
        name: str,
        channel: paramiko.Channel,
        on_error_output: Listener | None = None,
        login: LoginOutput | None = None,
    ) -> None:
        super().__init__(name, on_error_output)
        self._login = login or LoginOutput(name, is_silent=True)
        self._channel = channel
        self._packet = channel.out_max_packet_size - 64  # the most that fits into one packet
        channel.settimeout(_POLL_S)
        self._listener = threading.Thread(target=self._listen, name=f"stderr of {name}", daemon=True)
        self._listener.start()

    @property
    def is_alive(self) -> bool:
        return not (self._channel.closed or self._channel.eof_received)

    def receive(self, timeout_s: float) -> bytes:
        # Do not change the channel's own timeout: another thread may be writing with it.
        if timeout_s or self._channel.recv_ready():
            data = bytes(self._channel.recv(CHUNK))
            own = self._login.after_mark(data)
            if own or not data:
                return own
        raise TimeoutError  # also after output of the login, so that the caller checks its deadline

    def transmit(self, data: memoryview, timeout_s: float) -> int:  # noqa: ARG002 - see receive
        sent = self._channel.send(bytes(data[: self._packet]))
        if not sent:
            raise BrokenPipeError(errno.EPIPE, "the remote side closed the stream")
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
            return str(error or "") or "the server closed the connection or stopped answering"
        code = self.wait(1.0)
        self._listener.join(1.0)
        printed = self.error_output or self._login.rest.decode(errors="replace")
        return printed or ("" if code is None else f"the program ended with exit code {code}")

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
            self.add_error_output(data)


def _loader(source: bytes, mark: str) -> list[str]:
    """The command that prints the mark, and runs the program that it reads."""
    run = f"exec(compile(sys.stdin.buffer.read({len(source)}), 'vcluster', 'exec'))"
    program = f"import sys; print('{mark}', flush=True); {run}"
    return ["python3", "-I", "-S", "-c", program]


def _output_of(channel: paramiko.Channel, arrivals: select.poll) -> Iterator[tuple[str, bytes]]:
    """The output that has arrived, by stream; waits a moment if there is none."""
    if _empty(channel):
        if channel.eof_received:
            channel.status_event.wait(_POLL_S)
        else:
            arrivals.poll(_POLL_S * 1000)
    if channel.recv_stderr_ready():
        yield "stderr", channel.recv_stderr(65536)
    if channel.recv_ready():
        yield "stdout", channel.recv(65536)


def _empty(channel: paramiko.Channel) -> bool:
    return not channel.recv_ready() and not channel.recv_stderr_ready()
