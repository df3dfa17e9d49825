"""The cloud-init seed of a node (NoCloud): who it is, which addresses it has, who may log in. Pure.

Everything else is put on the node by the stages, which can be run again. The texts are JSON, which YAML contains, so
no value needs quoting by hand. Formats: https://cloudinit.readthedocs.io, "NoCloud", "Network config version 2",
"Cloud config".
"""

from __future__ import annotations

import json
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

from vcluster.model.keys import Keys
from vcluster.model.plan import ManagementInterface, Node, Plan
from vcluster.render.node_actions import MPI_END, PROFILE_MODULES, SSHD_SETTINGS, sshd_settings

GuestFile = Callable[[str], str]

COMPLETE_FEATURES = frozenset({"mpich", "nfs", "ready"})
# What an ordinary cloud image lacks, by the names Debian and Ubuntu share.
PACKAGES = (
    "mpich", "libmpich-dev", "gcc", "make", "nfs-kernel-server", "nfs-common", "nftables", "qemu-guest-agent",
)  # fmt: skip
COMMANDS = ("mpiexec.hydra", "mpicc", "gcc", "exportfs", "mount.nfs4", "nft")
HEAD_PACKAGES, HEAD_COMMANDS = ("dnsmasq-base", "clustershell", "pdsh"), ("dnsmasq", "clush", "pdsh")


def seed_files(plan: Plan, node: Node, keys: Keys, *, guest_file: GuestFile) -> dict[str, str]:
    """The three files of a node's seed, by name. `guest_file` gives the files that only an ordinary image is sent."""
    complete = set(plan.image.features) >= COMPLETE_FEATURES
    user_data = _identity(plan, node, keys)
    if not complete:
        user_data |= _completion(plan, node, guest_file)
    return {
        "meta-data": _text(meta_data(plan, node)),
        "user-data": "#cloud-config\n" + _text(user_data),
        "network-config": _text(network_config(plan, node)),
    }


def meta_data(plan: Plan, node: Node) -> dict[str, object]:
    """Instance identity. dsmode local: nothing in the seed needs the network, so it is applied before that is up."""
    return {"instance-id": f"{plan.name}-{node.uuid}", "local-hostname": node.name, "dsmode": "local"}


def network_config(plan: Plan, node: Node) -> dict[str, object]:
    """Its network cards, told apart by MAC. Only `lab0` may ask for its address, and then nothing waits for it."""
    cards = {"lab0": _cluster_interface(plan, node)}
    if node.management:
        cards = {"mgmt0": _management_interface(plan, node, node.management)} | cards
    return {"version": 2, "ethernets": cards}


def _management_interface(plan: Plan, node: Node, card: ManagementInterface) -> dict[str, object]:
    network = plan.network_of(node)
    return {
        "match": {"macaddress": card.mac},
        "set-name": "mgmt0",
        "dhcp4": False,
        "addresses": [f"{card.address}/{network.subnet.prefixlen}"],
        **_default_route(network.gateway),
    }


def _cluster_interface(plan: Plan, node: Node) -> dict[str, object]:
    """The head gives out the addresses, so its own is fixed. In the private layout it is the others' way out."""
    named = {"match": {"macaddress": node.mac}, "set-name": "lab0"}
    if plan.dhcp_range and not node.is_head:
        return {**named, "dhcp4": True, "optional": True, "mtu": plan.mtu}
    address = f"{node.address}/{plan.subnet.prefixlen}"
    way_out = {} if node.management else _default_route(plan.head.address)
    return {**named, "dhcp4": False, "addresses": [address], **way_out, "mtu": plan.mtu}


def _default_route(gateway: IPv4Address) -> dict[str, object]:
    return {"routes": [{"to": "0.0.0.0/0", "via": str(gateway)}], "nameservers": {"addresses": [str(gateway)]}}


def _identity(plan: Plan, node: Node, keys: Keys) -> dict[str, object]:
    host_key = keys.hosts[node.name]
    identity = {
        "preserve_hostname": False,
        "hostname": node.name,
        "manage_etc_hosts": False,
        "disable_root": False,
        "ssh_pwauth": False,
        "ssh_deletekeys": True,
        "ssh_genkeytypes": [],
        "ssh_keys": {"ed25519_private": host_key.private, "ed25519_public": host_key.public},
        "users": [{"name": "root", "ssh_authorized_keys": [keys.admin.public]}],
        "write_files": [_sshd(plan)],
    }
    if plan.image_login:
        # Its own user must get in by password first, and lets us in; passwords are closed behind that.
        del identity["ssh_pwauth"], identity["write_files"]
    return identity


def _sshd(plan: Plan) -> dict[str, str]:
    return {"path": SSHD_SETTINGS, "content": sshd_settings(plan)}


def _completion(plan: Plan, node: Node, guest_file: GuestFile) -> dict[str, object]:
    """What turns an ordinary cloud image into one of ours at its first boot."""
    unit = {"path": "/etc/systemd/system/vcluster-ready.service", "content": guest_file("vcluster-ready.service")}
    source = {"path": str(Path(MPI_END).with_suffix(".c")), "content": guest_file("mpi-end.c")}
    modules = {"path": "/etc/modules-load.d/vcluster.conf", "content": PROFILE_MODULES}
    sshd = [] if plan.image_login else [_sshd(plan)]
    packages = " ".join((*PACKAGES, *HEAD_PACKAGES) if node.is_head else PACKAGES)
    commands = " ".join((*COMMANDS, *HEAD_COMMANDS) if node.is_head else COMMANDS)
    has_all = f"(for p in {commands}; do command -v $p || exit; done) >/dev/null"
    install = f"apt-get update && apt-get install -y --no-install-recommends {packages}"
    if not node.management:
        # Its way out is the head, which has to come up and install its own packages first.
        install = f"for i in $(seq 60); do ({install}) && break; sleep 10; done"
    return {
        "write_files": [unit, modules, *sshd, source],
        "runcmd": [
            ["env", "DEBIAN_FRONTEND=noninteractive", "sh", "-c", f"{has_all} || {{ {install}; }}"],
            ["gcc", "-O2", "-shared", "-fPIC", "-o", MPI_END, source["path"]],
            ["systemctl", "enable", "--now", "--no-block", "vcluster-ready.service"],
        ],
    }


def _text(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"
