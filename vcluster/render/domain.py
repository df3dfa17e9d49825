"""Domain XML: one kind of domain, a headless virtio machine with two network cards and a serial console."""

from __future__ import annotations

from pathlib import Path

from vcluster.model import Image, ManagementCard, Node, Plan
from vcluster.naming import libvirt_name
from vcluster.render.xml import Element, element, text_of

OWNER_NAMESPACE = "urn:vcluster:owner:1"
READY_CHANNEL = "org.vcluster.0"
AGENT_CHANNEL = "org.qemu.guest_agent.0"
# The guest finds the disk it serves by this; it has no other that tells a serial number.
DATA_SERIAL = "vcluster-data"
DATA_SUFFIX = ".data.qcow2"
# QEMU's own default grows to 1 GiB a guest; guests of this size translate no more than this.
TRANSLATION_CACHE_MIB = 128


def volume_path(plan: Plan, node: Node) -> Path:
    """Where a node's disk is on its server."""
    return plan.pool_of(node).path / volume_name(node)


def seed_path(plan: Plan, node: Node) -> Path:
    """Where a node's seed is on its server."""
    return plan.pool_of(node).path / seed_name(node)


def data_path(plan: Plan, node: Node) -> Path:
    """Where the disk that a node serves is on its server."""
    return plan.pool_of(node).path / data_name(node)


def console_path(plan: Plan, node: Node) -> Path:
    """Where a node's serial console is logged, on its server, from power-on."""
    return plan.pool_of(node).path / f"{node.name}.console.log"


def volume_name(node: Node) -> str:
    """The volume of a node's disk."""
    return f"{node.name}.qcow2"


def seed_name(node: Node) -> str:
    """The volume of a node's seed."""
    return f"{node.name}.seed.iso"


def data_name(node: Node) -> str:
    """The volume of the disk that a node serves."""
    return f"{node.name}{DATA_SUFFIX}"


def domain_xml(plan: Plan, node: Node) -> str:
    """The definition of a node's domain."""
    accel = plan.server(node.server).accel
    domain = element(
        "domain",
        element("name", node.domain),
        element("uuid", node.uuid),
        element("title", f"{node.name} of cluster {plan.name}"),
        element("metadata", _owner(plan, node)),
        element("memory", str(plan.memory_mib), unit="MiB"),
        element("vcpu", str(plan.vcpus)),
        _os(plan.image_of(node)),
        _features(accel),
        *_cpu(accel),
        element("clock", offset="utc"),
        element("on_poweroff", "destroy"),
        element("on_reboot", "restart"),
        element("on_crash", "destroy"),
        _devices(plan, node),
        type="kvm" if accel == "kvm" else "qemu",
    )
    return text_of(domain)


def _owner(plan: Plan, node: Node) -> Element:
    owner = element(f"{{{OWNER_NAMESPACE}}}owner")
    owner.attrib.update(cluster=plan.name, node=node.name, image=plan.image.digest, by=plan.owner)
    return owner


def _os(image: Image) -> Element:
    machine = element("type", "hvm", arch="x86_64", machine="pc")
    if image.kernel is None:
        return element("os", machine, element("boot", dev="hd"))
    return element(
        "os",
        machine,
        element("kernel", str(image.kernel)),
        element("initrd", str(image.initrd)),
        element("cmdline", image.kernel_cmdline),
    )


def _features(accel: str) -> Element:
    features = element("features", element("acpi"), element("apic"))
    if accel == "tcg":
        features.append(element("tcg", element("tb-cache", str(TRANSLATION_CACHE_MIB), unit="MiB")))
    return features


def _cpu(accel: str) -> list[Element]:
    # Under emulation QEMU's default model is as fast as any other.
    return [element("cpu", mode="host-passthrough")] if accel == "kvm" else []


def _devices(plan: Plan, node: Node) -> Element:
    return element(
        "devices",
        _disk(volume_path(plan, node), "qcow2", "vda"),
        # A CD-ROM would need an AHCI driver, which Debian's cloud kernel lacks; a virtio disk it always sees.
        _disk(seed_path(plan, node), "raw", "vdb", read_only=True),
        *([_disk(data_path(plan, node), "qcow2", "vdc", serial=DATA_SERIAL)] if node.data_gib else []),
        element("controller", type="usb", model="none"),
        *([_management_card(plan, node.management)] if node.management else []),
        _cluster_card(plan, node),
        _serial(console_path(plan, node)),
        element("console", element("target", type="serial", port=0), type="pty"),
        _channel(READY_CHANNEL),
        _channel(AGENT_CHANNEL),
        element("input", type="keyboard", bus="ps2"),
        element("memballoon", model="none"),
        element("rng", element("backend", "/dev/urandom", model="random"), model="virtio"),
    )


def _disk(path: Path, kind: str, target: str, *, read_only: bool = False, serial: str = "") -> Element:
    disk = element(
        "disk",
        element("driver", name="qemu", type=kind),
        element("source", file=path),
        element("target", dev=target, bus="virtio"),
        type="file",
        device="disk",
    )
    if read_only:
        disk.append(element("readonly"))
    if serial:
        disk.append(element("serial", serial))
    return disk


def _management_card(plan: Plan, card: ManagementCard) -> Element:
    return element(
        "interface",
        element("mac", address=card.mac),
        element("source", network=libvirt_name(plan.name)),
        element("target", dev=card.port),
        element("model", type="virtio"),
        type="network",
    )


def _cluster_card(plan: Plan, node: Node) -> Element:
    return element(
        "interface",
        element("mac", address=node.mac),
        element("source", bridge=node.bridge),
        element("target", dev=node.port),
        element("model", type="virtio"),
        element("mtu", size=plan.mtu),
        type="bridge",
    )


def _serial(console_log: Path) -> Element:
    return element(
        "serial",
        element("log", file=console_log, append="on"),
        element("target", type="isa-serial", port=0),
        type="pty",
    )


def _channel(name: str) -> Element:
    return element("channel", element("target", type="virtio", name=name), type="unix")
