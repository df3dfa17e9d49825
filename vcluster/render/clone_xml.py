"""The XML of a clone: the template's saved domain XML, with this node's identity, disks and interfaces. Pure.

Everything that the guest's memory relies on stays: the machine type, the devices, their order and addresses. QEMU maps
the memory from a file that all clones share. The mapping is private, so a page takes memory only after a write.

This XML is for the first start only. The node's definition is that of any node (domain_xml.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

from vcluster.errors import VclusterError
from vcluster.model.plan import Node, Plan
from vcluster.render import memory_file
from vcluster.render.domain_xml import console_path, identity, interfaces, seed_path, volume_path
from vcluster.render.memory_file import QEMU_NAMESPACE
from vcluster.render.xml_tree import Element, element, text_of
from vcluster.snapshots.memory_access import Access

# QEMU waits for the state of the devices, which the command migrate-incoming of its monitor loads.
_WAIT_FOR_STATE = ("-incoming", "defer")


def clone_xml(saved_xml: str, plan: Plan, node: Node, *, ram: Path, access: Access, macs: Mapping[str, str]) -> str:
    """The domain XML that a node resumes with. `macs` are the template's MACs, by interface; `ram` is its memory.

    Raises VclusterError if the saved XML is not the XML of our template.
    """
    try:
        root = ET.fromstring(saved_xml)  # noqa: S314 - written by libvirt
    except ET.ParseError as error:
        raise VclusterError(f"the saved domain XML cannot be read: {error}") from error
    if root.tag != "domain":
        raise VclusterError(f"the saved domain XML is not a domain but a {root.tag}")
    devices = _find(root, "devices")
    for old in [root.find(name) for name in ("name", "uuid", "title", "metadata")] + root.findall("seclabel"):
        if old is not None:
            root.remove(old)
    root[:0] = identity(plan, node)
    for target, path in {"vda": volume_path(plan, node), "vdb": seed_path(plan, node)}.items():
        _set_disk_file(devices, target, path)
    new_interfaces = interfaces(plan, node)
    if set(new_interfaces) != set(macs):
        present, needed = ", ".join(macs), ", ".join(new_interfaces)
        raise VclusterError(f"the saved domain XML has the interfaces {present}, but {node.name} needs {needed}")
    for name, mac in macs.items():
        _replace_interface(devices, mac, new_interfaces[name])
    for port in devices.iter():
        if port.tag in ("serial", "console", "channel"):
            _reset_port(port, console_path(plan, node))
    memory_file.remove_arguments(root)
    size_bytes = _memory_bytes(root)
    root.append(memory_file.arguments(ram, size_bytes=size_bytes, access=access, others=_WAIT_FOR_STATE))
    root.append(_one_request_for_features())
    return text_of(root)


def _find(parent: Element, path: str) -> Element:
    found = parent.find(path)
    if found is None:
        raise VclusterError(f"the saved domain XML has no {path}")
    return found


def _set_disk_file(devices: Element, target: str, path: Path) -> None:
    """Point a disk to another file. libvirt finds the backing files itself."""
    disk = _find(devices, f"disk/target[@dev='{target}']/..")
    _find(disk, "source").attrib = {"file": str(path)}
    for chain in disk.findall("backingStore"):
        disk.remove(chain)


def _replace_interface(devices: Element, mac: str, new: Element) -> None:
    """Replace the interface with this MAC, at the same device address."""
    old = _find(devices, f"interface/mac[@address='{mac}']/..")
    new.append(_find(old, "address"))
    devices[list(devices).index(old)] = new


def _reset_port(port: Element, console: Path) -> None:
    """Remove the template's terminals and sockets, so that libvirt chooses new ones."""
    port.attrib.pop("tty", None)
    for source in port.findall("source"):
        port.remove(source)
    for log in port.findall("log"):
        log.attrib["file"] = str(console)


def _memory_bytes(root: Element) -> int:
    memory = _find(root, "memory")
    kib, unit = memory.text or "", memory.get("unit", "KiB")
    if unit != "KiB" or not kib.isdecimal() or not int(kib):  # libvirt writes KiB
        raise VclusterError(f"the saved domain XML has a memory of {kib!r} {unit}")
    return int(kib) * 1024


def _one_request_for_features() -> Element:
    """Have libvirt read the features of the processor in one request to QEMU, as it does with a QEMU before 4.2.

    Otherwise libvirt sends a request for each of four hundred features at every start: 0.2 s of a processor.
    """
    absent = element(f"{{{QEMU_NAMESPACE}}}del", capability="cpu-unavailable-features")
    return element(f"{{{QEMU_NAMESPACE}}}capabilities", absent)
