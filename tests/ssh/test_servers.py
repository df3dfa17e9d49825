"""Log in to servers: host keys, credentials, and the errors."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ssh.server import HOST, OTHER, RSA, UNKNOWN, USER, Rules, know, private, public, serving, target
from vcluster.adapters.ssh import host_keys, openssh_config, ssh_login, ssh_session
from vcluster.adapters.ssh.authentication import LoginRefusedError
from vcluster.errors import ConflictError, DeadlineError, MissingError, RequestError, VclusterError
from vcluster.model.keys import KeyPair, fingerprint
from vcluster.util.deadline import Deadline

pytestmark = pytest.mark.ssh


@pytest.fixture
def rules() -> Iterator[Rules]:
    with serving(Rules()) as rules:
        yield rules


def log_in(
    rules: Rules, folder: Path, *, knows: bool = True, timeout_s: float = 20, **how: object
) -> ssh_session.Session:
    where = how.pop("where", None) or target(rules, folder)
    if knows:
        know(where, public(HOST))
    if not {"password", "key", "cluster_key"} & set(how) and not where.identity_files:
        how["cluster_key"] = USER.private
    return ssh_login.connect_server("server2", where, deadline=Deadline(timeout_s), **how)


def key_file(folder: Path, pair: KeyPair = USER, name: str = "id_ed25519") -> Path:
    path = folder / name
    path.write_text(pair.private)
    path.with_name(name + ".pub").write_text(pair.public)
    path.chmod(0o600)
    return path


# Host keys


def test_a_known_server(rules: Rules, tmp_path: Path) -> None:
    with log_in(rules, tmp_path) as session:
        assert session.run(["echo", "hello"], awaited="echo").stdout == "hello\n"
        assert (session.user, session.address, session.host_key) == ("root", "127.0.0.1", public(HOST))
        assert session.is_alive
    assert not session.is_alive


def test_a_known_server_by_hashed_name(rules: Rules, tmp_path: Path) -> None:
    where = target(rules, tmp_path)
    know(where, public(HOST))
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", where.known_hosts[0]], check=True, capture_output=True)
    assert "127.0.0.1" not in where.known_hosts[0].read_text()
    log_in(rules, tmp_path, where=where, knows=False).close()


def test_a_server_known_by_its_alias(rules: Rules, tmp_path: Path) -> None:
    plain = target(rules, tmp_path)
    where = openssh_config.Target(
        **{name: getattr(plain, name) for name in plain.__slots__} | {"known_as": "the-switch"}
    )
    know(where, public(HOST))
    assert where.known_hosts[0].read_text().startswith("the-switch ")
    log_in(rules, tmp_path, where=where, knows=False).close()


def test_of_several_host_keys_the_known_one_is_negotiated(rules: Rules, tmp_path: Path) -> None:
    rules.host_keys = (private(HOST), RSA)
    where = target(rules, tmp_path)
    know(where, f"ssh-rsa {RSA.get_base64()}")
    with log_in(rules, tmp_path, where=where, knows=False) as session:
        assert session.host_key.startswith("ssh-rsa ")


def test_an_unknown_server_is_refused_without_a_terminal(rules: Rules, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="host key is not known: ED25519 SHA256:") as caught:
        log_in(rules, tmp_path, knows=False)
    assert f"ssh -p {rules.port} root@127.0.0.1" in str(caught.value.hint)
    assert f"fingerprint = {fingerprint(HOST.public)}" in str(caught.value.hint)
    assert rules.tried == []


@pytest.mark.parametrize("hashes_names", [False, True])
def test_a_confirmed_server_is_remembered(rules: Rules, tmp_path: Path, hashes_names: bool) -> None:
    plain = target(rules, tmp_path)
    where = openssh_config.Target(
        **{name: getattr(plain, name) for name in plain.__slots__} | {"hashes_names": hashes_names}
    )
    questions: list[str] = []

    def ask(text: str) -> bool:
        questions.append(text)
        return True

    log_in(rules, tmp_path, where=where, knows=False, ask=ask).close()
    log_in(rules, tmp_path, where=where, knows=False, ask=ask).close()
    (question,) = questions
    assert question.startswith(f"server2 ([127.0.0.1]:{rules.port}) is an unknown host.")
    assert f"ED25519 {fingerprint(HOST.public)}" in question
    file = where.known_hosts[0]
    assert ("127.0.0.1" in file.read_text()) != hashes_names
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_an_unknown_server_that_the_user_does_not_confirm(rules: Rules, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="not known"):
        log_in(rules, tmp_path, knows=False, ask=lambda _: False)
    assert not target(rules, tmp_path).known_hosts[0].exists()
    assert rules.tried == []


def test_a_changed_host_key_is_refused_with_both_fingerprints(rules: Rules, tmp_path: Path) -> None:
    where = target(rules, tmp_path)
    know(where, public(OTHER))
    with pytest.raises(ConflictError) as caught:
        log_in(rules, tmp_path, where=where, knows=False, ask=lambda _: True)
    assert fingerprint(HOST.public) in caught.value.message
    assert fingerprint(OTHER.public) in caught.value.message
    assert f"{where.known_hosts[0]}:1" in caught.value.message
    assert rules.tried == []


def test_a_known_server_with_a_key_of_another_type_is_a_changed_one(rules: Rules, tmp_path: Path) -> None:
    where = target(rules, tmp_path)
    know(where, f"ssh-rsa {RSA.get_base64()}")
    with pytest.raises(ConflictError, match="a host key that differs from the known one"):
        log_in(rules, tmp_path, where=where, knows=False, ask=lambda _: True)


def test_a_revoked_host_key(rules: Rules, tmp_path: Path) -> None:
    where = target(rules, tmp_path)
    know(where, public(HOST), f"@revoked| {public(HOST)}")
    with pytest.raises(ConflictError, match="revoked"):
        log_in(rules, tmp_path, where=where, knows=False, ask=lambda _: True)


def test_a_certificate_authority_is_not_a_host_key(rules: Rules, tmp_path: Path) -> None:
    where = target(rules, tmp_path)
    know(where, f"@cert-authority| {public(HOST)}")
    with pytest.raises(MissingError, match="known by its certificate only") as caught:
        log_in(rules, tmp_path, where=where, knows=False)
    subprocess.run(["sh", "-c", str(caught.value.hint).removeprefix("check the key, then: ")], check=True)
    log_in(rules, tmp_path, where=where, knows=False).close()


def test_the_pinned_key_is_the_only_one(rules: Rules, tmp_path: Path) -> None:
    log_in(rules, tmp_path, knows=False, pinned=HOST.public).close()
    with pytest.raises(ConflictError, match="a host key that differs from the known one"):
        log_in(rules, tmp_path, knows=True, pinned=OTHER.public, fingerprint=fingerprint(HOST.public))


def test_a_fingerprint_confirms_a_key_of_any_type(rules: Rules, tmp_path: Path) -> None:
    rules.host_keys = (private(HOST), RSA)
    log_in(rules, tmp_path, knows=False, fingerprint=fingerprint(HOST.public)).close()
    with log_in(rules, tmp_path, knows=False, fingerprint=RSA.fingerprint) as session:
        assert session.host_key.startswith("ssh-rsa ")
    assert not target(rules, tmp_path).known_hosts[0].exists()


def test_another_fingerprint(rules: Rules, tmp_path: Path) -> None:
    with pytest.raises(ConflictError) as caught:
        log_in(rules, tmp_path, fingerprint=fingerprint(OTHER.public))
    assert fingerprint(HOST.public) in caught.value.message
    assert fingerprint(OTHER.public) in caught.value.message
    assert rules.tried == []


def test_a_fingerprint_of_the_old_kind(rules: Rules, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not a fingerprint"):
        log_in(rules, tmp_path, fingerprint="MD5:aa:bb")


# Credentials


def test_a_password(rules: Rules, tmp_path: Path) -> None:
    log_in(rules, tmp_path, password="right").close()
    assert rules.tried == ["password"]


@pytest.mark.parametrize("allows", ["publickey,password", "password,keyboard-interactive", "keyboard-interactive"])
def test_a_wrong_password_is_one_attempt(rules: Rules, tmp_path: Path, allows: str) -> None:
    rules.allows = allows
    with pytest.raises(LoginRefusedError, match="refuses the password for user root") as caught:
        log_in(rules, tmp_path, password="wrong-secret")
    assert len(rules.tried) == 1
    assert "wrong-secret" not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("password", "hint"),
    [
        ('"right"', "the quotation marks count as part of the password; if it has none, remove them"),
        ("'right'", "the quotation marks count as part of the password; if it has none, remove them"),
        ("right # of the lab", "a comment after the password counts as part of it; write it on a line of its own"),
        ("right#1", None),
        ('"', None),
    ],
)
def test_a_refused_password_that_holds_more_than_is_meant(
    rules: Rules, tmp_path: Path, password: str, hint: str | None
) -> None:
    with pytest.raises(LoginRefusedError) as caught:
        log_in(rules, tmp_path, password=password)
    assert caught.value.hint == hint


def test_a_password_by_keyboard_interactive(rules: Rules, tmp_path: Path) -> None:
    rules.allows = "publickey,keyboard-interactive"
    log_in(rules, tmp_path, password="right").close()
    assert rules.tried == ["keyboard-interactive"]


def test_a_server_that_accepts_no_passwords(rules: Rules, tmp_path: Path) -> None:
    rules.allows = "publickey"
    with pytest.raises(LoginRefusedError, match="accepts no password"):
        log_in(rules, tmp_path, password="right")
    assert rules.tried == []


def test_the_clusters_key_comes_first(rules: Rules, tmp_path: Path) -> None:
    log_in(rules, tmp_path, cluster_key=USER.private, password="wrong").close()
    assert set(rules.tried) == {"publickey"}
    with pytest.raises(LoginRefusedError, match="refuses the cluster's key"):
        log_in(rules, tmp_path, knows=False, cluster_key=UNKNOWN.private, password="right")
    assert "password" not in rules.tried


def test_a_key_file(rules: Rules, tmp_path: Path) -> None:
    log_in(rules, tmp_path, key=key_file(tmp_path)).close()
    with pytest.raises(LoginRefusedError, match=r"refuses the key .*unknown for user root") as caught:
        log_in(rules, tmp_path, knows=False, key=key_file(tmp_path, UNKNOWN, "unknown"))
    assert "ssh-copy-id" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "does not exist"),
        (lambda path: path.write_text("nonsense"), "not a private key"),
        (lambda path: path.write_bytes(b"\xff\x00" * 40), "not a private key"),
        (lambda path: path.mkdir(), "cannot read the key"),
        (
            lambda path: subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", path], check=True),
            "has a passphrase",
        ),
        (
            lambda path: subprocess.run(
                ["ssh-keygen", "-q", "-t", "rsa", "-m", "PEM", "-N", "secret", "-f", path], check=True
            ),
            "has a passphrase",
        ),
    ],
)
def test_an_unusable_key_file(rules: Rules, tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "key")
    with pytest.raises(MissingError, match=message):
        log_in(rules, tmp_path, key=tmp_path / "key")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o777])
def test_a_key_that_others_can_read_is_refused_as_ssh_does(rules: Rules, tmp_path: Path, mode: int) -> None:
    """vcluster ssh runs OpenSSH, which ignores such a key: a create must not succeed with it."""
    path = key_file(tmp_path)
    path.chmod(mode)
    with pytest.raises(MissingError, match=r"other users can read the key .*id_ed25519, so ssh ignores it") as caught:
        log_in(rules, tmp_path, key=path)
    assert caught.value.hint == f"chmod 600 {path}"
    refused = subprocess.run(["ssh-keygen", "-y", "-f", path], capture_output=True, text=True, check=False)
    assert "UNPROTECTED PRIVATE KEY FILE" in refused.stderr
    with pytest.raises(LoginRefusedError, match=r"no key was found to try .*: .* or readable by other users"):
        log_in(rules, tmp_path, knows=False, where=target(rules, tmp_path, identities=(path,)))
    assert "publickey" not in rules.tried
    subprocess.run(shlex.split(str(caught.value.hint)), check=True)
    log_in(rules, tmp_path, knows=False, key=path).close()


def test_a_key_with_a_passphrase_in_the_agent(rules: Rules, tmp_path: Path) -> None:
    path = key_file(tmp_path)
    with agent(tmp_path, path) as socket_path:
        subprocess.run(
            ["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", path], check=True, capture_output=True
        )
        where = with_agent(target(rules, tmp_path), socket_path)
        log_in(rules, tmp_path, where=where, key=path).close()


def test_identities_are_tried_as_ssh_does(rules: Rules, tmp_path: Path) -> None:
    unknown, missing = key_file(tmp_path, UNKNOWN, "unknown"), tmp_path / "missing"
    where = target(rules, tmp_path, identities=(missing, unknown, key_file(tmp_path)))
    log_in(rules, tmp_path, where=where).close()
    rules.authorized = OTHER
    with pytest.raises(LoginRefusedError, match="none of 2 keys"):
        log_in(rules, tmp_path, where=where, knows=False)


def test_the_agents_keys(rules: Rules, tmp_path: Path) -> None:
    path = key_file(tmp_path)
    with agent(tmp_path, path) as socket_path:
        path.unlink()
        where = with_agent(target(rules, tmp_path, identities=(path,)), socket_path)
        log_in(rules, tmp_path, where=where).close()
        path.with_name(path.name + ".pub").unlink()
        only = with_agent(where, socket_path, identities_only=True)
        with pytest.raises(LoginRefusedError, match="no key was found to try"):
            log_in(rules, tmp_path, where=only, knows=False)


def with_agent(where: openssh_config.Target, socket_path: Path, **more: object) -> openssh_config.Target:
    fields = {name: getattr(where, name) for name in where.__slots__}
    return openssh_config.Target(**fields | {"agent_socket": str(socket_path)} | more)


class agent:  # noqa: N801 - used as a function in with statements
    """A real ssh-agent that holds a key."""

    def __init__(self, folder: Path, key: Path) -> None:
        self.path, self.key = folder / "agent", key

    def __enter__(self) -> Path:
        self.process = subprocess.Popen(["ssh-agent", "-D", "-a", self.path], stdout=subprocess.DEVNULL)
        deadline = Deadline(10)
        while not self.path.exists():
            deadline.pause(0.02, "the agent")
        environment = {**os.environ, "SSH_AUTH_SOCK": str(self.path)}
        subprocess.run(["ssh-add", "-q", self.key], check=True, env=environment)
        return self.path

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()


# Connection errors


def somewhere(port: int, hostname: str = "127.0.0.1") -> openssh_config.Target:
    return openssh_config.Target(asked=hostname, hostname=hostname, user="root", port=port)


def try_log_in(where: openssh_config.Target, timeout_s: float = 10) -> None:
    ssh_login.connect_server(
        "server2", where, cluster_key=USER.private, pinned=HOST.public, deadline=Deadline(timeout_s)
    )


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(MissingError, match=r"server2 .*cannot resolve the name no-such-host.invalid"):
        try_log_in(somewhere(22, "no-such-host.invalid"))


def test_a_refused_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(MissingError, match="connection refused"):
        try_log_in(somewhere(port))


def test_a_server_that_accepts_and_sends_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        begun = time.monotonic()
        with pytest.raises(DeadlineError, match=r"timed out after 3 s waiting for the SSH greeting of server2"):
            try_log_in(somewhere(listener.getsockname()[1]), timeout_s=3)
        assert time.monotonic() - begun < 15


def test_a_server_that_stops_answering_during_the_login(
    rules: Rules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def hang(*_: object) -> int:
        released.wait(20)
        return paramiko.AUTH_FAILED

    monkeypatch.setattr("tests.ssh.server.ServerSide.check_auth_publickey", hang)
    with pytest.raises(DeadlineError, match="answer to the login"):
        log_in(rules, tmp_path, timeout_s=2)
    released.set()


CREDENTIALS = pytest.mark.parametrize(
    ("credential", "allows"),
    [
        ({"cluster_key": USER.private}, "publickey"),
        ({"password": "right"}, "password"),
        ({"password": "right"}, "keyboard-interactive"),
    ],
    ids=["key", "password", "questions"],
)


@CREDENTIALS
def test_a_login_that_breaks_is_not_a_refused_one(
    rules: Rules, tmp_path: Path, credential: dict[str, str], allows: str
) -> None:
    """After a refused key, vcluster would try the password."""
    rules.allows, rules.logins_to_cut = allows, 1
    with pytest.raises(VclusterError, match=r"server2 .*: the connection broke during the login") as caught:
        log_in(rules, tmp_path, **credential)
    assert not isinstance(caught.value, LoginRefusedError)
    log_in(rules, tmp_path, knows=False, **credential).close()


@pytest.mark.parametrize("allows", ["password", "keyboard-interactive"])
@pytest.mark.parametrize(
    ("password", "hint"), [("not-it", "check the password"), ("'right'", "the quotation marks count as part")]
)
def test_a_server_that_closes_after_a_wrong_password(
    rules: Rules, tmp_path: Path, allows: str, password: str, hint: str
) -> None:
    """With MaxAuthTries 1, sshd closes the connection instead of an answer."""
    rules.allows, rules.logins_to_cut = allows, 1
    with pytest.raises(VclusterError, match="the server closed it after it got the password") as caught:
        log_in(rules, tmp_path, password=password)
    assert hint in str(caught.value.hint)
    assert password not in f"{caught.value.message} {caught.value.hint}"


@CREDENTIALS
def test_a_login_to_a_node_that_breaks_is_tried_again(
    rules: Rules, monkeypatch: pytest.MonkeyPatch, credential: dict[str, str], allows: str
) -> None:
    monkeypatch.setattr(ssh_login, "PORT", rules.port)
    rules.allows, rules.logins_to_cut = allows, 1
    how = {"private_key" if name == "cluster_key" else name: value for name, value in credential.items()}
    with ssh_login.connect_node(
        "node1", "127.0.0.1", user="root", host_key=HOST.public, deadline=Deadline(20), **how
    ) as session:
        assert session.is_alive
    assert len(rules.tried) == 2


def test_a_server_that_does_not_speak_ssh() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(VclusterError, match="greeting"):
            try_log_in(somewhere(listener.getsockname()[1]))


def use_config(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ssh read this configuration. ssh finds the user's by the user database, not by $HOME."""
    wrapper = config.parent / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")


