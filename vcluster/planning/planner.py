"""From what was asked and what was observed to everything that will be. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from itertools import chain, count, islice

from vcluster.errors import ConflictError, MissingError, RequestError
from vcluster.model import naming
from vcluster.model.facts import Facts, UnderlayRoute
from vcluster.model.plan import ManagementInterface, Network, Node, Plan, Pool, ServerPlan
from vcluster.model.spec import DHCP, PRIVATE, AddressRange, Image, ServerSpec, Spec
from vcluster.planning import addressing, placement, topology

CLUSTERS_FOLDER, IMAGES_FOLDER = "clusters", "images"
# What a guest costs beyond its own memory: QEMU itself, and under emulation its bounded translation cache
# (render/domain.py).
QEMU_OVERHEAD_MIB = {"kvm": 64, "tcg": 192}
MEMORY_RESERVE_MIB = 512
DISK_NODE_MIB = 256  # a node's overlay after boot and a little work; it grows with use
DISK_RESERVE_MIB = 512
VXLAN_OVERHEAD_BYTES = 50  # RFC 7348: IPv4 20, UDP 8, VXLAN 8, and the inner Ethernet header 14
VNI_MAX = 2**24 - 1


def make_plan(spec: Spec, facts: Mapping[str, Facts], *, image: Image, owner: str) -> Plan:
    """Decide everything, from the facts of every server by name.

    Raises RequestError, MissingError or ConflictError when the spec cannot be had on these servers.
    """
    carriers = [facts[server.name] for server in spec.servers]
    subnet = addressing.choose_subnet(spec.subnet, len(spec.node_names), carriers)
    addresses = spec.node_addresses or addressing.node_addresses(subnet, len(spec.node_names))
    places = _place(spec, facts)
    links = lay_out(spec, facts, places, owner)
    networks = _networks(spec, facts, _management_places(spec, places), owner, besides=subnet)
    servers = tuple(
        _server_plan(spec, server, facts, links, networks, image if server.name in places else None, owner)
        for server in _servers(spec)
    )
    return Plan(
        name=spec.name,
        owner=owner,
        mode=spec.mode,
        subnet=subnet,
        mtu=spec.mtu,
        vcpus=spec.vcpus,
        memory_mib=spec.memory_mib,
        disk_gib=spec.disk_gib,
        user=spec.user,
        image=image,
        switch=links.switch,
        servers=servers,
        nodes=make_nodes(spec, links, addresses, networks),
        timeout_s=spec.timeout_s,
        vxlan_port=spec.vxlan_port,
        layout=spec.layout,
        dhcp_range=_dhcp_range(spec, subnet, addresses),
        stores=tuple(store.node for store in spec.stores),
        sudo_commands=spec.sudo_commands,
        mpi_ports=spec.mpi_ports,
        image_login=spec.image_login,
    )


def _dhcp_range(spec: Spec, subnet: IPv4Network, addresses: Sequence[IPv4Address]) -> AddressRange | None:
    return addressing.choose_dhcp_range(spec.dhcp_range, subnet, addresses) if spec.addresses == DHCP else None


def _servers(spec: Spec) -> tuple[ServerSpec, ...]:
    """Every server there is something to do on."""
    has_half = spec.sets_up_switch and spec.switch.name not in {server.name for server in spec.servers}
    return (*spec.servers, spec.switch) if has_half else spec.servers


# Where nodes go


def _place(spec: Spec, facts: Mapping[str, Facts]) -> tuple[str, ...]:
    """The server of each node, in order; refused when memory or disk cannot hold them."""
    if len(spec.servers) == 1:
        server = spec.servers[0]
        check_room(spec, facts[server.name])
    rooms = {server.name: room_on(facts[server.name]) for server in spec.servers}
    overhead_mib = max(QEMU_OVERHEAD_MIB[facts[server.name].accel] for server in spec.servers)
    return placement.place(spec, rooms, node_mib=spec.memory_mib + overhead_mib, node_disk_mib=DISK_NODE_MIB)


def room_on(facts: Facts) -> placement.Room:
    """What a server has for nodes."""
    return placement.Room(
        memory_free_mib=max(0, facts.memory_free_mib - MEMORY_RESERVE_MIB),
        disk_free_mib=max(0, facts.disk_free_mib - DISK_RESERVE_MIB),
        cpus=facts.cpus,
    )


def check_room(spec: Spec, facts: Facts) -> None:
    """Raise MissingError, with the largest N that fits, when the one server's memory or disk cannot hold the nodes."""
    number = len(spec.node_names)
    node_mib = spec.memory_mib + QEMU_OVERHEAD_MIB[facts.accel]
    fit = max(0, facts.memory_free_mib - MEMORY_RESERVE_MIB) // node_mib
    if number > fit:
        raise MissingError(
            f"{number} nodes of {spec.memory_mib} MiB need {number * node_mib} MiB of memory, "
            f"{facts.memory_free_mib} MiB are free",
            hint=f"the largest -n that fits is {fit}" if fit else "take a smaller --memory",
        )
    fit = max(0, facts.disk_free_mib - DISK_RESERVE_MIB) // DISK_NODE_MIB
    if number > fit:
        raise MissingError(
            f"{number} nodes need {number * DISK_NODE_MIB + DISK_RESERVE_MIB} MiB on disk to begin with, "
            f"{facts.disk_free_mib} MiB are free at {spec.servers[0].path / CLUSTERS_FOLDER}",
            hint=f"the largest -n that fits is {fit}" if fit else "make room there",
        )


