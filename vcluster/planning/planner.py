"""Make a plan from a request and the facts of the servers. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from vcluster.errors import ConflictError
from vcluster.model import naming
from vcluster.model.facts import DNS_FIX, DNS_IS_TAKEN, Facts
from vcluster.model.plan import ManagementInterface, Network, Node, Plan, Pool, ServerPlan
from vcluster.model.spec import DHCP, PRIVATE, AddressRange, Image, ServerSpec, Spec
from vcluster.planning import addressing, placement, traffic_plan
from vcluster.planning.topology import Attachment, Fabric, Topology, plan_topology

CLUSTERS_FOLDER, IMAGES_FOLDER = "clusters", "images"


def make_plan(spec: Spec, facts: Mapping[str, Facts], *, image: Image, owner: str) -> Plan:
    """The complete plan, from the facts of every server by name.

    Raises RequestError, MissingError or ConflictError when these servers cannot carry the cluster.
    """
    count = len(spec.node_names)
    subnet = addressing.choose_subnet(spec.subnet, count, [facts[server.name] for server in spec.servers])
    addresses = spec.node_addresses or addressing.node_addresses(subnet, count)
    places = _place(spec, facts)
    managed = places[:1] if spec.layout == PRIVATE else places  # the servers of the nodes that have a `mgmt0`
    fabric = Fabric(spec.name, owner, spec.mtu, spec.vxlan_port, spec.switch.name, spec.sets_up_switch, spec.vni_base)
    topology = plan_topology(fabric, facts, places)
    networks = _networks(spec.name, owner, facts, managed, avoid=subnet)
    servers = _server_plans(spec, owner, facts, topology, networks=networks, carriers={*places}, image=image)
    data_gib = {store.node: store.size_gib for store in spec.stores}
    plan = Plan(
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
        switch=topology.switch,
        servers=servers,
        nodes=make_nodes(
            spec.name,
            owner,
            spec.node_names,
            topology.attachments,
            addresses,
            networks,
            len(managed),
            data_gib=data_gib,
        ),
        timeout_s=spec.timeout_s,
        vxlan_port=spec.vxlan_port,
        layout=spec.layout,
        dhcp_range=_dhcp_range(spec, subnet, addresses),
        stores=tuple(store.node for store in spec.stores),
        sudo_commands=spec.sudo_commands,
        mpi_ports=spec.mpi_ports,
        image_login=spec.image_login,
        cpu_limit_percent=spec.cpu_limit_percent,
    )
    return traffic_plan.with_links(placement.pinned(plan, facts), spec.links)


def _dhcp_range(spec: Spec, subnet: IPv4Network, addresses: Sequence[IPv4Address]) -> AddressRange | None:
    return addressing.choose_dhcp_range(spec.dhcp_range, subnet, addresses) if spec.addresses == DHCP else None


def _server_plans(
    spec: Spec,
    owner: str,
    facts: Mapping[str, Facts],
    topology: Topology,
    *,
    networks: Mapping[str, Network],
    carriers: Set[str],
    image: Image,
) -> tuple[ServerPlan, ...]:
    """The plans of all servers. Only the `carriers`, which carry nodes, have a pool and the image."""
    return tuple(
        _server_plan(
            server,
            facts[server.name],
            topology,
            network=networks.get(server.name),
            pool=_pool(spec.name, owner, server) if server.name in carriers else None,
            image=_image_on(server, image) if server.name in carriers else None,
            processors=(server.processors or spec.processors) if server.name in carriers else (),
        )
        for server in _servers(spec)
    )


def _servers(spec: Spec) -> tuple[ServerSpec, ...]:
    """The servers of the nodes, and the switch's server if the switch side is ours."""
    is_extra = spec.sets_up_switch and spec.switch.name not in {server.name for server in spec.servers}
    return (*spec.servers, spec.switch) if is_extra else spec.servers


def _place(spec: Spec, facts: Mapping[str, Facts]) -> tuple[str, ...]:
    """The server of each node, in order. Raises MissingError when memory or disk cannot hold them."""
    count = len(spec.node_names)
    if len(spec.servers) == 1:
        server = spec.servers[0]
        placement.check_one_server(count, spec.memory_mib, facts[server.name], server.path / CLUSTERS_FOLDER)
    rooms = {server.name: placement.room_on(facts[server.name]) for server in spec.servers}
    overhead_mib = max(
        placement.qemu_overhead_mib(facts[server.name].accel, spec.memory_mib) for server in spec.servers
    )
    size = placement.NodeSize(spec.vcpus, spec.memory_mib, spec.disk_gib, spec.memory_mib + overhead_mib)
    return placement.place(count, spec.servers, rooms, size=size, policy=spec.policy)


# Servers