def test_a_proxy_command_carries_the_connection(rules: Rules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config"
    relay = tmp_path / "relay.py"
    relay.write_text(
        "import socket, sys, threading, os\n"
        "s = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def out():\n    while d := os.read(0, 65536): s.sendall(d)\n    s.shutdown(1)\n"
        "threading.Thread(target=out, daemon=True).start()\n"
        "while d := s.recv(65536): os.write(1, d)\n"
    )
    config.write_text(
        f"Host far\n HostName 127.0.0.1\n Port {rules.port}\n User root\n ProxyCommand python3 {relay} %h %p\n"
        f" UserKnownHostsFile {tmp_path}/kh\n"
    )
    use_config(config, monkeypatch)
    where = openssh_config.resolve("far")
    with log_in(rules, tmp_path, where=where, knows=False, pinned=HOST.public, cluster_key=USER.private) as session:
        assert session.address == ""
        assert session.run(["echo", "hello"], awaited="echo").stdout == "hello\n"


def test_the_error_of_a_proxy_command_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config"
    config.write_text("Host far\n ProxyCommand echo the gateway is closed >&2; exit 1\n")
    use_config(config, monkeypatch)
    with pytest.raises(VclusterError, match="the gateway is closed"):
        try_log_in(openssh_config.resolve("far"))


# Nodes through a server


def test_a_node_is_reached_through_its_server(rules: Rules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Rules(host_keys=(private(OTHER),), authorized=UNKNOWN)) as node, log_in(rules, tmp_path) as server:
        monkeypatch.setattr(ssh_login, "PORT", node.port)
        how = {"user": "root", "private_key": UNKNOWN.private, "host_key": OTHER.public, "via": server}
        with ssh_login.connect_node("node1", "127.0.0.1", **how, deadline=Deadline(20)) as session:
            data = b"0123456789abcdef" * 65536
            assert session.run(["cat"], stdin=data, awaited="cat").stdout.encode() == data
        assert server.is_alive


def test_a_booting_node_is_awaited_through_its_server(
    rules: Rules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(ssh_login, "PORT", listener.getsockname()[1])
    with log_in(rules, tmp_path) as server, pytest.raises(DeadlineError, match="the SSH login to node1"):
        ssh_login.connect_node(
            "node1", "127.0.0.1", user="root", private_key=USER.private, host_key=HOST.public,
            deadline=Deadline(1), via=server,
        )  # fmt: skip


def test_a_server_that_forbids_forwarding(rules: Rules, tmp_path: Path) -> None:
    rules.may_forward = False
    with log_in(rules, tmp_path) as server, pytest.raises(MissingError, match="forbids") as caught:
        ssh_login.connect_node(
            "node1", "127.0.0.1", user="root", private_key=USER.private, host_key=HOST.public,
            deadline=Deadline(5), via=server,
        )  # fmt: skip
    assert "AllowTcpForwarding" in str(caught.value.hint)


# Programs on a server


def test_an_exchange_with_a_program(rules: Rules, tmp_path: Path) -> None:
    error_output: list[bytes] = []
    deadline = Deadline(20)
    with log_in(rules, tmp_path) as session:
        pipe = session.start(
            ["sh", "-c", 'echo oops >&2; while read line; do echo "<$line>"; done; printf rest'],
            on_error_output=lambda _, data: error_output.append(data),
        )
        for line in (b"one", b"two"):
            pipe.write(line + b"\n", deadline, "a line")
            assert pipe.read_line(deadline, "a line") == b"<" + line + b">"
        pipe.shut()
        assert pipe.read(4, deadline, "the rest") == b"rest"
        assert pipe.wait(10) == 0
        while b"".join(error_output) != b"oops\n":  # another thread receives it
            deadline.pause(0.01, "its standard error")


PRINTING = [
    "echo Welcome",
    "printf 'no newline'",
    r"printf '\033]0;host\007'",
    "echo '{}'; echo warning >&2",
    "yes | head -c 99999",
]


@pytest.mark.parametrize("script", PRINTING)
def test_a_program_may_follow_a_login_script_that_prints(rules: Rules, tmp_path: Path, script: str) -> None:
    rules.login_script = script
    source = b"import sys\nfor line in sys.stdin: print(line.upper(), end='', flush=True)"
    with log_in(rules, tmp_path) as session:
        assert session.run_program(source, b"a\nb\n", awaited="it").stdout == "A\nB\n"
        pipe = session.start_program(source, awaited="it")
        pipe.write(b"a\n", Deadline(20), "it")
        assert pipe.read_line(Deadline(20), "it") == b"A"
        assert not pipe.has_more()
        pipe.shut()
        assert pipe.wait(10) == 0


@pytest.mark.parametrize(
    "script", ["echo 'Please log in as admin'; exit 142", "printf 'Please log in as admin'; exit 1"]
)
def test_a_login_that_only_prints_is_quoted(rules: Rules, tmp_path: Path, script: str) -> None:
    rules.login_script = script
    with log_in(rules, tmp_path) as session:
        assert session.run_program(b"", b"", awaited="it").stdout.strip() == "Please log in as admin"
        with pytest.raises(VclusterError, match="server2: the connection broke during it: Please log in as admin"):
            session.start_program(b"", awaited="it").read_line(Deadline(20), "it")


def test_a_login_script_that_prints_without_end(rules: Rules, tmp_path: Path) -> None:
    rules.login_script = "yes"
    with (
        log_in(rules, tmp_path) as session,
        pytest.raises(VclusterError, match="server2: its login scripts print more than 1 MiB"),
    ):
        session.run_program(b"", b"", awaited="it")


def test_the_reason_of_an_early_end_is_reported(rules: Rules, tmp_path: Path) -> None:
    with log_in(rules, tmp_path) as session:
        pipe = session.start(["sh", "-c", "echo part; echo 'no more' >&2; exit 7"])
        with pytest.raises(VclusterError, match="server2: the connection broke during the rest: no more"):
            pipe.read(100, Deadline(20), "the rest")


def test_a_connection_that_breaks_during_a_wait(rules: Rules, tmp_path: Path) -> None:
    with log_in(rules, tmp_path) as session:
        pipe = session.start(["cat"])
        threading.Timer(0.3, rules.cut).start()
        with pytest.raises(VclusterError, match="server2: the connection broke during an answer"):
            pipe.read_line(Deadline(20), "an answer")
        assert not session.is_alive


def test_a_cancelled_wait(rules: Rules, tmp_path: Path) -> None:
    deadline = Deadline(20)
    with log_in(rules, tmp_path) as session:
        pipe = session.start(["cat"])
        threading.Timer(0.2, deadline.cancel).start()
        with pytest.raises(VclusterError, match="stopped while waiting for an answer on server2"):
            pipe.read_line(deadline, "an answer")


# Parsing of hosts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("server2", ("", "server2", 0)),
        ("root@server2", ("root", "server2", 0)),
        ("me@example.org@server2:2222", ("me@example.org", "server2", 2222)),
        ("20231234@server2", ("20231234", "server2", 0)),
        ("LAB\\student@server2", ("LAB\\student", "server2", 0)),
        ("LAB\\@server2", None),
        ("LAB\\-l@server2", None),
        ("A\\B\\c@server2", None),
        ("server2:2222", ("", "server2", 2222)),
        ("me@[2001:db8::1]:22", ("me", "2001:db8::1", 22)),
        ("2001:db8::1", ("", "2001:db8::1", 0)),
        ("fe80::1%eth0", ("", "fe80::1%eth0", 0)),
        ("", None),
        ("-oProxyCommand=id", None),
        ("root@-oProxyCommand=id", None),
        ("-l@server2", None),
        ("server 2", None),
        ("server2\n", None),
        ("server2;id", None),
        ("$(id)", None),
        ("server2:", None),
        ("server2:0", None),
        ("server2:65536", None),
        ("server2:x", None),
        ("@server2", None),
    ],
)
def test_hosts(text: str, parts: tuple[str, str, int] | None) -> None:
    if parts is None:
        with pytest.raises(RequestError):
            openssh_config.split_host(text)
    else:
        assert openssh_config.split_host(text) == parts


