"""What the user asks for: frozen data."""

from __future__ import annotations

from dataclasses import dataclass
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
class StorageNode:
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
    stores: tuple[StorageNode, ...] = ()
    user: str = DEFAULT_USER
    sudo_commands: tuple[str, ...] = ()
    mpi_ports: PortRange | None = None
    image_login: ImageLogin | None = None
