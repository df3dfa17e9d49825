"""The form of the agent's answer about a cluster. The controller checks the answers of servers against it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InterfaceState:
    """An interface with its settings, addresses and routes. `is_named` is false if its name was not asked for."""

    name: str
    kind: str
    mtu: int
    alias: str
    is_up: bool
    master: str
    vni: int
    local: str
    remote: str
    interface: str
    port: int
    is_named: bool
    settings: dict[str, int | None]
    ipv6: dict[str, str]
    addresses: list[str]
    routes: list[str]


@dataclass(frozen=True, slots=True)
class FileState:
    """A file or a folder: its kind, its mode and its owner."""

    kind: str
    mode: int
    uid: int


@dataclass(frozen=True, slots=True)
class DomainVersion:
    """A domain as it is defined, or as it runs."""

    uuid: str
    label: dict[str, str]
    devices: list[str]
    processors: list[str]


@dataclass(frozen=True, slots=True)
class DomainRecord:
    """A domain of a node. `pid` is 0 if it is off."""

    defined: DomainVersion | None
    running: DomainVersion | None
    state: str
    pid: int
    listeners: list[str]


@dataclass(frozen=True, slots=True)
class NetworkRecord:
    """A network of libvirt."""

    uuid: str
    bridge: str
    forward: str
    addresses: list[str]
    label: str
    has_dhcp: bool
    is_active: bool
    starts_with_server: bool


@dataclass(frozen=True, slots=True)
class PoolRecord:
    """A storage pool of libvirt."""

    uuid: str
    path: str


@dataclass(frozen=True, slots=True)
class ProfileRecord:
    """A profile of AppArmor with an owner label; `rules` are paths with modes."""

    cluster: str
    domain: str
    by: str
    uuid: str
    path: str
    state: FileState | None
    rules: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class AuthorizedKeys:
    """The lines of authorized_keys with our mark."""

    path: str
    lines: list[str]
    state: FileState | None


@dataclass(frozen=True, slots=True)
class QueueReading:
    """A queue as the kernel reports it, with its counters. `layers` are the kinds of its parts, from top to bottom.

    The other fields are those of LinkShape. `delay_frames` is the room for delayed frames.
    """

    interface: str
    major: int
    number: int
    rate_bits: int
    queue_bytes: int
    sent_packets: int
    sent_bytes: int
    dropped_packets: int
    waiting_bytes: int
    layers: list[str]
    ecn_bytes: int = 0
    marked_packets: int = 0
    delay_us: int = 0
    jitter_us: int = 0
    duplicate_ppm: int = 0
    reorder_ppm: int = 0
    corrupt_ppm: int = 0
    burst_loss_ppm: int = 0
    burst_frames: int = 0
    delay_frames: int = 0


@dataclass(frozen=True, slots=True)
class LossReading:
    """A rule that drops frames, with its counter. `peer_port` is empty if it is about all frames."""

    port: str
    direction: str
    peer_port: str
    loss_ppm: int
    dropped_packets: int


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """The limits that ports of a switch have; `redirections` are ports with the shaper of their frames.

    `present` are the ports that exist. The queues were read at the time `t_ns` of the server's monotonic clock. A
    process changes the rates of the nodes `traced` now.
    """

    present: list[str]
    queues: list[QueueReading]
    losses: list[LossReading]
    redirections: dict[str, str]
    t_ns: int
    traced: list[str]


BETWEEN = "between"  # the kind of elements with pairs of ports


@dataclass(frozen=True, slots=True)
class FaultElement:
    """Frames that the switch drops: their kind, and the names of their ports. `left_ms` is None without an end.

    The kind is a direction, `between`, or `flap`.
    """

    kind: str
    ports: list[str]
    left_ms: int | None


@dataclass(frozen=True, slots=True)
class HeldFault:
    """A fault of a node that its server records. `is_active` is False if its effect is over.

    `is_held` tells whether a process ends it; `left_s` is None without an end.
    """

    kind: str
    node: str
    is_active: bool
    is_held: bool
    left_s: float | None


@dataclass(frozen=True, slots=True)
class FaultReading:
    """The faults of a cluster on a server. `table` is the state of their rules, empty if it was not asked for."""

    table: str
    elements: list[FaultElement]
    held: list[HeldFault]


@dataclass(frozen=True, slots=True)
class SurveyAnswer:
    """Everything that a server has of a cluster."""

    interfaces: dict[str, InterfaceState]
    tables: dict[str, str]
    domains: dict[str, DomainRecord]
    network: NetworkRecord | None
    dns: list[str]
    pool: PoolRecord | None
    trees: dict[str, dict[str, FileState]]
    labels: dict[str, str]
    qemu_uids: list[int]
    confinement: str
    profiles: list[ProfileRecord]
    authorized: AuthorizedKeys | None
    links: LinkLimits | None
    faults: FaultReading | None
