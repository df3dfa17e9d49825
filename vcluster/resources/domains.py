"""Nodes as libvirt domains. An element of their metadata is their owner label."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from vcluster.adapters.libvirt.hypervisor import Hypervisor
from vcluster.adapters.libvirt.qemu_monitor import ENDED
from vcluster.errors import MissingError, VclusterError
from vcluster.fleet.servers import Server
from vcluster.model.plan import Node, Plan
from vcluster.model.quoting import printable
from vcluster.render.clone_xml import clone_xml
from vcluster.render.domain_xml import cpu_tuning, data_disk, domain_xml
from vcluster.render.trial_xml import trial_xml
from vcluster.render.xml_tree import Element, text_of
from vcluster.resources import faults, profiles, segmentation, shaping
from vcluster.resources.owned import OwnedItem
from vcluster.snapshots.template import Snapshot
from vcluster.util import parallel
from vcluster.util.deadline import Deadline

QEMU_LOGS = "/var/log/libvirt/qemu"
LOG_BYTES = 2000
TRIAL_VCPUS_MAX = 64  # QEMU's machine type pc has at most 255


class CloneRefusedError(VclusterError):
    """libvirt or QEMU refuses a snapshot that is complete. Further clones of it would fail too."""


def try_one(server: Server, purpose: str, tuning: Sequence[Element] = (), *, vcpus: int = 1) -> None:
    """Start a domain without a disk and a network, and end it. Raises VclusterError if libvirt cannot start it."""
    name, identity = f"vc-{purpose}-{secrets.token_hex(4)}", str(uuid.uuid4())
    try:
        server.hypervisor.start_transient_domain(trial_xml(name, identity, tuning, vcpus=vcpus))
        server.hypervisor.stop_domain(name)
    finally:
        with suppress(VclusterError):  # a user who is not root leaves libvirt's log and profile
            server.call("remove_traces", networks=[], domains=[name])
            server.call("remove_profiles", uuids=[identity])


def try_cpu_tuning(server: Server, plan: Plan) -> None:
    """Raise MissingError if a server cannot limit or pin processors as the plan specifies; nothing else shows it.

    For example, libvirt limits no processor in a container, where it has no control groups. Processors beyond
    TRIAL_VCPUS_MAX are not tried.
    """
    planned = plan.server(server.name)
    used = sorted({one for node in plan.nodes_on(server.name) for one in node.processors})[:TRIAL_VCPUS_MAX]
    tuning = cpu_tuning(plan.cpu_limit_percent, used, planned.processors)
    if not planned.carries_nodes or not tuning:
        return
    try:
        try_one(server, "trial", tuning, vcpus=max(1, len(used)))
    except VclusterError as error:
        if type(error) is not VclusterError:  # the connection to libvirt broke, for example
            raise
        where = f"on {server.name}" if server.session else "here"
        raise MissingError(
            f"libvirt cannot limit or pin the processors of nodes {where}: {error.message}",
            hint="leave out --cpu-limit and --pin, or use a server whose libvirt has control groups",
        ) from error


def create(server: Server, plan: Plan, node: Node) -> None:
    """Define a node and power it on."""
    profiles.create(server, plan.name, node.domain, node.uuid)
    server.hypervisor.define_domain(domain_xml(plan, node))
    power_on(server, plan, node)


def power_on(server: Server, plan: Plan, node: Node) -> None:
    """Power a defined node on, unless it is running."""
    server.hypervisor.start_domain(node.domain)
    prepare(server, plan, node)


def prepare(server: Server, plan: Plan, node: Node) -> None:
    """Turn off IPv6 on the taps of a node that starts, or that an earlier version started, and limit its link.

    An emulated processor is busy for seconds; it also runs on when a thread of another node becomes ready to run.
    """
    taps = [node.port, *([node.management.port] if node.management else [])]
    server.call("prepare_domain", domain=node.domain, taps=taps, is_emulated=plan.server(server.name).accel == "tcg")
    shaping.create_port(server, plan, node)
    segmentation.create_tap(server, plan, node)


def start_clone(server: Server, plan: Plan, node: Node, snapshot: Snapshot, deadline: Deadline) -> None:
    """Define a node and start it from a snapshot. The node does not have its identity yet.

    The definition equals that of a booted node: after a power cut, the node boots. Raises CloneRefusedError if
    libvirt or QEMU refuses the snapshot.
    """
    libvirt, access = server.hypervisor, snapshot.access
    profiles.create(server, plan.name, node.domain, node.uuid, [(snapshot.ram, access.mode)])
    libvirt.define_domain(domain_xml(plan, node))
    xml = clone_xml(snapshot.xml, plan, node, ram=snapshot.ram, access=access, macs=snapshot.macs)

    def lend(request: Mapping[str, Any]) -> None:
        prepare(server, plan, node)
        server.call("lend_file", domain=node.domain, path=str(snapshot.state), request=request)

    try:
        libvirt.start_from_state(node.domain, xml, lend, deadline)
    except VclusterError as error:
        if type(error) is not VclusterError or not libvirt.is_alive:  # another attempt can succeed
            raise
        reason = _last_words(server, node)
        if error.message.startswith(ENDED) and not reason:  # QEMU was killed
            raise
        raise CloneRefusedError(error.message + reason) from error
    if node.data_gib:
        libvirt.attach_device(node.domain, text_of(data_disk(plan, node)))


def _last_words(server: Server, node: Node) -> str:
    """The last message in QEMU's log; empty if there is none since the start."""
    lines = server.call("tail", path=f"{QEMU_LOGS}/{node.domain}.log", size=LOG_BYTES).splitlines()
    said = [line for line in lines if "qemu-system-x86_64: " in line and "terminating on signal" not in line]
    text = said[-1].partition("qemu-system-x86_64: ")[2] if said else ""
    return f": {printable(text)}" if text else ""


