"""Servers of the testbed with vcluster on them, clusters reached by plain ssh, what a cluster could leave behind."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from tests.testbed import STATE, Server

VCLUSTER = [sys.executable, "-c", "from vcluster.cli.main import run; run()"]
# Nothing goes on behind a test's back, unless it says so.
ENVIRONMENT = {"VCLUSTER_NO_WARM": "1"}
SNAPSHOTS = "/var/lib/libvirt/images/vcluster/snapshots"


@dataclass(frozen=True)
class Host:
    """A server with vcluster on it."""

    server: Server

    def vcluster(
        self, *arguments: str, timeout_s: float = 60, check: bool = True, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run vcluster there."""
        return self.server.run([*VCLUSTER, *arguments], timeout_s=timeout_s, check=check, env=ENVIRONMENT | env)

    def popen(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """Start vcluster there."""
        return self.server.popen([*VCLUSTER, *arguments], env=ENVIRONMENT | env)

    def json(self, *arguments: str, timeout_s: float = 60) -> Any:
        """What vcluster answers as JSON."""
        return json.loads(self.vcluster(*arguments, "-o", "json", timeout_s=timeout_s).stdout)

    def sh(self, line: str, *, timeout_s: float = 30, check: bool = True) -> str:
        """What a shell line prints on the server."""
        return self.server.run(["sh", "-c", line], timeout_s=timeout_s, check=check).stdout

    def wait_for(self, line: str, timeout_s: float = 20) -> None:
        """Run a shell line there again and again until it prints something."""
        deadline = time.monotonic() + timeout_s
        while not self.sh(f"{line} 2>/dev/null || true").strip():
            assert time.monotonic() < deadline, f"{line} never printed anything"
            time.sleep(0.1)

    def snapshots(self) -> list[str]:
        """The memories that the server keeps, by their keys, and what there is of unfinished ones."""
        return self.sh(f"ls -A {SNAPSHOTS} 2>/dev/null || true").split()

    def stages(self, cluster: str, node: str) -> list[str]:
        """The stages that a node went through when its cluster was made."""
        timed = self.json("timing", "--name", cluster)["stages"]
        return [one["stage"] for one in timed if one["node"] == node]

    def heard(self, words: str) -> int:
        """How many lines of what the server's sshd (and libvirtd) has said have these words in them."""
        log = STATE / "servers" / self.server.name / "log"
        return sum(words in line for line in log.read_text(errors="replace").splitlines())


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up, reached by plain ssh, not by the product."""

    host: Host
    name: str
    names: tuple[str, ...]
    config: str
    user: str = "mpiuser"

    def ssh(self, node: str, line: str, *, user: str = "", timeout_s: float = 60, check: bool = True) -> str:
        """What a shell line prints on a node."""
        argv = ["ssh", "-F", self.config, "-o", "BatchMode=yes", "-l", user or self.user, node, line]
        return self.host.server.run(argv, timeout_s=timeout_s, check=check).stdout


def survey(host: Host) -> dict[str, list[str]]:
    """Everything on the server that a cluster could leave behind."""
    files = "/var/lib/vcluster /var/lib/libvirt /var/log/libvirt/qemu /etc/libvirt /run/libvirt"
    lists = {
        "domains": "virsh -q list --all --name",
        "networks": "virsh -q net-list --all --name",
        "pools": "virsh -q pool-list --all --name",
        "links": "ip -o link | cut -d: -f2 | cut -d@ -f1",
        # The verdict on KVM and libvirt's knowledge of QEMU are the machine's, not a cluster's; whole memories stay.
        "files": f"find {files} -not -path '*/vcluster/images/*' -not -name accel.json -not -path '*/capabilities/*'"
        f" -not -path {SNAPSHOTS} -not -path '{SNAPSHOTS}/[!.]*'",
        "mounts": "cut -d' ' -f2 /proc/self/mounts",
        "processes": "ps -eo args= | grep -E '[q]emu-system|[d]nsmasq|vcluster[.]cli|[v]cluster-[0-9a-f]{16}' || true",
        "logins": "cat /run/home/*/.ssh/authorized_keys /root/.ssh/authorized_keys 2>/dev/null || true",
        "rules": "iptables-save | grep -E 'vn-|vc-|172[.]2[89]' || true; nft list ruleset | grep -E 'vn-|vc-' || true",
    }
    said = host.sh("; ".join(f"echo '# {name}'; {line}" for name, line in lists.items()))
    parts = dict(part.split("\n", 1) for part in said.split("# ")[1:])
    return {name: sorted(set(parts[name].split("\n")) - {""}) for name in lists}


def left_behind(now: dict[str, list[str]], before: dict[str, list[str]]) -> dict[str, list[str]]:
    """What is on a server that was not there before. A reboot takes things away; that is not a cluster's doing."""
    return {kind: extra for kind, found in now.items() if (extra := sorted(set(found) - set(before[kind])))}
