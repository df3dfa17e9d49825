"""Domain XML of nodes and templates: a headless virtio machine with network interfaces and a serial console. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vcluster.model.naming import libvirt_name
from vcluster.model.plan import ManagementInterface, Node, Plan
from vcluster.model.spec import Image
from vcluster.render import memory_file
from vcluster.render.xml_tree import Element, element, text_of
from vcluster.snapshots.memory_access import SHARED
from vcluster.util import cpu_list

OWNER_NAMESPACE, TEMPLATE_NAMESPACE = "urn:vcluster:owner:1", "urn:vcluster:template:1"
READY_CHANNEL = "org.vcluster.0"
AGENT_CHANNEL = "org.qemu.guest_agent.0"
# The guest finds the served disk by this serial number; its other disks have none.
DATA_SERIAL = "vcluster-data"
DATA_SUFFIX = ".data.qcow2"
# A kernel that panics reboots at once, and libvirt reports the reboot. Without this it would stop silently.
REBOOT_ON_PANIC = "panic=-1"
TRANSLATION_CACHE_MAX_MIB = 128
# A limited processor runs for a part of each period, and stands still for the rest. Frames wait meanwhile, so the
# period is shorter than the kernel's own, 100 ms. The kernel takes no quota below 1 ms (kernel/sched/core.c).
LIMIT_PERIOD_US, LIMIT_QUOTA_MIN_US = 10_000, 1_000


def volume_path(plan: Plan, node: Node) -> Path:
    """The path of a node's disk on its server."""
    return plan.pool_of(node).path / volume_name(node)


def seed_path(plan: Plan, node: Node) -> Path:
    """The path of a node's seed on its server."""
    return plan.pool_of(node).path / seed_name(node)


def data_path(plan: Plan, node: Node) -> Path:
    """The path, on its server, of the disk that a node serves by NFS."""
    return plan.pool_of(node).path / data_name(node)


def console_path(plan: Plan, node: Node) -> Path:
    """The path, on its server, of the log of a node's serial console."""
    return plan.pool_of(node).path / f"{node.name}.console.log"


def volume_name(node: Node) -> str:
    """The volume name of a node's disk."""
    return f"{node.name}.qcow2"


def seed_name(node: Node) -> str:
    """The volume name of a node's seed."""
    return f"{node.name}.seed.iso"


def data_name(node: Node) -> str:
    """The volume name of the disk that a node serves by NFS."""
    return f"{node.name}{DATA_SUFFIX}"


@dataclass(frozen=True, slots=True)
class Machine:
    """The properties of a domain without its identity: image, accelerator, size, and files.

    `tsc_mhz` is the frequency of the time stamp counter, or 0 if the kernel measures it.
    """

    image: Image
    accel: str
    memory_mib: int
    vcpus: int
    disk: Path
    seed: Path
    console: Path
    tsc_mhz: int = 0


def machine_of(plan: Plan, node: Node) -> Machine:
    """A node's machine."""
    server = plan.server(node.server)
    return Machine(
        plan.image_of(node),
        server.accel,
        plan.memory_mib,
        plan.vcpus,
        volume_path(plan, node),
        seed_path(plan, node),
        console_path(plan, node),
        server.tsc_mhz,
    )


def domain_xml(plan: Plan, node: Node) -> str:
    """The XML of a node's domain."""
    data = [data_disk(plan, node)] if node.data_gib else []
    devices = [*data, element("controller", type="usb", model="none"), *interfaces(plan, node).values()]
    return text_of(_domain(machine_of(plan, node), identity(plan, node), devices))


def identity(plan: Plan, node: Node) -> list[Element]:
    """The elements that only this node has: name, UUID, title and owner label, and what its processors may use."""
    return [
        element("name", node.domain),
        element("uuid", node.uuid),
        element("title", f"{node.name} of cluster {plan.name}"),
        element("metadata", _owner(plan, node)),
        *cpu_tuning_of(plan, node),
    ]


def cpu_tuning_of(plan: Plan, node: Node) -> list[Element]:
    """What a node's domain may use of its server's processors, as in `cpu_tuning`."""
    return cpu_tuning(plan.cpu_limit_percent, node.processors, plan.server(node.server).processors)


