"""A server and the doors to it. Today the one this runs on."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from vcluster import ledger
from vcluster.addressing import routes_of_interest
from vcluster.errors import MissingError
from vcluster.hosts import netlink
from vcluster.hosts.hypervisor import SYSTEM_URI, Hypervisor
from vcluster.model import Claim, Facts, Route
from vcluster.plan import DISKS_PATH

CAP_NET_ADMIN = 12  # linux/capability.h


@dataclass(frozen=True, slots=True)
class Server:
    """This machine: its libvirt and its links."""

    name: str
    hypervisor: Hypervisor


def libvirt_uri(environment: dict[str, str]) -> str:
    """The libvirt to talk to; libvirt's own variable is honoured."""
    return environment.get("LIBVIRT_DEFAULT_URI") or SYSTEM_URI


def require_rights() -> None:
    """Raise MissingError unless this process may make links."""
    status = Path("/proc/self/status").read_text()
    capabilities = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    if not capabilities >> CAP_NET_ADMIN & 1:
        raise MissingError("making links needs root (CAP_NET_ADMIN)", hint="run it with sudo")


def observe(server: Server, state_root: Path) -> Facts:
    """What planning must know of this server."""
    routes = tuple(Route(network, interface) for network, interface in netlink.routes())
    claims = tuple(claim for name in ledger.cluster_names(state_root) if (claim := _claim(state_root, name)))
    mine = {network for claim in claims for network in (claim.subnet, claim.management)}
    return Facts(
        memory_free_mib=server.hypervisor.memory_free_mib(),
        disk_free_mib=_disk_free_mib(DISKS_PATH),
        routes=tuple(route for route in routes_of_interest(routes) if route.network not in mine),
        claims=claims,
    )


def _claim(state_root: Path, name: str) -> Claim | None:
    kept = ledger.ClusterFiles(state_root, name).read_ledger()
    if kept is None:
        return None
    return Claim(name, kept.plan.subnet, kept.plan.servers[0].network.subnet)


def _disk_free_mib(path: Path) -> int:
    existing = next(place for place in (path, *path.parents) if place.exists())
    return shutil.disk_usage(existing).free // 2**20
