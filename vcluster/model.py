"""What was asked (Spec), what a machine is like (Facts) and what will be (Plan): frozen data and look-ups."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

LOCAL_SERVER = "localhost"

DEFAULT_NAME = "lab"
DEFAULT_SUBNET = IPv4Network("10.0.0.0/24")
DEFAULT_MTU = 1450
DEFAULT_USER = "mpiuser"


@dataclass(frozen=True, slots=True)
class Image:
    """A guest image of the store. `kernel` is None for an image that boots only from its own disk."""

    name: str
    digest: str
    disk: Path
    virtual_size_bytes: int
    kernel: Path | None = None
    initrd: Path | None = None
    kernel_cmdline: str = ""
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Spec:
    """What the user asked for. `subnet` is None where the default or the next free one may be taken."""

    name: str
    mode: str
    node_names: tuple[str, ...]
    vcpus: int = 1
    memory_mib: int = 512
    disk_gib: int = 8
    subnet: IPv4Network | None = None
    mtu: int = DEFAULT_MTU
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Route:
    """A network this machine already reaches, and the interface it does so by."""

    network: IPv4Network
    interface: str


@dataclass(frozen=True, slots=True)
class Claim:
    """What another cluster of this machine holds, so that no two clusters ever hold the same."""

    cluster: str
    subnet: IPv4Network | None
    management: IPv4Network | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What planning must know of a server, observed before anything is decided."""

    memory_free_mib: int
    disk_free_mib: int
    routes: tuple[Route, ...]
    claims: tuple[Claim, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster, with everything that tells it from the others.

    `port` is its place on `bridge`, the interface through which `lab0` joins the cluster network; `management_port` is
    the same for `mgmt0`. `vni` is None where no tunnel carries the node's traffic.
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
    management_address: IPv4Address
    management_mac: str
    management_port: str
    vni: int | None = None

    @property
    def is_head(self) -> bool:
        """Whether this node serves NFS and launches MPI."""
        return self.role == "head"


@dataclass(frozen=True, slots=True)
class Bridge:
    """A software switch on a server. `alias` is the owner's mark that tells it from everybody else's."""

    name: str
    mtu: int
    alias: str


@dataclass(frozen=True, slots=True)
class Network:
    """The management network of a cluster on one server: NAT, static addresses, DNS from its gateway."""

    name: str
    uuid: str
    bridge: str
    subnet: IPv4Network

    @property
    def gateway(self) -> IPv4Address:
        """The server's own address on it."""
        return self.subnet[1]


@dataclass(frozen=True, slots=True)
class Pool:
    """The storage pool that holds a cluster's disks and seeds on one server."""

    name: str
    uuid: str
    path: Path


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """What one server carries."""

    name: str
    uri: str
    bridges: tuple[Bridge, ...]
    network: Network
    pool: Pool


@dataclass(frozen=True, slots=True)
class Switch:
    """The bridge that all cluster traffic crosses, and the server it is on."""

    server: str
    bridge: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that will be, decided before the first effect. The first node is the head."""

    name: str
    mode: str
    subnet: IPv4Network
    mtu: int
    vcpus: int
    memory_mib: int
    disk_gib: int
    accel: str
    user: str
    image: Image
    switch: Switch
    servers: tuple[ServerPlan, ...]
    nodes: tuple[Node, ...]
    timeout_s: float

    @property
    def head(self) -> Node:
        """The first node: NFS server and MPI launcher."""
        return self.nodes[0]

    @property
    def workers(self) -> tuple[Node, ...]:
        """All nodes but the head."""
        return self.nodes[1:]

    def server(self, name: str) -> ServerPlan:
        """The plan of one server."""
        return next(server for server in self.servers if server.name == name)
