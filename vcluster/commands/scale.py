"""A cluster that is up gets more nodes, or loses some; those that stay go on with what they do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace

from vcluster.adapters.node_connection import NodeConnection
from vcluster.commands import create, snapshot_build, teardown
from vcluster.commands.inventory import observe_status, read_ledger
from vcluster.commands.node_lifecycle import NodeLifecycle
from vcluster.errors import ConflictError, VclusterError
from vcluster.fleet import ledger, observation, servers
from vcluster.fleet.context import Context
from vcluster.fleet.ledger import ClusterFiles, Ledger
from vcluster.fleet.servers import Fleet
from vcluster.model.keys import Keys, add_keys, drop_keys
from vcluster.model.naming import folded
from vcluster.model.plan import Node, Plan
from vcluster.model.status import Status
from vcluster.planning import resize
from vcluster.snapshots.template import SnapshotIndex
from vcluster.util import parallel
from vcluster.util.deadline import Deadline

BACK_TIMEOUT_S = 120.0


def add(context: Context, name: str, *, number: int = 1, asked: Sequence[str] = (), timeout_s: float) -> Status:
    """Make more nodes, of the names `asked` for or `number` of them, and prove the cluster ready with them.

    Whatever goes wrong, they are taken away again, and the others are as they were.
    """
    files = context.files(name)
    resize.new_names(read_ledger(files).plan, number, asked)  # what cannot be is said before servers are opened
    deadline = Deadline(timeout_s)
    with context.fleet_of(read_ledger(files).plan) as fleet, ExitStack() as stack:
        deadline = deadline.with_check(fleet.check)
        servers.require_rights(fleet)
        with ledger.planning(context.state_root):
            stack.enter_context(files.locked())
            kept = read_ledger(files)
            _require_up(fleet, files, kept.plan.nodes)
            grown = _grow(context, fleet, kept.plan, resize.new_names(kept.plan, number, asked), deadline)
            create.refuse_foreign(fleet, grown, kept.plan)
            keys = add_keys(files.read_keys(), _names(grown, besides=kept.plan))
            stack.push(_rollback(context, fleet, files, kept, grown))
            files.write_keys(keys)  # ahead of the ledger: no command can deal with a node whose key is not there
            create.save_plan(fleet, files, replace(kept, state="creating", plan=grown), keys)
        create.deliver_image(context, fleet, grown, deadline)
        memories = snapshot_build.find(fleet, grown, deadline=deadline, report=context.report)
        create.create_networks(context, fleet, grown, deadline)
        _settle(context, fleet, grown, keys, deadline, made=kept.plan.nodes, proven=_proven(kept), memories=memories)
        files.write_ledger(replace(kept, state="ready", plan=grown))
        return observe_status(fleet, files)


def _grow(context: Context, fleet: Fleet, plan: Plan, names: Sequence[str], deadline: Deadline) -> Plan:
    """How the nodes of a server run was found out when the first ones were made there."""
    spec = resize.as_spec(plan)
    seen = observation.observe(fleet, spec, context.state_root, accel="tcg", kernel=None, deadline=deadline)
    return resize.grow(plan, seen, names)


def _require_up(fleet: Fleet, files: ClusterFiles, nodes: Sequence[Node], going: Sequence[str] = ()) -> None:
    """Raise ConflictError unless these nodes run; with the `going`, those that are gone can go."""
    states = {node.name: node.state for node in observe_status(fleet, files).nodes}
    if missing := [node.name for node in nodes if states[node.name] == "missing"]:
        raise ConflictError(
            f"not there: {folded(missing)}",
            hint=f"vcluster repair {files.name}, or vcluster remove {folded([*going, *missing])} --name {files.name}",
        )
    if down := [node.name for node in nodes if states[node.name] != "running"]:
        raise ConflictError(f"not running: {folded(down)}", hint=f"vcluster start {files.name}")


def _names(plan: Plan, *, besides: Plan) -> list[str]:
    known = {node.name for node in besides.nodes}
    return [node.name for node in plan.nodes if node.name not in known]


def _settle(
    context: Context,
    fleet: Fleet,
    plan: Plan,
    keys: Keys,
    deadline: Deadline,
    *,
    made: Sequence[Node],
    proven: Collection[str] = (),
    memories: SnapshotIndex | None = None,
    look: bool = True,
) -> None:
    """Bring all nodes to what the plan says, and those to life that are not among the `made`; then look at them.

    Logins are tried from and to those that are not `proven`: among the others they were, and what they depend on is
    compared.
    """
    password = create.ask_image_password(context, plan.image_login)
    work = NodeLifecycle(context, fleet, plan, keys, deadline, image_password=password, kept=memories)

    def bring(node: Node) -> NodeConnection:
        return work.configure_via_serial(node) if node in made else work.bring_up_during_add(node)

    with ExitStack() as stack:
        sessions = work.all_nodes(bring, stack)
        if look:
            create.require_passed(create.prove_ready(context, fleet, plan, sessions, deadline, proven=proven))


def _proven(kept: Ledger) -> set[str]:
    """The nodes whose logins were tried: all that were there when the cluster was last found ready."""
    return {node.name for node in kept.plan.nodes} if kept.state == "ready" else set()


def _rollback(context: Context, fleet: Fleet, files: ClusterFiles, kept: Ledger, grown: Plan) -> Callable[..., None]:
    """What happens when nodes cannot be added; an exit callback, so no failure can slip past it."""

    def end(_: type[BaseException] | None, error: BaseException | None, *__: object) -> None:
        if error is None:
            return
        try:
            _remove_nodes(context, fleet, files, replace(kept, plan=grown), replace(kept, state="creating"))
            deadline = Deadline(BACK_TIMEOUT_S).with_check(fleet.check)
            _settle(context, fleet, kept.plan, files.read_keys(), deadline, made=kept.plan.nodes, look=False)
            files.write_ledger(kept)
        except VclusterError as failure:
            what = f"{files.name} is not yet as it was: {failure.message}"
            left = VclusterError(what, hint=f"vcluster repair {files.name}")
            parallel.raise_all([one for one in (error, left) if isinstance(one, VclusterError)])

    return end


def _remove_nodes(context: Context, fleet: Fleet, files: ClusterFiles, before: Ledger, after: Ledger) -> None:
    """The nodes first, then what is written of them: until then a killed command can be given again."""
    teardown.remove_nodes(context, fleet, before.plan, after.plan)
    create.save_plan(fleet, files, after, drop_keys(files.read_keys(), {node.name for node in after.plan.nodes}))


def remove(context: Context, name: str, names: Sequence[str], *, timeout_s: float) -> Status:
    """Remove nodes, and look whether the cluster is ready without them.

    Where it was killed before it had taken them away it can be given again; after that, repair does the rest.
    """
    files = context.files(name)
    resize.shrink(read_ledger(files).plan, names)
    with context.fleet_of(read_ledger(files).plan) as fleet, files.locked():
        deadline = Deadline(timeout_s).with_check(fleet.check)
        servers.require_rights(fleet)
        kept = read_ledger(files)
        rest = replace(kept, state="creating", plan=resize.shrink(kept.plan, names))
        _require_up(fleet, files, rest.plan.nodes, going=names)
        _remove_nodes(context, fleet, files, kept, rest)
        _settle(context, fleet, rest.plan, files.read_keys(), deadline, made=rest.plan.nodes, proven=_proven(kept))
        files.write_ledger(replace(rest, state="ready"))
        return observe_status(fleet, files)
