"""Nodes as libvirt domains. An element of their metadata is their owner label."""

from __future__ import annotations

from collections.abc import Sequence

from vcluster.adapters.libvirt.hypervisor import Hypervisor
from vcluster.adapters.libvirt.qemu_monitor import FILE
from vcluster.errors import VclusterError
from vcluster.fleet.servers import Server
from vcluster.model.plan import Node, Plan
from vcluster.render.clone_xml import clone_xml
from vcluster.render.domain_xml import data_disk, domain_xml
from vcluster.render.xml_tree import text_of
from vcluster.resources import profiles
from vcluster.resources.owned import OwnedItem
from vcluster.snapshots.template import Snapshot
from vcluster.util import parallel
from vcluster.util.deadline import Deadline

REMOVAL_TIMEOUT_S = 60.0
QEMU_LOGS = "/var/log/libvirt/qemu"
LOG_BYTES = 2000


class CloneRefusedError(VclusterError):
    """libvirt or QEMU refuses a snapshot that is complete. Further clones of it would fail too."""


def create(server: Server, plan: Plan, node: Node) -> None:
    """Define a node and power it on."""
    profiles.create(server, plan.name, node.domain, node.uuid)
    server.hypervisor.define_domain(domain_xml(plan, node))
    server.hypervisor.start_domain(node.domain)


def start_clone(server: Server, plan: Plan, node: Node, snapshot: Snapshot, deadline: Deadline) -> None:
    """Define a node and start it from a snapshot. The node does not have its identity yet.

    The definition equals that of a booted node: after a power cut, the node boots. Raises CloneRefusedError if
    libvirt or QEMU refuses the snapshot.
    """
    libvirt, access = server.hypervisor, snapshot.access
    profiles.create(server, plan.name, node.domain, node.uuid, [(snapshot.ram, access.mode)])
    libvirt.define_domain(domain_xml(plan, node))
    xml = clone_xml(snapshot.xml, plan, node, ram=snapshot.ram, access=access, macs=snapshot.macs)

    def lend() -> None:
        server.call("lend_file", domain=node.domain, path=str(snapshot.state), name=FILE)

    try:
        libvirt.start_from_state(node.domain, xml, lend, deadline)
    except VclusterError as error:
        if type(error) is not VclusterError or not libvirt.is_alive:  # another attempt can succeed
            raise
        raise CloneRefusedError(error.message + _last_words(server, node)) from error
    if node.data_gib:
        libvirt.attach_device(node.domain, text_of(data_disk(plan, node)))


def _last_words(server: Server, node: Node) -> str:
    """The last line of QEMU's log, which has the reason if QEMU has ended; empty if there is none."""
    lines = server.call("tail", path=f"{QEMU_LOGS}/{node.domain}.log", size=LOG_BYTES).splitlines()
    said = [line for line in lines if "qemu-system-x86_64: " in line]
    text = said[-1].partition("qemu-system-x86_64: ")[2] if said else ""
    return ": " + "".join(each if each.isprintable() else "?" for each in text) if text else ""


def discard(server: Server, node: Node) -> None:
    """Cut the power of one node and undefine it."""
    _end(server.hypervisor, server, [node.domain])
    profiles.discard(server, node.domain)


def destroy(server: Server, cluster: str) -> None:
    """Cut the power of every node of the cluster, and undefine it. Remove libvirt's log of it too."""
    if server.libvirt:
        _end(server.libvirt, server, [domain.name for domain in server.libvirt.domains() if domain.cluster == cluster])


def reduce(server: Server, before: Plan, after: Plan) -> None:
    """The same for the nodes of the plan `before` that are not in the plan `after`."""
    if server.libvirt:
        removed = {node.domain for node in before.nodes_on(server.name)} - {node.domain for node in after.nodes}
        _end(server.libvirt, server, [domain.name for domain in server.libvirt.domains() if domain.name in removed])


def _end(libvirt: Hypervisor, server: Server, names: Sequence[str]) -> None:
    def end(name: str) -> None:
        libvirt.stop_domain(name)
        libvirt.undefine_domain(name)

    parallel.each(names, end, deadline=Deadline(REMOVAL_TIMEOUT_S))
    if names:
        server.call("remove_traces", networks=[], domains=list(names))


def observe(server: Server) -> tuple[OwnedItem, ...]:
    """All domains with our owner label."""
    domains = server.libvirt.domains() if server.libvirt else ()
    return tuple(OwnedItem("domain", domain.name, domain.cluster) for domain in domains)