def cpu_tuning(limit_percent: int, processors: Sequence[int], others: Sequence[int]) -> list[Element]:
    """What a domain may use of its server's processors; nothing without a limit and without pins.

    Each virtual processor may use the share `limit_percent`, 0 without a limit, of the processor that it is pinned to.
    QEMU's `others`, the threads that carry frames and blocks, may use all processors that are named for nodes: so they
    find an idle one if there is one, and disturb no processor that the user keeps free. They have no limit.
    """
    parts = []
    if limit_percent:
        period_us = max(LIMIT_PERIOD_US, 100 * LIMIT_QUOTA_MIN_US // limit_percent)
        parts.append(element("period", str(period_us)))
        parts.append(element("quota", str(max(LIMIT_QUOTA_MIN_US, period_us * limit_percent // 100))))
    parts += [element("vcpupin", vcpu=number, cpuset=processor) for number, processor in enumerate(processors)]
    if others:
        parts.append(element("emulatorpin", cpuset=cpu_list.text_of(others)))
    return [element("cputune", *parts)] if parts else []


def interfaces(plan: Plan, node: Node) -> dict[str, Element]:
    """A node's network interfaces, by their names in the node."""
    management = {"mgmt0": _management_interface(plan, node.management)} if node.management else {}
    return management | {"lab0": _cluster_interface(plan, node)}


def data_disk(plan: Plan, node: Node) -> Element:
    """The disk that a node serves by NFS."""
    return _disk(data_path(plan, node), "qcow2", "vdc", serial=DATA_SERIAL)


def template_xml(
    machine: Machine, name: str, uuid: str, *, by: str, macs: Mapping[str, str], mtu: int, ram: Path
) -> str:
    """The XML of a template's domain. Its interfaces have MACs that no node has, and are not connected.

    `by` is the owner id. `macs` are by interface. `ram` is the file of its memory.
    """
    owner = element(f"{{{TEMPLATE_NAMESPACE}}}template")
    owner.attrib.update(by=by)
    unconnected = [_unconnected_interface(mac, mtu if interface == "lab0" else None) for interface, mac in macs.items()]
    names = [
        element("name", name),
        element("uuid", uuid),
        element("title", "vcluster template"),
        element("metadata", owner),
    ]
    root = _domain(machine, names, [element("controller", type="usb", model="none"), *unconnected])
    root.append(memory_file.arguments(ram, size_bytes=machine.memory_mib * 2**20, access=SHARED))
    return text_of(root)


def translation_cache_mib(memory_mib: int) -> int:
    """The memory for translated code of an emulated node. QEMU's own limit is 1 GiB.

    A node fills 80 to 92 MiB until it is ready. A small one gets less, so that more nodes fit: with 64
    MiB, QEMU translates some code again, which takes 9 % more CPU time of a create.
    """
    return min(TRANSLATION_CACHE_MAX_MIB, memory_mib // 4)


def _domain(machine: Machine, names: Sequence[Element], devices: Sequence[Element]) -> Element:
    return element(
        "domain",
        *names,
        element("memory", str(machine.memory_mib), unit="MiB"),
        element("vcpu", str(machine.vcpus)),
        _os(machine),
        _features(machine),
        *_cpu(machine.accel),
        element("clock", offset="utc"),
        element("on_poweroff", "destroy"),
        element("on_reboot", "restart"),
        element("on_crash", "destroy"),
        element(
            "devices",
            _disk(machine.disk, "qcow2", "vda"),
            # A virtio disk, since a CD-ROM would need an AHCI driver, which Debian's cloud kernel lacks.
            _disk(machine.seed, "raw", "vdb", read_only=True),
            *devices,
            _serial(machine.console),
            element("console", element("target", type="serial", port=0), type="pty"),
            _channel(READY_CHANNEL),
            _channel(AGENT_CHANNEL),
            element("input", type="keyboard", bus="ps2"),
            element("memballoon", model="none"),
            element("rng", element("backend", "/dev/urandom", model="random"), model="virtio"),
            # A kernel with a driver for it reports its panic here; then libvirt ends the domain (on_crash).
            element("panic", model="isa"),
        ),
        type="kvm" if machine.accel == "kvm" else "qemu",
    )


def _owner(plan: Plan, node: Node) -> Element:
    owner = element(f"{{{OWNER_NAMESPACE}}}owner")
    owner.attrib.update(cluster=plan.name, node=node.name, image=plan.image.digest, by=plan.owner)
    return owner


def _os(machine: Machine) -> Element:
    kind = element("type", "hvm", arch="x86_64", machine="pc")
    image = machine.image
    if image.kernel is None:
        return element("os", kind, element("boot", dev="hd"))
    arguments = [image.kernel_cmdline, REBOOT_ON_PANIC]
    if machine.tsc_mhz:
        arguments.append(f"tsc_early_khz={machine.tsc_mhz * 1000}")
    return element(
        "os",
        kind,
        element("kernel", str(image.kernel)),
        element("initrd", str(image.initrd)),
        element("cmdline", " ".join(arguments)),
    )


def _features(machine: Machine) -> Element:
    features = element("features", element("acpi"), element("apic"))
    if machine.accel == "tcg":
        size_mib = translation_cache_mib(machine.memory_mib)
        features.append(element("tcg", element("tb-cache", str(size_mib), unit="MiB")))
    return features


def _cpu(accel: str) -> list[Element]:
    # Under emulation QEMU's default CPU model is as fast as any other.
    return [element("cpu", mode="host-passthrough")] if accel == "kvm" else []


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


def _management_interface(plan: Plan, management: ManagementInterface) -> Element:
    return element(
        "interface",
        element("mac", address=management.mac),
        element("source", network=libvirt_name(plan.name)),
        element("target", dev=management.port),
        element("model", type="virtio"),
        type="network",
    )


def _unconnected_interface(mac: str, mtu: int | None) -> Element:
    """An interface without a bridge. Clones take over its state in the guest. libvirt names and removes its tap."""
    interface = element("interface", element("mac", address=mac), element("model", type="virtio"), type="ethernet")
    if mtu:
        interface.append(element("mtu", size=mtu))
    return interface


def _cluster_interface(plan: Plan, node: Node) -> Element:
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
