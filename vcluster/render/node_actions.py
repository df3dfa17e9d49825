"""What the stages put on a node: files and actions, as data for the guest program (guest/apply.py). Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vcluster.model import naming
from vcluster.model.keys import Keys
from vcluster.model.plan import Node, Plan
from vcluster.model.spec import DEFAULT_USER
from vcluster.render import gateway_actions
from vcluster.render.actions import UNITS, Action, directory, file, unit_text
from vcluster.render.domain_xml import DATA_SERIAL

# The same on every node, so that NFS sees one owner; above what distributions hand out first. Our own image has the
# default user already.
USER_UID, OTHER_USER_UID = 2000, 2001
SSHD_SETTINGS = "/etc/ssh/sshd_config.d/10-vcluster.conf"
WATCHER, WATCHER_UNIT = "/usr/lib/vcluster/stores.py", "vcluster-stores.service"
EXPORTS = "/exports"  # where a node that serves a disk has it mounted
MPI_END = "/usr/lib/vcluster/mpi-end.so"
# The first NFS mount spends most of its time on loading these.
PROFILE_MODULES = "sunrpc\nnfsv4\nnfsd\n"
# One login costs half as much without the post-quantum key exchange that OpenSSH prefers; these nodes share a host, and
# their keys live as long as the cluster.
_FAST_SSH = "KexAlgorithms curve25519-sha256,curve25519-sha256@libssh.org\nCiphers aes128-ctr,aes128-gcm@openssh.com\n"


@dataclass(frozen=True, slots=True)
class Share:
    """A folder that a node serves and where all nodes find it."""

    node: str
    source: str
    target: str

    @property
    def is_in_place(self) -> bool:
        """Whether the node that serves it has it there by itself."""
        return self.source == self.target


def home(plan: Plan) -> str:
    """The home of the cluster's user."""
    return f"/home/{plan.user}"


def cloud(plan: Plan) -> str:
    """The folder below which all that is shared is found."""
    return f"{home(plan)}/cloud"


def shares(plan: Plan) -> tuple[Share, ...]:
    """What is shared, in order: the disks of the nodes that serve one, or else a folder of the head's."""
    if not plan.stores:
        return (Share(plan.head.name, cloud(plan), cloud(plan)),)
    return tuple(Share(node, EXPORTS, f"{cloud(plan)}/{number}") for number, node in enumerate(plan.stores))


def shared_folder(plan: Plan) -> str:
    """The first folder that all nodes share."""
    return shares(plan)[0].target


def hostfile_path(plan: Plan) -> str:
    """The MPICH hostfile."""
    return f"{home(plan)}/hostfile"


def mpi_environment(plan: Plan) -> dict[str, str]:
    """What MPI programs and their launcher must know.

    All MPI traffic leaves by lab0: HYDRA_IFACE is for MPICH's process manager; UCX_NET_DEVICES for UCX, which Debian's
    MPICH uses and which would take every card at once; FI_TCP_IFACE for libfabric (fi_tcp(7)), which others use.
    HYDRA_HOST_FILE spares `-f hostfile`. Without LD_PRELOAD (images/guest/mpi-end.c) MPI programs do not end. The ports
    are Hydra's, UCX's and, for an MPICH of the older device, its own.
    """
    settings = {
        "HYDRA_HOST_FILE": hostfile_path(plan),
        "HYDRA_IFACE": "lab0",
        "UCX_NET_DEVICES": "lab0",
        "FI_TCP_IFACE": "lab0",
        "LD_PRELOAD": MPI_END,
    }
    if plan.mpi_ports:
        ports = f"{plan.mpi_ports.first}:{plan.mpi_ports.last}"
        settings |= {"MPIEXEC_PORT_RANGE": ports, "MPICH_PORT_RANGE": ports}
        settings |= {"UCX_TCP_PORT_RANGE": ports.replace(":", "-")}
    return settings


