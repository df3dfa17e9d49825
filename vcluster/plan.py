"""From what was asked and what was observed to everything that will be. Pure."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

from vcluster import addressing, naming, topology
from vcluster.errors import MissingError
from vcluster.model import DEFAULT_USER, Facts, Image, Network, Node, Plan, Pool, ServerPlan, Spec

DISKS_PATH = Path("/var/lib/libvirt/images/vcluster/clusters")
# What a guest costs beyond its own memory: QEMU itself, and under emulation its bounded translation cache
# (render/domain.py).
QEMU_OVERHEAD_MIB = {"kvm": 64, "tcg": 192}
MEMORY_RESERVE_MIB = 512
DISK_NODE_MIB = 256  # a node's overlay after boot and a little work; it grows with use
DISK_RESERVE_MIB = 512


def make_plan(spec: Spec, facts: Facts, *, image: Image, accel: str, uri: str) -> Plan:
    """Decide everything. Raises RequestError, MissingError or ConflictError when the spec cannot be had here."""
    count = len(spec.node_names)
    subnet = addressing.choose_subnet(spec.subnet, count, facts)
    management = addressing.choose_management(count, facts, besides=subnet)
    check_room(spec, facts, accel)
    links = topology.MODES[spec.mode](spec.name, spec.node_names, mtu=spec.mtu)
    return Plan(
        name=spec.name,
        mode=spec.mode,
        subnet=subnet,
        mtu=spec.mtu,
        vcpus=spec.vcpus,
        memory_mib=spec.memory_mib,
        disk_gib=spec.disk_gib,
        accel=accel,
        user=DEFAULT_USER,
        image=image,
        switch=links.switch,
        servers=tuple(
            ServerPlan(server, uri, bridges, _network(spec.name, management), _pool(spec.name))
            for server, bridges in links.bridges.items()
        ),
        nodes=_nodes(spec, links, subnet, management),
        timeout_s=spec.timeout_s,
    )


def check_room(spec: Spec, facts: Facts, accel: str) -> None:
    """Raise MissingError, with the largest N that fits, when the server's memory or disk cannot hold the nodes."""
    count = len(spec.node_names)
    node_mib = spec.memory_mib + QEMU_OVERHEAD_MIB[accel]
    fit = max(0, facts.memory_free_mib - MEMORY_RESERVE_MIB) // node_mib
    if count > fit:
        raise MissingError(
            f"{count} nodes of {spec.memory_mib} MiB need {count * node_mib} MiB of memory, "
            f"{facts.memory_free_mib} MiB are free",
            hint=f"the largest -n that fits is {fit}" if fit else "take a smaller --memory",
        )
    fit = max(0, facts.disk_free_mib - DISK_RESERVE_MIB) // DISK_NODE_MIB
    if count > fit:
        raise MissingError(
            f"{count} nodes need {count * DISK_NODE_MIB + DISK_RESERVE_MIB} MiB on disk to begin with, "
            f"{facts.disk_free_mib} MiB are free at {DISKS_PATH}",
            hint=f"the largest -n that fits is {fit}" if fit else "make room there",
        )


def _nodes(spec: Spec, links: topology.Topology, subnet: IPv4Network, management: IPv4Network) -> tuple[Node, ...]:
    count = len(spec.node_names)
    addresses = addressing.node_addresses(subnet, count)
    management_addresses = addressing.management_addresses(management, count)
    macs: set[str] = set()
    nodes = []
    for position, name in enumerate(spec.node_names):
        mac = naming.mac_for(spec.name, name, "lab0", macs)
        macs.add(mac)
        management_mac = naming.mac_for(spec.name, name, "mgmt0", macs)
        macs.add(management_mac)
        attachment = links.attachments[position]
        nodes.append(
            Node(
                name=name,
                index=position + 1,
                role="worker" if position else "head",
                server=attachment.server,
                domain=naming.domain_name(spec.name, name),
                uuid=naming.uuid_for("domain", spec.name, name),
                address=addresses[position],
                mac=mac,
                bridge=attachment.bridge,
                port=attachment.port,
                management_address=management_addresses[position],
                management_mac=management_mac,
                management_port=naming.management_port_name(spec.name, position + 1),
                vni=attachment.vni,
            )
        )
    return tuple(nodes)


def _network(cluster: str, subnet: IPv4Network) -> Network:
    name = naming.libvirt_name(cluster)
    return Network(name, naming.uuid_for("network", cluster), naming.management_bridge_name(cluster), subnet)


def _pool(cluster: str) -> Pool:
    return Pool(naming.libvirt_name(cluster), naming.uuid_for("pool", cluster), DISKS_PATH / cluster)
