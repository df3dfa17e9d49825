"""The cloud-init seed of a node (NoCloud): who it is, which addresses it has, who may log in. Pure.

Everything else is put on the node by the stages, which can be run again. The texts are JSON, which YAML contains, so
no value needs quoting by hand. Formats: https://cloudinit.readthedocs.io, "NoCloud", "Network config version 2",
"Cloud config".
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from vcluster.keys import KeyPair, Keys
from vcluster.model import Node, Plan
from vcluster.render.guest import MPI_END, PROFILE_MODULES, sshd_settings

GuestFile = Callable[[str], str]

COMPLETE_FEATURES = frozenset({"mpich", "nfs", "ready"})
# What an ordinary cloud image lacks, by the names Debian and Ubuntu share.
PACKAGES = ("mpich", "libmpich-dev", "gcc", "make", "nfs-kernel-server", "nfs-common", "qemu-guest-agent")
_HAS_ALL = "(for p in mpiexec.hydra mpicc gcc exportfs mount.nfs4; do command -v $p || exit; done) >/dev/null"


def seed_files(plan: Plan, node: Node, keys: Keys, *, guest_file: GuestFile) -> dict[str, str]:
    """The three files of a node's seed, by name. `guest_file` gives the files that only an ordinary image is sent."""
    complete = set(plan.image.features) >= COMPLETE_FEATURES
    user_data = _identity(node, keys.admin.public, keys.hosts[node.name])
    if not complete:
        user_data |= _completion(guest_file)
    return {
        "meta-data": _text(meta_data(plan, node)),
        "user-data": "#cloud-config\n" + _text(user_data),
        "network-config": _text(network_config(plan, node)),
    }


def meta_data(plan: Plan, node: Node) -> dict[str, object]:
    """Instance identity. dsmode local: nothing in the seed needs the network, so it is applied before that is up."""
    return {"instance-id": f"{plan.name}-{node.uuid}", "local-hostname": node.name, "dsmode": "local"}


def network_config(plan: Plan, node: Node) -> dict[str, object]:
    """Both network cards, told apart by MAC, all addresses static."""
    management = plan.network_of(node)
    gateway = str(management.gateway)
    return {
        "version": 2,
        "ethernets": {
            "mgmt0": {
                "match": {"macaddress": node.management_mac},
                "set-name": "mgmt0",
                "dhcp4": False,
                "addresses": [f"{node.management_address}/{management.subnet.prefixlen}"],
                "routes": [{"to": "0.0.0.0/0", "via": gateway}],
                "nameservers": {"addresses": [gateway]},
            },
            "lab0": {
                "match": {"macaddress": node.mac},
                "set-name": "lab0",
                "dhcp4": False,
                "addresses": [f"{node.address}/{plan.subnet.prefixlen}"],
                "mtu": plan.mtu,
            },
        },
    }


def _identity(node: Node, admin_public: str, host_key: KeyPair) -> dict[str, object]:
    return {
        "preserve_hostname": False,
        "hostname": node.name,
        "manage_etc_hosts": False,
        "disable_root": False,
        "ssh_pwauth": False,
        "ssh_deletekeys": True,
        "ssh_genkeytypes": [],
        "ssh_keys": {"ed25519_private": host_key.private, "ed25519_public": host_key.public},
        "users": [{"name": "root", "ssh_authorized_keys": [admin_public]}],
        "write_files": [{"path": "/etc/ssh/sshd_config.d/10-vcluster.conf", "content": sshd_settings()}],
    }


def _completion(guest_file: GuestFile) -> dict[str, object]:
    """What turns an ordinary cloud image into one of ours at its first boot."""
    unit = {"path": "/etc/systemd/system/vcluster-ready.service", "content": guest_file("vcluster-ready.service")}
    source = {"path": str(Path(MPI_END).with_suffix(".c")), "content": guest_file("mpi-end.c")}
    modules = {"path": "/etc/modules-load.d/vcluster.conf", "content": PROFILE_MODULES}
    sshd = {"path": "/etc/ssh/sshd_config.d/10-vcluster.conf", "content": sshd_settings()}
    install = f"{_HAS_ALL} || {{ apt-get update && apt-get install -y --no-install-recommends {' '.join(PACKAGES)}; }}"
    return {
        "write_files": [unit, modules, sshd, source],
        "runcmd": [
            ["env", "DEBIAN_FRONTEND=noninteractive", "sh", "-c", install],
            ["gcc", "-O2", "-shared", "-fPIC", "-o", MPI_END, source["path"]],
            ["systemctl", "enable", "--now", "--no-block", "vcluster-ready.service"],
        ],
    }


def _text(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"