def resume(server: Server, plan: Plan, node: Node) -> bool:
    """Let a paused node run again. Returns whether `vcluster fault` had paused it: that fault is over."""
    was_fault = faults.has_paused(server, plan, node)
    server.hypervisor.resume_domain(node.domain)
    prepare(server, plan, node)  # a clone without its state was started again, with new taps
    faults.drop_pause(server, plan, node)  # last, so a node that libvirt does not resume is resumed after its time
    return was_fault


def discard(server: Server, node: Node) -> None:
    """Cut the power of one node and undefine it."""
    _end(server.hypervisor, server, {node.domain: node.uuid})


def destroy(server: Server, cluster: str) -> None:
    """Cut the power of every node of the cluster, and undefine it. Remove libvirt's log of it too."""
    if server.libvirt:
        owned = {domain.name: domain.uuid for domain in server.libvirt.domains() if domain.cluster == cluster}
        _end(server.libvirt, server, owned)


def reduce(server: Server, before: Plan, after: Plan) -> None:
    """The same for the nodes of the plan `before` that are not in the plan `after`."""
    if server.libvirt:
        removed = {node.domain for node in before.nodes_on(server.name)} - {node.domain for node in after.nodes}
        _end(
            server.libvirt,
            server,
            {domain.name: domain.uuid for domain in server.libvirt.domains() if domain.name in removed},
        )


def _end(libvirt: Hypervisor, server: Server, uuids: Mapping[str, str]) -> None:
    """End domains, given by name with their UUIDs. Their profiles are removed too, also those of earlier versions.

    The definitions go last: after a command that was killed, they show which files are left.
    """
    found = parallel.outcomes(tuple(uuids), libvirt.stop_domain)
    stopped = [name for name, error in zip(uuids, found, strict=True) if error is None]
    if stopped:
        server.call("remove_traces", networks=[], domains=stopped)
        server.call("remove_profiles", uuids=[uuids[name] for name in stopped])
    found += parallel.outcomes(stopped, libvirt.undefine_domain)
    parallel.raise_all([error for error in found if error])


def observe(server: Server) -> tuple[OwnedItem, ...]:
    """All domains with our owner label."""
    domains = server.libvirt.domains() if server.libvirt else ()
    return tuple(OwnedItem("domain", domain.name, domain.cluster) for domain in domains)
