"""Switch the power of nodes by libvirt alone; this works without their networks and their programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

from vcluster.commands.steps.admission import memory_errors
from vcluster.commands.steps.inventory import domains_on
from vcluster.commands.steps.node_console import console_on_timeout
from vcluster.errors import ConflictError, VclusterError
from vcluster.fleet.context import Context
from vcluster.fleet.servers import Fleet, Server
from vcluster.model.plan import Node, Plan
from vcluster.model.status import PAUSED, RUNNING, STOPPED, PowerState
from vcluster.resources.domains import power_on, prepare, resume
from vcluster.stages import boot
from vcluster.util import parallel
from vcluster.util.deadline import Deadline

ON, OFF, GONE, UNKNOWN = "on", "off", "gone", "unknown"
RESUMED = "resumed"

Outcomes = dict[str, str | VclusterError]  # by node
Powers = dict[str, PowerState]  # by node or domain


def status(context: Context, plan: Plan, nodes: Sequence[Node]) -> tuple[Powers, list[VclusterError]]:
    """The power of each node by name, as on, off, paused, gone or unknown; and why servers did not answer."""
    with context.fleet_of(plan, allow_unreachable=True) as fleet:
        answers = parallel.outcomes(tuple(fleet.servers.values()), domains_on)
        found = dict(zip(fleet.servers, answers, strict=True)) | fleet.unreachable
    concerned = {node.server for node in nodes}
    return (
        {node.name: _state(found[node.server], node) for node in nodes},
        [error for name, error in found.items() if isinstance(error, VclusterError) and name in concerned],
    )


def _state(found: Powers | VclusterError, node: Node) -> PowerState:
    if isinstance(found, VclusterError):
        return PowerState(UNKNOWN)
    power = found.get(node.domain)
    if power is None:
        return PowerState(GONE)
    return {RUNNING: PowerState(ON), STOPPED: PowerState(OFF)}.get(power.state, power)


def turn_on(context: Context, plan: Plan, nodes: Sequence[Node], *, ready_by: Deadline | None = None) -> Outcomes:
    """Turn nodes on, and resume paused nodes; with `ready_by`, wait until each started node reports ready.

    Raises ConflictError while another command creates nodes: a clone is paused until it has received its memory.
    The outcome of nodes that are off is an error if their server lacks memory for all of them.
    """
    _refuse_during_create(context, plan)

    def work(server: Server, node: Node, power: PowerState) -> str:
        if power.state == PAUSED:
            if resume(server, plan, node):
                context.report.note(f"{node.name} was paused by a fault, which is over now")
            return RESUMED
        if power.is_active:
            return "already on"
        _start(context, plan, server, node, ready_by)
        return ON

    return _on_each(context, plan, nodes, work, ready_by, starts=True)


def _refuse_during_create(context: Context, plan: Plan) -> None:
    files = context.files(plan.name)
    ledger = files.read_ledger()
    if ledger and ledger.state == "creating" and files.is_locked():
        raise ConflictError(
            f"another command is creating nodes of cluster {plan.name}", hint="wait for that command, or interrupt it"
        )


def turn_off(context: Context, plan: Plan, nodes: Sequence[Node]) -> Outcomes:
    """Cut the power of nodes."""

    def work(server: Server, node: Node, power: PowerState) -> str:
        if not power.is_active:
            return "already off"
        server.hypervisor.stop_domain(node.domain)
        return OFF

    return _on_each(context, plan, nodes, work)


def cycle(context: Context, plan: Plan, nodes: Sequence[Node], *, ready_by: Deadline | None = None) -> Outcomes:
    """Cut the power of nodes and turn them on again; `ready_by` and errors as in `turn_on`."""
    _refuse_during_create(context, plan)

    def work(server: Server, node: Node, power: PowerState) -> str:
        if power.is_active:
            server.hypervisor.stop_domain(node.domain)
        _start(context, plan, server, node, ready_by)
        return "off and on" if power.is_active else ON

    return _on_each(context, plan, nodes, work, ready_by, starts=True)


def _on_each(
    context: Context,
    plan: Plan,
    nodes: Sequence[Node],
    work: Callable[[Server, Node, PowerState], str],
    ready_by: Deadline | None = None,
    *,
    starts: bool = False,
) -> Outcomes:
    """The outcome of `work` on each node; the nodes are worked on at once, and a failure stops only its own node.

    If it `starts` nodes, a server must have the memory for those of its nodes that are off, or starts none of them.
    """
    with context.fleet_of(plan, allow_unreachable=True) as fleet:
        answers = parallel.outcomes(tuple(fleet.servers.values()), domains_on)
        domains = dict(zip(fleet.servers, answers, strict=True))
        powers = {name: power for found in answers if isinstance(found, dict) for name, power in found.items()}
        off = [node for node in nodes if starts and node.domain in powers and not powers[node.domain].is_active]
        errors = memory_errors(context, fleet, plan, off)

        def work_on(node: Node) -> str:
            power = _power(plan, fleet, domains, node)
            if not power.is_active and node.server in errors:
                raise errors[node.server]
            return work(fleet[node.server], node, power)

        done = parallel.outcomes(nodes, work_on, deadline=ready_by)
    return {node.name: outcome for node, outcome in zip(nodes, done, strict=True)}


def _power(plan: Plan, fleet: Fleet, domains: dict[str, Powers | VclusterError], node: Node) -> PowerState:
    found = domains[fleet[node.server].name]
    if isinstance(found, VclusterError):
        raise found
    if node.domain not in found:
        raise VclusterError(
            f"{node.name} is missing: {node.server} has no domain {node.domain}",
            hint=f"vcluster repair {plan.name}",
        )
    return found[node.domain]


def _with_limits(context: Context, plan: Plan, node: Node) -> Plan:
    """The plan with the limits of links that the ledger has now."""
    ledger = context.files(plan.name).read_ledger()
    return ledger.plan if ledger and node in ledger.plan.nodes else plan


def _start(context: Context, plan: Plan, server: Server, node: Node, ready_by: Deadline | None) -> None:
    used = _with_limits(context, plan, node)
    try:
        power_on(server, used, node)
        while (now := _with_limits(context, plan, node)).links != used.links:  # `link set` has changed them meanwhile
            prepare(server, now, node)
            used = now
    except VclusterError as error:
        raise VclusterError(f"{node.name}: {error.message}", hint=f"vcluster repair {plan.name}") from error
    if ready_by is not None:
        with console_on_timeout(server, plan, node), closing(boot.listen(server, node)) as channel:
            boot.wait_ready(channel, node, deadline=ready_by, report=context.report)
