"""What libvirt has of a cluster, from its own files: definitions below /etc/libvirt, and what runs below /run/libvirt.

So one request answers for all nodes of a server. libvirt itself would need one for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from vcluster.agent.survey.file_states import text_of_file

CONFIGURED, RUNNING = Path("/etc/libvirt"), Path("/run/libvirt")
OWNER = "{urn:vcluster:owner:1}owner"  # vcluster.render.domain_xml, which is not in the archive
PREFIX = "vcluster"
XML_MAX = 1 << 22
# Devices that would give a node a way to the outside that its plan does not name.
_OTHERS = ("graphics", "hostdev", "filesystem", "redirdev", "vsock", "shmem")

Record = dict[str, Any]


def domains(cluster: str) -> dict[str, Record]:
    """The domains with names of this cluster's nodes: each as it is defined, and as it runs, with its process."""
    found: dict[str, Record] = {}
    for name in _names(f"{cluster}.*", CONFIGURED / "qemu", RUNNING / "qemu"):
        status = _read(RUNNING / "qemu" / f"{name}.xml")
        defined = _read(CONFIGURED / "qemu" / f"{name}.xml")
        running = status.find("domain") if status is not None else None
        found[name] = {
            "defined": None if defined is None else _domain(defined),
            "running": None if running is None else _domain(running),
            "state": "" if status is None else status.get("state", ""),
            "pid": 0 if status is None else int(status.get("pid") or 0),
        }
    return found


@dataclass(frozen=True, slots=True)
class DomainProcess:
    """A domain that runs or is paused: its QEMU, its state, and the MACs of its interfaces that are unplugged."""

    pid: int
    state: str
    unplugged: frozenset[str]


def run_of(name: str) -> DomainProcess | None:
    """The process of a domain; None if it is off."""
    status = _read(RUNNING / "qemu" / f"{name}.xml")
    if status is None:
        return None
    down = (one for one in status.iterfind("domain/devices/interface") if _get(one.find("link"), "state") == "down")
    macs = frozenset(_get(one.find("mac"), "address") for one in down)
    return DomainProcess(int(status.get("pid") or 0), status.get("state", ""), macs)


def network(name: str) -> Record | None:
    """A network as it is defined, whether it is active, and whether it starts with the server; None without one."""
    defined = _read(CONFIGURED / "qemu/networks" / f"{name}.xml")
    if defined is None:
        return None
    forward, bridge = defined.find("forward"), defined.find("bridge")
    labels = [text.get("value", "") for text in defined.iterfind("dns/txt") if text.get("name") == PREFIX]
    return {
        "uuid": defined.findtext("uuid") or "",
        "bridge": "" if bridge is None else bridge.get("name", ""),
        "forward": "" if forward is None else forward.get("mode", ""),
        "addresses": [_address(ip) for ip in defined.iterfind("ip")],
        "label": labels[0] if labels else "",
        "has_dhcp": defined.find("ip/dhcp") is not None,
        "is_active": (RUNNING / "network" / f"{name}.xml").exists(),
        "starts_with_server": (CONFIGURED / "qemu/networks/autostart" / f"{name}.xml").is_symlink(),
    }


def pool(name: str) -> Record | None:
    """A storage pool as it is defined; None without one.

    The files do not show whether it is active: libvirt writes none for the pools that it activates when it starts.
    """
    defined = _read(CONFIGURED / "storage" / f"{name}.xml")
    if defined is None:
        return None
    return {"uuid": defined.findtext("uuid") or "", "path": defined.findtext("target/path") or ""}


def _names(pattern: str, *folders: Path) -> list[str]:
    return sorted({path.stem for folder in folders for path in folder.glob(f"{pattern}.xml")})


def _read(path: Path) -> ET.Element | None:
    """The XML in a file; None if it is not there, or not complete while libvirt writes it."""
    try:
        return ET.fromstring(text_of_file(path, XML_MAX))  # noqa: S314 - libvirt wrote it
    except ET.ParseError:
        return None


def _domain(root: ET.Element) -> Record:
    owner = root.find(f"metadata/{OWNER}")
    return {
        "uuid": root.findtext("uuid") or "",
        "label": {} if owner is None else dict(owner.attrib),
        "devices": sorted(_devices(root)),
        "processors": sorted(_cpu_tuning(root)),
    }


def _cpu_tuning(root: ET.Element) -> Iterator[str]:
    """What the domain may use of processors, each part as a text, for example `vcpupin 0 3` or `quota 2500`."""
    for part in root.iterfind("cputune/*"):
        yield " ".join((part.tag, *part.attrib.values(), *(part.text or "").split()))


def _devices(root: ET.Element) -> Iterator[str]:
    """Interfaces, disks, and devices that no node has, each as a text."""
    for interface in root.iterfind("devices/interface"):
        mac, target, source = (interface.find(part) for part in ("mac", "target", "source"))
        place = {} if source is None else source.attrib
        yield (
            f"interface {_get(mac, 'address')} {_get(target, 'dev')} in "
            f"{place.get('network') or place.get('bridge') or '?'}"
        )
    for disk in root.iterfind("devices/disk"):
        access = " (read-only)" if disk.find("readonly") is not None else ""
        yield f"disk {_get(disk.find('source'), 'file')}{access}"
    for kind in _OTHERS:
        yield from (kind for _ in root.iterfind(f"devices/{kind}"))


def _get(element: ET.Element | None, name: str) -> str:
    return "?" if element is None else element.get(name, "?")


def _address(ip: ET.Element) -> str:
    try:
        return str(IPv4Interface(f"{ip.get('address')}/{ip.get('netmask') or ip.get('prefix')}"))
    except ValueError:
        return str(ip.get("address"))
