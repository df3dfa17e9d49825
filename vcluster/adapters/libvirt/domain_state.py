"""Domains with our owner label, and their power."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass

import libvirt

from vcluster.model.status import PAUSED, RUNNING, STOPPED, PowerState
from vcluster.render.domain_xml import OWNER_NAMESPACE

# virDomainPausedReason, https://libvirt.org/html/libvirt-libvirt-domain.html
PAUSE_REASONS = {
    libvirt.VIR_DOMAIN_PAUSED_USER: "paused by a user of libvirt",
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION: "migration",
    libvirt.VIR_DOMAIN_PAUSED_SAVE: "its memory is being saved",
    libvirt.VIR_DOMAIN_PAUSED_DUMP: "its memory is being dumped",
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: "I/O error",
    libvirt.VIR_DOMAIN_PAUSED_WATCHDOG: "watchdog",
    libvirt.VIR_DOMAIN_PAUSED_FROM_SNAPSHOT: "restored without a start",
    libvirt.VIR_DOMAIN_PAUSED_SHUTTING_DOWN: "shutting down",
    libvirt.VIR_DOMAIN_PAUSED_CRASHED: "its operating system crashed",
    libvirt.VIR_DOMAIN_PAUSED_STARTING_UP: "starting",
}


@dataclass(frozen=True, slots=True)
class OwnedDomain:
    """A domain with our owner label."""

    name: str
    cluster: str
    node: str
    image: str
    power: PowerState
    uuid: str = ""


def power_state(domain: libvirt.virDomain) -> PowerState:
    """The power of a domain, with the reason if it is paused."""
    state, reason = domain.state()
    if state == libvirt.VIR_DOMAIN_PMSUSPENDED:
        return PowerState(PAUSED, "suspended by its operating system")
    if state == libvirt.VIR_DOMAIN_PAUSED:
        disks = disk_errors(domain) if reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR else ""
        return PowerState(PAUSED, disks or PAUSE_REASONS.get(reason, f"libvirt's reason {reason}"))
    return PowerState(RUNNING if domain.isActive() else STOPPED)


def disk_errors(domain: libvirt.virDomain) -> str:
    """The disks that QEMU stopped a domain for, with their files; empty if there are none."""
    try:
        errors = domain.diskErrors()
        disks = ET.fromstring(domain.XMLDesc()).iterfind("devices/disk")  # noqa: S314 - libvirt wrote it
    except libvirt.libvirtError:  # the domain was stopped meanwhile, or the driver has no such call
        return ""
    files = {disk.find("target").get("dev"): disk.find("source").get("file") for disk in disks}  # type: ignore[union-attr]
    texts = {libvirt.VIR_DOMAIN_DISK_ERROR_NO_SPACE: "no space left"}
    return ", ".join(
        f"I/O error on {files.get(disk, disk)}: {texts.get(error, 'unspecified error')}"
        for disk, error in sorted((errors or {}).items())
    )


def owned_domain(domain: libvirt.virDomain, owner_id: str) -> OwnedDomain | None:
    """The domain, if its owner label has this owner id."""
    try:
        text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, OWNER_NAMESPACE)
        owner, power = ET.fromstring(text), power_state(domain)  # noqa: S314 - libvirt parsed it before
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_NO_DOMAIN):
            return None
        raise
    get = owner.attrib.get
    if get("by") != owner_id:
        return None
    return OwnedDomain(domain.name(), get("cluster", ""), get("node", ""), get("image", ""), power, domain.UUIDString())


def qemu_user(capabilities: str) -> tuple[int, int]:
    """The user and the group of QEMU in libvirt's capabilities (https://libvirt.org/formatcaps.html); else root.

    A label such as +64055:+109 is of the security model "dac".
    """
    models = ET.fromstring(capabilities).iterfind("host/secmodel")  # noqa: S314 - libvirt wrote it
    for model in models:
        label = model.findtext("baselabel") or ""
        if model.findtext("model") == "dac" and (found := re.fullmatch(r"\+(\d+):\+(\d+)", label)):
            return int(found[1]), int(found[2])
    return 0, 0
