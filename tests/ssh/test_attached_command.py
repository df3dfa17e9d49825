"""A command that is attached to its connection ends with it, and is not changed otherwise."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from vcluster import guest
from vcluster.adapters.ssh import attached_command

pytestmark = pytest.mark.ssh

WATCHER = guest.program("hangup_watch")
LOOP = 'echo $$ >"$1"; trap "" HUP; while :; do sleep 0.1; done'
STUBBORN = 'echo $$ >"$1"; trap "" HUP TERM; while :; do sleep 0.1; done'


def start(argv: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """Start a command as sshd does: its streams are pipes, and it leads a session."""
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)


def wait_for_pid(path: Path) -> int:
    until_s = time.monotonic() + 10
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < until_s, "the command did not start"
        time.sleep(0.02)
    return int(path.read_text())


def group_is_empty(process: subprocess.Popen[bytes]) -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return True
    return False


def wait_until_empty(process: subprocess.Popen[bytes]) -> None:
    until_s = time.monotonic() + 10
    while not group_is_empty(process):
        assert time.monotonic() < until_s, "processes are left"
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["without_input", "with_input"])
@pytest.mark.parametrize("program", [LOOP, STUBBORN], ids=["plain", "stubborn"])
def test_it_ends_with_the_connection(tmp_path: Path, kind: str, program: str) -> None:
    argv = ("sh", "-c", program, "sh", str(tmp_path / "pid"))
    attached = (
        attached_command.without_input(argv) if kind == "without_input" else attached_command.with_input(argv, WATCHER)
    )
    with start(attached) as process:
        assert process.stdin and process.stdout and process.stderr
        wait_for_pid(tmp_path / "pid")
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()
        wait_until_empty(process)


def test_the_end_of_the_input_does_not_end_a_command_with_input() -> None:
    argv = attached_command.with_input(("sh", "-c", "cat; sleep 1; echo done"), WATCHER)
    with start(argv) as process:
        output, errors = process.communicate(b"hello\n", timeout=20)
    assert (process.returncode, output, errors) == (0, b"hello\ndone\n", b"")


@pytest.mark.parametrize("code", [0, 1, 77])
def test_output_and_exit_code_pass_and_nothing_delays_the_end(code: int) -> None:
    command = ("sh", "-c", f"printf 'a  b\\0'; echo problem >&2; exit {code}")
    for argv in (attached_command.without_input(command), attached_command.with_input(command, WATCHER)):
        began_s = time.monotonic()
        with start(argv) as process:
            assert process.stdin and process.stdout and process.stderr
            assert process.stdout.read() == b"a  b\0"
            assert process.stderr.read() == b"problem\n"
            assert process.wait(10) == code
            wait_until_empty(process)
        assert time.monotonic() - began_s < 10


def test_arguments_arrive_unchanged() -> None:
    words = ["", "a b", "$HOME", "'", '"', "*", "\n"]
    command = ("printf", "%s|", *words)
    for argv in (attached_command.without_input(command), attached_command.with_input(command, WATCHER)):
        with start(argv) as process:
            assert process.stdout
            assert process.stdout.read() == "".join(f"{word}|" for word in words).encode()


def test_a_command_without_input_reads_nothing() -> None:
    with start(attached_command.without_input(("cat",))) as process:
        assert process.wait(10) == 0
