"""Create a cluster: plan, ledger, image, networks, nodes, check, provisioning. A failure removes all of it again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from datetime import datetime, timezone

from vcluster.commands.clusters.teardown import remove
from vcluster.commands.steps import admission, setup_script, snapshot_build
from vcluster.commands.steps.deployment import Deployment, image_password
from vcluster.commands.steps.inventory import keep_nodes, observe_status
from vcluster.commands.steps.node_lifecycle import NodeLifecycle
from vcluster.errors import VclusterError
from vcluster.fleet import ledger, observation
from vcluster.fleet.context import Context
from vcluster.fleet.ledger import ClusterFiles, Ledger
from vcluster.fleet.servers import Fleet
from vcluster.model import naming
from vcluster.model.keys import make_keys
from vcluster.model.plan import Plan
from vcluster.model.spec import Spec
from vcluster.model.status import Status
from vcluster.resources import server_keys
from vcluster.snapshots.template import SnapshotIndex
from vcluster.stages import provision
from vcluster.util import parallel
from vcluster.util.deadline import Deadline
from vcluster.util.interrupts import interruptible_once


def create(
    context: Context,
    spec: Spec,
    *,
    image_name: str,
    accel: str,
    keep: bool,
    boot: str = "auto",
    job: provision.Job | None = None,
) -> tuple[Status, bool]:
    """Create a cluster, check that it is ready, and run the `job` on every node.

    `boot` is auto (clone nodes if a snapshot exists), clone (make a missing snapshot first) or cold (boot every node).
    A failure removes everything that was created, unless `keep`. Returns the status, and whether a snapshot for the
    next create is missing.
    """
    files, deadline = context.files(spec.name), Deadline(spec.timeout_s)
    image, password = context.images.find(image_name), image_password(context, spec.image_login)
    password()  # a missing password is an error before anything is created
    context = context.with_owner()
    with (
        context.images.in_use(image.digest),
        context.fleet(admission.server_requests(spec)) as fleet,
        ExitStack() as stack,
    ):
        with ledger.planning(context.state_root, deadline, context.report):
            plan, _ = admission.admit(context, fleet, spec, image=image, accel=accel)
            stack.enter_context(files.locked())
            stack.enter_context(_interruptible(context, spec.name, keep=keep))
            stack.push(_rollback(context, fleet, files, keep=keep))
            keys = make_keys(plan.name, spec.node_names, label=naming.alias(plan.name, plan.owner))
            cluster = Deployment(context, fleet, plan, keys, deadline.with_check(fleet.check))
            written = _new_ledger(plan)
            cluster.save(written)
        if job:
            setup_script.keep(files, job)
        _report_emulation(cluster, accel)
        _authorize_cluster_key(cluster)
        cluster.deliver_image()
        snapshots = _find_snapshots(cluster, boot)
        cluster.create_networks()
        with cluster.watched(hint="run the command again") as (watched, watch), ExitStack() as connections:
            lifecycle = NodeLifecycle(watched, watch, image_password=password, snapshots=snapshots)
            nodes = lifecycle.all_nodes(lifecycle.bring_up, connections)
            lifecycle.require_ready(nodes)
            if job:
                sessions = lifecycle.sessions(nodes, connections)
                setup_script.run(watched, job, sessions, hint="--keep leaves the failed cluster in place")
        files.write_ledger(written.as_ready)
        return observe_status(fleet, files), boot == "auto" and snapshot_build.is_missing(plan, snapshots)


def _interruptible(context: Context, name: str, *, keep: bool) -> AbstractContextManager[object]:
    """Report interrupts of a create at once, and let only the first one end it."""
    doing = "ending" if keep else f"removing cluster {name}"
    return interruptible_once(
        context.report.note,
        first=f"interrupted: {doing}, this takes some seconds",
        later=f"still {doing}; Ctrl-\\ ends at once and leaves the rest to: vcluster clear {name}",
    )


def _rollback(context: Context, fleet: Fleet, files: ClusterFiles, *, keep: bool) -> Callable[..., None]:
    """The exit callback of a create: on any error, also an interrupt, it removes what was created."""

    def end(_: type[BaseException] | None, error: BaseException | None, *__: object) -> None:
        if error is None:
            return
        if keep:
            with suppress(VclusterError):  # a server that does not answer; the ledger then stays as it is
                keep_nodes(fleet, files)
            context.report.note(f"the cluster stays as it is; to remove it: vcluster clear {files.name}")
            return
        try:
            remove(context, fleet, files)
        except VclusterError as failure:
            what = f"cluster {files.name} is not removed: {failure.message}"
            left = VclusterError(what, hint=f"vcluster clear {files.name}")
            parallel.raise_all([each for each in (error, left) if isinstance(each, VclusterError)])

    return end


def _new_ledger(plan: Plan) -> Ledger:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Ledger(ledger.VERSION, "creating", now, plan, tuple(node.name for node in plan.nodes))


def _report_emulation(cluster: Deployment, accel: str) -> None:
    """Report each server whose nodes are emulated although `accel` did not ask for it."""
    kernel = cluster.plan.image.kernel or cluster.context.images.any_kernel()
    for planned in cluster.plan.servers:
        if planned.image:
            server = cluster.fleet[planned.name]
            _, remark = observation.choose_accel(server, accel, kernel, cluster.context.state_root)
            if remark:
                cluster.report.note(remark)


def _authorize_cluster_key(cluster: Deployment) -> None:
    """Install the cluster's own key on servers that a password opened, until `clear` removes it."""
    key = cluster.keys.admin.public
    cluster.fleet.each(lambda server: server_keys.create(server, key), deadline=cluster.deadline)


def _find_snapshots(cluster: Deployment, boot: str) -> SnapshotIndex:
    """The snapshots that nodes are cloned from; none if every node boots."""
    if boot == "cold":
        return {}
    if boot == "clone":
        snapshot_build.make(cluster.fleet, cluster.plan, deadline=cluster.deadline, report=cluster.report)
    return snapshot_build.find(cluster.fleet, cluster.plan, deadline=cluster.deadline, report=cluster.report)
