"""The start of the agent: with a real Python and a test's sudo, over a pipe or over SSH."""

from __future__ import annotations

import functools
import io
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ssh.server import HOST, USER, Rules, serving, target
from vcluster.adapters.pipe import Listener, Pipe
from vcluster.adapters.process_pipe import ProcessPipe
from vcluster.adapters.ssh import ssh_login, ssh_session
from vcluster.agent import bundle, remote_agent
from vcluster.agent.remote_agent import RemoteAgent
from vcluster.errors import ConflictError, DeadlineError, MissingError, VclusterError
from vcluster.util.deadline import Cancelled, Deadline

pytestmark = pytest.mark.ssh

OPERATIONS = b"""
import os, sys, time
from vcluster.errors import ConflictError

def echo(**arguments): return arguments

def count(body, size):
    read = 0
    while chunk := body.read(1 << 16): read += len(chunk)
    return read

def reject(body, size): raise ConflictError("not this one", hint="another")

def pause(path):
    while not os.path.exists(path): time.sleep(0.01)
    return "done"

def print_noise():
    print("noise on standard output"); sys.stdout.flush(); os.system("echo more noise; cat")
    return "printed"

def number(): return os.getpid()

def make_folders(path): os.makedirs(path)

def has_clusters(): return "VCLUSTER_TEST_EMPTY" not in os.environ

OPERATIONS = {
    f.__name__: f for f in (echo, count, reject, pause, print_noise, number, make_folders, has_clusters)
}
"""


@functools.cache
def archive(flavour: str = "") -> bundle.Archive:
    files = bundle.files(["vcluster", "vcluster.errors", "vcluster.agent", "vcluster.agent.request_loop"])
    return bundle.pack({**files, "vcluster/agent/operations.py": OPERATIONS + flavour.encode()})


class Local:
    """Starts programs on this machine as a session starts them on a server; `folder` is first on the PATH."""

    name = "server2"

    def __init__(self, user: str = "root", folder: Path | None = None) -> None:
        self.user = user
        self.env = {"PATH": f"{folder}:{Path(sys.executable).parent}:/usr/bin:/bin"}
        self.pipes: list[ProcessPipe] = []

    def start(
        self,
        argv: list[str],
        *,
        on_error_output: Listener | None = None,
        deadline: Deadline | None = None,  # noqa: ARG002
        awaited: str = "",  # noqa: ARG002
    ) -> Pipe:
        self.pipes.append(ProcessPipe(self.name, ["env", *argv], on_error_output, env=self.env))
        return self.pipes[-1]


Start = Callable[..., RemoteAgent]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made: list[RemoteAgent] = []

    def start(session: object = None, flavour: str = "", **more: object) -> RemoteAgent:
        made.append(
            RemoteAgent(session or Local(), folder=tmp_path / "lib" / "agent", archive=archive(flavour), **more)
        )
        return made[-1]

    yield start
    for agent in made:
        agent.close()


def soon() -> Deadline:
    return Deadline(20)