def _networks(
    cluster: str, owner: str, facts: Mapping[str, Facts], managed: Sequence[str], *, avoid: IPv4Network
) -> dict[str, Network]:
    """A management network on each server whose nodes have a `mgmt0`; their subnets differ."""
    chosen: dict[str, Network] = {}
    for server in dict.fromkeys(managed):
        if not facts[server].is_dns_free:
            raise ConflictError(
                f"{server}: {DNS_IS_TAKEN}, so libvirt cannot start the management network", hint=DNS_FIX
            )
        taken = (avoid, *(network.subnet for network in chosen.values()))
        subnet = addressing.choose_management(managed.count(server), facts[server], avoid=taken)
        name = naming.libvirt_name(cluster)
        uuid = naming.uuid_for("network", cluster, owner)
        chosen[server] = Network(name, uuid, naming.management_bridge_name(cluster), subnet)
    return chosen


def _server_plan(
    server: ServerSpec,
    facts: Facts,
    topology: Topology,
    *,
    network: Network | None,
    pool: Pool | None,
    image: Image | None,
    processors: tuple[int, ...],
) -> ServerPlan:
    return ServerPlan(
        name=server.name,
        login=server.login,
        host_key=facts.host_key,
        timeout_s=server.timeout_s,
        storage=server.path,
        bridges=topology.bridges.get(server.name, ()),
        tunnels=topology.tunnels.get(server.name, ()),
        accel=facts.accel,
        network=network,
        pool=pool,
        image=image,
        tsc_mhz=facts.tsc_mhz if pool and facts.accel == "tcg" else 0,
        processors=processors,
    )


def _image_on(server: ServerSpec, image: Image) -> Image:
    """The image with its path on a server; on this machine the path stays."""
    if server.login is None:
        return image
    folder = server.path / IMAGES_FOLDER / image.digest
    return replace(
        image,
        disk=folder / image.disk.name,
        kernel=image.kernel and folder / image.kernel.name,
        initrd=image.initrd and folder / image.initrd.name,
    )


def _pool(cluster: str, owner: str, server: ServerSpec) -> Pool:
    path = server.path / CLUSTERS_FOLDER / cluster
    return Pool(naming.libvirt_name(cluster), naming.uuid_for("pool", cluster, owner), path)


# Nodes


def make_nodes(
    cluster: str,
    owner: str,
    names: Sequence[str],
    attachments: Sequence[Attachment],
    addresses: Sequence[IPv4Address],
    networks: Mapping[str, Network],
    managed: int,
    *,
    data_gib: Mapping[str, int],
    present: Sequence[Node] = (),
) -> tuple[Node, ...]:
    """The nodes with these names, attachments and addresses, in order. The first `managed` of them have a `mgmt0`.

    They share no name, address or MAC with the nodes that are `present`. `data_gib` are the sizes of served disks, by
    node.
    """
    macs = _macs(cluster, names, present)
    management_addresses = _management_addresses([one.server for one in attachments[:managed]], networks, present)
    management = {
        name: ManagementInterface(address, macs[name, "mgmt0"], naming.management_port_name(cluster, attachment.index))
        for name, attachment, address in zip(names, attachments, management_addresses, strict=False)
    }
    return tuple(
        Node(
            name=name,
            index=attachment.index,
            role="worker" if position or present else "head",
            server=attachment.server,
            domain=naming.domain_name(cluster, name),
            uuid=naming.uuid_for("domain", cluster, name, owner),
            address=addresses[position],
            mac=macs[name, "lab0"],
            bridge=attachment.bridge,
            port=attachment.port,
            management=management.get(name),
            vni=attachment.vni,
            data_gib=data_gib.get(name, 0),
        )
        for position, (name, attachment) in enumerate(zip(names, attachments, strict=True))
    )


def _management_addresses(
    servers: Sequence[str], networks: Mapping[str, Network], present: Sequence[Node]
) -> list[IPv4Address]:
    """A free management address for a node on each of these servers, in order."""
    taken = {node.management.address for node in present if node.management}
    free = {
        server: iter(addressing.management_addresses(networks[server].subnet, servers.count(server), taken))
        for server in dict.fromkeys(servers)
    }
    return [next(free[server]) for server in servers]


def _macs(cluster: str, names: Sequence[str], present: Sequence[Node]) -> dict[tuple[str, str], str]:
    """The MACs of each node's `lab0` and `mgmt0`, by node and interface; all differ, also from present ones."""
    taken = {mac for node in present for mac in (node.mac, node.management.mac if node.management else "")}
    chosen: dict[tuple[str, str], str] = {}
    for name in names:
        for interface in ("lab0", "mgmt0"):
            chosen[name, interface] = naming.mac_for(cluster, name, interface, taken)
            taken.add(chosen[name, interface])
    return chosen
