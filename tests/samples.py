"""One small cluster for the tests, with keys that never change."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

from vcluster.keys import KeyPair, Keys
from vcluster.model import Facts, Image, Plan, Spec
from vcluster.naming import default_node_names
from vcluster.plan import make_plan

ROOMY = Facts(memory_free_mib=10_000_000, disk_free_mib=10_000_000, routes=(), claims=())

DIRECT = Image(
    name="debian12",
    digest="sha256-" + "1" * 64,
    disk=Path("/images/debian12/disk.qcow2"),
    virtual_size_bytes=4 * 2**30,
    kernel=Path("/images/debian12/vmlinuz"),
    initrd=Path("/images/debian12/initrd.img"),
    kernel_cmdline="root=LABEL=x console=ttyS0",
    features=("mpich", "nfs", "ready"),
)
ORDINARY = Image("cloud", "sha256-" + "2" * 64, Path("/images/cloud/disk.qcow2"), 2 * 2**30)


def spec(count: int = 2, **wishes: object) -> Spec:
    """A wish for a cluster named lab."""
    return Spec(name="lab", mode="local", node_names=default_node_names(count), **wishes)  # type: ignore[arg-type]


def plan(count: int = 2, *, image: Image = DIRECT, accel: str = "tcg", facts: Facts = ROOMY, **wishes: object) -> Plan:
    """A plan of a cluster named lab, in 10.0.0.0/24."""
    wishes.setdefault("subnet", IPv4Network("10.0.0.0/24"))
    return make_plan(spec(count, **wishes), facts, image=image, accel=accel, uri="qemu:///system")


def keys(count: int = 2) -> Keys:
    """Keys that are none, but look like it."""
    names = default_node_names(count)
    return Keys(pair("admin"), pair("user"), {name: pair(name) for name in names})


def pair(name: str) -> KeyPair:
    """A pair of texts."""
    return KeyPair(f"-- private {name} --\n", f"ssh-ed25519 AAAA{name} {name}@lab")
