"""Sessions with an SSH server in this process, on the loopback interface."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import paramiko
import pytest

from vcluster.adapters import pipe
from vcluster.adapters.ssh import ssh_login, ssh_session
from vcluster.errors import DeadlineError, VclusterError
from vcluster.model import keys
from vcluster.model.keys import KeyPair
from vcluster.util.deadline import Deadline

pytestmark = pytest.mark.ssh

HOST, USER, OTHER = (keys.make_pair(name) for name in ("host", "user", "other"))


class NodeConnection(paramiko.ServerInterface):
    """Accepts one key and really runs the commands."""

    def get_allowed_auths(self, username: str) -> str:  # noqa: ARG002
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        is_known = username == "root" and USER.public.split()[1] == key.get_base64()
        return paramiko.AUTH_SUCCESSFUL if is_known else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:  # noqa: ARG002
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Thread(target=execute, args=(channel, command.decode()), daemon=True).start()
        return True


def execute(channel: paramiko.Channel, command: str) -> None:
    with subprocess.Popen(
        ["sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        done = process.communicate(b"".join(iter(lambda: channel.recv(65536), b"")))
    with contextlib.suppress(OSError, EOFError):  # the client may have closed its side
        channel.sendall(done[0])
        channel.sendall_stderr(done[1])
        channel.send_exit_status(process.returncode)
        channel.close()


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stopping = threading.Event()
        transports: list[paramiko.Transport] = []

        def serve() -> None:
            while not stopping.is_set():
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                transport = paramiko.Transport(client)
                transports.append(transport)
                transport.add_server_key(private(HOST))
                try:
                    transport.start_server(server=NodeConnection())
                except (paramiko.SSHException, EOFError, OSError):
                    continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        number = listener.getsockname()[1]
        monkeypatch.setattr(ssh_login, "PORT", number)
        yield number
        stopping.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        for transport in transports:
            transport.close()


def private(pair: KeyPair) -> paramiko.PKey:
    import io

    return paramiko.Ed25519Key.from_private_key(io.StringIO(pair.private))


def connect(*, key: KeyPair = USER, host: KeyPair = HOST, timeout_s: float = 20) -> ssh_session.Session:
    return ssh_login.connect_node(
        "node1", "127.0.0.1", user="root", private_key=key.private, host_key=host.public, deadline=Deadline(timeout_s)
    )


@pytest.mark.usefixtures("port")
def test_input_and_output_of_a_program() -> None:
    with connect() as session:
        done = session.run(["sh", "-c", "cat; echo oops >&2; exit 3"], stdin=b"hello", awaited="cat")
    assert (done.exit_code, done.stdout, done.stderr) == (3, "hello", "oops\n")


@pytest.mark.usefixtures("port")
def test_much_data_in_both_directions() -> None:
    data = b"0123456789abcdef" * 65536
    with connect() as session:
        assert session.run(["cat"], stdin=data, awaited="cat").stdout.encode() == data


@pytest.mark.usefixtures("port")
def test_a_program_that_prints_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "OUTPUT_LIMIT", 1 << 20)
    argv = ["head", "-c", "5M", "/dev/zero"]
    with connect() as session:
        with pytest.raises(VclusterError, match="node1: it printed more than 1 MiB"):
            session.run(argv, awaited="it")
        seen: list[int] = []
        done = session.run(argv, awaited="it", on_output=lambda _, data: seen.append(len(data)))
    assert (sum(seen), len(done.stdout)) == (5 << 20, 1 << 20)


@pytest.mark.usefixtures("port")
@pytest.mark.parametrize("word", ["$(id)", "`id`", "; id", "'", '"', "\\", "a b", "-n", "ä", "*"])
def test_arguments_arrive_unchanged(word: str) -> None:
    with connect() as session:
        assert session.run(["printf", "%s", word], awaited="printf").stdout == word


@pytest.mark.usefixtures("port")
def test_a_python_program_runs_with_input() -> None:
    source = b"import sys\nprint(sys.stdin.read().upper())\n"
    with connect() as session:
        assert session.run_program(source, b"data", awaited="it").stdout == "DATA\n"


@pytest.mark.usefixtures("port")
def test_several_programs_on_one_connection() -> None:
    with connect() as session:
        assert [session.run(["echo", str(n)], awaited="echo").stdout for n in range(5)] == [f"{n}\n" for n in range(5)]


@pytest.mark.usefixtures("port")
def test_another_host_key_is_refused_at_once() -> None:
    with pytest.raises(VclusterError, match="a host key that differs from the one that the cluster recorded"):
        connect(host=OTHER)


@pytest.mark.usefixtures("port")
def test_another_key_is_refused_at_once() -> None:
    with pytest.raises(VclusterError, match="refuses the cluster's key"):
        connect(key=OTHER)


@pytest.mark.usefixtures("port")
def test_a_program_that_does_not_end() -> None:
    with connect(timeout_s=2) as session, pytest.raises(DeadlineError, match="waiting for the end of time on node1"):
        session.run(["sleep", "8"], awaited="the end of time")


def test_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        monkeypatch.setattr(ssh_login, "PORT", closed.getsockname()[1])
    with pytest.raises(DeadlineError, match="the SSH login"):
        connect(timeout_s=0.5)


@pytest.mark.usefixtures("port")
def test_the_connection_to_a_node_may_end_before_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """When both close at once, paramiko raises an error because it cannot send its last message."""
    session = connect()

    def close(close_really: Callable[[], None] = session._transport.close) -> None:
        close_really()
        raise EOFError

    monkeypatch.setattr(session._transport, "close", close)
    session.close()
    assert not session.is_alive


def test_openssh_reads_the_keys() -> None:
    done = subprocess.run(
        ["ssh-keygen", "-l", "-f", "/dev/stdin"], input=HOST.public.encode(), capture_output=True, check=True
    )
    assert keys.fingerprint(HOST.public) in done.stdout.decode()
    assert sys.getsizeof(HOST.private) > 300


def test_a_connection_without_an_answer_ends_with_the_check_of_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that reboots answers nothing for a while."""
    checks: list[str] = []

    def check(awaited: str) -> None:
        checks.append(awaited)
        if len(checks) == 3:
            raise VclusterError("node1 died")

    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
        for _ in range(3):  # the queue of the listener is full, so it drops further attempts
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        monkeypatch.setattr(ssh_login, "PORT", listener.getsockname()[1])
        with pytest.raises(VclusterError, match=r"^node1 died$"):
            ssh_login.connect_node(
                "node1", "127.0.0.1", user="root", private_key=USER.private, host_key=HOST.public,
                deadline=Deadline(3).with_check(check),
            )  # fmt: skip
    assert set(checks) == {"the SSH login to node1"}
