"""Templates, and the keys of their snapshots. Pure.

A template is a generic node that was booted once and is idle. A snapshot is its saved memory and disk; each clone
resumes from it as another node. A snapshot works only under unchanged conditions: see `compatibility`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vcluster.model.keys import KeyPair
from vcluster.model.plan import Node, Plan
from vcluster.model.spec import Image
from vcluster.snapshots.memory_access import WRITABLE, Access

FEATURE = "clone"  # images with it have the program that configures a clone
FOLDER = "snapshots"  # next to the folder of images, on every server
FORMAT = 4  # of what is saved, and how
INSTANCE_ID = "vcluster-template"  # by this id an image recognises the seed of a template (images/debian)
NAME = "template"
# Locally administered MACs that no node has: the nodes' MACs begin with 02 (naming.mac_for).
MACS = {"mgmt0": "06:00:00:00:00:01", "lab0": "06:00:00:00:00:02"}


@dataclass(frozen=True, slots=True)
class Template:
    """The common properties of all clones of one snapshot."""

    image: Image
    accel: str
    memory_mib: int
    vcpus: int
    disk_gib: int
    mtu: int
    has_management: bool
    tsc_mhz: int = 0

    @property
    def macs(self) -> Mapping[str, str]:
        """The MACs of its interfaces, by name."""
        return {name: mac for name, mac in MACS.items() if name == "lab0" or self.has_management}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A verified snapshot on a server, with its files there. `access` is how clones use `ram`.

    `macs` are the template's MACs, by interface.
    """

    key: str
    root: str
    xml: str
    ram: Path
    state: Path
    access: Access
    macs: Mapping[str, str]


# Marks a template whose snapshot no clone could use; vcluster does not make it again unasked.
REFUSED = Snapshot("", "", "", Path(), Path(), WRITABLE, {})

# By server and template.
SnapshotIndex = Mapping[tuple[str, Template], Snapshot]


def template_of(plan: Plan, node: Node) -> Template:
    """The template that a node would be a clone of."""
    server = plan.server(node.server)
    return Template(
        plan.image_of(node),
        server.accel,
        plan.memory_mib,
        plan.vcpus,
        plan.disk_gib,
        plan.mtu,
        has_management=node.management is not None,
        tsc_mhz=server.tsc_mhz,
    )


def properties(template: Template) -> dict[str, str]:
    """The conditions of a snapshot that users choose, by name: they make one template differ from another."""
    return {
        "image": template.image.digest,
        "accelerator": template.accel,
        "memory": f"{template.memory_mib} MiB",
        "vcpus": str(template.vcpus),
        "disk": f"{template.disk_gib} GiB",
        "cards": " ".join(template.macs),
        "mtu": str(template.mtu),
    }


def compatibility(
    template: Template, *, versions: Mapping[str, str], processor: str, content: Mapping[str, bytes]
) -> dict[str, str]:
    """All conditions that a snapshot depends on, by name.

    `versions` and `processor` are those of the server. `content` is what the template is made from, by name: its XML,
    its seed, and the guest programs loaded in it. Under emulation the model of the processor does not count: QEMU's
    version and machine type decide it. The frequency of its time stamp counter is in the XML (render/domain_xml.py).
    """
    parts = (f"{name}\0{len(content[name])}\0".encode() + content[name] for name in sorted(content))
    return {
        **properties(template),
        "processor": processor if template.accel == "kvm" else "QEMU's",
        **{name: versions[name] for name in sorted(versions)},
        "content": hashlib.sha256(b"".join(parts)).hexdigest(),
        "format": str(FORMAT),
    }


def is_outdated(saved: Mapping[str, object], template: Template, current: Mapping[str, str]) -> bool:
    """Whether a snapshot is of this template, but of conditions that have changed since."""
    return saved != current and properties(template).items() <= saved.items()


def difference(saved: Mapping[str, object], current: Mapping[str, str]) -> str:
    """The first condition that has changed since a snapshot was made, for example `qemu 7.2.22, not 10.0.13`."""
    name = next(name for name in (*current, *saved) if saved.get(name) != current.get(name))
    if name in ("content", "format"):
        return "another version of vcluster"
    return f"{name} {saved.get(name, 'unknown')}, not {current.get(name, 'unknown')}"


def key_of(conditions: Mapping[str, str]) -> str:
    """The key of a snapshot: the beginning of its image's digest, and of the digest of its conditions."""
    digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()
    return f"{conditions['image'].removeprefix('sha256-')[:12]}-{digest[:16]}"


def snapshots_folder(storage: Path) -> Path:
    """The folder of snapshots on a server, from its storage folder."""
    return storage / FOLDER


def template_seed(template: Template, host_key: KeyPair) -> dict[str, str]:
    """The seed of a template. It permits no login, and its interfaces get only names and MTU.

    sshd runs with a temporary host key, so that a clone only has to replace the key.
    """
    user = {
        "hostname": NAME,
        "ssh_deletekeys": True,
        "ssh_genkeytypes": [],
        "ssh_keys": {"ed25519_private": host_key.private, "ed25519_public": host_key.public},
    }
    ethernets = {
        name: {"match": {"macaddress": mac}, "set-name": name, "dhcp4": False} for name, mac in template.macs.items()
    }
    ethernets["lab0"]["mtu"] = template.mtu
    return {
        "meta-data": _text({"instance-id": INSTANCE_ID, "local-hostname": NAME, "dsmode": "local"}),
        "user-data": "#cloud-config\n" + _text(user),
        "network-config": _text({"version": 2, "ethernets": ethernets}),
    }


def _text(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"
