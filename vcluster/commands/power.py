"""The power of nodes, by libvirt alone: it needs nothing of what runs on them, nor of their networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, suppress

from vcluster.commands import node_lifecycle as nodes_work
from vcluster.commands.inventory import domains_on
from vcluster.errors import DeadlineError, VclusterError
from vcluster.fleet.context import Context
from vcluster.fleet.servers import Fleet, Server
from vcluster.model.plan import Node, Plan
from vcluster.stages import boot
from vcluster.util import parallel
from vcluster.util.deadline import Deadline

ON, OFF, GONE, UNKNOWN = "on", "off", "gone", "unknown"

Outcomes = dict[str, str | VclusterError]  # by node


def status(context: Context, plan: Plan, nodes: Sequence[Node]) -> tuple[dict[str, str], list[VclusterError]]:
    """By node whether it is on, off, gone, or unknown for its server cannot be asked; and why those cannot."""
    with context.fleet_of(plan, allow_unreachable=True) as fleet:
        looked = parallel.outcomes(tuple(fleet.servers.values()), domains_on)
        found = dict(zip(fleet.servers, looked, strict=True)) | fleet.unreachable
    concerned = {node.server for node in nodes}
    return (
        {node.name: _word(found[node.server], node) for node in nodes},
        [one for name, one in found.items() if isinstance(one, VclusterError) and name in concerned],
    )


def _word(found: dict[str, bool] | VclusterError, node: Node) -> str:
    if isinstance(found, VclusterError):
        return UNKNOWN
    return {True: ON, False: OFF, None: GONE}[found.get(node.domain)]


def turn_on(context: Context, plan: Plan, nodes: Sequence[Node], *, ready_by: Deadline | None = None) -> Outcomes:
    """Power nodes on; with `ready_by`, wait until each of them has said that it is ready."""

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
    """Cut the power of nodes and give it back; with `ready_by` as `turn_on`."""

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
    """Nodes side by side; what became of each. One that fails keeps no other from its turn."""
    with context.fleet_of(plan, allow_unreachable=True) as fleet:
        asked = parallel.outcomes(tuple(fleet.servers.values()), domains_on)
        domains = dict(zip(fleet.servers, asked, strict=True))
        done = parallel.outcomes(
            nodes, lambda node: work(fleet[node.server], node, _is_on(plan, fleet, domains, node)), deadline=ready_by
        )
    return {node.name: one for node, one in zip(nodes, done, strict=True)}


def _is_on(plan: Plan, fleet: Fleet, domains: dict[str, dict[str, bool] | VclusterError], node: Node) -> bool:
    found = domains[fleet[node.server].name]
    if isinstance(found, VclusterError):
        raise found
    if node.domain not in found:
        raise VclusterError(
            f"{node.name} is gone from {node.server}: there is no {node.domain}",
            hint=f"vcluster clear {plan.name}, and create it again",
        )
    return found[node.domain]


def _start(context: Context, plan: Plan, server: Server, node: Node, ready_by: Deadline | None) -> None:
    try:
        server.hypervisor.start_domain(node.domain)
    except VclusterError as error:
        raise VclusterError(f"{node.name}: {error.message}", hint=f"vcluster repair {plan.name}") from error
    if ready_by is None:
        return
    try:
        with closing(boot.listen(server, node)) as words:
            boot.wait_ready(words, node, deadline=ready_by.with_check(words.check), report=context.report)
    except DeadlineError as error:
        said = ""
        with suppress(VclusterError):
            said = boot.console_tail(node, nodes_work.console_log(server, plan, node))
        raise DeadlineError(error.message + said, hint=error.hint) from error
