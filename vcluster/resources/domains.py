"""The nodes as libvirt sees them, marked by an element of their metadata."""

from __future__ import annotations

from collections.abc import Sequence

from vcluster.adapters.libvirt.hypervisor import Hypervisor
from vcluster.errors import VclusterError
from vcluster.fleet.servers import Server
from vcluster.model.plan import Node, Plan
from vcluster.render.clone_xml import clone_xml
from vcluster.render.domain_xml import data_disk, domain_xml, memory_path
from vcluster.render.xml_tree import text_of
from vcluster.resources.owned import OwnedItem
from vcluster.snapshots.template import Snapshot
from vcluster.util import parallel
from vcluster.util.deadline import Deadline

REMOVAL_TIMEOUT_S = 60.0


class CloneRefusedError(VclusterError):
    """A memory that is whole, and that libvirt or QEMU does not take, here and now; the next would fare no better."""


def create(server: Server, plan: Plan, node: Node) -> None:
    """Define a node and power it on."""
    server.hypervisor.define_domain(domain_xml(plan, node))
    server.hypervisor.start_domain(node.domain)


def wake(server: Server, plan: Plan, node: Node, kept: Snapshot) -> None:
    """Define a node and have it wake with a kept memory, which does not know yet that it is that node.

    What is defined is as for any other node: when its power was cut, it boots. Raises RefusedError.
    """
    libvirt, path = server.hypervisor, str(memory_path(plan, node))
    libvirt.define_domain(domain_xml(plan, node))
    xml = clone_xml(kept.xml, plan, node, ram=kept.ram, macs=kept.macs)
    server.call("write_clone", root=kept.root, key=kept.key, path=path, xml=xml)
    try:
        libvirt.restore_domain(path)
    except VclusterError as error:
        if type(error) is not VclusterError or not libvirt.is_alive:  # it may go better the next time
            raise
        raise CloneRefusedError(error.message) from error
    finally:
        server.call("remove_file", path=path)
    if node.data_gib:
        libvirt.attach_device(node.domain, text_of(data_disk(plan, node)))


def discard(server: Server, node: Node) -> None:
    """The power of one node is cut, and it is forgotten."""
    _end(server.hypervisor, server, [node.domain])


def destroy(server: Server, cluster: str) -> None:
    """Cut the power of every node of the cluster and remove it, with the log that libvirt keeps of it."""
    if server.libvirt:
        _end(server.libvirt, server, [one.name for one in server.libvirt.domains() if one.cluster == cluster])


def reduce(server: Server, before: Plan, after: Plan) -> None:
    """The same with the nodes that are in one plan and not in the next."""
    if server.libvirt:
        gone = {node.domain for node in before.nodes_on(server.name)} - {node.domain for node in after.nodes}
        _end(server.libvirt, server, [one.name for one in server.libvirt.domains() if one.name in gone])


def _end(libvirt: Hypervisor, server: Server, names: Sequence[str]) -> None:
    def end(name: str) -> None:
        libvirt.stop_domain(name)
        libvirt.undefine_domain(name)

    parallel.each(names, end, deadline=Deadline(REMOVAL_TIMEOUT_S))
    if names:
        server.call("remove_traces", networks=[], domains=list(names))


def observe(server: Server) -> tuple[OwnedItem, ...]:
    """All domains of ours."""
    domains = server.libvirt.domains() if server.libvirt else ()
    return tuple(OwnedItem("domain", domain.name, domain.cluster) for domain in domains)
