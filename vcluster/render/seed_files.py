"""The cloud-init seed of a node (NoCloud): its name, addresses and keys. Pure.

The stages configure everything else, since they can run again. The texts are JSON, a subset of YAML, so no value needs
manual quoting. Formats: https://cloudinit.readthedocs.io, "NoCloud", "Network config version 2", "Cloud config".
"""

from __future__ import annotations

import json
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

from vcluster.model.keys import Keys
from vcluster.model.plan import ManagementInterface, Node, Plan
from vcluster.render.node_actions import MPI_CHECK, MPI_END, PROFILE_MODULES, SSHD_SETTINGS, sshd_settings
from vcluster.render.packages import install_line, is_complete

GuestFile = Callable[[str], str]


def seed_files(plan: Plan, node: Node, keys: Keys, *, guest_file: GuestFile) -> dict[str, str]:
    """The three files of a node's seed, by name. `guest_file` returns a file for ordinary images by its name."""
    user_data = _identity(plan, node, keys)
    if not is_complete(plan):
        user_data |= _completion(plan, node, guest_file)
    return {
        "meta-data": _text(meta_data(plan, node)),
        "user-data": "#cloud-config\n" + _text(user_data),
        "network-config": _text(network_config(plan, node)),
    }


def meta_data(plan: Plan, node: Node) -> dict[str, object]:
    """The instance id and host name. `dsmode: local` applies the seed before the network is up; it needs no network."""
    return {"instance-id": f"{plan.name}-{node.uuid}", "local-hostname": node.name, "dsmode": "local"}


def network_config(plan: Plan, node: Node) -> dict[str, object]:
    """The network interfaces, matched by MAC. Only `lab0` may use DHCP, and the boot does not wait for its address."""
    ethernets = {"lab0": _cluster_interface(plan, node)}
    if node.management:
        ethernets = {"mgmt0": _management_interface(plan, node, node.management)} | ethernets
    return {"version": 2, "ethernets": ethernets}


def _management_interface(plan: Plan, node: Node, management: ManagementInterface) -> dict[str, object]:
    network = plan.network_of(node)
    return {
        "match": {"macaddress": management.mac},
        "set-name": "mgmt0",
        "dhcp4": False,
        "addresses": [f"{management.address}/{network.subnet.prefixlen}"],
        **_default_route(network.gateway),
    }


def _cluster_interface(plan: Plan, node: Node) -> dict[str, object]:
    """The head is the DHCP server, so its address is static. In the private layout it is the gateway of other nodes."""
    match = {"match": {"macaddress": node.mac}, "set-name": "lab0"}
    if plan.dhcp_range and not node.is_head:
        return {**match, "dhcp4": True, "optional": True, "mtu": plan.mtu}
    address = f"{node.address}/{plan.subnet.prefixlen}"
    gateway = {} if node.management else _default_route(plan.head.address)
    return {**match, "dhcp4": False, "addresses": [address], **gateway, "mtu": plan.mtu}


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
        # The image's user must log in by password once, to install our key; after that passwords are off.
        del identity["ssh_pwauth"], identity["write_files"]
    return identity


def _sshd(plan: Plan) -> dict[str, str]:
    return {"path": SSHD_SETTINGS, "content": sshd_settings(plan)}


def _completion(plan: Plan, node: Node, guest_file: GuestFile) -> dict[str, object]:
    """The files and commands that complete an ordinary cloud image at its first boot."""
    unit = {"path": "/etc/systemd/system/vcluster-ready.service", "content": guest_file("vcluster-ready.service")}
    sources = [
        {"path": str(Path(path).with_suffix(".c")), "content": guest_file(Path(path).with_suffix(".c").name)}
        for path in (MPI_END, MPI_CHECK)
    ]
    modules = {"path": "/etc/modules-load.d/vcluster.conf", "content": PROFILE_MODULES}
    sshd = [] if plan.image_login else [_sshd(plan)]
    return {
        "write_files": [unit, modules, *sshd, *sources],
        "runcmd": [
            ["env", "DEBIAN_FRONTEND=noninteractive", "sh", "-c", install_line(node)],
            ["gcc", "-O2", "-shared", "-fPIC", "-o", MPI_END, sources[0]["path"]],
            ["mpicc", "-O2", "-o", MPI_CHECK, sources[1]["path"]],
            ["systemctl", "enable", "--now", "--no-block", "vcluster-ready.service"],
        ],
    }


def _text(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"
