"""Servers of the testbed with vcluster, clusters over plain ssh, and everything that a cluster could leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.results import is_json_requested, validated
from tests.testbed import STATE, Server, testbed

RUN = "from vcluster.cli.main import run; run()"
VCLUSTER = [sys.executable, "-c", RUN]
# No command makes a snapshot in the background, unless a test asks for it. The agents of other servers are packed from
# this checkout, also if another one is installed in the virtual environment.
ENVIRONMENT = {"VCLUSTER_NO_WARM": "1", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
READY = "vcluster: ready"  # what a node prints at the end of its boot
READ_S = 300.0  # for the output of a command; longer than each of its waits in these tests
SNAPSHOTS = "/var/lib/libvirt/images/vcluster/snapshots"


def vcluster_with(**values: float) -> tuple[str, ...]:
    """vcluster with other values of some constants, such as MODULE.NAME of the package. Each constant must exist."""
    lines = []
    for path, value in values.items():
        module, _, name = path.rpartition(".")
        lines.append(f"import vcluster.{module} as module; module.{name}; module.{name} = {value!r}")
    return sys.executable, "-c", "\n".join([*lines, RUN])


@dataclass(frozen=True)
class Host:
    """A server with vcluster on it, or with another program that takes its arguments."""

    server: Server
    program: tuple[str, ...] = tuple(VCLUSTER)

    def vcluster(
        self, *arguments: str, timeout_s: float = 300, check: bool = True, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run vcluster there. A result in JSON must fit the schema of its command."""
        done = self.server.run([*self.program, *arguments], timeout_s=timeout_s, check=check, env=ENVIRONMENT | env)
        if is_json_requested(arguments) and done.stdout:
            validated(arguments, json.loads(done.stdout))
        return done

    def popen(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """Start vcluster there."""
        return self.server.popen([*self.program, *arguments], env=ENVIRONMENT | env)

    def verify(self, cluster: str, **env: str) -> None:
        """Every promise about a cluster that is up must be kept, on all its servers."""
        done = self.vcluster("verify", cluster, check=False, **env)
        assert done.returncode == 0, done.stdout + done.stderr

    def kill_commands(self, cluster: str) -> None:
        """Kill the commands on a cluster. Its dnsmasq and QEMU, which libvirt owns, have its name too, and live on."""
        self.sh(f"pkill -KILL -f '[v]cluster[.]cli.*{cluster}' || true")

    def json(self, *arguments: str, timeout_s: float = 300) -> Any:
        """The JSON output of vcluster."""
        return json.loads(self.vcluster(*arguments, "-o", "json", timeout_s=timeout_s).stdout)

    def sh(self, line: str, *, timeout_s: float = 120, check: bool = True) -> str:
        """The output of a shell line on the server."""
        return self.server.run(["sh", "-c", line], timeout_s=timeout_s, check=check).stdout

    def wait_for(self, line: str, timeout_s: float = 120) -> None:
        """Wait until a shell line prints something there."""
        waiting = f'until [ -n "$({{ {line}; }} 2>/dev/null)" ]; do sleep 0.1; done'
        self.server.run(["timeout", str(timeout_s), "sh", "-c", waiting], timeout_s=timeout_s + 5)

    def snapshots(self) -> list[str]:
        """The keys of the server's snapshots, and the names of unfinished ones."""
        return self.sh(f"ls -A {SNAPSHOTS} 2>/dev/null || true").split()

    def stages(self, cluster: str, node: str) -> list[str]:
        """The stages of a node when its cluster was made."""
        rows = self.json("timing", "--name", cluster)["stages"]
        return [row["stage"] for row in rows if row["node"] == node]

    def lines_in_log(self, text: str) -> int:
        """The number of lines with this text in the log of the server's sshd and libvirtd."""
        log = STATE / "servers" / self.server.name / "log"
        return sum(text in line for line in log.read_text(errors="replace").splitlines())

    def initialize_libvirt(self) -> None:
        """Make the chains and folders that libvirt makes for the first domain and keeps. They belong to no cluster."""
        made = "/etc/libvirt/qemu/networks /etc/libvirt/storage /var/lib/libvirt/dnsmasq /var/lib/libvirt/qemu"
        for timeout_s in (3, 10, 30):  # a busy machine needs longer to come as far as the first domain
            argv = ("local", "create", "-n", "1", "--boot", "cold", "--timeout", str(timeout_s))
            self.vcluster(*argv, timeout_s=60 + timeout_s, check=False)
            self.vcluster("clear", "--all", "-y")
            if "No such file" not in self.sh(f"ls -d {made} 2>&1 || true"):
                return
        raise AssertionError(f"libvirt of {self.server.name} did not make its folders")


@contextmanager
def killed_after(process: subprocess.Popen[str], timeout_s: float) -> Iterator[None]:
    """Kill a process of `Server.popen`, with its process group, if the block still reads its output by then."""

    def kill_group() -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(timeout_s, kill_group)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def read_until(process: subprocess.Popen[str], *texts: str, timeout_s: float = READ_S) -> str:
    """The progress of a command until lines with these texts have appeared, in any order."""
    assert process.stderr
    lines, awaited = "", set(texts)
    with killed_after(process, timeout_s):
        for line in process.stderr:
            lines += line
            awaited = {text for text in awaited if text not in line}
            if not awaited:
                return lines
    raise AssertionError(f"no line with {awaited} in:\n{lines}")


def rest_of(process: subprocess.Popen[str], *, timeout_s: float = READ_S) -> str:
    """The rest of a command's progress, of which a part may be in the buffer of the stream."""
    assert process.stderr
    with killed_after(process, timeout_s), process.stderr as stream:
        errors = stream.read()
    process.wait(10)
    assert process.returncode != -signal.SIGKILL, (
        f"the command was killed, for example after {timeout_s:.0f} s:\n{errors}"
    )
    return errors


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up. Tests reach its nodes by plain ssh, not by vcluster."""

    host: Host
    name: str
    names: tuple[str, ...]
    config: str
    user: str = "mpiuser"

    def ssh(self, node: str, line: str, *, user: str = "", timeout_s: float = 60, check: bool = True) -> str:
        """The output of a shell line on a node."""
        argv = ["ssh", "-F", self.config, "-o", "BatchMode=yes", "-l", user or self.user, node, line]
        return self.host.server.run(argv, timeout_s=timeout_s, check=check).stdout

    def boots(self, node: str) -> int:
        """The number of boots of a node that have ended: each prints a line on the console. A clone prints none."""
        return int(self.host.sh(f"grep -c '{READY}' {self._console(node)} || true"))

    def wait_for_boot(self, node: str, before: int, timeout_s: float = 300) -> None:
        """Wait until a node has booted once more than `before`."""
        self.host.wait_for(f"[ $(grep -c '{READY}' {self._console(node)}) -gt {before} ] && echo yes", timeout_s)

    def _console(self, node: str) -> str:
        return f"/var/lib/libvirt/images/vcluster/clusters/{self.name}/{node}.console.log"


@contextmanager
def booting_servers(*names: str) -> Iterator[tuple[Server, ...]]:
    """Servers of the testbed for tests that boot nodes. Without root, the tests are skipped."""
    if os.geteuid() != 0:
        pytest.skip("booted tests need root, to make network namespaces")
    with testbed(*names) as servers:
        yield servers


Survey = dict[str, list[str]]


def survey(host: Host) -> Survey:
    """Everything on the server that a cluster could leave behind, by kind."""
    files = "/var/lib/vcluster /var/lib/libvirt /var/log/libvirt/qemu /etc/libvirt /run/libvirt"
    commands = {
        "domains": "virsh -q list --all --name",
        "networks": "virsh -q net-list --all --name",
        "pools": "virsh -q pool-list --all --name",
        "links": "ip -o link | cut -d: -f2 | cut -d@ -f1",
        # Owner id, log of commands, verdict on KVM and libvirt's knowledge of QEMU belong to the machine.
        # Complete snapshots stay.
        "files": f"find {files} -not -path '*/vcluster/images/*' -not -name accel.json -not -path '*/capabilities/*'"
        f" -not -path /var/lib/vcluster/owner -not -path '/var/lib/vcluster/commands.*'"
        f" -not -path {SNAPSHOTS} -not -path '{SNAPSHOTS}/[!.]*'",
        "mounts": "cut -d' ' -f2 /proc/self/mounts",
        "processes": "ps -eo args= | grep -E '[q]emu-system|[d]nsmasq|vcluster[.]cli|[v]cluster-[0-9a-f]{16}' || true",
        "logins": "cat /run/home/*/.ssh/authorized_keys /root/.ssh/authorized_keys 2>/dev/null || true",
        "rules": "iptables-save | grep -E 'vn-|vc-|172[.]2[89]' || true; nft list ruleset | grep -E 'vn-|vc-' || true",
    }
    printed = host.sh("; ".join(f"echo '# {kind}'; {command}" for kind, command in commands.items()))
    parts = dict(part.split("\n", 1) for part in printed.split("# ")[1:])
    return {kind: sorted(set(parts[kind].split("\n")) - {""}) for kind in commands}


def changes(now: Survey, before: Survey) -> Survey:
    """The things on a server that are new or gone."""
    return {kind: changed for kind, found in now.items() if (changed := sorted(set(found) ^ set(before[kind])))}


def left_behind(now: Survey, before: Survey) -> Survey:
    """The things on a server that were not there before. A reboot removes things; a cluster did not remove those."""
    return {kind: extra for kind, found in now.items() if (extra := sorted(set(found) - set(before[kind])))}
