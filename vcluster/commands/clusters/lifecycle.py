"""Stop, start and repair a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace

from vcluster.adapters.node_connection import NodeConnection
from vcluster.commands.steps.admission import memory_errors, report_obstacles
from vcluster.commands.steps.deployment import Deployment, image_password
from vcluster.commands.steps.inventory import domains_on, keep_nodes, observe_status, read_ledger, report_faults
from vcluster.commands.steps.node_lifecycle import NodeLifecycle, resume_domain
from vcluster.errors import VclusterError
from vcluster.fleet import servers
from vcluster.fleet.context import Context
from vcluster.fleet.ledger import ClusterFiles, Ledger, planning
from vcluster.fleet.servers import Fleet
from vcluster.model import naming
from vcluster.model.plan import Node
from vcluster.model.status import MISSING, PAUSED, RUNNING, STOPPED, PowerState, Status
from vcluster.planning.resize import shrink
from vcluster.resources import domains, interfaces, profiles, volumes
from vcluster.util import parallel
from vcluster.util.deadline import Deadline

SHUTDOWN_S, SHUTDOWN_POLL_S = 60.0, 0.2
OFF = PowerState(STOPPED)


def stop(context: Context, name: str, *, timeout_s: float) -> tuple[str, ...]:
    """Shut down all nodes: workers first, then storage nodes, then the head. Returns the nodes that were running."""
    files = context.files(name)
    with context.fleet_of(read_ledger(files).plan) as fleet, files.locked():
        plan = read_ledger(files).plan  # another command may have changed it before the lock
        deadline = Deadline(timeout_s).with_check(fleet.check)
        power = _power_of_domains(fleet)
        running = [node for node in plan.nodes if power.get(node.domain, OFF).is_active]
        for node in running:
            if power[node.domain].state == PAUSED:  # a paused node does not react to its power button
                context.report.note(f"{node.name} was {power[node.domain]}, so vcluster resumes it for the shutdown")
                domains.resume(fleet[node.server], plan, node)
        serving = {plan.head.name, *plan.stores}
        for group in (
            [node for node in running if node.name not in serving],
            [node for node in running if node.name in serving and not node.is_head],
            [node for node in running if node.is_head],
        ):
            parallel.each(group, lambda node: _shut_down(context, fleet, node, deadline), deadline=deadline)
    return tuple(node.name for node in running)


def _power_of_domains(fleet: Fleet) -> dict[str, PowerState]:
    """The power of all our domains on the servers."""
    return {domain: power for found in fleet.each(domains_on).values() for domain, power in found.items()}


def _shut_down(context: Context, fleet: Fleet, node: Node, deadline: Deadline) -> None:
    """Press a node's power button; cut the power if the node does not shut down in time."""
    libvirt = fleet[node.server].hypervisor
    patience = Deadline(min(SHUTDOWN_S, deadline.remaining_s()))
    with context.report.step("stop", node.name, awaiting="its shutdown"):
        if not libvirt.shut_down_domain(node.domain):
            context.report.note(f"{node.name}: its QEMU does not answer, so vcluster cuts its power")
            libvirt.stop_domain(node.domain)
        while libvirt.is_active(node.domain):
            deadline.pause(SHUTDOWN_POLL_S, f"{node.name} to shut down")
            if patience.remaining_s() == 0:
                context.report.note(
                    f"{node.name} did not shut down within {patience.timeout_s:.0f} s, so vcluster cuts its power"
                )
                libvirt.stop_domain(node.domain)


def start(context: Context, name: str, *, timeout_s: float) -> bool:
    """Start a stopped cluster and check that it is ready. Returns False if it was ready already."""
    return _restore(context, name, timeout_s=timeout_s, unless_ready=True) is not None


def repair(context: Context, name: str, *, timeout_s: float) -> tuple[str, ...]:
    """Restore what is missing of a cluster, after a server's reboot for example, and check that it is ready.

    Parts that are in order stay as they are. Returns descriptions of what was missing.
    """
    return _restore(context, name, timeout_s=timeout_s, unless_ready=False) or ()


