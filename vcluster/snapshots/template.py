"""What memory is kept of, by what it is known, and which nodes it is good for. Pure.

A template is a node that was booted once and has come to rest; its memory is kept and woken again and again, each time
as another node. It is good only where all is as it was: see `circumstances`.
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

FEATURE = "clone"  # an image with it waits, told to, for who it is to be
FOLDER = "snapshots"  # beside the images, on every server
FORMAT = 1  # of all that is kept
_KIND = ("image", "accelerator", "memory", "vcpus", "disk", "cards", "mtu")  # what users choose; the rest just changes
INSTANCE_ID = "vcluster-template"  # images/debian12: a seed of that instance is a template's
NAME = "template"
# Locally administered, as no node's are (naming.mac_for).
MACS = {"mgmt0": "06:00:00:00:00:01", "lab0": "06:00:00:00:00:02"}


@dataclass(frozen=True, slots=True)
class Template:
    """A kind of node: all that its copies have in common."""

    image: Image
    accel: str
    memory_mib: int
    vcpus: int
    disk_gib: int
    mtu: int
    has_management: bool

    @property
    def macs(self) -> Mapping[str, str]:
        """Its cards, by name."""
        return {card: mac for card, mac in MACS.items() if card == "lab0" or self.has_management}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A memory that is at hand on a server, verified; `macs` are its template's, by card."""

    key: str
    root: str
    xml: str
    ram: Path
    macs: Mapping[str, str]


# In the place of one that no node could be made from: none is to be made again unasked.
REFUSED = Snapshot("", "", "", Path(), {})

# By server and kind of node.
SnapshotIndex = Mapping[tuple[str, Template], Snapshot]


def template_of(plan: Plan, node: Node) -> Template:
    """What a node would be a copy of."""
    accel = plan.server(node.server).accel
    has_management = node.management is not None
    return Template(plan.image_of(node), accel, plan.memory_mib, plan.vcpus, plan.disk_gib, plan.mtu, has_management)


def circumstances(
    template: Template, *, versions: Mapping[str, str], processor: str, programs: Mapping[str, bytes]
) -> dict[str, str]:
    """All that a kept memory depends on, in words.

    `versions` and `processor` are the server's, `programs` those that are kept ready in it. What is emulated has the
    processor of QEMU's choice (render/domain.py), which goes by QEMU's version and the machine.
    """
    ready = hashlib.sha256(b"".join(name.encode() + programs[name] for name in sorted(programs))).hexdigest()
    return {
        "image": template.image.digest,
        "accelerator": template.accel,
        "processor": processor if template.accel == "kvm" else "QEMU's",
        **{name: versions[name] for name in sorted(versions)},
        "memory": f"{template.memory_mib} MiB",
        "vcpus": str(template.vcpus),
        "disk": f"{template.disk_gib} GiB",
        "cards": " ".join(template.macs),
        "mtu": str(template.mtu),
        "programs": ready,
        "format": str(FORMAT),
    }


def is_outdated(kept: Mapping[str, object], now: Mapping[str, str]) -> bool:
    """Whether a memory is of the same kind of node as another, and of circumstances that are no more."""
    return kept != now and all(kept.get(name) == now[name] for name in _KIND)


def key_of(found: Mapping[str, str]) -> str:
    """The name of a snapshot: its image's and, of all that it depends on, the beginnings of their digests."""
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    return f"{found['image'].removeprefix('sha256-')[:12]}-{digest[:16]}"


def root_on(storage: Path) -> Path:
    """Where a server keeps them."""
    return storage / FOLDER


def template_seed(template: Template, host_key: KeyPair) -> dict[str, str]:
    """The seed of a template: nobody may log in, and its cards have names and nothing else.

    sshd runs already, with a key that is thrown away: a copy only has to give it its own.
    """
    user = {
        "hostname": NAME,
        "ssh_deletekeys": True,
        "ssh_genkeytypes": [],
        "ssh_keys": {"ed25519_private": host_key.private, "ed25519_public": host_key.public},
    }
    cards = {
        card: {"match": {"macaddress": mac}, "set-name": card, "dhcp4": False} for card, mac in template.macs.items()
    }
    cards["lab0"]["mtu"] = template.mtu
    return {
        "meta-data": _text({"instance-id": INSTANCE_ID, "local-hostname": NAME, "dsmode": "local"}),
        "user-data": "#cloud-config\n" + _text(user),
        "network-config": _text({"version": 2, "ethernets": cards}),
    }


def _text(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"
