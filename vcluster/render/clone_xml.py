"""The XML of a copy: the template's as libvirt has kept it beside its memory, with what is this node's own. Pure.

All that the guest's memory relies on stays as it is: machine, addresses of devices, their order. QEMU maps the memory
from a file that all copies share, privately, so that a page costs something only once it is written to; libvirt has no
words of its own for that (https://libvirt.org/drvqemu.html, "Pass-through of arbitrary QEMU commands").
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

from vcluster.errors import VclusterError
from vcluster.model.plan import Node, Plan
from vcluster.render.domain_xml import cards, console_path, identity, seed_path, volume_path
from vcluster.render.xml_tree import Element, element, text_of
from vcluster.snapshots.qemu_stream import BLOCK

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
RAM = BLOCK.decode()
ET.register_namespace("qemu", QEMU_NAMESPACE)


def clone_xml(kept_xml: str, plan: Plan, node: Node, *, ram: Path, macs: Mapping[str, str]) -> str:
    """The definition that a node wakes with; `macs` are the template's, by card.

    Raises VclusterError where the kept XML is not that of a template of ours.
    """
    try:
        root = ET.fromstring(kept_xml)  # noqa: S314 - libvirt has written it
    except ET.ParseError as error:
        raise VclusterError(f"the kept domain cannot be read: {error}") from error
    if root.tag != "domain":
        raise VclusterError(f"the kept domain is no domain but a {root.tag}")
    devices = _one(root, "devices")
    for old in [root.find(name) for name in ("name", "uuid", "title", "metadata")] + root.findall("seclabel"):
        if old is not None:
            root.remove(old)
    root[:0] = identity(plan, node)
    for target, path in {"vda": volume_path(plan, node), "vdb": seed_path(plan, node)}.items():
        _aim(devices, target, path)
    mine = cards(plan, node)
    if set(mine) != set(macs):
        raise VclusterError(f"the kept domain has the cards {', '.join(macs)}, not {', '.join(mine)}")
    for name, mac in macs.items():
        _exchange(devices, mac, mine[name])
    for port in devices.iter():
        if port.tag in ("serial", "console", "channel"):
            _let_choose(port, console_path(plan, node))
    root.append(_mapping(root, ram))
    return text_of(root)


def _one(parent: Element, path: str) -> Element:
    found = parent.find(path)
    if found is None:
        raise VclusterError(f"the kept domain has no {path}")
    return found


def _aim(devices: Element, target: str, path: Path) -> None:
    """Have a disk be another file; what that is built on libvirt finds out."""
    disk = _one(devices, f"disk/target[@dev='{target}']/..")
    _one(disk, "source").attrib = {"file": str(path)}
    for chain in disk.findall("backingStore"):
        disk.remove(chain)


def _exchange(devices: Element, mac: str, mine: Element) -> None:
    """A card for another, in the same place."""
    theirs = _one(devices, f"interface/mac[@address='{mac}']/..")
    mine.append(_one(theirs, "address"))
    devices[list(devices).index(theirs)] = mine


def _let_choose(port: Element, console: Path) -> None:
    """Terminals and sockets are libvirt's to choose anew."""
    port.attrib.pop("tty", None)
    for source in port.findall("source"):
        port.remove(source)
    for log in port.findall("log"):
        log.attrib["file"] = str(console)


def _mapping(root: Element, ram: Path) -> Element:
    """Guest memory from a file, written to privately; it takes the place of what libvirt asks for."""
    memory = _one(root, "memory")
    kib, unit = memory.text or "", memory.get("unit", "KiB")
    if unit != "KiB" or not kib.isdecimal() or not int(kib):  # as libvirt writes it
        raise VclusterError(f"the kept domain has a memory of {kib!r} {unit}")
    if "," in str(ram):
        raise VclusterError(f"{ram} has a comma in it, which QEMU takes for the end of a path")
    size = int(kib) * 1024
    backend = (
        f"memory-backend-file,id={RAM},size={size},mem-path={ram},share=off,x-use-canonical-path-for-ramblock-id=off"
    )
    arguments = ("-object", backend, "-machine", f"memory-backend={RAM}")
    values = [element(f"{{{QEMU_NAMESPACE}}}arg", value=one) for one in arguments]
    return element(f"{{{QEMU_NAMESPACE}}}commandline", *values)