def _restore(context: Context, name: str, *, timeout_s: float, unless_ready: bool) -> tuple[str, ...] | None:
    """Restore a cluster and return what was missing; None if it is ready and `unless_ready`."""
    files = context.files(name)
    with context.fleet_of(read_ledger(files).plan) as fleet, ExitStack() as stack:
        # Without the lock and without rights: `start` of a ready cluster works for every user, at any time.
        if unless_ready and observe_status(fleet, files).state == "ready":
            return None
        stack.enter_context(files.locked())
        ledger = keep_nodes(fleet, files)  # another command may have changed nodes before the lock, but never servers
        deadline = Deadline(timeout_s).with_check(fleet.check)
        servers.require_rights(fleet)
        report_obstacles(fleet, context.report)
        cluster = Deployment(context, fleet, ledger.plan, files.read_keys(), deadline)
        status = observe_status(fleet, files)
        report_faults(context, status)
        cluster.restore_files()  # first, because it may replace the file that the reservation locks
        lack = _reserve_memory(cluster, files, status, stack)
        cluster.create_networks()  # an earlier version may have made them, with other rules and settings
        fleet.each(lambda server: interfaces.attach(server, cluster.plan), deadline=deadline)
        if lack:
            context.report.note(f"the networks of cluster {name} are in order, but vcluster started no node")
            raise lack
        try:
            _restore_nodes(cluster, ledger)
        except BaseException:
            with suppress(VclusterError):  # a server that does not answer; the ledger then stays as it is
                keep_nodes(fleet, files)
            raise
        if ledger.state != "ready":
            cluster.save(ledger.as_ready)
        return status.missing


def _reserve_memory(cluster: Deployment, files: ClusterFiles, status: Status, stack: ExitStack) -> VclusterError | None:
    """Let no other command plan with the memory of the nodes that are off, or return why they cannot start."""
    off = {node.name for node in status.nodes if node.state in (STOPPED, MISSING)}
    nodes = [node for node in cluster.plan.nodes if node.name in off]
    if not nodes:
        return None
    context = cluster.context
    with planning(context.state_root, cluster.deadline, context.report):
        errors = memory_errors(context, cluster.fleet, cluster.plan, nodes)
        if not errors:
            stack.enter_context(files.starting_nodes())
    return parallel.joined([*errors.values()])


def _restore_nodes(cluster: Deployment, ledger: Ledger) -> None:
    """Start nodes that are off, configure all nodes as the plan specifies, and check the cluster."""
    with cluster.watched(hint=f"vcluster repair {cluster.plan.name}") as (watched, watch):
        password = image_password(cluster.context, cluster.plan.image_login)
        _restore_each(watched, ledger, NodeLifecycle(watched, watch, image_password=password))


def _restore_each(cluster: Deployment, ledger: Ledger, lifecycle: NodeLifecycle) -> None:
    plan, power = cluster.plan, _power_of_domains(cluster.fleet)
    absent = [node for node in plan.nodes if node.domain not in power]
    if ledger.state != "ready":
        for node in plan.nodes:  # a clone may be paused because the command was killed before it ran
            if node.domain in power and power[node.domain].state == PAUSED:
                resume_domain(cluster, node)
        power = _power_of_domains(cluster.fleet)
        running = [node for node in plan.nodes if node.domain in power and power[node.domain].state == RUNNING]
        blank = [node for node in running if lifecycle.has_no_identity(node)]
        ledger = replace(ledger, unfinished=(*ledger.unfinished, *(node.name for node in blank)))
        absent += blank
    absent_names = {node.name for node in absent}
    if absent:
        _discard_unfinished(cluster, ledger, absent)

    def restore(node: Node) -> NodeConnection:
        if node.name in absent_names:
            return lifecycle.bring_up_during_add(node)
        if not power[node.domain].is_active:
            return lifecycle.start_again(node)
        domains.prepare(cluster.fleet[node.server], plan, node)
        return lifecycle.resume(node) if power[node.domain].state == PAUSED else lifecycle.configure_running(node)

    with ExitStack() as stack:
        lifecycle.require_ready(lifecycle.all_nodes(restore, stack))


def _discard_unfinished(cluster: Deployment, ledger: Ledger, absent: Sequence[Node]) -> None:
    """Prepare the creation of nodes that a killed command did not finish; their disks and clones hold no user data.

    Raises VclusterError for nodes that were finished once, and for nodes that other nodes depend on.
    """
    plan, names = cluster.plan, [node.name for node in absent]
    needed = any(node.is_head or node.data_gib for node in absent)
    if needed or not set(names) <= set(ledger.unfinished):
        nodes = naming.folded(names)
        replacing = f"vcluster remove {nodes} --name {plan.name}, then vcluster add --names {nodes} --name {plan.name}"
        raise VclusterError(
            f"missing: {', '.join(names)}",  # deleted outside vcluster, or left half-made by an earlier version
            hint=f"vcluster clear {plan.name}, and create it again" if needed else replacing,
        )
    cluster.files.write_ledger(ledger)
    rest = shrink(plan, names)
    for kind in (domains, profiles, volumes):
        cluster.fleet.each(lambda server, kind=kind: kind.reduce(server, plan, rest), deadline=cluster.deadline)  # type: ignore[misc]
    cluster.deliver_image()
