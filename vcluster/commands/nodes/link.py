"""Limit the links of nodes at the switch, and read the limits that its kernel has."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from vcluster.commands.nodes.access import choose_nodes, sessions
from vcluster.commands.steps.inventory import powers_of, read_ledger
from vcluster.errors import RequestError, VclusterError
from vcluster.fleet import servers
from vcluster.fleet.context import Context
from vcluster.fleet.ledger import Ledger
from vcluster.fleet.servers import Fleet, Server
from vcluster.model.naming import folded
from vcluster.model.plan import Node, Plan
from vcluster.model.quoting import shown
from vcluster.model.status import RUNNING
from vcluster.planning import traffic_plan
from vcluster.planning.link_spec import Changes
from vcluster.planning.traffic_plan import LinkReading
from vcluster.resources import segmentation, shaping
from vcluster.stages import node_offloads
from vcluster.util import parallel
from vcluster.util.deadline import Deadline

NODE_TIMEOUT_S = 60.0  # for a login and a program in a node


def set_limits(
    context: Context, name: str, nodes: Sequence[str], changes: Mapping[str, Changes], *, peer: str = ""
) -> list[LinkReading]:
    """Change the limits of the links of these nodes, by direction. Returns all limits of these nodes.

    Raises MissingError, before any change, if the kernel of the switch's server cannot give the limits.
    """

    def change(plan: Plan) -> Plan:
        if peer and peer not in {node.name for node in plan.nodes}:
            names = folded(node.name for node in plan.nodes)
            raise RequestError(f"--peer: cluster {plan.name} has no node {shown(peer)}", hint=f"it has {names}")
        return traffic_plan.with_changes(plan, _names(plan, nodes), changes, peer=peer)

    change(read_ledger(context.files(name)).plan)  # a wrong request is an error before servers are opened
    with _changing(context, name) as (fleet, ledger):
        plan = change(ledger.plan)
        server = fleet[plan.switch.server]
        shaping.require_support(server, plan)
        if bool(plan.links) != bool(ledger.plan.links):
            _set_offloads(context, fleet, plan)
        context.files(name).write_ledger(replace(ledger, plan=plan))
        shaping.apply(server, plan)
        found, present = shaping.read(server, plan)
    names = _names(plan, nodes)
    for node in set(names) - present:
        context.report.note(f"{node} is off; its link gets its limits when it starts")
    _require_limits(plan, present & {*names}, found)
    return [one for one in found if one.node in names]


def reset(context: Context, name: str, nodes: Sequence[str]) -> tuple[str, ...]:
    """Remove all limits of the links of these nodes, or of all nodes. Returns the nodes that had limits."""

    def change(plan: Plan) -> Plan:
        traffic_plan.require_own_switch(plan)
        return traffic_plan.without_links(plan, _names(plan, nodes))

    change(read_ledger(context.files(name)).plan)
    with _changing(context, name) as (fleet, ledger):
        server = fleet[ledger.plan.switch.server]
        plan, limited = change(ledger.plan), {one.node for one in shaping.read(server, ledger.plan)[0]}
        shaping.apply(server, plan)
        context.files(name).write_ledger(replace(ledger, plan=plan))
        if not plan.links:  # also after a reset that was killed before it came to this
            _set_offloads(context, fleet, plan)
    return tuple(node for node in _names(plan, nodes) if node in limited)


def show(context: Context, name: str, nodes: Sequence[str]) -> list[LinkReading]:
    """The limits of the links of these nodes, or of all nodes, as the kernel of the switch's server has them."""
    plan = read_ledger(context.files(name)).plan
    traffic_plan.require_own_switch(plan)
    names = _names(plan, nodes)
    with _switch(context, plan) as server:
        return [one for one in shaping.read(server, plan)[0] if one.node in names]


def _names(plan: Plan, nodes: Sequence[str]) -> tuple[str, ...]:
    return tuple(node.name for node in choose_nodes(plan, ",".join(nodes) if nodes else None, option=""))


@contextmanager
def _switch(context: Context, plan: Plan) -> Iterator[Server]:
    """Open the server of the switch; its libvirt is not needed."""
    key = context.files(plan.name).server_key()
    requests = [one for one in servers.requests_for_plan(plan, key) if one.name == plan.switch.server]
    with context.fleet([replace(one, carries_nodes=False) for one in requests]) as fleet:
        yield fleet[plan.switch.server]


@contextmanager
def _changing(context: Context, name: str) -> Iterator[tuple[Fleet, Ledger]]:
    """The servers and the ledger of a cluster that no other command changes meanwhile."""
    files = context.files(name)
    with context.fleet_of(read_ledger(files).plan) as fleet, files.locked():
        servers.require_rights(fleet)
        yield fleet, read_ledger(files)


def _set_offloads(context: Context, fleet: Fleet, plan: Plan) -> None:
    """Turn segmentation offloads off if the plan has limits, otherwise on as they were; and report what changed.

    A node that does not answer is reported: its frames may be larger than the MTU.
    """

    def on_server(server: Server) -> Sequence[str]:
        return segmentation.create(server, plan) if plan.links else segmentation.restore(server, plan.name)

    def on_node(node: Node) -> bool:
        deadline = Deadline(NODE_TIMEOUT_S)
        with sessions(context, plan, [node], user="root", deadline=deadline, fleet=fleet) as opened:
            return node_offloads.apply(opened[node.name], plan)

    powers = powers_of(fleet, plan.nodes)
    running = [node for node in plan.nodes if powers[node.name].state == RUNNING]
    places = [f"{', '.join(names)} on {server}" for server, names in fleet.each(on_server).items() if names]
    outcomes = dict(zip(running, parallel.outcomes(running, on_node), strict=True))
    if changed := [node.name for node, outcome in outcomes.items() if outcome is True]:
        places.append(f"lab0 of {folded(changed)}")
    if places:
        context.report.note(f"{'turned off' if plan.links else 'restored'} TSO, GSO and GRO: {'; '.join(places)}")
    for node, outcome in outcomes.items():
        if isinstance(outcome, VclusterError) and plan.links:
            context.report.note(f"{node.name} may send frames of up to 64 KiB: {outcome.message}")


def _require_limits(plan: Plan, nodes: Collection[str], found: Sequence[LinkReading]) -> None:
    """Raise VclusterError if the kernel has other limits of the links of these nodes than the plan."""
    planned, present = (
        traffic_plan.texts_of(limits)
        for limits in (traffic_plan.planned_limits(plan), traffic_plan.found_limits(found))
    )
    for key in sorted(planned.keys() | present.keys()):
        if key[0] in nodes and planned.get(key) != present.get(key):
            raise VclusterError(
                f"{' '.join(key)}: the switch has {present.get(key, 'no limits')}, not {planned.get(key, 'no limits')}",
                hint=f"vcluster repair {plan.name}",
            )
