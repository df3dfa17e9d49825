"""What the stages put on a node: files and actions, as data that the guest program (guest/apply.py) makes true. Pure.

Every action is a dictionary whose `do` names it; that program's docstring lists them.
"""

from __future__ import annotations

from typing import Any

from vcluster.keys import Keys
from vcluster.model import Node, Plan

Action = dict[str, Any]

USER_UID = 2000  # the same on every node, so that NFS sees one owner; above what distributions hand out first
# The first NFS mount spends most of its time on loading these.
MPI_END = "/usr/lib/vcluster/mpi-end.so"
PROFILE_MODULES = "sunrpc\nnfsv4\nnfsd\n"
# One login costs half as much without the post-quantum key exchange that OpenSSH prefers; these nodes share a host, and
# their keys live as long as the cluster.
_FAST_SSH = "KexAlgorithms curve25519-sha256,curve25519-sha256@libssh.org\nCiphers aes128-ctr,aes128-gcm@openssh.com\n"


def home(plan: Plan) -> str:
    """The home of the cluster's user."""
    return f"/home/{plan.user}"


def shared_folder(plan: Plan) -> str:
    """The folder all nodes share: the head's, mounted on the others."""
    return f"{home(plan)}/cloud"


def hostfile_path(plan: Plan) -> str:
    """The MPICH hostfile."""
    return f"{home(plan)}/hostfile"


def sshd_settings() -> str:
    """sshd: keys only, no reverse look-ups. SetEnv needs no PAM and reaches commands as well as logins.

    All MPI traffic leaves by lab0: HYDRA_IFACE is for MPICH's process manager; UCX_NET_DEVICES for UCX, which Debian's
    MPICH uses and which would take every card at once; FI_TCP_IFACE for libfabric (fi_tcp(7)), which others use.
    HYDRA_HOST_FILE spares `-f hostfile`. Without LD_PRELOAD (images/guest/mpi-end.c) MPI programs do not end.
    """
    settings = {
        "HYDRA_HOST_FILE": "/home/mpiuser/hostfile",
        "HYDRA_IFACE": "lab0",
        "UCX_NET_DEVICES": "lab0",
        "FI_TCP_IFACE": "lab0",
        "LD_PRELOAD": MPI_END,
    }
    environment = " ".join(f"{name}={value}" for name, value in settings.items())
    return f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nUseDNS no\nSetEnv {environment}\n"


def etc_hosts(plan: Plan) -> str:
    """Every node's cluster address; never a node's own name on 127.0.1.1, or MPI would bind to it."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{node.address} {node.name}" for node in plan.nodes]
    return "\n".join(lines) + "\n"


def known_hosts(plan: Plan, keys: Keys) -> str:
    """The host key of every node, by name and by cluster address."""
    return "".join(
        f"{node.name},{node.address} {' '.join(keys.hosts[node.name].public.split()[:2])}\n" for node in plan.nodes
    )


def hostfile(plan: Plan) -> str:
    """Every node with as many processes as it has CPUs."""
    return "".join(f"{node.name}:{plan.vcpus}\n" for node in plan.nodes)


def exports(plan: Plan) -> str:
    """The shared folder, for the cluster's subnet alone, root squashed."""
    return f"{shared_folder(plan)} {plan.subnet}(rw,sync,root_squash,no_subtree_check)\n"


def nfs_server_settings(plan: Plan) -> str:
    """The NFS server: on the cluster network only, version 4 only, without the long grace period at start."""
    return f"[nfsd]\nhost={plan.head.address}\nvers3=n\nthreads=8\ngrace-time=10\nlease-time=10\n"


def mount_line(plan: Plan) -> str:
    """The worker's line of fstab: mounted when first used after a reboot, so that no boot waits for the head."""
    options = f"{MOUNT_OPTIONS},noauto,x-systemd.automount,x-systemd.mount-timeout=30"
    return f"{plan.head.name}:{shared_folder(plan)} {shared_folder(plan)} nfs4 {options} 0 0\n"


MOUNT_OPTIONS = "rw,hard,proto=tcp,vers=4.2,_netdev"


def resolver(plan: Plan, node: Node) -> str:
    """The management network's gateway answers DNS."""
    return f"nameserver {plan.network_of(node).gateway}\n"


def ssh_actions(plan: Plan, node: Node, keys: Keys) -> list[Action]:
    """The user, its keys to and from every node, and the names of all nodes."""
    ssh = f"{home(plan)}/.ssh"
    authorized = f"{keys.user.public}\n{keys.admin.public}\n"
    return [
        _file("/etc/hosts", etc_hosts(plan)),
        _file("/etc/ssh/ssh_known_hosts", known_hosts(plan, keys)),
        _file("/etc/ssh/ssh_config.d/10-vcluster.conf", f"StrictHostKeyChecking yes\n{_FAST_SSH}"),
        {"do": "user", "name": plan.user, "uid": USER_UID, "home": home(plan)},
        _directory(ssh, owner=plan.user, mode=0o700),
        _file(f"{ssh}/id_ed25519", keys.user.private, owner=plan.user, mode=0o600),
        _file(f"{ssh}/id_ed25519.pub", keys.user.public + "\n", owner=plan.user),
        _file(f"{ssh}/authorized_keys", authorized, owner=plan.user, mode=0o600),
        _directory(shared_folder(plan), owner=plan.user, mode=0o755),
        {"do": "resolver", "text": resolver(plan, node)},
    ]


def nfs_actions(plan: Plan, node: Node) -> list[Action]:
    """The head exports the shared folder, the others mount it."""
    if not node.is_head:
        mount = {"source": f"{plan.head.name}:{shared_folder(plan)}", "target": shared_folder(plan), "type": "nfs4"}
        return [
            {"do": "line", "path": "/etc/fstab", "key": shared_folder(plan), "text": mount_line(plan)},
            {"do": "mount", **mount, "options": MOUNT_OPTIONS},
        ]
    settings, table = "/etc/nfs.conf.d/vcluster.conf", "/etc/exports.d/vcluster.exports"
    return [
        _file(settings, nfs_server_settings(plan)),
        _file(table, exports(plan)),
        {"do": "service", "unit": "nfs-server.service", "restart_if": [settings]},
        {"do": "run", "argv": ["exportfs", "-ra"], "if_changed": [table]},
    ]


def mpi_actions(plan: Plan) -> list[Action]:
    """The hostfile, on every node, so that a run may start anywhere."""
    return [_file(hostfile_path(plan), hostfile(plan), owner=plan.user)]


def _file(path: str, text: str, *, owner: str = "root", mode: int = 0o644) -> Action:
    return {"do": "file", "path": path, "text": text, "owner": owner, "mode": mode}


def _directory(path: str, *, owner: str, mode: int) -> Action:
    return {"do": "directory", "path": path, "owner": owner, "mode": mode}
