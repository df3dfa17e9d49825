"""The proxy to a server's libvirt: from a local socket to a socket on the server."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.ssh.server import HOST, USER, Rules, serving, target
from tests.ssh.test_agent_start import archive
from vcluster.adapters.libvirt.libvirt_proxy import LibvirtProxy
from vcluster.adapters.ssh import ssh_login
from vcluster.agent import libvirt_daemons
from vcluster.agent.remote_agent import RemoteAgent
from vcluster.errors import MissingError, RequestError
from vcluster.util.deadline import Deadline

pytestmark = pytest.mark.ssh


class Libvirt:
    """Sends back all data; `cut` ends its connections."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.connections.append(self.listener.accept()[0])
                threading.Thread(target=self._echo, args=(self.connections[-1],), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(1 << 18):
                connection.sendall(data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self.connections:
            connection.close()


@pytest.fixture
def rules() -> Iterator[Rules]:
    with serving(Rules()) as rules:
        yield rules


@pytest.fixture
def agent(rules: Rules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteAgent]:
    sockets = {"libvirtd": tmp_path / "absent", "virtqemud": tmp_path / "libvirt"}
    monkeypatch.setattr(libvirt_daemons, "SOCKETS", sockets)
    where = target(rules, tmp_path)
    with ssh_login.connect_server(
        "server2", where, cluster_key=USER.private, pinned=HOST.public, deadline=Deadline(20)
    ) as session:
        agent = RemoteAgent(session, folder=tmp_path / "lib" / "agent", archive=archive())
        yield agent
        agent.close()


@pytest.fixture
def libvirt(tmp_path: Path) -> Iterator[Libvirt]:
    libvirt = Libvirt(tmp_path / "libvirt")
    yield libvirt
    libvirt.close()


def path_of(tunnel: LibvirtProxy) -> Path:
    assert tunnel.uri.startswith("qemu+unix:///system?socket=")
    return Path(unquote(tunnel.uri.partition("=")[2]))


def connect(tunnel: LibvirtProxy) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(str(path_of(tunnel)))
    return connection


def exchange(connection: socket.socket, data: bytes) -> bytes:
    threading.Thread(target=connection.sendall, args=(data,), daemon=True).start()
    got = bytearray()
    while len(got) < len(data) and (part := connection.recv(1 << 18)):
        got += part
    return bytes(got)


@pytest.mark.usefixtures("libvirt")
def test_several_connections_at_once_in_both_directions(agent: RemoteAgent) -> None:
    data = os.urandom(3 << 20)
    with LibvirtProxy(agent) as tunnel, connect(tunnel) as one, connect(tunnel) as two:
        assert exchange(two, b"hello") == b"hello"
        assert exchange(one, data) == data


@pytest.mark.usefixtures("libvirt")
def test_only_the_user_can_open_the_socket_and_it_is_removed(agent: RemoteAgent) -> None:
    with LibvirtProxy(agent) as tunnel:
        path = path_of(tunnel)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        connection = connect(tunnel)
        assert exchange(connection, b"x") == b"x"
    with connection:
        assert connection.recv(1) == b""
    assert not path.parent.exists()
    tunnel.close()


def test_the_proxy_closes_when_libvirt_does(agent: RemoteAgent, libvirt: Libvirt) -> None:
    with LibvirtProxy(agent) as tunnel, connect(tunnel) as connection:
        assert exchange(connection, b"x") == b"x"
        libvirt.connections[0].shutdown(socket.SHUT_RDWR)
        assert connection.recv(1) == b""


def test_the_server_sees_the_client_close(agent: RemoteAgent, libvirt: Libvirt) -> None:
    with LibvirtProxy(agent) as tunnel:
        with connect(tunnel) as connection:
            assert exchange(connection, b"x") == b"x"
        deadline = Deadline(10)
        while libvirt.connections[0].fileno() >= 0:
            deadline.pause(0.02, "the end of the connection")


@pytest.mark.usefixtures("libvirt")
def test_all_sockets_close_when_the_connection_breaks(agent: RemoteAgent, rules: Rules) -> None:
    with LibvirtProxy(agent) as tunnel, connect(tunnel) as one, connect(tunnel) as two:
        assert exchange(one, b"x") + exchange(two, b"y") == b"xy"
        rules.cut()
        one.settimeout(5)
        assert (one.recv(1), two.recv(1)) == (b"", b"")


def test_a_server_without_libvirt(agent: RemoteAgent) -> None:
    with LibvirtProxy(agent) as tunnel, connect(tunnel) as connection:
        assert connection.recv(1) == b""
        assert isinstance(tunnel.failure, MissingError)
        assert "server2" in tunnel.failure.message


def test_a_path_that_is_too_long(agent: RemoteAgent, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    with pytest.raises(RequestError, match="too long"):
        LibvirtProxy(agent, folder)
    assert not list(folder.iterdir())
