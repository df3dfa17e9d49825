"""The way to a server's libvirt: a socket here, a socket there, and what is between them."""

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
from vcluster.adapters.pipe import Pipe
from vcluster.adapters.ssh import ssh_login
from vcluster.agent.remote_agent import RemoteAgent
from vcluster.errors import MissingError, RequestError
from vcluster.util.deadline import Deadline

pytestmark = pytest.mark.ssh


class Libvirt:
    """Sends back whatever it is sent; `cut` ends its connections."""

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

    def _echo(self, line: socket.socket) -> None:
        with line, contextlib.suppress(OSError):
            while data := line.recv(1 << 18):
                line.sendall(data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for line in self.connections:
            line.close()


class RelayStarter:
    """The agent, with another path for libvirt's socket."""

    name = "server2"

    def __init__(self, agent: RemoteAgent, path: Path) -> None:
        self.agent, self.path = agent, path

    def start_relay(self, deadline: Deadline) -> Pipe:
        return self.agent.start_relay(deadline, self.path)


@pytest.fixture
def rules() -> Iterator[Rules]:
    with serving(Rules()) as rules:
        yield rules


@pytest.fixture
def relays(rules: Rules, tmp_path: Path) -> Iterator[RelayStarter]:
    where = target(rules, tmp_path)
    with ssh_login.connect_server(
        "server2", where, cluster_key=USER.private, pinned=HOST.public, deadline=Deadline(20)
    ) as session:
        agent = RemoteAgent(session, folder=tmp_path / "lib" / "agent", archive=archive())
        yield RelayStarter(agent, tmp_path / "libvirt")
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
    line = socket.socket(socket.AF_UNIX)
    line.settimeout(20)
    line.connect(str(path_of(tunnel)))
    return line


def exchange(line: socket.socket, data: bytes) -> bytes:
    threading.Thread(target=line.sendall, args=(data,), daemon=True).start()
    got = bytearray()
    while len(got) < len(data) and (part := line.recv(1 << 18)):
        got += part
    return bytes(got)


@pytest.mark.usefixtures("libvirt")
def test_bytes_go_both_ways_on_several_connections_at_once(relays: RelayStarter) -> None:
    data = os.urandom(3 << 20)
    with LibvirtProxy(relays) as tunnel, connect(tunnel) as one, connect(tunnel) as two:
        assert exchange(two, b"hello") == b"hello"
        assert exchange(one, data) == data


@pytest.mark.usefixtures("libvirt")
def test_the_socket_is_the_users_alone_and_goes_away(relays: RelayStarter) -> None:
    with LibvirtProxy(relays) as tunnel:
        path = path_of(tunnel)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        line = connect(tunnel)
        assert exchange(line, b"x") == b"x"
    with line:
        assert line.recv(1) == b""
    assert not path.parent.exists()
    tunnel.close()


def test_when_libvirt_hangs_up_so_does_the_tunnel(relays: RelayStarter, libvirt: Libvirt) -> None:
    with LibvirtProxy(relays) as tunnel, connect(tunnel) as line:
        assert exchange(line, b"x") == b"x"
        libvirt.connections[0].shutdown(socket.SHUT_RDWR)
        assert line.recv(1) == b""


def test_when_the_client_hangs_up_the_server_sees_it(relays: RelayStarter, libvirt: Libvirt) -> None:
    with LibvirtProxy(relays) as tunnel:
        with connect(tunnel) as line:
            assert exchange(line, b"x") == b"x"
        deadline = Deadline(10)
        while libvirt.connections[0].fileno() >= 0:
            deadline.pause(0.02, "the end of the connection")


@pytest.mark.usefixtures("libvirt")
def test_when_the_connection_breaks_all_sockets_close_at_once(relays: RelayStarter, rules: Rules) -> None:
    with LibvirtProxy(relays) as tunnel, connect(tunnel) as one, connect(tunnel) as two:
        assert exchange(one, b"x") + exchange(two, b"y") == b"xy"
        rules.cut()
        one.settimeout(5)
        assert (one.recv(1), two.recv(1)) == (b"", b"")


def test_no_libvirt_there(relays: RelayStarter) -> None:
    with LibvirtProxy(relays) as tunnel, connect(tunnel) as line:
        assert line.recv(1) == b""
        assert isinstance(tunnel.failure, MissingError)
        assert "server2" in tunnel.failure.message


def test_a_path_that_no_socket_can_have(relays: RelayStarter, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    with pytest.raises(RequestError, match="too long"):
        LibvirtProxy(relays, folder)
    assert not list(folder.iterdir())
