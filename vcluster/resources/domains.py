"""The nodes as libvirt sees them, marked by an element of their metadata."""

from __future__ import annotations

from pathlib import Path

from vcluster import parallel
from vcluster.events import Deadline
from vcluster.model import Node, Plan
from vcluster.render.domain import domain_xml
from vcluster.resources.found import Found
from vcluster.servers import Server

REMOVAL_TIMEOUT_S = 60.0
LOGS_PATH = Path("/var/log/libvirt/qemu")


def create(server: Server, plan: Plan, node: Node, console_log: Path) -> None:
    """Define a node and power it on."""
    server.hypervisor.define_domain(domain_xml(plan, node, console_log))
    server.hypervisor.start_domain(node.domain)


def destroy(server: Server, cluster: str) -> None:
    """Cut the power of every node of the cluster and remove it, with the log that libvirt keeps of it."""
    mine = [domain.name for domain in server.hypervisor.domains() if domain.cluster == cluster]
    parallel.each(mine, lambda name: _destroy(server, name), deadline=Deadline(REMOVAL_TIMEOUT_S))


def _destroy(server: Server, name: str) -> None:
    server.hypervisor.stop_domain(name)
    server.hypervisor.undefine_domain(name)
    for log in LOGS_PATH.glob(f"{name}.log*"):
        log.unlink(missing_ok=True)


def observe(server: Server) -> tuple[Found, ...]:
    """All domains of ours."""
    return tuple(Found("domain", domain.name, domain.cluster) for domain in server.hypervisor.domains())