# What joins them


def lay_out(
    spec: Spec, facts: Mapping[str, Facts], places: Sequence[str], owner: str, *, present: Sequence[Node] = ()
) -> topology.Topology:
    """The links for nodes on these servers, in order, beside those of the nodes that are `present` already."""
    switch = spec.switch.name
    away = [server for server in places if server != switch]
    ways: dict[tuple[str, str], UnderlayRoute] = {}
    for server in dict.fromkeys(away):
        ways[server, switch] = facts[server].underlay_routes[switch]
        if spec.sets_up_switch:
            ways[switch, server] = facts[switch].underlay_routes[server]
    for (start, end), way in ways.items():
        check_mtu(spec.mtu, start, end, way)
    taken = {node.index for node in present}
    indices = islice((index for index in count(1) if index not in taken), len(places))
    return topology.lay_out(
        topology.Fabric(spec.name, owner, spec.mtu, spec.vxlan_port),
        dict(zip(indices, places, strict=True)),
        switch,
        vnis=_choose_vnis(spec, facts, away, {node.vni for node in present}),
        ways=ways,
    )


def check_mtu(mtu: int, start: str, end: str, way: UnderlayRoute) -> None:
    """Raise MissingError with the largest MTU that fits, when a way between servers is too narrow for the tunnels."""
    fits = way.mtu - VXLAN_OVERHEAD_BYTES
    if mtu > fits:
        raise MissingError(
            f"from {start} to {end}, {way.interface} carries packets of {way.mtu} bytes, and VXLAN needs "
            f"{VXLAN_OVERHEAD_BYTES} of them: MTU {mtu} does not fit",
            hint=f"--mtu {fits}, or mtu = {fits} in the file",
        )


def _choose_vnis(
    spec: Spec, facts: Mapping[str, Facts], away: Sequence[str], taken: Collection[int | None]
) -> tuple[int, ...]:
    """For each node with a tunnel the first network identifier that is free at both ends and not given yet."""
    if not spec.sets_up_switch:
        return _consecutive_vnis(spec, facts, away)
    at_switch = {*facts[spec.switch.name].vnis, *taken}
    chosen: list[int] = []
    candidate = spec.vni_base
    for server in away:
        while candidate in at_switch or candidate in facts[server].vnis:
            candidate += 1
        if candidate > VNI_MAX:
            raise ConflictError(f"no VNI from {spec.vni_base} on is free", hint="take a smaller --vni-base")
        chosen.append(candidate)
        candidate += 1
    return tuple(chosen)


def _consecutive_vnis(spec: Spec, facts: Mapping[str, Facts], away: Sequence[str]) -> tuple[int, ...]:
    """The ones that `vcluster switch up` takes as well, told the same number of nodes and the same base."""
    wanted = range(spec.vni_base, spec.vni_base + len(away))
    if wanted and wanted[-1] > VNI_MAX:
        raise RequestError(f"VNIs end at {VNI_MAX}", hint="take a smaller --vni-base")
    taken = next((vni for server, vni in zip(away, wanted, strict=True) if vni in facts[server].vnis), None)
    if taken is not None:
        raise ConflictError(f"VNI {taken} is in use here", hint="take another --vni-base, the same on both servers")
    return tuple(wanted)


# What they are


def _management_places(spec: Spec, places: Sequence[str]) -> Sequence[str]:
    """The server of each node that has a `mgmt0`: in the private layout that is the head alone."""
    return places[:1] if spec.layout == PRIVATE else places


