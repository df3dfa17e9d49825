"""Add nodes to a cluster that is up, or remove some; the other nodes continue their work."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace

from vcluster.adapters.node_connection import NodeConnection
from vcluster.commands.clusters import teardown
from vcluster.commands.steps import admission, setup_script, snapshot_build
from vcluster.commands.steps.deployment import Deployment, image_password
from vcluster.commands.steps.inventory import describe_down, observe_status, read_ledger
from vcluster.commands.steps.node_lifecycle import NodeLifecycle
from vcluster.errors import ConflictError, VclusterError
from vcluster.fleet import observation, servers
from vcluster.fleet.context import Context
from vcluster.fleet.ledger import ClusterFiles, Ledger, planning
from vcluster.fleet.servers import Fleet
from vcluster.model.keys import add_keys, drop_keys
from vcluster.model.naming import folded
from vcluster.model.plan import Node, Plan
from vcluster.model.status import MISSING, Status
from vcluster.planning import resize
from vcluster.snapshots.template import SnapshotIndex
from vcluster.stages import provision
from vcluster.util import parallel
from vcluster.util.deadline import Deadline
from vcluster.util.interrupts import interruptible_once

ROLLBACK_TIMEOUT_S = 120.0
NO_SETUP = "to add nodes without the script: vcluster add --no-provision"


def add(
    context: Context,
    name: str,
    *,
    number: int = 1,
    asked: Sequence[str] = (),
    runs_setup: bool = True,
    timeout_s: float,
) -> Status:
    """Add `number` nodes, or nodes with the names in `asked`, and check that the cluster is ready with them.

    With `runs_setup` the setup script of the create, if there was one, then runs on the new nodes. A failure removes
    the new nodes and restores the others.
    """
    files, deadline = context.files(name), Deadline(timeout_s)
    resize.new_names(read_ledger(files).plan, number, asked)  # a wrong request is an error before servers are opened
    with context.fleet_of(read_ledger(files).plan) as fleet, ExitStack() as stack:
        servers.require_rights(fleet)
        with planning(context.state_root, deadline, context.report):
            stack.enter_context(files.locked())
            ledger = read_ledger(files)
            present = ledger.plan
            _require_up(fleet, files, present.nodes)
            names = resize.new_names(present, number, asked)
            plan = _grow(context, fleet, present, names, deadline.with_check(fleet.check))
            admission.refuse_foreign(fleet, plan, present)
            admission.refuse_damaged_image(context, fleet, plan)
            admission.report_obstacles(fleet, context.report)
            keys = add_keys(files.read_keys(), names)
            cluster = Deployment(context, fleet, plan, keys, deadline.with_check(fleet.check))
            stack.enter_context(_interruptible(context, name))
            stack.push(_rollback(cluster, ledger))
            files.write_keys(keys)  # before the ledger: every command needs the keys of every node in it
            cluster.save(replace(ledger, state="creating", plan=plan, unfinished=tuple(names)))
        cluster.deliver_image()
        snapshots = snapshot_build.find(fleet, plan, deadline=cluster.deadline, report=context.report)
        cluster.create_networks()
        _configure(
            cluster,
            running=present.nodes,
            proven=_proven(ledger),
            snapshots=snapshots,
            job=setup_script.kept(files) if runs_setup else None,
            hint="run the command again",
        )
        files.write_ledger(replace(ledger, plan=plan).as_ready)
        return observe_status(fleet, files)


def _grow(context: Context, fleet: Fleet, plan: Plan, names: Sequence[str], deadline: Deadline) -> Plan:
    """The plan with more nodes. The accelerator of a server stays what the first create chose."""
    carriers = [resize.server_spec(server) for server in plan.servers if server.carries_nodes]
    switch = resize.server_spec(plan.server(plan.switch.server))
    facts = observation.observe(
        fleet, carriers, switch, context.state_root, accel="tcg", kernel=None, deadline=deadline
    )
    return resize.grow(plan, facts, names)


def _require_up(fleet: Fleet, files: ClusterFiles, nodes: Sequence[Node]) -> None:
    """Raise ConflictError unless these nodes run. `repair` recreates missing nodes, or prints how to replace them."""
    status = observe_status(fleet, files)
    powers = {node.name: node.power for node in status.nodes}
    if missing := [node.name for node in nodes if powers[node.name].state == MISSING]:
        raise ConflictError(
            f"nodes of cluster {files.name} are missing: {folded(missing)}", hint=f"vcluster repair {files.name}"
        )
    if down := describe_down({node.name: powers[node.name] for node in nodes}):
        raise ConflictError(down, hint=f"vcluster start {files.name}")


def _configure(
    cluster: Deployment,
    *,
    running: Sequence[Node],
    proven: Collection[str] = (),
    snapshots: SnapshotIndex | None = None,
    job: provision.Job | None = None,
    hint: str,
) -> None:
    """Configure the `running` nodes as the plan specifies, bring up the others, and check the cluster.

    Then the job runs on the others.

    Logins between two `proven` nodes are not tried again; the check compares the settings that they depend on.
    """
    names = {node.name for node in running}
    with _lifecycle(cluster, snapshots, hint=hint) as lifecycle, ExitStack() as stack:

        def connect(node: Node) -> NodeConnection:
            return lifecycle.configure_via_serial(node) if node.name in names else lifecycle.bring_up_during_add(node)

        nodes = lifecycle.all_nodes(connect, stack)
        lifecycle.require_ready(nodes, proven=proven)
        if job:
            new = [node for node in cluster.plan.nodes if node.name not in names]
            setup_script.run(cluster, job, lifecycle.sessions(nodes, stack), nodes=new, hint=NO_SETUP)


@contextmanager
def _lifecycle(cluster: Deployment, snapshots: SnapshotIndex | None = None, *, hint: str) -> Iterator[NodeLifecycle]:
    password = image_password(cluster.context, cluster.plan.image_login)
    with cluster.watched(hint=hint) as (watched, watch):
        yield NodeLifecycle(watched, watch, image_password=password, snapshots=snapshots)


def _proven(ledger: Ledger) -> set[str]:
    """The nodes whose logins an earlier check has tried: all nodes of a ready cluster."""
    return {node.name for node in ledger.plan.nodes} if ledger.state == "ready" else set()


def _interruptible(context: Context, name: str) -> AbstractContextManager[object]:
    """Report interrupts of an add at once, and let only the first one end it."""
    return interruptible_once(
        context.report.note,
        first="interrupted: removing the new nodes, this takes some seconds",
        later=f"still removing the new nodes; Ctrl-\\ ends at once and leaves the rest to: vcluster repair {name}",
    )


def _rollback(cluster: Deployment, ledger: Ledger) -> Callable[..., None]:
    """The exit callback of an add: on any error, also an interrupt, it restores the cluster of the `ledger`."""

    def end(_: type[BaseException] | None, error: BaseException | None, *__: object) -> None:
        if error is None:
            return
        repair = f"vcluster repair {cluster.plan.name}"
        try:
            rest = _remove_nodes(cluster, replace(ledger, state="creating"))
            deadline = Deadline(ROLLBACK_TIMEOUT_S).with_check(cluster.fleet.check)
            with _lifecycle(replace(rest, deadline=deadline), hint=repair) as lifecycle, ExitStack() as stack:
                lifecycle.mount_all(lifecycle.all_nodes(lifecycle.configure_via_serial, stack))
            cluster.files.write_ledger(ledger)
        except VclusterError as failure:
            left = VclusterError(f"cluster {cluster.plan.name} is not restored: {failure.message}", hint=repair)
            parallel.raise_all([each for each in (error, left) if isinstance(each, VclusterError)])

    return end


def _remove_nodes(cluster: Deployment, after: Ledger) -> Deployment:
    """Remove the nodes that the ledger `after` does not have, and write it. Returns the cluster that stays.

    The ledger is written last: until then a killed command can be repeated.
    """
    teardown.remove_nodes(cluster.context, cluster.fleet, cluster.plan, after.plan)
    keys = drop_keys(cluster.files.read_keys(), {node.name for node in after.plan.nodes})
    rest = replace(cluster, plan=after.plan, keys=keys)
    rest.save(after)
    return rest


def remove(context: Context, name: str, names: Sequence[str], *, timeout_s: float) -> Status:
    """Remove nodes, and check that the cluster is ready without them.

    A command that is killed before the nodes are removed can be repeated; after that, `repair` does the rest.
    """
    files = context.files(name)
    resize.shrink(read_ledger(files).plan, names)  # a wrong request is an error before servers are opened
    with context.fleet_of(read_ledger(files).plan) as fleet, files.locked():
        deadline = Deadline(timeout_s).with_check(fleet.check)
        servers.require_rights(fleet)
        ledger = read_ledger(files)
        after = replace(ledger, state="creating", plan=resize.shrink(ledger.plan, names))
        _require_up(fleet, files, after.plan.nodes)
        files.write_ledger(ledger)  # on a full disk the last write would fail, when the nodes are gone
        rest = _remove_nodes(Deployment(context, fleet, ledger.plan, files.read_keys(), deadline), after)
        _configure(rest, running=rest.plan.nodes, proven=_proven(ledger), hint=f"vcluster repair {name}")
        files.write_ledger(after.as_ready)
        return observe_status(fleet, files)