def sshd_settings(plan: Plan) -> str:
    """sshd: keys only, no reverse look-ups. SetEnv needs no PAM and reaches commands as well as logins."""
    environment = " ".join(f"{name}={value}" for name, value in mpi_environment(plan).items())
    return f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nUseDNS no\nSetEnv {environment}\n"


def etc_hosts(plan: Plan) -> str:
    """Every node's cluster address; never a node's own name on 127.0.1.1, or MPI would bind to it."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{node.address} {node.name}" for node in plan.nodes]
    return "\n".join(lines) + "\n"


def known_hosts(plan: Plan, node: Node, keys: Keys) -> str:
    """The host key of every node, by each name and address it can be called from `node`."""

    def line(names: Iterable[object], owner: Node) -> str:
        return f"{','.join(map(str, names))} {' '.join(keys.hosts[owner.name].public.split()[:2])}\n"

    calls = [
        (one, [one.name, one.address, *([one.management.address] if one.management else [])]) for one in plan.nodes
    ]
    return "".join(line(names, one) for one, names in calls) + line(["localhost", "127.0.0.1", "::1"], node)


def hostfile(plan: Plan) -> str:
    """Every node with as many processes as it has CPUs."""
    return "".join(f"{node.name}:{plan.vcpus}\n" for node in plan.nodes)


def groups(plan: Plan) -> dict[str, tuple[str, ...]]:
    """The groups of nodes that parallel shells know, by name."""
    named = {
        "all": tuple(node.name for node in plan.nodes),
        "head": (plan.head.name,),
        "workers": tuple(node.name for node in plan.workers),
        "storage": plan.stores,
    }
    return {name: nodes for name, nodes in named.items() if nodes}


def clustershell_groups(plan: Plan) -> str:
    """ClusterShell's groups, of which `all` is what `clush -a` means (groups.conf(5), file-based groups)."""
    return "".join(f"{name}: {naming.folded(nodes)}\n" for name, nodes in groups(plan).items())


def genders(plan: Plan) -> str:
    """The same for pdsh, by its genders module: `pdsh -a`, `pdsh -g workers` (genders(3))."""
    return "".join(
        f"{node.name} {','.join(name for name, nodes in groups(plan).items() if node.name in nodes)}\n"
        for node in plan.nodes
    )


def sudoers(plan: Plan) -> str:
    """The commands the cluster's user may run as root without a password (sudoers(5))."""
    return f"{plan.user} ALL=(root) NOPASSWD: {', '.join(plan.sudo_commands)}\n"


def exports(plan: Plan, share: Share) -> str:
    """A shared folder, for the cluster's subnet alone, root squashed."""
    return f"{share.source} {plan.subnet}(rw,sync,root_squash,no_subtree_check)\n"


NFS_SETTINGS = "/etc/nfs.conf.d/vcluster.conf"


def nfs_server_settings() -> str:
    """The NFS server: version 4 only, without the long grace period at start.

    The same for all nodes, so one made from a kept memory has it already. Whom it serves is for the exports to say.
    """
    return "[nfsd]\nvers3=n\nthreads=8\ngrace-time=10\nlease-time=10\n"


def template_actions() -> list[Action]:
    """What is ready in a node whose memory is kept: an NFS server that serves nothing, and is gone at the next boot."""
    return [
        file(NFS_SETTINGS, nfs_server_settings()),
        {"do": "run", "argv": ["systemctl", "start", "nfs-server.service"], "if_changed": [NFS_SETTINGS]},
    ]


MOUNT_OPTIONS = "rw,hard,proto=tcp,vers=4.2,_netdev"
AUTOMOUNT = f"{MOUNT_OPTIONS},noauto,x-systemd.automount"


