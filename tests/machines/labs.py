"""vcluster on a whole machine: commands, how its nodes started, and everything that a cluster could leave behind."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.whole_machines import WholeMachine
from vcluster.model.spec import DEFAULT_IMAGE

STORAGE = "/var/lib/libvirt/images/vcluster"
SNAPSHOTS = f"{STORAGE}/snapshots"
PROFILES = "/etc/apparmor.d/libvirt"
NO_WARM = "VCLUSTER_NO_WARM=1"  # no command makes a snapshot in the background
COMMAND_S = 120  # under emulation, Python alone takes seconds to start
WARM_S = 400
NODES_S = 900  # for a command that waits for nodes

# What a cluster could leave behind, by kind. libvirt keeps its own folders. Images and complete snapshots stay.
SURVEY = {
    "domains": "virsh -q list --all --name",
    "networks": "virsh -q net-list --all --name",
    "pools": "virsh -q pool-list --all --name",
    "links": "ip -o link | cut -d: -f2 | cut -d@ -f1",
    "files": f"find {STORAGE}/clusters {SNAPSHOTS} /var/lib/vcluster/clusters /etc/libvirt/qemu /var/log/libvirt/qemu "
    f"/run/libvirt/qemu -name '*.xml' -o -path '{STORAGE}/clusters/*' -o -path '{SNAPSHOTS}/.*' "
    "-o -path '/var/lib/vcluster/clusters/*' -o -name '*.log' 2>/dev/null || true",
    "profiles": f"ls {PROFILES}; aa-status | grep -E 'libvirt-[0-9a-f]' || true",
    "processes": "ps -eo comm= | grep -E 'qemu-system|dnsmasq|vcluster' || true",
    "rules": "nft list ruleset | grep -E 'vn-|vc-|172[.]2[89]' || true",
}


@dataclass(frozen=True)
class Lab:
    """A machine with vcluster."""

    machine: WholeMachine

    def root(self, line: str, timeout_s: float = COMMAND_S) -> str:
        """The output of a shell line as root."""
        return self.machine.run(["sh", "-c", line], as_root=True, timeout_s=timeout_s).stdout

    def student(self, line: str, timeout_s: float = COMMAND_S) -> str:
        """The output of a shell line as the user `student`, who types sudo."""
        return self.machine.run(["sh", "-c", line], timeout_s=timeout_s).stdout

    def failing(self, line: str, exit_code: int, timeout_s: float = COMMAND_S, *, as_root: bool = True) -> str:
        """What a command prints on stderr when it ends with this exit code."""
        done = self.machine.run(["sh", "-c", line], as_root=as_root, timeout_s=timeout_s, check=False)
        assert done.returncode == exit_code, f"{line}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stderr

    def vcluster(self, arguments: str, timeout_s: float = COMMAND_S) -> str:
        """What vcluster prints on stdout, as root."""
        return self.root(f"{NO_WARM} vcluster {arguments}", timeout_s)

    def wait(self, arguments: str) -> str:
        """The same for a command that waits for nodes."""
        return self.vcluster(f"{arguments} --timeout {NODES_S}", NODES_S + 60)

    def json(self, arguments: str, timeout_s: float = COMMAND_S, *, exit_code: int = 0) -> Any:
        """The result of a command that ends with this exit code."""
        return json.loads(self.vcluster(f"{arguments} -o json; [ $? = {exit_code} ]", timeout_s))

    def warm(self) -> None:
        """Make the snapshot that nodes are cloned from, unless the machine has it.

        A boot under an emulated KVM can hang. No test is about this boot, so it has a second attempt.
        """
        line = f"{NO_WARM} vcluster image warm --timeout {WARM_S}"
        self.root(f"{line} || {line}", 2 * WARM_S + 60)

    def starts(self) -> tuple[int, int]:
        """How the nodes of the cluster started: the number of clones, and of boots."""
        stages = Counter(row["stage"] for row in self.json("timing")["stages"])
        return stages["clone"], stages["boot"]

    def state(self) -> str:
        return str(self.json("status")["state"])

    def denied(self) -> str:
        """What AppArmor has denied to a QEMU of libvirt since the last boot."""
        return self.root("dmesg | grep 'apparmor=\"DENIED\"' | grep libvirt- || true")

    def survey(self) -> dict[str, list[str]]:
        """Everything on the machine that a cluster could leave behind, by kind."""
        printed = self.root("; ".join(f"echo '# {kind}'; {command}" for kind, command in SURVEY.items()))
        parts = dict(part.split("\n", 1) for part in printed.split("# ")[1:])
        return {kind: sorted(set(parts[kind].split("\n")) - {""}) for kind in SURVEY}

    def clear(self, name: str = "lab") -> None:
        """Clear the cluster. vcluster finds nothing that is left."""
        printed = self.vcluster(f"clear {name} -y --verify", 300).splitlines()
        assert printed == [f"{name}: cleared", "nothing left"]


def put_image(machine: WholeMachine) -> None:
    """Bring the default image to a machine, as if it were built there: that takes a quarter hour."""
    names = Path(STORAGE, "images/names")
    image = (names / DEFAULT_IMAGE).resolve()
    assert image.is_dir(), "the image is not built here: sudo vcluster image build"
    machine.put(image, str(image), as_root=True)
    line = f"mkdir -p {names} && ln -s ../{image.name} {names}/{DEFAULT_IMAGE}"
    machine.run(["sh", "-c", line], as_root=True)
