"""XML of the management network, the storage pool and its volumes. Pure."""

from __future__ import annotations

from pathlib import Path

from vcluster.model.naming import PREFIX, alias
from vcluster.model.plan import Network, Pool
from vcluster.render.xml_tree import element, text_of


def network_xml(cluster: str, owner: str, network: Network) -> str:
    """The NAT network of a cluster. It has no DHCP: the seed contains each node's planned address.

    The UUID proves whose it is. The owner label is for clusters whose owner id is lost. libvirt has no metadata on
    networks before 9.7, so the label is a TXT record of the network's DNS.
    """
    root = element(
        "network",
        element("name", network.name),
        element("uuid", network.uuid),
        element("forward", mode="nat"),
        element("bridge", name=network.bridge, stp="off", delay=0),
        element("dns", element("txt", name=PREFIX, value=alias(cluster, owner))),
        element("ip", address=network.gateway, netmask=network.subnet.netmask),
    )
    return text_of(root)


def pool_xml(pool: Pool) -> str:
    """A directory pool; QEMU may open files in it but not list it."""
    root = element(
        "pool",
        element("name", pool.name),
        element("uuid", pool.uuid),
        element("target", element("path", str(pool.path)), element("permissions", element("mode", "0711"))),
        type="dir",
    )
    return text_of(root)


def overlay_xml(name: str, *, size_bytes: int, backing: Path) -> str:
    """A copy-on-write volume over an image."""
    root = element(
        "volume",
        element("name", name),
        element("capacity", str(size_bytes), unit="bytes"),
        element("target", element("format", type="qcow2"), element("permissions", element("mode", "0600"))),
        element("backingStore", element("path", str(backing)), element("format", type="qcow2")),
    )
    return text_of(root)


def blank_xml(name: str, *, kind: str, size_bytes: int) -> str:
    """An empty volume: qcow2 for a disk, which grows with use, or raw for content to upload.

    Only its owner can read it: a seed has private keys, a disk has users' data.
    """
    root = element(
        "volume",
        element("name", name),
        element("capacity", str(size_bytes), unit="bytes"),
        element("target", element("format", type=kind), element("permissions", element("mode", "0600"))),
    )
    return text_of(root)
