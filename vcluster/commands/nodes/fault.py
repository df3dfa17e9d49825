"""Make faults of a cluster on purpose, read those that are active, and end them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from vcluster.commands.nodes.access import choose_nodes
from vcluster.commands.steps.inventory import powers_of, read_ledger
from vcluster.errors import ConflictError, RequestError
from vcluster.fleet import servers
from vcluster.fleet.context import Context
from vcluster.fleet.servers import Fleet
from vcluster.model.naming import folded
from vcluster.model.plan import Node, Plan
from vcluster.model.quoting import shown
from vcluster.model.status import CUT, FLAP, PARTITION, PAUSE, RUNNING, UNPLUG, Fault
from vcluster.planning import fault_plan, traffic_plan
from vcluster.planning.fault_plan import SEPARATOR, Cuts
from vcluster.resources import faults
from vcluster.util import parallel


def cut(
    context: Context, name: str, nodes: Sequence[str], directions: Sequence[str], for_s: float | None
) -> list[Fault]:
    """Drop the frames of these nodes in these directions. Returns the active faults of these nodes."""

    def cuts(plan: Plan) -> Cuts:
        return fault_plan.cuts(plan, _names(plan, nodes), directions)

    plan = read_ledger(context.files(name)).plan
    _require_switch(plan)
    cuts(plan)  # a wrong request is an error before servers are opened
    with _changing(context, name) as (fleet, plan):
        switch = fleet[plan.switch.server]
        faults.require_support(switch)
        fault_plan.require_new(faults.read_all(fleet, plan), CUT, _names(plan, nodes), directions)
        faults.cut(switch, plan, cuts(plan), for_s)
        return _of_nodes(faults.read_all(fleet, plan), _names(plan, nodes))


def partition(context: Context, name: str, text: str, for_s: float | None) -> list[Fault]:
    """Drop all frames between nodes of different groups. Returns the active faults of these nodes."""
    plan = read_ledger(context.files(name)).plan
    _require_switch(plan)
    _groups(plan, text)
    with _changing(context, name) as (fleet, plan):
        groups = [[node.name for node in group] for group in _groups(plan, text)]
        switch = fleet[plan.switch.server]
        names = [node for group in groups for node in group]
        faults.require_support(switch)
        fault_plan.require_new(faults.read_all(fleet, plan), PARTITION, names, [None])
        faults.cut(switch, plan, fault_plan.partition(plan, groups), for_s)
        return _of_nodes(faults.read_all(fleet, plan), names)


def unplug(context: Context, name: str, nodes: Sequence[str], for_s: float | None) -> list[Fault]:
    """Unplug lab0 of these nodes, which see it. Returns the active faults of these nodes."""
    return _begin(context, name, nodes, UNPLUG, for_s)


def pause(context: Context, name: str, nodes: Sequence[str], for_s: float | None) -> list[Fault]:
    """Pause these nodes. Returns their active faults."""
    return _begin(context, name, nodes, PAUSE, for_s)


def _begin(context: Context, name: str, nodes: Sequence[str], kind: str, for_s: float | None) -> list[Fault]:
    """Begin a fault that libvirt makes, on all nodes or on none."""
    _names(read_ledger(context.files(name)).plan, nodes)
    with _changing(context, name) as (fleet, plan):
        chosen = [node for node in plan.nodes if node.name in _names(plan, nodes)]
        for server in {node.server: fleet[node.server] for node in chosen}.values():
            faults.require_support(server, of_nodes=True)
        fault_plan.require_new(faults.read_all(fleet, plan), kind, _names(plan, nodes), [None])
        powers = powers_of(fleet, chosen)
        if idle := [node.name for node in chosen if powers[node.name].state != RUNNING]:
            raise ConflictError(f"not running: {folded(idle)}; nothing was changed", hint=f"vcluster start {plan.name}")
        _on_all(
            chosen,
            lambda node: faults.begin(fleet[node.server], plan, node, kind, for_s),
            lambda node: faults.withdraw(fleet[node.server], plan, node, kind),
        )
        return _of_nodes(faults.read_all(fleet, plan), _names(plan, nodes))


def _on_all(nodes: Sequence[Node], begin: Callable[[Node], None], withdraw: Callable[[Node], None]) -> None:
    """Begin a fault on all nodes. If it fails on one of them, withdraw it from the others."""
    outcomes = parallel.outcomes(nodes, begin)
    if errors := [error for error in outcomes if error is not None]:
        begun = [node for node, error in zip(nodes, outcomes, strict=True) if error is None]
        errors += [error for error in parallel.outcomes(begun, withdraw) if error is not None]
        parallel.raise_all(errors)


def flap(context: Context, name: str, nodes: Sequence[str], steps: Sequence[tuple[float, float]]) -> list[Fault]:
    """Cut the links of these nodes again and again. Returns the active faults of these nodes."""
    plan = read_ledger(context.files(name)).plan
    _require_switch(plan)
    _names(plan, nodes)
    with _changing(context, name) as (fleet, plan):
        switch = fleet[plan.switch.server]
        faults.require_support(switch)
        fault_plan.require_new(faults.read_all(fleet, plan), FLAP, _names(plan, nodes), [None])
        chosen = [node for node in plan.nodes if node.name in _names(plan, nodes)]
        _on_all(
            chosen,
            lambda node: faults.flap(switch, plan, node, steps),
            lambda node: faults.withdraw(switch, plan, node, FLAP),
        )
        return _of_nodes(faults.read_all(fleet, plan), _names(plan, nodes))


def show(context: Context, name: str, nodes: Sequence[str]) -> list[Fault]:
    """The active faults of these nodes, or of all nodes."""
    plan = read_ledger(context.files(name)).plan
    names = _names(plan, nodes)
    with context.fleet_of(plan) as fleet:
        servers.require_rights(fleet)
        return _of_nodes(faults.read_all(fleet, plan), names)


def heal(context: Context, name: str, nodes: Sequence[str]) -> tuple[str, ...]:
    """End all faults of these nodes, or of all nodes. Returns the nodes that had faults.

    It waits for no other command: `repair`, for example, may wait for a node that a fault cuts off.
    """
    plan = read_ledger(context.files(name)).plan
    names = _names(plan, nodes)
    with context.fleet_of(plan) as fleet:
        servers.require_rights(fleet)
        before = {node for fault in faults.read_all(fleet, plan) for node in fault.nodes}
        fleet.each(lambda server: faults.heal(server, plan, names if nodes else None))
    return tuple(node for node in names if node in before)


def _names(plan: Plan, nodes: Sequence[str]) -> tuple[str, ...]:
    return tuple(node.name for node in choose_nodes(plan, ",".join(nodes) if nodes else None, option=""))


def _groups(plan: Plan, text: str) -> list[tuple[Node, ...]]:
    """The nodes of each group. Raises RequestError for a bad group."""
    parts = [part.strip() for part in text.split(SEPARATOR)]
    if not all(parts):
        raise RequestError(f"a group of {shown(text)} has no nodes", hint=fault_plan.GROUPS_EXAMPLE)
    groups = [choose_nodes(plan, part, option="") for part in parts]
    fault_plan.require_groups(groups)
    return groups


def _require_switch(plan: Plan) -> None:
    traffic_plan.require_own_switch(plan, "drop frames at its ports")


@contextmanager
def _changing(context: Context, name: str) -> Iterator[tuple[Fleet, Plan]]:
    """The servers and the plan of a cluster that no other command changes meanwhile."""
    files = context.files(name)
    with context.fleet_of(read_ledger(files).plan) as fleet, files.locked():
        servers.require_rights(fleet)
        yield fleet, read_ledger(files).plan


def _of_nodes(found: Sequence[Fault], nodes: Sequence[str]) -> list[Fault]:
    return [fault for fault in found if {*fault.nodes} & {*nodes}]