def mount_line(plan: Plan, node: Node, share: Share) -> str:
    """A line of fstab: mounted when first used after a reboot, so that no boot waits for another node."""
    if share.node == node.name:
        return f"{share.source} {share.target} none bind,nofail,x-systemd.requires-mounts-for={share.source} 0 0\n"
    if plan.stores:
        # A server that is down must not hang the others: see guest/stores.py too.
        options = f"{AUTOMOUNT},x-systemd.mount-timeout=15,x-systemd.idle-timeout=60"
    else:
        options = f"{AUTOMOUNT},x-systemd.mount-timeout=30"
    return f"{share.node}:{share.source} {share.target} nfs4 {options} 0 0\n"


def automount_unit(target: str) -> str:
    """systemd's name of the automount at a path (systemd-escape(1), for the characters our paths have)."""
    return target.strip("/").replace("-", "\\x2d").replace("/", "-") + ".automount"


def resolver(plan: Plan, node: Node) -> str:
    """The management network's gateway answers DNS; for a node that is not on it, the head."""
    return f"nameserver {plan.network_of(node).gateway if node.management else plan.head.address}\n"


def actions(plan: Plan, node: Node, keys: Keys) -> list[Action]:
    """All that a node needs of itself: accounts and names, its services, and what it serves to the others."""
    return [
        *account_actions(plan, node, keys),
        *gateway_actions.gateway_actions(plan, node),
        *serve_actions(plan, node),
        *mpi_actions(plan),
    ]


def account_actions(plan: Plan, node: Node, keys: Keys) -> list[Action]:
    """The user, its keys to and from every node, and the names of all nodes."""
    ssh = f"{home(plan)}/.ssh"
    authorized = f"{keys.user.public}\n{keys.admin.public}\n"
    return [
        file("/etc/hosts", etc_hosts(plan)),
        file("/etc/ssh/ssh_known_hosts", known_hosts(plan, node, keys)),
        file("/etc/ssh/ssh_config.d/10-vcluster.conf", f"StrictHostKeyChecking yes\n{_FAST_SSH}"),
        {"do": "user", "name": plan.user, "uid": _uid(plan), "home": home(plan)},
        directory(ssh, owner=plan.user, mode=0o700),
        file(f"{ssh}/id_ed25519", keys.user.private, owner=plan.user, mode=0o600),
        file(f"{ssh}/id_ed25519.pub", keys.user.public + "\n", owner=plan.user),
        file(f"{ssh}/authorized_keys", authorized, owner=plan.user, mode=0o600),
        *([file("/etc/sudoers.d/vcluster", sudoers(plan), mode=0o440)] if plan.sudo_commands else []),
        {"do": "resolver", "text": resolver(plan, node)},
        *([file(SSHD_SETTINGS, sshd_settings(plan)), _reload_sshd()] if plan.image_login else []),
    ]


def _uid(plan: Plan) -> int | None:
    """The number of the cluster's user; None where it is the image's own, which has one."""
    if plan.image_login and plan.image_login.user == plan.user:
        return None
    return USER_UID if plan.user == DEFAULT_USER else OTHER_USER_UID


def _reload_sshd() -> Action:
    """The image's user has let us in by password; now passwords are closed. Sessions that are open stay.

    Whether and how sshd starts with the system, by a socket for one, is the image's affair.
    """
    return {"do": "run", "argv": ["systemctl", "reload-or-restart", "ssh.service"], "if_changed": [SSHD_SETTINGS]}


