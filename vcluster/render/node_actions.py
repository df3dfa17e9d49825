"""The files and actions that the stages apply to a node, as data for the guest program guest/apply.py. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vcluster.model.keys import Keys
from vcluster.model.plan import Node, Plan
from vcluster.model.spec import DEFAULT_USER, FROM, TO
from vcluster.render import gateway_actions
from vcluster.render.actions import UNITS, Action, directory, file, unit_text
from vcluster.render.common_files import CommonFiles, known_hosts
from vcluster.render.domain_xml import DATA_SERIAL
from vcluster.render.packages import SSH_SETTINGS, program_actions

# The same on every node, so that files on NFS have one owner, and above the first ids of distributions. Our image has
# the default user already.
USER_UID, OTHER_USER_UID = 2000, 2001
SSHD_SETTINGS = "/etc/ssh/sshd_config.d/10-vcluster.conf"
WATCHER, WATCHER_UNIT = "/usr/lib/vcluster/stores.py", "vcluster-stores.service"
DELAYS, DELAYS_UNIT = "/usr/lib/vcluster/delays.py", "vcluster-delays.service"
_BEFORE_READY = ("After=network.target", "Before=vcluster-ready.service")  # a node that is ready has its limits
OFFLOADS, OFFLOADS_UNIT = "/usr/lib/vcluster/offloads.py", "vcluster-offloads.service"
EXPORTS = "/exports"  # mount point of the served disk on a storage node
MPI_END = "/usr/lib/vcluster/mpi-end.so"
MPI_ENDS = "mpi-ends"  # a feature of images whose MPICH needs no MPI_END
MPI_CHECK = "/usr/lib/vcluster/mpi-check"
MPI_MEASURE = "/usr/lib/vcluster/mpi-measure"
ARP_MAX = 500  # addresses in a node's ARP cache; the kernel holds 1024 (net.ipv4.neigh.default.gc_thresh3)
# The first NFS mount takes most of its time to load these.
PROFILE_MODULES = "sunrpc\nnfsv4\nnfsd\n"
# A login takes half the time without the post-quantum key exchange, which OpenSSH prefers. The nodes share a host, and
# their keys live only as long as the cluster. OpenSSH 10.1 and newer would print a warning at every login.
_FAST_SSH = (
    "KexAlgorithms curve25519-sha256,curve25519-sha256@libssh.org\nCiphers aes128-ctr,aes128-gcm@openssh.com\n"
    "IgnoreUnknown WarnWeakCrypto\nWarnWeakCrypto no\n"
)


@dataclass(frozen=True, slots=True)
class Share:
    """A folder that a node serves, and its path on all nodes."""

    node: str
    source: str
    target: str

    @property
    def is_in_place(self) -> bool:
        """Whether the folder has the same path on the node that serves it."""
        return self.source == self.target


def home(plan: Plan) -> str:
    """The home folder of the cluster's user."""
    return f"/home/{plan.user}"


def cloud(plan: Plan) -> str:
    """The folder that contains all shared folders."""
    return f"{home(plan)}/cloud"


def shares(plan: Plan) -> tuple[Share, ...]:
    """The shared folders, in order: the disks of the storage nodes, or without these a folder of the head."""
    if not plan.stores:
        return (Share(plan.head.name, cloud(plan), cloud(plan)),)
    return tuple(Share(node, EXPORTS, f"{cloud(plan)}/{number}") for number, node in enumerate(plan.stores))


def shared_folder(plan: Plan) -> str:
    """The path of the first shared folder."""
    return shares(plan)[0].target


def hostfile_path(plan: Plan) -> str:
    """The path of the MPICH hostfile."""
    return f"{home(plan)}/hostfile"


def mpi_environment(plan: Plan) -> dict[str, str]:
    """The environment of MPI programs and their launcher.

    All MPI traffic uses lab0. HYDRA_IFACE is for MPICH's process manager. UCX_NET_DEVICES is for UCX, which Debian's
    MPICH uses, and which would use all interfaces at once. Without UCX_MODULES it loads modules for InfiniBand and
    graphics processors. FI_TCP_IFACE is for libfabric (fi_tcp(7)), which other MPICH builds use. HYDRA_HOST_FILE
    replaces `-f hostfile`. Without LD_PRELOAD (images/guest/mpi-end.c) the programs of an older MPICH do not end. The
    port ranges are for Hydra, UCX and MPICH's older device.
    """
    settings = {
        "HYDRA_HOST_FILE": hostfile_path(plan),
        "HYDRA_IFACE": "lab0",
        "UCX_NET_DEVICES": "lab0",
        "UCX_MODULES": "cma",
        "FI_TCP_IFACE": "lab0",
    }
    if MPI_ENDS not in plan.image.features:
        settings |= {"LD_PRELOAD": MPI_END}
    if plan.mpi_ports:
        ports = f"{plan.mpi_ports.first}:{plan.mpi_ports.last}"
        settings |= {"MPIEXEC_PORT_RANGE": ports, "MPICH_PORT_RANGE": ports}
        settings |= {"UCX_TCP_PORT_RANGE": ports.replace(":", "-")}
    return settings


