"""Facts of servers: frozen data, observed before planning."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

DNS_IS_TAKEN = "another program listens on port 53 of all addresses"
DNS_FIX = "ss -lnp 'sport = :53' names the program; configure it to listen on its own addresses only"


@dataclass(frozen=True, slots=True)
class Route:
    """A network that a server reaches already, and the interface it uses."""

    network: IPv4Network
    interface: str
    server: str = "this machine"


@dataclass(frozen=True, slots=True)
class Claim:
    """The subnets of another cluster on this machine, which a new cluster must not use."""

    cluster: str
    subnet: IPv4Network | None
    management: tuple[IPv4Network, ...]


@dataclass(frozen=True, slots=True)
class UnderlayRoute:
    """A route between two servers for tunnels: both addresses, the local interface, and its MTU in bytes."""

    local: IPv4Address
    remote: IPv4Address
    interface: str
    mtu: int


@dataclass(frozen=True, slots=True)
class Facts:
    """All that planning needs to know about a server.

    `processors` are the numbers of its CPUs that are online. `accel` is the accelerator of nodes there, kvm or tcg.
    `tsc_mhz` is the frequency of its time stamp counter, or 0. `hosts` are addresses of the server itself and of hosts
    that it talks to. `vnis` are in use, by any program. `underlay_routes` lead to other servers, by name. `host_key` is
    the key that the server has shown, empty for this machine. If `is_dns_free`, libvirt can start a DNS server there.
    """

    memory_free_mib: int = 0
    disk_free_mib: int = 0
    cpus: int = 0
    processors: tuple[int, ...] = ()
    accel: str = "tcg"
    tsc_mhz: int = 0
    routes: tuple[Route, ...] = ()
    hosts: frozenset[IPv4Address] = frozenset()
    claims: tuple[Claim, ...] = ()
    vnis: frozenset[int] = frozenset()
    underlay_routes: dict[str, UnderlayRoute] = field(default_factory=dict)
    host_key: str = ""
    is_dns_free: bool = True
