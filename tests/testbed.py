"""The tests' side of scripts/testbed: servers with real links, libvirt and sshd, for as long as a `with` lasts.

    with testbed("red", "blue") as (red, blue):
        blue.lets_in(red)
        red.run(["ssh", blue.name, "true"], timeout_s=10)

They are processes of this machine in namespaces of their own; scripts/testbed says what is theirs and what is shared.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "testbed"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is up. `name` resolves to `address` on every server."""

    name: str
    address: str
    pid: int  # its first process, as the machine numbers it

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        input: str | None = None,  # noqa: A002  as subprocess.run calls it
        check: bool = True,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as root and wait for it. When it takes too long its whole process group is killed."""
        process = self.popen(argv, env=env, cwd=cwd, takes_input=input is not None)
        try:
            stdout, stderr = process.communicate(input, timeout=timeout_s)
        except BaseException:
            kill(process)
            raise
        if check and process.returncode != 0:
            raise AssertionError(f"{self.name}: {' '.join(argv)}: exit code {process.returncode}\n{stdout}{stderr}")
        return subprocess.CompletedProcess(list(argv), process.returncode, stdout, stderr)

    def popen(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        takes_input: bool = False,
    ) -> subprocess.Popen[str]:
        """Start a program. `send_signal` of the result reaches the program itself; end it for certain with `kill`."""
        extra = ["env", *(f"{name}={value}" for name, value in env.items())] if env else []
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), "exec", self.name, "--", *extra, *argv],
            stdin=subprocess.PIPE if takes_input else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            cwd=cwd,
            start_new_session=True,
        )

    def path(self, path: str) -> Path:
        """A file of the server as this process can open it (`/run/x` in there is /proc/PID/root/run/x out here)."""
        return Path(f"/proc/{self.pid}/root", path.lstrip("/"))

    def lets_in(self, client: Server) -> None:
        """Let root of `client` log in here by key, and make this server's host key known there."""
        key = client.path("/root/.ssh/id_ed25519")
        if not key.exists():
            client.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/.ssh/id_ed25519"], timeout_s=10)
        host_key = self.path("/etc/ssh/ssh_host_ed25519_key.pub").read_text()
        _append(self.path("/root/.ssh/authorized_keys"), key.with_suffix(".pub").read_text())
        _append(client.path("/root/.ssh/known_hosts"), f"{self.name},{self.address} {host_key}")


def _append(path: Path, line: str) -> None:
    if not path.exists() or line not in path.read_text():
        with path.open("a") as file:
            file.write(line)


def kill(process: subprocess.Popen[str]) -> None:
    """End what `Server.popen` started, with everything in its process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def manage(*arguments: str) -> str:
    """Run scripts/testbed itself and return what it printed."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode != 0:
        raise AssertionError(f"testbed {' '.join(arguments)}: {done.stderr or done.stdout}")
    return done.stdout


@contextlib.contextmanager
def testbed(*names: str, has_uplink: bool = False) -> Iterator[tuple[Server, ...]]:
    """Servers of these names, in this order, each name made unique by our process id.

    First it removes what runs that were killed left behind. The servers end with this process, even when it is killed.
    """
    manage("down", "--stale")
    unique = [f"{name}-{os.getpid()}" for name in names]
    options = ["--owner", str(os.getpid()), *(["--uplink"] if has_uplink else [])]
    try:
        manage("up", *options, *unique)
        yield tuple(map(find, unique))
    finally:
        manage("down", *unique)


testbed.__test__ = False  # type: ignore[attr-defined]  # its name begins like a test's


def find(name: str) -> Server:
    """The server of this name, which is up."""
    row = next(row for row in json.loads(manage("list", "--json")) if row["name"] == name)
    return Server(row["name"], row["address"], row["pid"])