def sshd_settings(plan: Plan) -> str:
    """The settings of sshd: keys only, no reverse lookups. SetEnv needs no PAM and applies to commands and logins."""
    environment = " ".join(f"{name}={value}" for name, value in mpi_environment(plan).items())
    return f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nUseDNS no\nSetEnv {environment}\n"


def sudoers(plan: Plan) -> str:
    """The commands that the cluster's user may run as root without a password (sudoers(5))."""
    return f"{plan.user} ALL=(root) NOPASSWD: {', '.join(plan.sudo_commands)}\n"


NFS_SETTINGS = "/etc/nfs.conf.d/vcluster.conf"
EXPORT_TABLE = "/etc/exports.d/vcluster.exports"


def nfs_server_settings() -> str:
    """The settings of the NFS server: version 4 only, with a short grace period at start.

    All nodes have the same settings, so a clone has them from its template. The exports list the clients.
    """
    return "[nfsd]\nvers3=n\nthreads=8\ngrace-time=10\nlease-time=10\n"


def template_actions() -> list[Action]:
    """The actions for a template: an NFS server without exports runs in it; a reboot does not start it again."""
    return [
        file(NFS_SETTINGS, nfs_server_settings()),
        {"do": "run", "argv": ["systemctl", "start", "nfs-server.service"], "if_changed": [NFS_SETTINGS]},
    ]


# With `sec` the client does not try Kerberos first, which starts modprobe three times.
MOUNT_OPTIONS = "rw,hard,proto=tcp,vers=4.2,sec=sys,_netdev"
AUTOMOUNT = f"{MOUNT_OPTIONS},noauto,x-systemd.automount"


def mount_line(plan: Plan, node: Node, share: Share) -> str:
    """A line of fstab. After a reboot the first use mounts the folder, so that no boot waits for another node."""
    if share.node == node.name:
        return f"{share.source} {share.target} none bind,nofail,x-systemd.requires-mounts-for={share.source} 0 0\n"
    if plan.stores:
        # A storage node that is down must not block the other nodes; see guest/storage_watch.py too.
        options = f"{AUTOMOUNT},x-systemd.mount-timeout=15,x-systemd.idle-timeout=60"
    else:
        options = f"{AUTOMOUNT},x-systemd.mount-timeout=30"
    return f"{share.node}:{share.source} {share.target} nfs4 {options} 0 0\n"


def automount_unit(target: str) -> str:
    """systemd's name of the automount unit of a path (systemd-escape(1), for the characters in our paths)."""
    return target.strip("/").replace("-", "\\x2d").replace("/", "-") + ".automount"


def resolver(plan: Plan, node: Node) -> str:
    """The DNS server of a node: the gateway of its management network, or the head for a node without `mgmt0`."""
    return f"nameserver {plan.network_of(node).gateway if node.management else plan.head.address}\n"


def actions(plan: Plan, node: Node, keys: Keys, common: CommonFiles) -> list[Action]:
    """All actions for a node but mounts: accounts, names, services and exports."""
    return [
        *program_actions(plan, node),
        *account_actions(plan, node, keys, common),
        *gateway_actions.gateway_actions(plan, node),
        *serve_actions(plan, node),
        *mpi_actions(plan, common),
    ]


def offload_actions(plan: Plan, *, program: str) -> list[Action]:
    """Segmentation offloads of lab0: off while links have limits, otherwise as they were before.

    `program` is the text of guest/node_offloads.py.
    """
    if not plan.links:
        return [{"do": "no_service", "unit": OFFLOADS_UNIT, "paths": [f"{UNITS}/{OFFLOADS_UNIT}", OFFLOADS]}]
    run = f"/usr/bin/python3 -ISB {OFFLOADS}"
    lines = ["Type=oneshot", "RemainAfterExit=yes", f"ExecStart={run} off lab0", f"ExecStop={run} restore lab0"]
    text = unit_text(["Description=Frames of lab0 that are not larger than its MTU", *_BEFORE_READY], lines)
    return _service_of_program(OFFLOADS_UNIT, text, OFFLOADS, program)


