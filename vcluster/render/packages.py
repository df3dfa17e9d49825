"""The packages that an ordinary cloud image lacks: their installation at the first boot, and the proof of it. Pure."""

from __future__ import annotations

from vcluster.model.plan import Node, Plan
from vcluster.render.actions import Action

COMPLETE_FEATURES = frozenset({"mpich", "nfs", "ready"})
# Debian and Ubuntu have the same names.
PACKAGES = (
    "mpich", "libmpich-dev", "gcc", "make", "nfs-kernel-server", "nfs-common", "nftables", "qemu-guest-agent",
)  # fmt: skip
COMMANDS = ("mpiexec.hydra", "mpicc", "gcc", "exportfs", "mount.nfs4", "nft")
HEAD_PACKAGES, HEAD_COMMANDS = ("dnsmasq-base", "clustershell", "pdsh"), ("dnsmasq", "clush", "pdsh")
LOG = "/var/log/vcluster-packages.log"
SSH_SETTINGS = "/etc/ssh/ssh_config.d/10-vcluster.conf"  # proves that the node was configured before
LOCK_TIMEOUT_S = 300  # the image's own upgrade may hold dpkg's lock at the first boot


def is_complete(plan: Plan) -> bool:
    """Whether the image has everything that nodes need."""
    return set(plan.image.features) >= COMPLETE_FEATURES


def install_line(node: Node) -> str:
    """The shell line that installs what the image lacks. The output is also in LOG."""
    packages = " ".join((*PACKAGES, *HEAD_PACKAGES) if node.is_head else PACKAGES)
    has_all = f"(for p in {' '.join(_commands(node))}; do command -v $p || exit; done) >/dev/null"
    options = f"-o DPkg::Lock::Timeout={LOCK_TIMEOUT_S} -y --no-install-recommends"
    install = f"apt-get update && apt-get install {options} {packages}"
    if not node.management:
        # Its gateway is the head, which first boots and installs its own packages.
        install = f"for i in $(seq 60); do ({install}) && break; sleep 10; done"
    return f"{has_all} || {{ {install}; }} 2>&1 | tee {LOG}"


def program_actions(plan: Plan, node: Node) -> list[Action]:
    """The action that names missing programs, with the reason that apt-get printed.

    It is for nodes that were never configured: later their users may remove programs.
    """
    if is_complete(plan):
        return []
    return [{"do": "programs", "names": [*_commands(node)], "log": LOG, "unless": SSH_SETTINGS}]


def _commands(node: Node) -> tuple[str, ...]:
    return (*COMMANDS, *HEAD_COMMANDS) if node.is_head else COMMANDS
