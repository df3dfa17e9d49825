"""QEMU's arguments for a domain whose memory is a file. libvirt has no elements for a file of our choice. Pure.

(https://libvirt.org/drvqemu.html, "Pass-through of arbitrary QEMU commands"; docs/system/vm-templating.rst in QEMU.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from vcluster.errors import VclusterError
from vcluster.render.xml_tree import Element, element
from vcluster.snapshots.memory_access import Access

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
_BLOCK = "vcluster.ram"  # the name of the memory in QEMU's stream
ET.register_namespace("qemu", QEMU_NAMESPACE)


def arguments(file: Path, *, size_bytes: int, access: Access, others: Sequence[str] = ()) -> Element:
    """The element with QEMU's arguments: memory in this file, then `others`.

    Raises VclusterError if the path has a comma, which would end it.
    """
    if "," in str(file):
        raise VclusterError(f"the path {file} contains a comma, and QEMU would cut it there")
    # Without the last option, the block's name in the stream would be a path in QEMU's tree of objects.
    backend = (
        f"memory-backend-file,id={_BLOCK},size={size_bytes},mem-path={file},{access.options},"
        "x-use-canonical-path-for-ramblock-id=off"
    )
    argv = ("-object", backend, "-machine", f"memory-backend={_BLOCK}", *others)
    elements = [element(f"{{{QEMU_NAMESPACE}}}arg", value=argument) for argument in argv]
    return element(f"{{{QEMU_NAMESPACE}}}commandline", *elements)


def remove_arguments(root: Element) -> None:
    """Remove the element with QEMU's arguments from a domain's XML, if it has one."""
    for found in root.findall(f"{{{QEMU_NAMESPACE}}}commandline"):
        root.remove(found)
