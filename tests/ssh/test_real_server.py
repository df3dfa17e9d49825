"""A real sshd, sudo and libvirt: the agent and the proxy to libvirt, for each kind of user."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.testbed import Server, testbed

pytestmark = pytest.mark.netns

# Runs on the first server and prints its results, one a line.
PROGRAM = """
import os, sys, libvirt
from vcluster.agent.remote_agent import RemoteAgent
from vcluster.errors import VclusterError
from vcluster.util.deadline import Deadline
from vcluster.adapters.ssh import openssh_config, ssh_login
from vcluster.adapters.libvirt.libvirt_proxy import LibvirtProxy

host, user, password, for_sudo = (word if word != "-" else None for word in sys.argv[1:])
libvirt.registerErrorHandler(lambda *_: None, None)

def exercise(session, agent):
    print(agent.call("identity", deadline=Deadline(20))["has_rights"])
    with LibvirtProxy(agent) as tunnel:
        connection = libvirt.open(tunnel.uri)
        print(connection.getHostname())
        xml = "<pool type='dir'><name>p</name><target><path>/var/lib/libvirt/images</path></target></pool>"
        pool = connection.storagePoolCreateXML(xml)
        data = os.urandom(5 << 20)
        volume = pool.createXML(f"<volume><name>v</name><capacity unit='B'>{len(data)}</capacity></volume>")
        stream = connection.newStream()
        volume.upload(stream, 0, len(data))
        view = memoryview(data)
        while view:
            view = view[stream.send(bytes(view[:262144])):]
        stream.finish()
        stream, got = connection.newStream(), bytearray()
        volume.download(stream, 0, len(data))
        while part := stream.recv(262120):
            got += part
        stream.finish()
        print(bytes(got) == data)
        volume.delete()
        pool.destroy()
        connection.close()
    agent.uninstall(Deadline(20))

try:
    target = openssh_config.resolve(host, user=user)
    with ssh_login.connect_server("server2", target, password=password, deadline=Deadline(60)) as session:
        agent = RemoteAgent(session, password=lambda: for_sudo, deadline=Deadline(60))
        exercise(session, agent)
except VclusterError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, ...]]:
    with testbed("red", "blue", are_friends=True) as servers:
        servers[1].set_password("student", "s e'c$r\\t")
        yield servers


def exercise(servers: tuple[Server, ...], user: str, password: str = "-", for_sudo: str = "-") -> list[str]:
    red, blue = servers
    done = red.run([sys.executable, "-c", PROGRAM, blue.name, user, password, for_sudo], timeout_s=150)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("user", "password"), [("root", "-"), ("operator", "-"), ("student", "s e'c$r\\t")], ids=["root", "key", "password"]
)
def test_every_kind_of_user_reaches_libvirt_and_nothing_stays(
    servers: tuple[Server, ...], user: str, password: str
) -> None:
    blue = servers[1]
    assert exercise(servers, user, password, password) == ["True", blue.name, "True"]
    assert not blue.path("/var/lib/vcluster/agent").exists()


@pytest.mark.parametrize("line", [r"printf '\033]0;host\007'", "echo Welcome", "printf 'Welcome: '"])
def test_a_shell_that_prints(servers: tuple[Server, ...], line: str) -> None:
    """Debian's bash reads ~/.bashrc for each command by SSH."""
    blue = servers[1]
    blue.run(["usermod", "-s", "/bin/bash", "operator"], timeout_s=10)
    settings = blue.home("operator") / ".bashrc"
    settings.write_text(f"{line}\n")
    try:
        assert exercise(servers, "operator") == ["True", blue.name, "True"]
    finally:
        settings.unlink()


def test_a_login_that_only_prints(servers: tuple[Server, ...]) -> None:
    blue = servers[1]
    blue.run(["usermod", "-s", "/usr/sbin/nologin", "operator"], timeout_s=10)
    try:
        (line,) = exercise(servers, "operator")
    finally:
        blue.run(["usermod", "-s", "/bin/bash", "operator"], timeout_s=10)
    message = "cannot start python3 (exit code 1): This account is currently not available."
    assert line == f"MissingError server2: {message}"


@pytest.mark.parametrize(
    ("password", "for_sudo", "message"),
    [
        ("s e'c$r\\t", "wrong", "MissingError server2: sudo refuses the password of user student"),
        ("s e'c$r\\t", "-", "MissingError server2: sudo asks for the password of user student, and none is configured"),
        ("wrong", "-", "refuses the password for user student"),
    ],
)
def test_the_error_names_the_program_that_refuses_the_password(
    servers: tuple[Server, ...], password: str, for_sudo: str, message: str
) -> None:
    (line,) = exercise(servers, "student", password, for_sudo)
    assert message in line


def test_a_wrong_password_when_sshd_allows_one_attempt(servers: tuple[Server, ...]) -> None:
    """Then sshd closes the connection instead of an answer."""
    blue = servers[1]
    settings = blue.path("/etc/ssh/sshd_config")
    before = settings.read_text()
    reload = ["sh", "-c", "kill -HUP $(cat /run/sshd.pid) && sleep 1"]
    try:
        settings.write_text(f"MaxAuthTries 1\n{before}")
        blue.run(reload, timeout_s=10)
        (line,) = exercise(servers, "student", "wrong")
    finally:
        settings.write_text(before)
        blue.run(reload, timeout_s=10)
    assert "the connection broke during the login: the server closed it after it got the password" in line
