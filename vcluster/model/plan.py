"""The plan of a cluster: frozen data."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from vcluster.model.spec import (
    DEFAULT_VXLAN_PORT,
    DIRECT,
    PRIVATE,
    AddressRange,
    Image,
    ImageLogin,
    Link,
    Login,
    PortRange,
)


@dataclass(frozen=True, slots=True)
class ManagementInterface:
    """A node's `mgmt0`: its address, its MAC, and its tap on the server."""

    address: IPv4Address
    mac: str
    port: str


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster.

    `port` is the tap of its `lab0`, a port of `bridge`. `management` is its `mgmt0`, None for a node without one. `vni`
    is None for a node without a tunnel. `data_gib` is the size of the disk that a storage node serves, otherwise 0.
    `processors` has the server's processor of each virtual processor; it is empty if the server's kernel chooses.
    """

    name: str
    index: int
    role: str
    server: str
    domain: str
    uuid: str
    address: IPv4Address
    mac: str
    bridge: str
    port: str
    management: ManagementInterface | None
    vni: int | None = None
    data_gib: int = 0
    processors: tuple[int, ...] = ()

    @property
    def is_head(self) -> bool:
        """Whether this node launches MPI, and serves NFS if the cluster has no storage nodes."""
        return self.role == "head"

    @property
    def login_address(self) -> IPv4Address:
        """The address for SSH: from its server, or from the head if the node has no `mgmt0`."""
        return self.management.address if self.management else self.address


@dataclass(frozen=True, slots=True)
class Bridge:
    """A software switch on a server. `alias` is its owner label."""

    name: str
    mtu: int
    alias: str


@dataclass(frozen=True, slots=True)
class Tunnel:
    """One end of a VXLAN tunnel, a port of a bridge. It has one fixed peer, `remote`, and its own VNI."""

    name: str
    bridge: str
    vni: int
    local: IPv4Address
    remote: IPv4Address
    interface: str
    port: int
    mtu: int
    alias: str


@dataclass(frozen=True, slots=True)
class Network:
    """The management network of a cluster on one server: NAT, static addresses, DNS at its gateway."""

    name: str
    uuid: str
    bridge: str
    subnet: IPv4Network

    @property
    def gateway(self) -> IPv4Address:
        """The server's address on this network."""
        return self.subnet[1]


@dataclass(frozen=True, slots=True)
class Pool:
    """The storage pool that holds a cluster's disks and seeds on one server."""

    name: str
    uuid: str
    path: Path


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """The plan of one server. `login` is None for this machine.

    `host_key` is the only key that it may show. A server without nodes has no network, no pool and no image. `tsc_mhz`
    is the frequency of the time stamp counter that emulated nodes read, or 0 if their kernels measure it. Nodes are
    pinned to the `processors`, if there are any.
    """

    name: str
    login: Login | None
    host_key: str
    timeout_s: float
    storage: Path
    bridges: tuple[Bridge, ...]
    tunnels: tuple[Tunnel, ...]
    accel: str
    network: Network | None = None
    pool: Pool | None = None
    image: Image | None = None
    tsc_mhz: int = 0
    processors: tuple[int, ...] = ()

    @property
    def interface_names(self) -> tuple[str, ...]:
        """The names of its bridges and tunnels."""
        return (*(bridge.name for bridge in self.bridges), *(tunnel.name for tunnel in self.tunnels))

    @property
    def carries_nodes(self) -> bool:
        """Whether it carries nodes, and not only the switch."""
        return self.pool is not None


@dataclass(frozen=True, slots=True)
class Switch:
    """The bridge that all cluster traffic crosses, and the server it is on."""

    server: str
    bridge: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a cluster, complete before the first effect. The first node is the head.

    `stores` are the storage nodes, in order; without any, the head serves a folder. `dhcp_range` is None for static
    addresses. `is_gateway_open` is for the private layout: whether the head forwards packets of the other nodes.
    `links` are the shaped directions of links, in the order of the nodes. With `delays_in_guest`, nodes delay frames
    themselves, because the kernel of the switch cannot. Each virtual processor of a node may use `cpu_limit_percent` of
    a processor of its server; 0 is no limit.
    """

    name: str
    owner: str
    mode: str
    subnet: IPv4Network
    mtu: int
    vcpus: int
    memory_mib: int
    disk_gib: int
    user: str
    image: Image
    switch: Switch
    servers: tuple[ServerPlan, ...]
    nodes: tuple[Node, ...]
    timeout_s: float
    layout: str = DIRECT
    dhcp_range: AddressRange | None = None
    stores: tuple[str, ...] = ()
    sudo_commands: tuple[str, ...] = ()
    mpi_ports: PortRange | None = None
    image_login: ImageLogin | None = None
    is_gateway_open: bool = True
    vxlan_port: int = DEFAULT_VXLAN_PORT
    links: tuple[Link, ...] = ()
    delays_in_guest: bool = False
    cpu_limit_percent: int = 0

    @property
    def is_private(self) -> bool:
        """Whether the head is the gateway of all other nodes."""
        return self.layout == PRIVATE

    @property
    def head(self) -> Node:
        """The first node: MPI launcher, and NFS server if the cluster has no storage nodes."""
        return self.nodes[0]

    @property
    def has_tunnels(self) -> bool:
        """Whether any node has a tunnel."""
        return any(node.vni is not None for node in self.nodes)

    @property
    def underlay_addresses(self) -> tuple[IPv4Address, ...]:
        """The addresses of its servers between which its tunnels run."""
        tunnels = [tunnel for server in self.servers for tunnel in server.tunnels]
        return tuple(sorted({end for tunnel in tunnels for end in (tunnel.local, tunnel.remote)}))

    @property
    def node_range(self) -> IPv4Network:
        """The smallest network that has the addresses of all nodes on the cluster network."""
        first, last = (int(end(node.address for node in self.nodes)) for end in (min, max))
        bits = (first ^ last).bit_length()
        return IPv4Network((first >> bits << bits, 32 - bits))

    @property
    def workers(self) -> tuple[Node, ...]:
        """All nodes but the head."""
        return self.nodes[1:]

    def node(self, name: str) -> Node:
        """The node with that name."""
        return next(node for node in self.nodes if node.name == name)

    def server(self, name: str) -> ServerPlan:
        """The plan of one server."""
        return next(server for server in self.servers if server.name == name)

    def nodes_on(self, server: str) -> tuple[Node, ...]:
        """The nodes on a server."""
        return tuple(node for node in self.nodes if node.server == server)

    def network_of(self, node: Node) -> Network:
        """The management network on a node's server."""
        network = self.server(node.server).network
        assert network is not None  # noqa: S101 - a server that carries a node has one
        return network

    def pool_of(self, node: Node) -> Pool:
        """The storage pool of a node's disk."""
        pool = self.server(node.server).pool
        assert pool is not None  # noqa: S101 - a server that carries a node has one
        return pool

    def image_of(self, node: Node) -> Image:
        """A node's image, with its path on the node's server."""
        image = self.server(node.server).image
        assert image is not None  # noqa: S101 - a server that carries a node has one
        return image
