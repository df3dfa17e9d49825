"""Delays that nodes make themselves, where the kernel of the switch cannot: change them, and read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vcluster.commands.nodes.access import sessions
from vcluster.commands.steps.inventory import node_powers, powers_of
from vcluster.errors import VclusterError
from vcluster.fleet.context import Context
from vcluster.fleet.servers import Fleet
from vcluster.model.plan import Node, Plan
from vcluster.model.status import MISSING, RUNNING, STOPPED
from vcluster.planning import traffic_plan
from vcluster.planning.traffic_plan import GUEST_FIELDS, LinkReading
from vcluster.stages import node_links
from vcluster.util import parallel
from vcluster.util.deadline import Deadline

NODE_TIMEOUT_S = 60.0  # for a login and two programs in a node
_LIMITS = GUEST_FIELDS[:3]
_TC_PRECISION = 1e-5

Found = dict[str, dict[str, int]]  # by direction


def end(context: Context, fleet: Fleet, before: Plan, after: Plan) -> None:
    """End the delays of nodes that have some in the plan `before`, and none in the plan `after`.

    This comes before the ledger has the plan `after`, so a command that ends early leaves no delay that no ledger has.
    Raises VclusterError if a running node still has one.
    """
    _, failed = _apply(context, fleet, after, _ending(before, after))
    if failed:
        hint = f"vcluster link reset --name {after.name}, when they answer"
        raise VclusterError(f"nodes still delay frames: {failed}", hint=hint)


def _ending(before: Plan, after: Plan) -> list[Node]:
    return [
        node
        for node in after.nodes
        if traffic_plan.guest_delays(before, node.name) and not traffic_plan.guest_delays(after, node.name)
    ]


def make(context: Context, fleet: Fleet, before: Plan, after: Plan, names: Sequence[str]) -> list[LinkReading]:
    """Give these nodes the delays of the plan `after`, if either plan has some in nodes. Returns what nodes then have.

    Those whose delays `end` ended are left out. A node that is off gets them when it is configured. Raises
    VclusterError if a running node does not have them.
    """
    if not (before.delays_in_guest or after.delays_in_guest):
        return []
    # The place of all delays may have changed.
    chosen = [node for node in after.nodes if node.name in names or before.delays_in_guest != after.delays_in_guest]
    ended = _ending(before, after)
    found, failed = _apply(context, fleet, after, [node for node in chosen if node not in ended])
    if failed:
        raise VclusterError(f"nodes lack their delays: {failed}", hint=f"vcluster repair {after.name}")
    return traffic_plan.guest_readings(found)


def _apply(context: Context, fleet: Fleet, plan: Plan, chosen: Sequence[Node]) -> tuple[dict[str, Found], str]:
    """Give those of these nodes that are up the delays of the plan. Returns these by node, and errors as a text."""
    if not chosen:
        return {}, ""
    powers = powers_of(fleet, chosen)
    running = [node for node in chosen if powers[node.name].state == RUNNING]

    def work(node: Node) -> Found:
        deadline = Deadline(NODE_TIMEOUT_S)
        with sessions(context, plan, [node], user="root", deadline=deadline, fleet=fleet) as opened:
            node_links.apply_delays(opened[node.name], plan, node)
            return _required(plan, node, node_links.read_delays(opened[node.name]))

    outcomes = parallel.outcomes(running, work)
    failed = [
        f"{node.name}: {outcome.message}"
        for node, outcome in zip(running, outcomes, strict=True)
        if isinstance(outcome, VclusterError)
    ]
    found = {node.name: outcome for node, outcome in zip(running, outcomes, strict=True) if isinstance(outcome, dict)}
    return found, "; ".join(failed)


def _required(plan: Plan, node: Node, found: Found) -> Found:
    """What the kernel of a node has. Raises VclusterError if it is not what is planned.

    tc prints six digits of a time.
    """
    planned = traffic_plan.guest_delays(plan, node.name)
    present = {direction: [one[name] for name in _LIMITS] for direction, one in found.items()}
    if present.keys() != planned.keys() or not all(
        math.isclose(value, wanted, rel_tol=_TC_PRECISION)
        for direction, values in present.items()
        for value, wanted in zip(values, planned[direction], strict=True)
    ):
        raise VclusterError("its kernel has other delays than the plan")
    return found


def show(context: Context, plan: Plan, names: Sequence[str]) -> list[LinkReading]:
    """The delays that the kernels of nodes have. A node that is off or does not answer is reported."""
    planned = [node for node in plan.nodes if node.name in names and traffic_plan.guest_delays(plan, node.name)]
    powers = node_powers(context, plan, planned) if planned else {}
    off = [node.name for node in planned if powers[node.name].state in (STOPPED, MISSING)]
    for name in off:
        context.report.note(f"{name} is off, so it delays no frames")
    chosen = [node for node in planned if node.name not in off]

    def work(node: Node) -> Found:
        deadline = Deadline(NODE_TIMEOUT_S)
        with sessions(context, plan, [node], user="root", deadline=deadline) as opened:
            return node_links.read_delays(opened[node.name])

    found = {}
    for node, outcome in zip(chosen, parallel.outcomes(chosen, work), strict=True):
        if isinstance(outcome, VclusterError):
            context.report.note(f"the delays of {node.name} cannot be read: {outcome.message}")
        else:
            found[node.name] = outcome
    return traffic_plan.guest_readings(found)
