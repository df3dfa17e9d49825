"""What planning must know of a server: frozen data, observed before anything is decided."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network


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
class UnderlayRoute:
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
    ways: dict[str, UnderlayRoute] = field(default_factory=dict)
    host_key: str = ""
