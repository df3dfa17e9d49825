"""Commands and files for a machine, over one SSH connection that `connect` opens and `down` ends.

All of it runs in the namespaces of the machine, so it ends with the machine.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from testbeds import namespaces
from testbeds.namespaces import entering
from testbeds.programs import NamespaceError, last_lines

from .cache import KEY
from .records import Machine

USER = "student"
BOOT_TIMEOUT_S = 300
OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "20",
    "IdentitiesOnly": "yes",
    "LogLevel": "ERROR",
    "ServerAliveInterval": "20",
    "ServerAliveCountMax": "6",
    # The other end is our own QEMU, and no other process reaches this network.
    "StrictHostKeyChecking": "no",
    "UserKnownHostsFile": "/dev/null",
}


def ssh(machine: Machine, *options: str) -> list[str]:
    """An ssh command for a machine, up to the name of its server."""
    process = machine.require_process()
    settings = [word for name, value in OPTIONS.items() for word in ("-o", f"{name}={value}")]
    return [
        *entering(process.pid, ["net", "pid"]),
        *("ssh", "-F", "none", "-i", str(KEY), "-p", str(machine.port), *settings),
        *("-o", f"ControlPath={machine.connection}", *options, f"{USER}@127.0.0.1"),
    ]


def connect(machine: Machine, *, timeout_s: float = BOOT_TIMEOUT_S) -> None:
    """Open the connection, unless it is open. A machine that boots gets the time for it."""
    if is_connected(machine):
        return
    deadline = time.monotonic() + timeout_s
    while not try_to_connect(machine):
        machine.require_process()
        if time.monotonic() > deadline:
            reason = last_lines(machine.directory / "ssh.log")
            raise NamespaceError(f"within {timeout_s:.0f} s sshd of {machine.name} did not answer: {reason}")
        time.sleep(1)


def is_connected(machine: Machine) -> bool:
    done = subprocess.run(ssh(machine, "-O", "check"), capture_output=True, check=False)
    return done.returncode == 0


def try_to_connect(machine: Machine) -> bool:
    with (machine.directory / "ssh.log").open("w") as log:
        # without a master that still has the socket, for example of the boot before this one
        machine.connection.unlink(missing_ok=True)
        argv = ssh(machine, "-M", "-N", "-f")
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)
    return done.returncode == 0


def disconnect(machine: Machine) -> None:
    subprocess.run(ssh(machine, "-O", "exit"), capture_output=True, check=False)


def remote(argv: Sequence[str], *, as_root: bool) -> str:
    """A command line for the machine's shell."""
    return shlex.join([*(("sudo", "-H", "--") if as_root else ()), *argv])


def execute(machine: Machine, argv: Sequence[str], *, as_root: bool) -> int:
    """Run a command on our stdin, stdout and stderr, on a terminal if ours are one. Returns its exit code."""
    connect(machine)
    has_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    command = [*ssh(machine, *(["-t"] if has_terminal else [])), remote(argv, as_root=as_root)]
    return namespaces.execute(command, namespaces.clean_environment())


def run_as_root(machine: Machine, script: str, *, timeout_s: float = 60) -> str:
    """Run a shell script in a machine and return its output. On failure, the error holds the end of what it printed."""
    connect(machine)
    command = [*ssh(machine), remote(["sh", "-s"], as_root=True)]
    try:
        done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise NamespaceError(f"within {timeout_s:.0f} s {machine.name} did not end a command") from error
    if done.returncode != 0:
        reason = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise NamespaceError(f"a command in {machine.name} ended with exit code {done.returncode}: {reason}")
    return done.stdout


def put(machine: Machine, source: Path, target: str, *, as_root: bool = False) -> None:
    """Copy a file or the content of a folder to this path in the machine. Missing parents are made."""
    connect(machine)
    if source.is_dir():
        pack = subprocess.Popen(["tar", "-c", "-C", str(source), "."], stdout=subprocess.PIPE)
        with pack:
            unpack(machine, pack.stdout, target, as_root=as_root)
    else:
        mode = f"{source.stat().st_mode & 0o7777:o}"
        with source.open("rb") as content:
            send(machine, content, ["install", "-D", "-m", mode, "/dev/stdin", target], as_root=as_root)


def unpack(machine: Machine, archive: IO[bytes] | None, target: str, *, as_root: bool = False) -> None:
    """Unpack a tar archive into this folder of the machine."""
    script = 'mkdir -p "$1" && exec tar -x --no-same-owner -C "$1"'
    send(machine, archive, ["sh", "-c", script, "sh", target], as_root=as_root)


def send(machine: Machine, content: IO[bytes] | None, argv: Sequence[str], *, as_root: bool = False) -> None:
    """Run a command that reads `content`."""
    command = [*ssh(machine), remote(argv, as_root=as_root)]
    done = subprocess.run(command, stdin=content, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise NamespaceError(f"copying to {machine.name} failed: {done.stderr.decode(errors='replace').strip()}")