@given(st.one_of(st.text(), st.text(alphabet="-@:[]oProxyCommand= \n\0%$;`'\"ab1.", max_size=20)))
def test_a_host_is_never_an_option_for_ssh_or_code_for_a_shell(text: str) -> None:
    try:
        user, host, port = openssh_config.split_host(text)
    except RequestError:
        return
    assert user.count("\\") <= 1  # of DOMAIN\name; our own command lines are lists, so no shell reads it
    for part in (*user.split("\\"), host):
        assert not part.startswith("-")
        assert not set(part) & set(" \t\r\n\0;|&<>()$`'\"\\*?!#~{}[]=,/")
        assert all(letter.isprintable() for letter in part)
    assert 0 <= port < 65536


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("port 22x\n", "ssh reports the port '22x' for 'server2'"),
        ("identityfile ~nobody9/x\n", "ssh reports the path '~nobody9/x', whose user does not exist"),
        ("userknownhostsfile ~nobody9/x\n", "ssh reports the path '~nobody9/x', whose user does not exist"),
    ],
)
def test_a_configuration_that_cannot_be_used(output: str, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        openssh_config._target("server2", output)


def test_ssh_itself_resolves_a_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config"
    config.write_text(
        "Host sw\n HostName 192.0.2.7\n Port 2200\n User alice\n IdentityFile ~/keys/%h\n IdentitiesOnly yes\n"
        " ProxyJump bob@gate:33,inner\n HostKeyAlias the-switch\n UserKnownHostsFile ~/kh /tmp/%r\n"
    )
    use_config(config, monkeypatch)
    found = openssh_config.resolve("sw")
    home = Path("~").expanduser()
    assert (found.hostname, found.port, found.user, found.identities_only) == ("192.0.2.7", 2200, "alice", True)
    assert found.identity_files == (home / "keys" / "192.0.2.7",)
    assert found.known_hosts[:2] == (home / "kh", Path("/tmp/alice"))
    assert found.key_name == "the-switch"
    command = openssh_config.proxy_command(found)
    assert command is not None
    assert command.endswith("-J bob@gate:33 -W '[192.0.2.7]:2200' -- ssh://inner")
    assert found.proxy_options == ("ProxyJump bob@gate:33,inner",)
    other = openssh_config.resolve("carol@sw:44")
    assert (other.user, other.port) == ("carol", 44)


@pytest.mark.parametrize("user", ["20231234", "LAB\\student"])
def test_ssh_itself_takes_such_users(user: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config"
    config.write_text("")
    use_config(config, monkeypatch)
    assert openssh_config.resolve("server2", user=user).user == user
    assert openssh_config.resolve(f"{user}@server2").user == user


def test_a_configuration_that_ssh_rejects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config"
    config.write_text("Nonsense yes\n")
    use_config(config, monkeypatch)
    with pytest.raises(RequestError, match="rejects its configuration"):
        openssh_config.resolve("server2")


def test_keys_are_described_as_openssh_does(tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text(HOST.public)
    done = subprocess.run(["ssh-keygen", "-l", "-f", tmp_path / "key.pub"], capture_output=True, text=True, check=True)
    assert host_keys.described(public(HOST)).split()[1] in done.stdout
    assert io.StringIO(USER.private).read().startswith("-----BEGIN OPENSSH")
