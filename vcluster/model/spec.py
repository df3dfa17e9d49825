"""The user's request: frozen data."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

LOCAL_SERVER = "localhost"

DEFAULT_NAME = "lab"
DEFAULT_SUBNET = IPv4Network("10.0.0.0/24")
DEFAULT_MTU = 1450
DEFAULT_USER = "mpiuser"
DEFAULT_IMAGE = "debian13"  # also the name of the recipe that builds it
DEFAULT_VNI = 40
DEFAULT_VXLAN_PORT = 4789  # RFC 7348
DEFAULT_POLICY = "spread"
DIRECT, PRIVATE = "direct", "private"
STATIC, DHCP = "static", "dhcp"
SERVER_TIMEOUT_S = 30.0
STORAGE_PATH = Path("/var/lib/libvirt/images/vcluster")
FROM, TO = "from", "to"  # the directions of a link, as its node sees them
CUT, PARTITION, FLAP, UNPLUG, PAUSE = "cut", "partition", "flap", "unplug", "pause"  # kinds of faults
TRACE = "trace"  # the kind of a record of a link whose rates change over time; it is not a fault


@dataclass(frozen=True, slots=True)
class Image:
    """A guest image of the image store. `kernel` is None for an image that boots from its disk."""

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
    """How the user wants to log in to a server by SSH. Empty fields come from ssh_config.

    `password` names the source of the password, and is never the password: empty, `ask`, `env:NAME`, or
    `file:PATH#SECTION` for a key of that section of a configuration file. `fingerprint` is the fingerprint of the host
    key in the format of `ssh-keygen -l`, SHA256:…
    """

    host: str
    user: str = ""
    port: int = 0
    key: Path | None = None
    password: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """A server as the user described it. `login` is None for this machine; fields that are not given are None or empty.

    `cpus`, `memory_mib` and `disk_gib` are the most that all its nodes may take. `nodes` is the number of its nodes.
    `interface` and `address` are the underlay end of its tunnels. `path` is the folder of disks and images. Its nodes
    are pinned to its `processors`, in turn; without any, those of the cluster's request are used.
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
    processors: tuple[int, ...] = ()


LOCAL = ServerSpec(LOCAL_SERVER)


# The fields of a link's limits that netem carries out (tc-netem(8)).
NETEM_FIELDS = (
    "delay_us",
    "jitter_us",
    "duplicate_ppm",
    "reorder_ppm",
    "corrupt_ppm",
    "burst_loss_ppm",
    "burst_frames",
)


@dataclass(frozen=True, slots=True)
class LinkShape:
    """The limits of one direction of a node's link; 0 is no limit, no delay and no loss.

    `rate_bits` are bits a second. A `queue_bytes` of 0 is computed. `loss_ppm` and its like are frames of a million.
    Frames are marked (ECN) from `ecn_bytes` waiting bytes on. Times are in microseconds. The frames of `burst_loss_ppm`
    are lost in bursts of `burst_frames` in the mean.
    """

    rate_bits: int = 0
    queue_bytes: int = 0
    loss_ppm: int = 0
    ecn_bytes: int = 0
    delay_us: int = 0
    jitter_us: int = 0
    duplicate_ppm: int = 0
    reorder_ppm: int = 0
    corrupt_ppm: int = 0
    burst_loss_ppm: int = 0
    burst_frames: int = 0

    @property
    def needs_netem(self) -> bool:
        """Whether the kernel's emulator of networks (netem) has work with its frames."""
        return any(getattr(self, name) for name in NETEM_FIELDS)


@dataclass(frozen=True, slots=True)
class Link:
    """A shaped direction of a node's link: frames `from` the node or `to` it.

    With a `peer`, it is about the frames between the node and that other node. Limits that it does not have are then
    those for all frames.
    """

    node: str
    direction: str
    shape: LinkShape
    peer: str = ""


@dataclass(frozen=True, slots=True)
class StorageNode:
    """A requested node that serves its own disk by NFS."""

    node: str
    size_gib: int


@dataclass(frozen=True, slots=True)
class AddressRange:
    """Addresses from the first to the last, inclusive."""

    first: IPv4Address
    last: IPv4Address

    def __contains__(self, address: IPv4Address) -> bool:
        return self.first <= address <= self.last

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class PortRange:
    """TCP ports from the first to the last, inclusive."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}:{self.last}"


@dataclass(frozen=True, slots=True)
class ImageLogin:
    """The first login to a node of an image that vcluster did not build, before our keys are installed.

    `password` names the source of the password, `ask` or `env:NAME`; it is never the password.
    """

    user: str
    password: str


@dataclass(frozen=True, slots=True)
class Spec:
    """The user's request for a cluster.

    The modes differ only in `servers` and `switch`. `servers` carry the nodes; the first carries the head. All traffic
    crosses the bridge of `switch`, which may be one of the servers. `sets_up_switch` is False when the switch's
    administrator sets up the switch side (`vcluster switch up`).

    In the `private` layout only the head has `mgmt0`, and it is the gateway of the other nodes.

    With `subnet` None planning takes the default or the next free subnet. Without `node_addresses` they start at .1.
    `dhcp_range` is for unknown hosts; None takes the top of the subnet. Without `stores` the head serves a folder.
    `image_login` is None for images that need no password. `mpi_ports` None allows all ports. `links` have limits.

    Each virtual processor of a node may use `cpu_limit_percent` of a processor; 0 is no limit. Nodes are pinned to the
    `processors` of their server; without any, the server's kernel chooses.
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
    links: tuple[Link, ...] = ()
    cpu_limit_percent: int = 0
    processors: tuple[int, ...] = ()
