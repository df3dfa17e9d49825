"""What was asked (Spec), what a machine is like (Facts) and what will be (Plan): frozen data and look-ups."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

LOCAL_SERVER = "localhost"

DEFAULT_NAME = "lab"
DEFAULT_SUBNET = IPv4Network("10.0.0.0/24")
DEFAULT_MTU = 1450
DEFAULT_USER = "mpiuser"
DEFAULT_VNI = 40
DEFAULT_VXLAN_PORT = 4789  # RFC 7348
DEFAULT_POLICY = "spread"
DIRECT, PRIVATE = "direct", "private"
STATIC, DHCP = "static", "dhcp"
SERVER_TIMEOUT_S = 30.0
STORAGE_PATH = Path("/var/lib/libvirt/images/vcluster")


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
class Login:
    """How a server is reached by SSH, as asked; what is left out comes from ssh's own configuration.

    `password` says where the password comes from and is never the password: empty, `ask`, `env:NAME`, or
    `file:PATH#SECTION` for a key of that section of a configuration file. `fingerprint` is the server's host key as
    `ssh-keygen -l` prints it, SHA256:…
    """

    host: str
    user: str = ""
    port: int = 0
    key: Path | None = None
    password: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """A server as the user described it. `login` is None for this machine; what was not said is None or empty.

    `cpus`, `memory_mib` and `disk_gib` are how much of it nodes may take together, `nodes` how many it carries,
    `interface` and `address` the underlay's end of its tunnels, `path` where disks and images are kept.
    """

    name: str
    login: Login | None = None
    nodes: int | None = None
    cpus: int | None = None
    memory_mib: int | None = None
    disk_gib: int | None = None
    interface: str = ""
    address: IPv4Address | None = None
    path: Path = STORAGE_PATH
    timeout_s: float = SERVER_TIMEOUT_S


LOCAL = ServerSpec(LOCAL_SERVER)


@dataclass(frozen=True, slots=True)
class Store:
    """A node that serves a disk of its own by NFS, as asked."""

    node: str
    size_gib: int


@dataclass(frozen=True, slots=True)
class AddressRange:
    """Addresses from the first to the last, both included."""

    first: IPv4Address
    last: IPv4Address

    def __contains__(self, address: IPv4Address) -> bool:
        return self.first <= address <= self.last

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class PortRange:
    """TCP ports from the first to the last, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}:{self.last}"


@dataclass(frozen=True, slots=True)
class ImageLogin:
    """Who may log in to a node made from an image of somebody else's, before our own keys are there.

    `password` says where it comes from, `ask` or `env:NAME`; it is never the password itself.
    """

    user: str
    password: str


@dataclass(frozen=True, slots=True)
class Spec:
    """What the user asked for. `subnet` is None where the default or the next free one may be taken.

    The modes differ in nothing but `servers`, which carry the nodes (the first carries the head), and `switch`, the
    server whose bridge their traffic crosses; it may be one of them. `sets_up_switch` is False where somebody makes the
    switch's half by hand.

    In the `private` layout only the head has `mgmt0` and is the others' way out. `node_addresses` are empty where they
    go from .1 on; `dhcp_range`, for strangers, is None where the top of the subnet will do; without `stores` the
    head's folder is shared; `image_login` is None for images that need none; `mpi_ports` is None for any.
    """

    name: str
    mode: str
    node_names: tuple[str, ...]
    servers: tuple[ServerSpec, ...] = (LOCAL,)
    switch: ServerSpec = LOCAL
    sets_up_switch: bool = True
    vni_base: int = DEFAULT_VNI
    vxlan_port: int = DEFAULT_VXLAN_PORT
    policy: str = DEFAULT_POLICY
    vcpus: int = 1
    memory_mib: int = 512
    disk_gib: int = 8
    subnet: IPv4Network | None = None
    mtu: int = DEFAULT_MTU
    timeout_s: float = 600.0
    layout: str = DIRECT
    addresses: str = STATIC
    node_addresses: tuple[IPv4Address, ...] = ()
    dhcp_range: AddressRange | None = None
    stores: tuple[Store, ...] = ()
    user: str = DEFAULT_USER
    sudo_commands: tuple[str, ...] = ()
    mpi_ports: PortRange | None = None
    image_login: ImageLogin | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """A network a server already reaches, and the interface it does so by."""

    network: IPv4Network
    interface: str
    server: str = "this machine"


@dataclass(frozen=True, slots=True)
class Claim:
    """What another cluster of this machine holds, so that no two clusters ever hold the same."""

    cluster: str
    subnet: IPv4Network | None
    management: tuple[IPv4Network, ...]


