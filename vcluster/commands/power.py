"""Switch the power of nodes by libvirt alone; this works without their networks and their programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

from vcluster.commands.inventory import domains_on
from vcluster.commands.node_lifecycle import console_on_timeout
from vcluster.errors import VclusterError
from vcluster.fleet.context import Context
from vcluster.fleet.servers import Fleet, Server
from vcluster.model.plan import Node, Plan
from vcluster.stages import boot
from vcluster.util import parallel
from vcluster.util.deadline import Deadline

ON, OFF, GONE, UNKNOWN = "on", "off", "gone", "unknown"

Outcomes = dict[str, str | VclusterError]  # by node


def status(context: Context, plan: Plan, nodes: Sequence[Node]) -> tuple[dict[str, str], list[VclusterError]]:
    """The power state of each node, by name (`on`, `off`, `gone`, `unknown`), and why servers could not be asked."""
    with context.fleet_of(plan, allow_unreachable=True) as fleet:
        answers = parallel.outcomes(tuple(fleet.servers.values()), domains_on)
        found = dict(zip(fleet.servers, answers, strict=True)) | fleet.unreachable
    concerned = {node.server for node in nodes}
    return (
        {node.name: _state(found[node.server], node) for node in nodes},
        [error for name, error in found.items() if isinstance(error, VclusterError) and name in concerned],
    )


def _state(found: dict[str, bool] | VclusterError, node: Node) -> str:
    if isinstance(found, VclusterError):
        return UNKNOWN
    return {True: ON, False: OFF, None: GONE}[found.get(node.domain)]


def turn_on(context: Context, plan: Plan, nodes: Sequence[Node], *, ready_by: Deadline | None = None) -> Outcomes:
    """Turn nodes on; with `ready_by`, wait until each node reports that it is ready."""

    def work(server: Server, node: Node, is_on: bool) -> str:
        if is_on:
            return "already on"
        _start(context, plan, server, node, ready_by)
        return ON

    return _on_each(context, plan, nodes, work, ready_by)


def turn_off(context: Context, plan: Plan, nodes: Sequence[Node]) -> Outcomes:
    """Cut the power of nodes."""

    def work(server: Server, node: Node, is_on: bool) -> str:
        if not is_on:
            return "already off"
        server.hypervisor.stop_domain(node.domain)
        return OFF

    return _on_each(context, plan, nodes, work)


def cycle(context: Context, plan: Plan, nodes: Sequence[Node], *, ready_by: Deadline | None = None) -> Outcomes:
    """Cut the power of nodes and turn them on again; `ready_by` as in `turn_on`."""

    def work(server: Server, node: Node, is_on: bool) -> str:
        if is_on:
            server.hypervisor.stop_domain(node.domain)
        _start(context, plan, server, node, ready_by)
        return "off and on" if is_on else ON

    return _on_each(context, plan, nodes, work, ready_by)


def _on_each(
    context: Context,
    plan: Plan,
    nodes: Sequence[Node],
    work: Callable[[Server, Node, bool], str],
    ready_by: Deadline | None = None,
) -> Outcomes:
    """The outcome of `work` on each node; the nodes are worked on at once, and a failure stops only its own node."""
    with context.fleet_of(plan, allow_unreachable=True) as fleet:
        answers = parallel.outcomes(tuple(fleet.servers.values()), domains_on)
        domains = dict(zip(fleet.servers, answers, strict=True))
        done = parallel.outcomes(
            nodes, lambda node: work(fleet[node.server], node, _is_on(plan, fleet, domains, node)), deadline=ready_by
        )
    return {node.name: outcome for node, outcome in zip(nodes, done, strict=True)}


def _is_on(plan: Plan, fleet: Fleet, domains: dict[str, dict[str, bool] | VclusterError], node: Node) -> bool:
    found = domains[fleet[node.server].name]
    if isinstance(found, VclusterError):
        raise found
    if node.domain not in found:
        raise VclusterError(
            f"{node.name} is missing: {node.server} has no domain {node.domain}",
            hint=f"vcluster clear {plan.name}, and create it again",
        )
    return found[node.domain]


def _start(context: Context, plan: Plan, server: Server, node: Node, ready_by: Deadline | None) -> None:
    try:
        server.hypervisor.start_domain(node.domain)
    except VclusterError as error:
        raise VclusterError(f"{node.name}: {error.message}", hint=f"vcluster repair {plan.name}") from error
    if ready_by is not None:
        with console_on_timeout(server, plan, node), closing(boot.listen(server, node)) as channel:
            boot.wait_ready(channel, node, deadline=ready_by.with_check(channel.check), report=context.report)
