"""Domains with our owner label, and their power."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import libvirt

from vcluster.model import naming
from vcluster.model.status import PAUSED, RUNNING, STOPPED, PowerState
from vcluster.render.domain_xml import OWNER_NAMESPACE
from vcluster.util import parallel
from vcluster.util.deadline import Deadline

LABELS_TIMEOUT_S = 60.0
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
    """A domain that is a node of one of our clusters."""

    name: str
    cluster: str
    node: str
    power: PowerState
    uuid: str


def power_state(domain: libvirt.virDomain) -> PowerState:
    """The power of a domain, with the reason if it is paused."""
    return _power(domain, *domain.state())


def _power(domain: libvirt.virDomain, state: int, reason: int) -> PowerState:
    if state == libvirt.VIR_DOMAIN_PMSUSPENDED:
        return PowerState(PAUSED, "suspended by its operating system")
    if state == libvirt.VIR_DOMAIN_PAUSED:
        disks = disk_errors(domain) if reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR else ""
        return PowerState(PAUSED, disks or PAUSE_REASONS.get(reason, f"libvirt's reason {reason}"))
    return PowerState(STOPPED if state == libvirt.VIR_DOMAIN_SHUTOFF else RUNNING)


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


def owned_domains(connection: libvirt.virConnect, owner: str) -> tuple[OwnedDomain, ...]:
    """All our domains. This asks libvirt about no other domain, and once for the states of all our domains."""
    ours = _ours(connection, owner)
    states = connection.domainListGetStats(ours, libvirt.VIR_DOMAIN_STATS_STATE) if ours else []
    return tuple(_owned_domain(domain, state) for domain, state in states)


def image_users(connection: libvirt.virConnect, digest: str) -> frozenset[str]:
    """The clusters of any owner with a domain that was made with an image: all users of a machine share its images."""
    labels = _labels([domain for domain in connection.listAllDomains() if _names(domain)[1]])
    return frozenset(label["cluster"] for label in labels if label.get("image") == digest and "cluster" in label)


def owners_of(connection: libvirt.virConnect, cluster: str) -> frozenset[str]:
    """The owner ids in the labels of the domains that have the names of a cluster's nodes."""
    named = [domain for domain in connection.listAllDomains() if _names(domain)[0] == cluster]
    return frozenset(label["by"] for label in _labels(named) if label.get("cluster") == cluster and "by" in label)


def _ours(connection: libvirt.virConnect, owner: str) -> list[libvirt.virDomain]:
    """Our domains. Name and UUID, which libvirt's list has, show whose a domain is.

    Domains of clusters made before decision 0028 have a UUID without the owner; for these the owner label decides.
    """
    listed = connection.listAllDomains()
    former = [domain for domain in listed if _has_uuid_of(domain)]
    labels = _labels(former)
    ours = [domain for domain in listed if _has_uuid_of(domain, owner)]
    return ours + [domain for domain, label in zip(former, labels, strict=True) if label.get("by") == owner]


def _has_uuid_of(domain: libvirt.virDomain, *owner: str) -> bool:
    return bool(domain.UUIDString() == naming.uuid_for("domain", *_names(domain), *owner))


def _names(domain: libvirt.virDomain) -> tuple[str, str]:
    """The cluster and the node in the name of a domain, if it is a node."""
    cluster, _, node = domain.name().partition(".")
    return cluster, node


def _labels(domains: Sequence[libvirt.virDomain]) -> list[Mapping[str, str]]:
    return parallel.each(domains, _label, deadline=Deadline(LABELS_TIMEOUT_S))


def _label(domain: libvirt.virDomain) -> Mapping[str, str]:
    """The owner label of a domain: cluster, node, image and owner id; empty without a label."""
    try:
        text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, OWNER_NAMESPACE)
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_NO_DOMAIN):
            return {}
        raise
    return ET.fromstring(text).attrib  # noqa: S314 - libvirt parsed it before


def _owned_domain(domain: libvirt.virDomain, found: Mapping[str, int]) -> OwnedDomain:
    power = _power(domain, found["state.state"], found["state.reason"])
    return OwnedDomain(domain.name(), *_names(domain), power, domain.UUIDString())


def taps(xml: str) -> tuple[str, ...]:
    """The server's interfaces of a running domain, from its XML."""
    targets = ET.fromstring(xml).iterfind("devices/interface/target")  # noqa: S314 - libvirt wrote it
    return tuple(filter(None, (target.get("dev") for target in targets)))


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
