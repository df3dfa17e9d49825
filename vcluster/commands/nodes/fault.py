"""Make faults of a cluster on purpose, read those that are active, and end them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from vcluster.commands.nodes.access import choose_listed, choose_nodes
from vcluster.commands.steps.inventory import powers_of, read_ledger
from vcluster.errors import ConflictError, RequestError, VclusterError
from vcluster.fleet import servers
from vcluster.fleet.context import Context
from vcluster.fleet.servers import Fleet, Server
from vcluster.model.naming import folded
from vcluster.model.plan import Node, Plan
from vcluster.model.quoting import shown
from vcluster.model.spec import CUT, FLAP, PARTITION, PAUSE, UNPLUG
from vcluster.model.status import RUNNING, Fault
from vcluster.planning import fault_plan, traffic_plan
from vcluster.planning.fault_plan import SEPARATOR
from vcluster.resources import faults
from vcluster.util import parallel

Choose = Callable[[Plan], Sequence[Node]]
Make = Callable[[Fleet, Plan, Sequence[Node]], None]
_NODE_KINDS = (UNPLUG, PAUSE)  # the servers of the nodes make them, and that of the switch makes the others


def cut(
    context: Context, name: str, nodes: Sequence[str], directions: Sequence[str], for_s: float | None
) -> list[Fault]:
    """Drop the frames of these nodes in these directions. Returns the active faults of these nodes."""

    def make(fleet: Fleet, plan: Plan, chosen: Sequence[Node]) -> None:
        cuts = fault_plan.cuts(plan, _names(chosen), directions)
        faults.cut(fleet[plan.switch.server], plan, cuts, for_s)

    return _make(context, name, CUT, directions, partial(choose_listed, names=nodes), make)


def partition(context: Context, name: str, text: str, for_s: float | None) -> list[Fault]:
    """Drop all frames between nodes of different groups. Returns the active faults of these nodes."""

    def make(fleet: Fleet, plan: Plan, _: Sequence[Node]) -> None:
        groups = [_names(group) for group in _groups(plan, text)]
        faults.cut(fleet[plan.switch.server], plan, fault_plan.partition(plan, groups), for_s)

    def choose(plan: Plan) -> list[Node]:
        return [node for group in _groups(plan, text) for node in group]

    return _make(context, name, PARTITION, [None], choose, make)


def unplug(context: Context, name: str, nodes: Sequence[str], for_s: float | None) -> list[Fault]:
    """Unplug lab0 of these nodes, which see it. Returns the active faults of these nodes."""
    return _begin(context, name, nodes, UNPLUG, for_s)


def pause(context: Context, name: str, nodes: Sequence[str], for_s: float | None) -> list[Fault]:
    """Pause these nodes. Returns their active faults."""
    return _begin(context, name, nodes, PAUSE, for_s)


def _begin(context: Context, name: str, nodes: Sequence[str], kind: str, for_s: float | None) -> list[Fault]:
    """Begin a fault that libvirt makes, on all nodes or on none."""

    def make(fleet: Fleet, plan: Plan, chosen: Sequence[Node]) -> None:
        powers = powers_of(fleet, chosen)
        if idle := [node.name for node in chosen if powers[node.name].state != RUNNING]:
            raise ConflictError(f"not running: {folded(idle)}; nothing was changed", hint=f"vcluster start {plan.name}")
        on_all(
            context,
            chosen,
            lambda node: faults.begin(fleet[node.server], plan, node, kind, for_s),
            lambda node: faults.withdraw(fleet[node.server], plan, node, kind),
        )

    return _make(context, name, kind, [None], partial(choose_listed, names=nodes), make)


def flap(context: Context, name: str, nodes: Sequence[str], steps: Sequence[tuple[float, float]]) -> list[Fault]:
    """Cut the links of these nodes again and again. Returns the active faults of these nodes."""

    def make(fleet: Fleet, plan: Plan, chosen: Sequence[Node]) -> None:
        switch = fleet[plan.switch.server]
        on_all(
            context,
            chosen,
            lambda node: faults.flap(switch, plan, node, steps),
            lambda node: faults.withdraw(switch, plan, node, FLAP),
        )

    return _make(context, name, FLAP, [None], partial(choose_listed, names=nodes), make)


def _make(
    context: Context, name: str, kind: str, directions: Sequence[str | None], choose: Choose, make: Make
) -> list[Fault]:
    """Make a new fault of the chosen nodes. Returns the active faults of these nodes.

    Raises an error before any change if a node has the fault, or if a server cannot make it.
    """
    plan = read_ledger(context.files(name)).plan
    if kind not in _NODE_KINDS:
        traffic_plan.require_own_switch(plan, "drop frames at its ports")
    choose(plan)  # a wrong request is an error before servers are opened
    with _changing(context, name) as (fleet, plan):
        nodes = choose(plan)
        makers = {node.server for node in nodes} if kind in _NODE_KINDS else {plan.switch.server}
        for server in sorted(makers):
            faults.require_support(fleet[server], of_nodes=kind in _NODE_KINDS)
        fault_plan.require_new(faults.read_all(fleet, plan), kind, _names(nodes), directions)
        make(fleet, plan, nodes)
        return _of_nodes(faults.read_all(fleet, plan), nodes)


def on_all(
    context: Context, nodes: Sequence[Node], begin: Callable[[Node], None], withdraw: Callable[[Node], None]
) -> None:
    """Begin a fault on all nodes. If that fails or is interrupted, withdraw it from all of them.

    An error may hide that the fault has begun. Only a ConflictError leaves its node as it was.
    """
    unchanged: list[Node] = []
    try:
        outcomes = parallel.outcomes(nodes, begin)
        unchanged = [node for node, each in zip(nodes, outcomes, strict=True) if isinstance(each, ConflictError)]
        parallel.raise_all([each for each in outcomes if each is not None])
    except BaseException as error:
        found = parallel.outcomes([node for node in nodes if node not in unchanged], withdraw)
        left = [each for each in found if each is not None]
        if isinstance(error, VclusterError):
            parallel.raise_all([error, *left])
        for each in left:
            context.report.note(f"a fault may be left: {each.message}; vcluster fault heal")
        raise


def show(context: Context, name: str, nodes: Sequence[str]) -> tuple[list[Fault], list[VclusterError]]:
    """The active faults of these nodes, or of all nodes; and the errors of servers that did not answer."""
    plan = read_ledger(context.files(name)).plan
    chosen = choose_listed(plan, nodes)
    found, errors = _on_involved(context, plan, chosen, lambda server: faults.read(server, plan))
    return _of_nodes(fault_plan.faults(plan, found), chosen), errors


def heal(context: Context, name: str, nodes: Sequence[str]) -> tuple[tuple[str, ...], list[VclusterError]]:
    """End all faults of these nodes, or of all nodes. Returns the nodes that had faults.

    It also returns the errors of servers that did not answer; the faults of the others are healed. It waits for no
    other command: `repair`, for example, may wait for a node that a fault cuts off.
    """
    plan = read_ledger(context.files(name)).plan
    chosen = choose_listed(plan, nodes)

    def heal_on(server: Server) -> Mapping[str, Any]:
        before = faults.read(server, plan)
        faults.heal(server, plan, _names(chosen) if nodes else None)
        return before

    found, errors = _on_involved(context, plan, chosen, heal_on)
    before = {node for fault in fault_plan.faults(plan, found) for node in fault.nodes}
    return tuple(name for name in _names(chosen) if name in before), errors


def _on_involved(
    context: Context, plan: Plan, nodes: Sequence[Node], work: Callable[[Server], Mapping[str, Any]]
) -> tuple[dict[str, Mapping[str, Any]], list[VclusterError]]:
    """The results of the servers of these nodes and of their switch, by name; and the errors of the others.

    Raises the errors if no server has a result.
    """

    def checked(server: Server) -> Mapping[str, Any]:
        servers.require_rights_on(server)
        return work(server)

    involved = {plan.switch.server, *(node.server for node in nodes)}
    with context.fleet_of(plan, allow_unreachable=True) as fleet:
        opened = [server for name, server in fleet.servers.items() if name in involved]
        outcomes = parallel.outcomes(opened, checked)
        errors = [error for name, error in fleet.unreachable.items() if name in involved]
    errors += [each for each in outcomes if isinstance(each, VclusterError)]
    found = {
        server.name: each for server, each in zip(opened, outcomes, strict=True) if not isinstance(each, VclusterError)
    }
    if not found:
        parallel.raise_all(errors)
    return found, errors


def _names(nodes: Sequence[Node]) -> tuple[str, ...]:
    return tuple(node.name for node in nodes)


def _groups(plan: Plan, text: str) -> list[tuple[Node, ...]]:
    """The nodes of each group. Raises RequestError for a bad group."""
    parts = [part.strip() for part in text.split(SEPARATOR)]
    if not all(parts):
        raise RequestError(f"a group of {shown(text)} has no nodes", hint=fault_plan.GROUPS_EXAMPLE)
    groups = [choose_nodes(plan, part, option="") for part in parts]
    fault_plan.require_groups(groups)
    return groups


@contextmanager
def _changing(context: Context, name: str) -> Iterator[tuple[Fleet, Plan]]:
    """The servers and the plan of a cluster that no other command changes meanwhile."""
    files = context.files(name)
    with context.fleet_of(read_ledger(files).plan) as fleet, files.locked():
        servers.require_rights(fleet)
        yield fleet, read_ledger(files).plan


def _of_nodes(found: Sequence[Fault], nodes: Sequence[Node]) -> list[Fault]:
    names = {node.name for node in nodes}
    return [fault for fault in found if names & {*fault.nodes}]