@dataclass(frozen=True, slots=True)
class Way:
    """How a server reaches the other end of its tunnels: both addresses, its own interface, and the bytes that fit."""

    local: IPv4Address
    remote: IPv4Address
    interface: str
    mtu: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What planning must know of a server, observed before anything is decided.

    `accel` is how nodes would run there, kvm or tcg; `vnis` are in use, whoever uses them; `ways` lead to other
    servers, by name; `host_key` is the key the server has shown, empty for this machine.
    """

    memory_free_mib: int = 0
    disk_free_mib: int = 0
    cpus: int = 0
    accel: str = "tcg"
    routes: tuple[Route, ...] = ()
    claims: tuple[Claim, ...] = ()
    vnis: frozenset[int] = frozenset()
    ways: dict[str, Way] = field(default_factory=dict)
    host_key: str = ""


@dataclass(frozen=True, slots=True)
class ManagementCard:
    """A node's `mgmt0`: its address, its MAC, and the host's end of it."""

    address: IPv4Address
    mac: str
    port: str


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster, with everything that tells it from the others.

    `port` is its place on `bridge`, the interface through which `lab0` joins the cluster network. `management` is its
    `mgmt0`, None for a node that has none. `vni` is None where no tunnel carries the node's traffic. `data_gib` is the
    size of the disk it serves to the others, 0 where there is none.
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
    management: ManagementCard | None
    vni: int | None = None
    data_gib: int = 0

    @property
    def is_head(self) -> bool:
        """Whether this node launches MPI, and serves NFS where no other does."""
        return self.role == "head"

    @property
    def reached_at(self) -> IPv4Address:
        """Where it is logged in to: from its server, or from the head where it has no `mgmt0`."""
        return self.management.address if self.management else self.address


@dataclass(frozen=True, slots=True)
class Bridge:
    """A software switch on a server. `alias` is the owner's mark that tells it from everybody else's."""

    name: str
    mtu: int
    alias: str


@dataclass(frozen=True, slots=True)
class Tunnel:
    """One end of a VXLAN tunnel, a port of a bridge. It has one fixed peer, `remote`, and a VNI of its own."""

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
    """What one server carries, and how it is reached (`login` None: it is this machine).

    `host_key` is the only one it may show. One that carries no node has no network, no pool and no image.
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

    @property
    def link_names(self) -> tuple[str, ...]:
        """Its bridges and tunnels."""
        return (*(bridge.name for bridge in self.bridges), *(tunnel.name for tunnel in self.tunnels))

    @property
    def carries_nodes(self) -> bool:
        """Whether it is more than a switch."""
        return self.pool is not None


@dataclass(frozen=True, slots=True)
class Switch:
    """The bridge that all cluster traffic crosses, and the server it is on."""

    server: str
    bridge: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that will be, decided before the first effect. The first node is the head.

    `stores` are the nodes whose disks are shared, in order; without any the head's folder is. `dhcp_range` is None
    where addresses are static. `is_gateway_open` says whether the head lets the others out, in the private layout.
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

    @property
    def is_private(self) -> bool:
        """Whether the head is the only way to and from the other nodes."""
        return self.layout == PRIVATE

    @property
    def head(self) -> Node:
        """The first node: MPI launcher, and NFS server where no other node is."""
        return self.nodes[0]

    @property
    def has_tunnels(self) -> bool:
        """Whether any node's traffic leaves its server."""
        return any(node.vni is not None for node in self.nodes)

    @property
    def workers(self) -> tuple[Node, ...]:
        """All nodes but the head."""
        return self.nodes[1:]

    def node(self, name: str) -> Node:
        """The node of that name."""
        return next(node for node in self.nodes if node.name == name)

    def server(self, name: str) -> ServerPlan:
        """The plan of one server."""
        return next(server for server in self.servers if server.name == name)

    def nodes_on(self, server: str) -> tuple[Node, ...]:
        """The nodes that a server carries."""
        return tuple(node for node in self.nodes if node.server == server)

    def network_of(self, node: Node) -> Network:
        """The management network a node is on."""
        network = self.server(node.server).network
        assert network is not None  # noqa: S101 - a server that carries a node has one
        return network

    def pool_of(self, node: Node) -> Pool:
        """The pool that holds a node's disk."""
        pool = self.server(node.server).pool
        assert pool is not None  # noqa: S101 - a server that carries a node has one
        return pool

    def image_of(self, node: Node) -> Image:
        """The image a node is made from, where its server keeps it."""
        image = self.server(node.server).image
        assert image is not None  # noqa: S101 - a server that carries a node has one
        return image