def _service_of_program(unit: str, unit_file: str, path: str, program: str) -> list[Action]:
    """A service that runs a program of vcluster: both files, and a restart if one of them is new."""
    place = f"{UNITS}/{unit}"
    return [
        file(path, program),
        file(place, unit_file),
        {"do": "service", "unit": unit, "restart_if": [path, place]},
    ]


def delay_actions(delays: Mapping[str, tuple[int, int, int]], *, program: str) -> list[Action]:
    """The delays of frames from lab0 and to it, by direction; the service that makes them keeps them after a reboot.

    `program` is the text of guest/node_delays.py. A restart of the service changes a delay, and keeps its frames.
    """
    if not delays:
        return [{"do": "no_service", "unit": DELAYS_UNIT, "paths": [f"{UNITS}/{DELAYS_UNIT}", DELAYS]}]
    run = f"/usr/bin/python3 -ISB {DELAYS}"
    leaving, arriving = (",".join(map(str, delays[name])) if name in delays else "-" for name in (FROM, TO))
    start, stop = f"set lab0 {DELAYS_UNIT} {leaving} {arriving}", f"end lab0 {DELAYS_UNIT}"
    lines = ["Type=oneshot", "RemainAfterExit=yes", f"ExecStart={run} {start}", f"ExecStop={run} {stop}"]
    text = unit_text(["Description=Delays of the frames of lab0", *_BEFORE_READY], lines)
    return _service_of_program(DELAYS_UNIT, text, DELAYS, program)


def account_actions(plan: Plan, node: Node, keys: Keys, common: CommonFiles) -> list[Action]:
    """The actions for the user, its keys, and the names and host keys of all nodes."""
    ssh = f"{home(plan)}/.ssh"
    authorized = f"{keys.user.public}\n{keys.admin.public}\n"
    return [
        file("/etc/hosts", common.hosts),
        file("/etc/ssh/ssh_known_hosts", known_hosts(common, node, keys)),
        file(SSH_SETTINGS, f"StrictHostKeyChecking yes\n{_FAST_SSH}"),
        {"do": "user", "name": plan.user, "uid": _uid(plan), "home": home(plan)},
        directory(ssh, owner=plan.user, mode=0o700),
        file(f"{ssh}/id_ed25519", keys.user.private, owner=plan.user, mode=0o600),
        file(f"{ssh}/id_ed25519.pub", keys.user.public + "\n", owner=plan.user),
        file(f"{ssh}/authorized_keys", authorized, owner=plan.user, mode=0o600),
        *([file("/etc/sudoers.d/vcluster", sudoers(plan), mode=0o440)] if plan.sudo_commands else []),
        {"do": "resolver", "text": resolver(plan, node)},
        *([] if plan.dhcp_range else [_arp(node, common)]),
        *([file(SSHD_SETTINGS, sshd_settings(plan)), _reload_sshd()] if plan.image_login else []),
    ]


def _arp(node: Node, common: CommonFiles) -> Action:
    """The ARP cache of a node: all other nodes but the next one, which it finds by a broadcast.

    Without them, N nodes that begin to talk at once send N² broadcasts, and each node receives all of them. The check
    still needs one broadcast of each node.
    """
    following, _ = common.neighbours[(common.places[node.name] + 1) % len(common.neighbours)]
    macs = dict(common.neighbours[:ARP_MAX])
    for address in (str(node.address), following):
        macs.pop(address, None)
    return {"do": "arp", "interface": "lab0", "macs": macs, "unknown": [following]}


def clock_action(ahead_s: int) -> Action:
    """Set a node's clock by that of its server, `ahead_s` behind it: the head's server has the right time.

    After a pause of the node, its own clock is behind.
    """
    return {"do": "clock", "ahead_s": ahead_s}


def _uid(plan: Plan) -> int | None:
    """The user id of the cluster's user; None for the image's own user, who has an id already."""
    if plan.image_login and plan.image_login.user == plan.user:
        return None
    return USER_UID if plan.user == DEFAULT_USER else OTHER_USER_UID


def _reload_sshd() -> Action:
    """Load the settings that turn passwords off, after the login by password. Open sessions stay.

    The image decides how sshd starts, for example by a socket.
    """
    return {"do": "run", "argv": ["systemctl", "reload-or-restart", "ssh.service"], "if_changed": [SSHD_SETTINGS]}