def serve_actions(plan: Plan, node: Node) -> list[Action]:
    """The folders others mount are there, and exported if they are this node's."""
    folders = [directory(path, owner=plan.user, mode=0o755) for path in (cloud(plan), *_targets(plan))]
    mine = next((share for share in shares(plan) if share.node == node.name), None)
    if mine is None:
        return folders
    table = "/etc/exports.d/vcluster.exports"
    order = f"{UNITS}/nfs-server.service.d/vcluster.conf"
    return [
        *folders,
        *([] if mine.is_in_place else _data_actions(plan, mine)),
        file(NFS_SETTINGS, nfs_server_settings()),
        file(table, exports(plan, mine)),
        # After a reboot the disk may come late; without it the empty folder below would be served.
        *([] if mine.is_in_place else [file(order, f"[Unit]\nRequiresMountsFor={mine.source}\n")]),
        # Of several servers each must have started under its own name: clients tell them apart by that.
        {
            "do": "service",
            "unit": "nfs-server.service",
            "restart_if": [NFS_SETTINGS, *([table] if plan.stores else [])],
        },
        {"do": "run", "argv": ["exportfs", "-ra"], "if_changed": [table]},
    ]


def _targets(plan: Plan) -> tuple[str, ...]:
    return tuple(share.target for share in shares(plan) if share.target != cloud(plan))


def _data_actions(plan: Plan, share: Share) -> list[Action]:
    """A disk of its own, formatted once, found by its label ever after."""
    label = f"cloud{plan.stores.index(share.node)}"
    # Our image starts udev, which finds disks by their label, last of all.
    line = f"LABEL={label} {share.source} ext4 defaults,nofail,x-systemd.device-timeout=0 0 2\n"
    return [
        {"do": "line", "path": "/etc/fstab", "key": share.source, "text": line},
        {"do": "data", "serial": DATA_SERIAL, "label": label, "target": share.source, "owner": plan.user},
    ]


def mount_actions(plan: Plan, node: Node, *, watcher: str) -> list[Action]:
    """What the others serve, mounted here; `watcher` is the program that lets go of what a silent server serves."""
    found = [share for share in shares(plan) if not (share.node == node.name and share.is_in_place)]
    lines = [
        {"do": "line", "path": "/etc/fstab", "key": share.target, "text": mount_line(plan, node, share)}
        for share in found
    ]
    mounts = [_mount(plan, share) for share in found if share.node == node.name or not plan.stores]
    others = [share for share in found if share.node != node.name]
    automounts = [{"do": "automounts", "units": {share.target: automount_unit(share.target) for share in others}}]
    return [
        # Without the address the mount could leave by the default route, and nothing else waits for the lease.
        *([{"do": "address", "address": str(node.address)}] if plan.dhcp_range and not node.is_head else []),
        *lines,
        *mounts,
        *([*automounts, *_watch(others, watcher)] if plan.stores and others else []),
    ]


def _watch(stores: Iterable[Share], watcher: str) -> list[Action]:
    unit = f"{UNITS}/{WATCHER_UNIT}"
    words = " ".join(f"{share.node} {share.target}" for share in stores)
    text = unit_text(
        ["Description=Let go of shared folders whose server is silent", "After=vcluster-ready.service"],
        [f"ExecStart=/usr/bin/python3 -ISB {WATCHER} {words}", "Restart=always"],
    )
    return [
        file(WATCHER, watcher),
        file(unit, text),
        {"do": "service", "unit": WATCHER_UNIT, "restart_if": [WATCHER, unit]},
    ]


def _mount(plan: Plan, share: Share) -> Action:
    """At once: what this node serves itself at a second place, or the head's folder."""
    if not share.is_in_place:
        return {"do": "mount", "source": share.source, "target": share.target, "type": "none", "options": "bind"}
    return {
        "do": "mount",
        "source": f"{share.node}:{share.source}",
        "target": share.target,
        "type": "nfs4",
        "options": MOUNT_OPTIONS,
        "address": str(plan.head.address),
    }


def mpi_actions(plan: Plan) -> list[Action]:
    """The hostfile and the groups of parallel shells, on every node, so that a run may start anywhere."""
    return [
        file(hostfile_path(plan), hostfile(plan), owner=plan.user),
        file("/etc/clustershell/groups.d/local.cfg", clustershell_groups(plan)),
        file("/etc/genders", genders(plan)),
        file("/etc/pdsh/rcmd_default", "ssh\n"),
    ]
