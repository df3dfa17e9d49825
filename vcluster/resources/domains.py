"""The nodes as libvirt sees them, marked by an element of their metadata."""

from __future__ import annotations

from vcluster import parallel
from vcluster.events import Deadline
from vcluster.model import Node, Plan
from vcluster.render.domain import domain_xml
from vcluster.resources.found import Found
from vcluster.servers import Server

REMOVAL_TIMEOUT_S = 60.0


def create(server: Server, plan: Plan, node: Node) -> None:
    """Define a node and power it on."""
    server.hypervisor.define_domain(domain_xml(plan, node))
    server.hypervisor.start_domain(node.domain)


def destroy(server: Server, cluster: str) -> None:
    """Cut the power of every node of the cluster and remove it, with the log that libvirt keeps of it."""
    if server.libvirt is None:
        return
    libvirt = server.libvirt
    mine = [domain.name for domain in libvirt.domains() if domain.cluster == cluster]

    def end(name: str) -> None:
        libvirt.stop_domain(name)
        libvirt.undefine_domain(name)

    parallel.each(mine, end, deadline=Deadline(REMOVAL_TIMEOUT_S))
    if mine:
        server.call("remove_traces", networks=[], domains=mine)


def observe(server: Server) -> tuple[Found, ...]:
    """All domains of ours."""
    domains = server.libvirt.domains() if server.libvirt else ()
    return tuple(Found("domain", domain.name, domain.cluster) for domain in domains)