def serve_actions(plan: Plan, node: Node) -> list[Action]:
    """The actions for the folders, and for the NFS server on a node that serves one."""
    folders = [directory(path, owner=plan.user, mode=0o755) for path in (cloud(plan), *_targets(plan))]
    served = next((share for share in shares(plan) if share.node == node.name), None)
    if served is None:
        return folders
    order = f"{UNITS}/nfs-server.service.d/vcluster.conf"
    return [
        *folders,
        *([] if served.is_in_place else _data_actions(plan, served)),
        file(NFS_SETTINGS, nfs_server_settings()),
        _export(plan, served),
        # After a reboot the disk may appear late; otherwise the NFS server would export the empty mount point.
        *([] if served.is_in_place else [file(order, f"[Unit]\nRequiresMountsFor={served.source}\n")]),
        # Several NFS servers must each start under their own host name, by which clients distinguish them.
        {
            "do": "service",
            "unit": "nfs-server.service",
            "restart_if": [NFS_SETTINGS, *([EXPORT_TABLE] if plan.stores else [])],
        },
        {"do": "run", "argv": ["exportfs", "-ra"], "if_changed": [EXPORT_TABLE]},
    ]


def _export(plan: Plan, share: Share) -> Action:
    """The export of a shared folder: for the cluster's subnet only, and every client acts as the cluster's user.

    Root of a node could otherwise claim any uid, and read and change the files of other users of the node that serves.
    """
    return {
        "do": "export",
        "path": EXPORT_TABLE,
        "folder": share.source,
        "clients": str(plan.subnet),
        "owner": plan.user,
    }


def _targets(plan: Plan) -> tuple[str, ...]:
    return tuple(share.target for share in shares(plan) if share.target != cloud(plan))


def _data_actions(plan: Plan, share: Share) -> list[Action]:
    """The actions for a served disk: format it once, then mount it by its label."""
    label = f"cloud{plan.stores.index(share.node)}"
    # No timeout: our image starts udev last, and udev finds disks by their label.
    line = f"LABEL={label} {share.source} ext4 defaults,nofail,x-systemd.device-timeout=0 0 2\n"
    return [
        {"do": "line", "path": "/etc/fstab", "key": share.source, "text": line},
        {"do": "data", "serial": DATA_SERIAL, "label": label, "target": share.source, "owner": plan.user},
    ]


def mount_actions(plan: Plan, node: Node, *, watcher: str) -> list[Action]:
    """The actions for the mounts of a node. `watcher` is a program that unmounts folders of a server that is down."""
    to_mount = [share for share in shares(plan) if not (share.node == node.name and share.is_in_place)]
    lines = [
        {"do": "line", "path": "/etc/fstab", "key": share.target, "text": mount_line(plan, node, share)}
        for share in to_mount
    ]
    mounts = [_mount(plan, share) for share in to_mount if share.node == node.name or not plan.stores]
    remote = [share for share in to_mount if share.node != node.name]
    automounts = [{"do": "automounts", "units": {share.target: automount_unit(share.target) for share in remote}}]
    return [
        # Wait for the DHCP lease, since nothing else does; without it the mount could use the default route.
        *([{"do": "address", "address": str(node.address)}] if plan.dhcp_range and not node.is_head else []),
        *lines,
        *mounts,
        *([*automounts, *_watch(remote, watcher)] if plan.stores and remote else []),
    ]


def _watch(stores: Iterable[Share], watcher: str) -> list[Action]:
    arguments = " ".join(f"{share.node} {share.target}" for share in stores)
    text = unit_text(
        ["Description=Unmount shared folders of a server that does not answer", "After=vcluster-ready.service"],
        [f"ExecStart=/usr/bin/python3 -ISB {WATCHER} {arguments}", "Restart=always"],
    )
    return _service_of_program(WATCHER_UNIT, text, WATCHER, watcher)


def _mount(plan: Plan, share: Share) -> Action:
    """The immediate mount of the node's own served disk at its shared path, or of the head's folder."""
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


def mpi_actions(plan: Plan, common: CommonFiles) -> list[Action]:
    """The actions for the hostfile and the node groups. Every node has them, so a run may start on any node."""
    return [
        file(hostfile_path(plan), common.hostfile, owner=plan.user),
        file("/etc/clustershell/groups.d/local.cfg", common.clustershell_groups),
        file("/etc/genders", common.genders),
        file("/etc/pdsh/rcmd_default", "ssh\n"),
    ]