def _networks(
    spec: Spec, facts: Mapping[str, Facts], places: Sequence[str], owner: str, *, besides: IPv4Network
) -> dict[str, Network]:
    """A management network on each server that carries nodes with a `mgmt0`, none like another."""
    chosen: dict[str, Network] = {}
    for server in dict.fromkeys(places):
        taken = (besides, *(network.subnet for network in chosen.values()))
        subnet = addressing.choose_management(places.count(server), facts[server], besides=taken)
        name = naming.libvirt_name(spec.name)
        mark = naming.uuid_for("network", spec.name, owner)
        chosen[server] = Network(name, mark, naming.management_bridge_name(spec.name), subnet)
    return chosen


def _server_plan(
    spec: Spec,
    server: ServerSpec,
    facts: Mapping[str, Facts],
    links: topology.Topology,
    networks: Mapping[str, Network],
    image: Image | None,
    owner: str,
) -> ServerPlan:
    """What a server carries; it needs an image only if nodes are among that."""
    return ServerPlan(
        name=server.name,
        login=server.login,
        host_key=facts[server.name].host_key,
        timeout_s=server.timeout_s,
        storage=server.path,
        bridges=links.bridges.get(server.name, ()),
        tunnels=links.tunnels.get(server.name, ()),
        accel=facts[server.name].accel,
        network=networks.get(server.name),
        pool=_pool(spec.name, server, owner) if image else None,
        image=_image_on(server, image) if image else None,
    )


def _image_on(server: ServerSpec, image: Image) -> Image:
    """The image where that server keeps it; on this machine it stays where it is."""
    if server.login is None:
        return image
    folder = server.path / IMAGES_FOLDER / image.digest
    return replace(
        image,
        disk=folder / image.disk.name,
        kernel=image.kernel and folder / image.kernel.name,
        initrd=image.initrd and folder / image.initrd.name,
    )


def _pool(cluster: str, server: ServerSpec, owner: str) -> Pool:
    path = server.path / CLUSTERS_FOLDER / cluster
    return Pool(naming.libvirt_name(cluster), naming.uuid_for("pool", cluster, owner), path)


def make_nodes(
    spec: Spec,
    links: topology.Topology,
    addresses: Sequence[IPv4Address],
    networks: Mapping[str, Network],
    *,
    present: Sequence[Node] = (),
) -> tuple[Node, ...]:
    """The nodes of these names, attached so, in order; nothing of theirs is what a node that is `present` has."""
    macs = _macs(spec, present)
    cards = _management_interfaces(spec, links.attachments, macs, networks, present)
    data_gib = {store.node: store.size_gib for store in spec.stores}
    return tuple(
        Node(
            name=name,
            index=attachment.index,
            role="worker" if position or present else "head",
            server=attachment.server,
            domain=naming.domain_name(spec.name, name),
            uuid=naming.uuid_for("domain", spec.name, name),
            address=addresses[position],
            mac=macs[name, "lab0"],
            bridge=attachment.bridge,
            port=attachment.port,
            management=cards.get(name),
            vni=attachment.vni,
            data_gib=data_gib.get(name, 0),
        )
        for position, (name, attachment) in enumerate(zip(spec.node_names, links.attachments, strict=True))
    )


def _management_interfaces(
    spec: Spec,
    attachments: Sequence[topology.Attachment],
    macs: Mapping[tuple[str, str], str],
    networks: Mapping[str, Network],
    present: Sequence[Node],
) -> dict[str, ManagementInterface]:
    """The `mgmt0` of each node that has one, by the node's name."""
    places = [one.server for one in attachments]
    # Of the first nodes, which are those with a card; in the private layout the head, which is present, has the only.
    carriers = () if present and spec.layout == PRIVATE else _management_places(spec, places)
    held = {node.management.address for node in present if node.management}
    free = {
        server: iter(addressing.management_addresses(networks[server].subnet, carriers.count(server), held))
        for server in dict.fromkeys(carriers)
    }
    return {
        name: ManagementInterface(
            next(free[one.server]), macs[name, "mgmt0"], naming.management_port_name(spec.name, one.index)
        )
        for name, one in zip(spec.node_names, attachments[: len(carriers)], strict=False)
    }


def _macs(spec: Spec, present: Sequence[Node]) -> dict[tuple[str, str], str]:
    """For each node one for lab0, then one for mgmt0; no two the same, and none that is in use."""
    taken = {mac for node in present for mac in (node.mac, node.management.mac if node.management else "")}
    given: dict[tuple[str, str], str] = {}
    for name in spec.node_names:
        for interface in ("lab0", "mgmt0"):
            given[name, interface] = naming.mac_for(spec.name, name, interface, chain(taken, given.values()))
    return given
