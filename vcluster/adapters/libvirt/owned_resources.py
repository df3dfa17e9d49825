"""Networks and pools of clusters. Their UUID proves whose they are: it is derived from the cluster and the owner id."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from vcluster.model import naming

_GONE = (libvirt.VIR_ERR_NO_NETWORK, libvirt.VIR_ERR_NO_STORAGE_POOL)


@dataclass(frozen=True, slots=True)
class OwnedResource:
    """A network or a pool with our owner label."""

    name: str
    cluster: str
    is_active: bool


def owned_resources(kind: str, resources: Iterable[Any], owner: str) -> tuple[OwnedResource, ...]:
    """Those of these networks or pools that belong to an owner.

    Another command may remove one after it was listed: it is left out.
    """
    prefix = naming.libvirt_name("")
    named = [(each, each.name().removeprefix(prefix)) for each in resources if each.name().startswith(prefix)]
    ours = [each for each in named if each[0].UUIDString() == naming.uuid_for(kind, each[1], owner)]
    return tuple(
        OwnedResource(each.name(), cluster, is_active)
        for each, cluster in ours
        if (is_active := _is_active(each)) is not None
    )


def _is_active(resource: Any) -> bool | None:
    """Whether a network or pool is active; None if it is gone."""
    try:
        return bool(resource.isActive())
    except libvirt.libvirtError as error:
        if error.get_error_code() in _GONE:
            return None
        raise


def network_labels(networks: Iterable[libvirt.virNetwork]) -> frozenset[tuple[str, str]]:
    """The cluster and the owner id of each network of any owner that has a label; see render/network_xml.py."""
    named = (each for each in networks if each.name().startswith(naming.libvirt_name("")))
    return frozenset(label for each in named if (label := _label_of(each)))


def _label_of(network: libvirt.virNetwork) -> tuple[str, str] | None:
    try:
        text = network.XMLDesc()
    except libvirt.libvirtError as error:
        if error.get_error_code() in _GONE:
            return None
        raise
    records = ET.fromstring(text).iterfind("dns/txt")  # noqa: S314 - libvirt wrote it
    values = [record.get("value", "") for record in records if record.get("name") == naming.PREFIX]
    label = naming.parse_alias(values[0]) if values else None
    return label if label and network.UUIDString() == naming.uuid_for("network", *label) else None