def test_an_agent_without_work_stays(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process may have a lock, for example that of a snapshot, while the controller waits for a node."""
    monkeypatch.setattr(remote_agent, "PING_S", 0.2)
    agent = start(flavour="from vcluster.agent import request_loop; request_loop.SILENCE_S = 1.0\n")
    process = agent.call("number", deadline=soon())
    time.sleep(2.5)
    assert agent.call("number", deadline=soon()) == process


def test_a_ping_to_a_server_that_hangs_delays_no_deadline_and_no_close(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_agent, "PING_S", 0.1)
    agent = start()
    process = agent.call("number", deadline=soon())
    os.kill(process, signal.SIGSTOP)
    time.sleep(0.5)  # a ping waits for its answer
    begin_s = time.monotonic()
    with pytest.raises(DeadlineError):
        agent.call("number", deadline=Deadline(0.2))
    agent.close()
    assert time.monotonic() - begin_s < 10


def test_an_upload_does_not_take_a_late_answer_for_its_own(start: Start, tmp_path: Path) -> None:
    agent = start()
    process = agent.call("number", deadline=soon())
    with pytest.raises(DeadlineError):
        agent.call("pause", path=str(tmp_path / "end"), deadline=Deadline(0.3))
    (tmp_path / "end").touch()
    time.sleep(0.5)  # the late answer arrives
    assert agent.send("count", io.BytesIO(bytes(9)), 9, deadline=Deadline(5)) == 9
    assert agent.call("number", deadline=soon()) == process


def test_the_archive_is_stored_and_used_again(start: Start, tmp_path: Path) -> None:
    stored = tmp_path / "lib" / "agent" / f"{archive().digest}.pyz"
    agent = start(deadline=soon())
    assert agent.call("echo", deadline=soon(), a=[1, "ä"]) == {"a": [1, "ä"]}
    assert stored.read_bytes() == archive().content
    assert (stored.stat().st_mode & 0o777, stored.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    before = stored.stat().st_mtime_ns
    assert start(deadline=soon()).call("echo", deadline=soon()) == {}
    assert stored.stat().st_mtime_ns == before


def test_another_agent_removes_the_empty_folder_while_the_archive_arrives(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the last command on a server without clusters does it at its end."""
    folder, write, removed = tmp_path / "lib" / "agent", ProcessPipe.write, []

    def write_later(self: ProcessPipe, data: bytes, *more: Any) -> None:
        if archive().content in data and folder.is_dir():
            folder.rmdir()
            folder.parent.rmdir()
            removed.append(folder)
        write(self, data, *more)

    monkeypatch.setattr(ProcessPipe, "write", write_later)
    assert start(deadline=soon()).call("echo", deadline=soon()) == {}
    assert removed == [folder]


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: b"", lambda data: data[:50] + b"?" + data[51:]])  # noqa: ARG005
def test_a_damaged_archive_is_sent_again(start: Start, tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    stored = tmp_path / "lib" / "agent" / f"{archive().digest}.pyz"
    stored.parent.mkdir(mode=0o700, parents=True)
    stored.write_bytes(spoil(archive().content))
    assert start().call("echo", deadline=soon(), a=1) == {"a": 1}
    assert stored.read_bytes() == archive().content
    assert [path.name for path in stored.parent.iterdir()] == [stored.name]


def test_a_folder_that_other_users_can_write_to_is_refused(start: Start, tmp_path: Path) -> None:
    (tmp_path / "lib" / "agent").mkdir(parents=True)
    (tmp_path / "lib" / "agent").chmod(0o777)
    with pytest.raises(MissingError, match=r"server2: .*another user can write here"):
        start(deadline=soon())


def test_bodies_errors_and_noise(start: Start) -> None:
    agent = start()
    progress: list[int] = []
    size = 3 << 20
    assert agent.send("count", io.BytesIO(bytes(size)), size, progress=progress.append, deadline=soon()) == size
    assert progress[-1] == size
    assert progress == sorted(progress)
    assert agent.call("print_noise", deadline=soon()) == "printed"
    with pytest.raises(ConflictError, match="server2: not this one") as caught:
        agent.send("reject", io.BytesIO(b"x"), 1, deadline=soon())
    assert caught.value.hint == "another"
    assert agent.call("echo", deadline=soon()) == {}


def test_a_rejected_body_is_not_sent_to_its_end(start: Start) -> None:
    agent = start()
    size = 1 << 40
    with pytest.raises(ConflictError, match="not this one"), Path("/dev/zero").open("rb") as endless:
        agent.send("reject", endless, size, deadline=soon())
    assert agent.call("echo", deadline=soon(), a=1) == {"a": 1}


def test_a_source_that_ends_early(start: Start) -> None:
    agent = start()
    with pytest.raises(VclusterError, match=r"server2: the image: .* is 10 bytes too short"):
        agent.send("count", io.BytesIO(bytes(90)), 100, deadline=soon(), awaited="the image")
    assert agent.call("echo", deadline=soon(), a=1) == {"a": 1}


def test_a_late_answer_is_not_taken_for_the_next_one(start: Start, tmp_path: Path) -> None:
    agent = start(deadline=soon())
    number = agent.call("number", deadline=soon())
    with pytest.raises(DeadlineError, match="waiting for the bell on server2"):
        agent.call("pause", deadline=Deadline(0.3), awaited="the bell", path=str(tmp_path / "bell"))
    (tmp_path / "bell").touch()
    assert agent.call("number", deadline=soon()) == number


def test_after_a_cancelled_call_the_next_waits_for_its_end(start: Start, tmp_path: Path) -> None:
    agent, deadline = start(deadline=soon()), soon()
    threading.Timer(0.2, deadline.cancel).start()
    with pytest.raises(Cancelled):
        agent.call("pause", deadline=deadline, path=str(tmp_path / "bell"))
    threading.Timer(0.2, (tmp_path / "bell").touch).start()
    assert agent.call("echo", deadline=soon(), a=1) == {"a": 1}


def test_calls_of_several_threads_do_not_mix(start: Start) -> None:
    agent = start(deadline=soon())
    results: dict[int, object] = {}

    def work(thread_number: int) -> None:
        for turn in range(20):
            results[thread_number] = agent.call("echo", deadline=soon(), a=[thread_number, turn])

    threads = [threading.Thread(target=work, args=(thread_number,)) for thread_number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {thread_number: {"a": [thread_number, 19]} for thread_number in range(4)}


def test_a_dead_agent_is_reported_and_started_again(start: Start, tmp_path: Path) -> None:
    agent = start(deadline=soon())
    number = agent.call("number", deadline=soon())
    threading.Timer(0.2, os.kill, (number, signal.SIGKILL)).start()
    with pytest.raises(VclusterError, match="server2: the connection broke during the bell"):
        agent.call("pause", deadline=soon(), awaited="the bell", path=str(tmp_path / "bell"))
    assert agent.call("number", deadline=soon()) != number


def test_it_ends_with_its_connection(start: Start) -> None:
    session = Local()
    agent = start(session, deadline=soon())
    number = agent.call("number", deadline=soon())
    agent.close()
    assert session.pipes[0].wait(10) == 0
    assert not Path(f"/proc/{number}").exists()


def test_uninstalling_removes_all_archives_that_are_not_in_use(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "lib" / "agent"
    first, used, last = start(flavour="#1"), start(flavour="#2"), start()
    for agent in (first, used, last):
        agent.call("echo", deadline=soon())
    first.close()
    (folder / "0.pyz.4711").touch()
    last.uninstall(soon())
    assert [path.name for path in folder.iterdir()] == [f"{archive('#2').digest}.pyz"]
    used.uninstall(soon())
    assert not folder.exists()
    assert not folder.parent.exists()


@pytest.mark.parametrize("has_clusters", [False, True])
def test_an_agent_whose_controller_is_gone_removes_its_archive(
    start: Start, tmp_path: Path, has_clusters: bool
) -> None:
    """A controller that was killed did not remove it. It stays while a cluster is there."""
    session = Local()
    session.env |= {} if has_clusters else {"VCLUSTER_TEST_EMPTY": "yes"}
    start(session, deadline=soon()).close()
    assert session.pipes[0].wait(10) == 0
    assert len(list(tmp_path.glob("lib/agent/*"))) == has_clusters


@pytest.mark.parametrize("printing", ['echo "Welcome!"; echo', r"printf '\033]0;host\007'", "printf 'no newline'"])
def test_login_scripts_may_print(start: Start, tmp_path: Path, printing: str) -> None:
    script(tmp_path, "python3", f'{printing}; exec "{sys.executable}" "$@"')
    assert start(Local(folder=tmp_path)).call("echo", deadline=soon(), a=1) == {"a": 1}


@pytest.mark.parametrize("mask", ["077", "027", "000"])
def test_the_umask_of_the_login_does_not_close_or_open_folders(start: Start, tmp_path: Path, mask: str) -> None:
    script(tmp_path, "python3", f'umask {mask}; exec "{sys.executable}" "$@"')
    images = tmp_path / "vcluster" / "images"
    start(Local(folder=tmp_path)).call("make_folders", deadline=soon(), path=str(images))
    assert [folder.stat().st_mode & 0o777 for folder in (images, images.parent)] == [0o755, 0o755]


@pytest.mark.parametrize("ending", ["\\n", ""])
@pytest.mark.parametrize("code", [1, 142])
def test_a_login_that_only_prints_is_quoted(start: Start, tmp_path: Path, ending: str, code: int) -> None:
    """A forced command of cloud images, or nologin(8)."""
    script(tmp_path, "python3", f"printf 'Hello\\n\\nPlease log in as \"admin\".{ending}'; exit {code}")
    message = rf'server2: cannot start python3 \(exit code {code}\): Hello \| Please log in as "admin"\.'
    with pytest.raises(MissingError, match=message):
        start(Local(folder=tmp_path), deadline=soon())


# sudo

SUDO = """
[ "$1" = -S ] && [ "$2" = -p ] && prompt=$3 && [ "$4" = -- ] && shift 4 || exit 9
echo attempt >>{log}
"""
ASK = 'printf "%s" "$prompt" >&2; read -r given || exit 1\n'
RUN = 'exec "$@"\n'


def script(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}")
    (folder / name).chmod(0o755)


def sudo(folder: Path, text: str) -> Local:
    script(folder, "sudo", SUDO.format(log=folder / "log") + text)
    return Local("alice", folder)


def test_sudo_that_asks_gets_the_password_once(start: Start, tmp_path: Path) -> None:
    session = sudo(tmp_path, ASK + f'[ "$given" = "s3cret word" ] || exit 1\nenv >{tmp_path}/env\n' + RUN)
    agent = start(session, password=lambda: "s3cret word", deadline=soon())
    assert agent.call("echo", deadline=soon(), a=1) == {"a": 1}
    assert "s3cret" not in (tmp_path / "env").read_text()
    assert "s3cret" not in " ".join(map(str, session.pipes[0]._process.args))


def test_sudo_that_does_not_ask_never_sees_the_password(start: Start, tmp_path: Path) -> None:
    def never() -> str:
        raise AssertionError("sudo did not ask")

    agent = start(sudo(tmp_path, RUN), password=never, deadline=soon())
    assert agent.call("echo", deadline=soon(), a=1) == {"a": 1}


def test_a_wrong_password_is_one_attempt(start: Start, tmp_path: Path) -> None:
    refusal = f'echo "$given" >>{tmp_path}/given; echo "Sorry, try again." >&2\n'
    with pytest.raises(MissingError, match="server2: sudo refuses the password of user alice") as caught:
        start(sudo(tmp_path, (ASK + refusal) * 3 + "exit 1"), password=lambda: "wrong-one", deadline=soon())
    assert (tmp_path / "given").read_text().split() in (["wrong-one"], ["wrong-one", ""])
    assert "wrong-one" not in caught.value.message
    assert caught.value.hint is None
    with pytest.raises(MissingError, match="server2: sudo refuses the password of user alice") as caught:
        start(sudo(tmp_path, (ASK + refusal) * 3 + "exit 1"), password=lambda: '"quoted"', deadline=soon())
    assert str(caught.value.hint).startswith("the quotation marks count as part of the password")


def test_sudo_asks_and_no_password_is_configured(start: Start, tmp_path: Path) -> None:
    for password in (None, lambda: None):
        with pytest.raises(MissingError, match="asks for the password of user alice, and none is configured"):
            start(sudo(tmp_path, ASK + RUN), password=password, deadline=soon())


@pytest.mark.parametrize(
    ("output", "code", "message"),
    [
        ("sudo: a terminal is required to read the password", 1, "sudo requires a terminal"),
        ("sudo: sorry, you must have a tty to run sudo", 1, "sudo requires a terminal"),
        ("alice is not in the sudoers file.", 1, "user alice may not become root"),
        ("Sorry, user alice is not allowed to execute '/usr/bin/python3' as root on b.", 1, "may not become root"),
        ("sudo: 1 incorrect password attempt", 1, "refuses the password"),
        ("sudo-rs: I'm sorry alice. I'm afraid I can't do that", 1, "user alice may not become root"),
        ("sudo-rs: Maximum 3 incorrect authentication attempts reached", 1, "refuses the password"),
        ("sudo-rs: Authentication failed, try again.", 1, "refuses the password"),
        ("sudo: python3: command not found", 1, "python3 is not installed"),
        ("another message", 5, r"exit code 5.*another message"),
    ],
)
def test_sudo_that_refuses(start: Start, tmp_path: Path, output: str, code: int, message: str) -> None:
    with pytest.raises(MissingError, match=message):
        start(sudo(tmp_path, f"echo {shlex.quote(output)} >&2; exit {code}"), deadline=soon())


def test_missing_sudo_missing_python_and_old_python(start: Start, tmp_path: Path) -> None:
    bare = Local("alice")
    bare.env = {"PATH": str(tmp_path)}
    for name in ("env", "sh"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    with pytest.raises(MissingError, match="sudo is not installed"):
        start(bare, deadline=soon())
    bare.user = "root"
    with pytest.raises(MissingError, match="python3 is not installed"):
        start(bare, deadline=soon())
    script(
        tmp_path, "python3", r"""echo "$4" | /usr/bin/sed "s/.*print('\([^']*\)'.*/\1 3 9/"; /usr/bin/cat >/dev/null"""
    )
    with pytest.raises(MissingError, match=r"server2 has Python 3\.9; the agent needs 3\.10 or newer"):
        start(bare, deadline=soon())


# Over SSH


@pytest.fixture
def session(tmp_path: Path) -> Iterator[tuple[ssh_session.Session, Rules]]:
    with serving(Rules()) as rules:
        where = target(rules, tmp_path)
        with ssh_login.connect_server(
            "server2", where, cluster_key=USER.private, pinned=HOST.public, deadline=Deadline(20)
        ) as session:
            yield session, rules


def test_over_ssh(start: Start, session: tuple[ssh_session.Session, Rules]) -> None:
    agent = start(session[0])
    size = 5 << 20
    assert agent.send("count", io.BytesIO(bytes(size)), size, deadline=soon()) == size
    assert agent.call("echo", deadline=soon(), a="x" * 300_000) == {"a": "x" * 300_000}


def test_a_connection_cut_in_the_middle_of_a_call(
    start: Start, session: tuple[ssh_session.Session, Rules], tmp_path: Path
) -> None:
    agent = start(session[0], deadline=soon())
    threading.Timer(0.3, session[1].cut).start()
    with pytest.raises(VclusterError, match="server2: the connection broke during the bell"):
        agent.call("pause", deadline=soon(), awaited="the bell", path=str(tmp_path / "bell"))
    (tmp_path / "bell").touch()
    with pytest.raises(VclusterError, match="server2: the connection broke before the bell started"):
        agent.call("pause", deadline=soon(), awaited="the bell", path=str(tmp_path / "bell"))


def test_a_connection_cut_in_the_middle_of_an_upload(start: Start, session: tuple[ssh_session.Session, Rules]) -> None:
    agent = start(session[0], deadline=soon())

    def cut(sent: int) -> None:
        if sent > 4 << 20:
            session[1].cut()

    with (
        pytest.raises(VclusterError, match="server2: the connection broke during the image"),
        Path("/dev/zero").open("rb") as endless,
    ):
        agent.send("count", endless, 1 << 40, progress=cut, deadline=soon(), awaited="the image")


def test_no_process_remains_after_the_connection_breaks(
    start: Start, session: tuple[ssh_session.Session, Rules], tmp_path: Path
) -> None:
    number = start(session[0], deadline=soon()).call("number", deadline=soon())
    session[1].cut()
    deadline = Deadline(10)
    while is_running(number):
        deadline.pause(0.02, "its end")
    assert subprocess.run(["pgrep", "-f", str(tmp_path / "lib")], capture_output=True, check=False).stdout == b""


def is_running(number: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{number}/status").read_text()
    except OSError:  # it ended in the meantime
        return False


@pytest.mark.parametrize("sent", [b"", b'{"id": 1, "operation": "put", "arguments": {}, "body": 9}\nhalf'])
def test_an_agent_without_requests_or_the_rest_of_a_body_ends(sent: bytes) -> None:
    """A controller that is cut off sends nothing more, and sshd may notice that hours later."""
    code = "import sys; from vcluster.agent import request_loop as loop; loop.SILENCE_S = 0.3; "
    code += "loop.serve(sys.stdin.buffer, sys.stdout.buffer, {'put': lambda body, size: body.read()})"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        assert process.stdin
        process.stdin.write(sent)
        process.stdin.flush()
        assert process.wait(timeout=20) == 0
