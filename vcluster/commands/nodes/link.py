"""Limit the links of nodes at the switch, and read the limits that its kernel has."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from vcluster.commands.nodes import guest_delays, link_probe
from vcluster.commands.nodes.access import choose_listed, sessions
from vcluster.commands.steps.inventory import powers_of, read_ledger, switch_server
from vcluster.errors import RequestError, VclusterError
from vcluster.fleet import servers
from vcluster.fleet.context import Context
from vcluster.fleet.ledger import Ledger
from vcluster.fleet.servers import Fleet
from vcluster.model.naming import folded
from vcluster.model.plan import Node, Plan
from vcluster.model.quoting import shown
from vcluster.model.status import RUNNING
from vcluster.planning import traffic_plan
from vcluster.planning.link_spec import Changes
from vcluster.planning.traffic import rate_trace
from vcluster.planning.traffic.rate_trace import TraceLine
from vcluster.planning.traffic_plan import LinkReading
from vcluster.resources import segmentation, shaping
from vcluster.stages import node_links
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
        server = fleet[ledger.plan.switch.server]
        plan = shaping.placed(server, change(ledger.plan))
        shaping.end_traces(server, plan, _names(plan, nodes))
        _change(context, fleet, ledger, plan)
        found, present = shaping.read(server, plan)
        names = _names(plan, nodes)
        delays = guest_delays.make(context, fleet, ledger.plan, plan, names)
    # In remote mode, the switch has a port of a node that is off. Its delays may be those that the node makes itself.
    delayed = {one.node for one in delays}
    for node in names:
        if node not in present or (traffic_plan.guest_delays(plan, node) and node not in delayed):
            context.report.note(f"{node} is off; its link gets its limits when it starts")
    _require_limits(plan, present & {*names}, found)
    return [one for one in (*found, *delays) if one.node in names]


def trace(context: Context, name: str, node: str, lines: Sequence[TraceLine], *, repeats: bool) -> None:
    """Change the rates of a node's link at the times of these lines, from now on, and again if it repeats.

    The plan has the rates of the last line, so `repair` restores them if the process on the server was killed.
    """
    last = rate_trace.last_limits(lines)

    def change(plan: Plan) -> Plan:
        return traffic_plan.with_changes(plan, _names(plan, [node]), last)

    present = read_ledger(context.files(name)).plan
    change(present)
    rate_trace.steps(present, node, lines)
    with _changing(context, name) as (fleet, ledger):
        server = fleet[ledger.plan.switch.server]
        plan = shaping.placed(server, change(ledger.plan))
        shaping.end_traces(server, plan, [node])
        _change(context, fleet, ledger, plan)
        period_s = rate_trace.period_s(lines) if repeats else None
        before = replace(plan, links=ledger.plan.links)  # a line that names no queue has none of a later line
        shaping.begin_trace(server, plan, node, rate_trace.steps(before, node, lines), period_s)


def reset(context: Context, name: str, nodes: Sequence[str]) -> tuple[str, ...]:
    """Remove all limits of the links of these nodes, or of all nodes. Returns the nodes that had limits."""

    def change(plan: Plan) -> Plan:
        traffic_plan.require_own_switch(plan)
        return traffic_plan.without_links(plan, _names(plan, nodes))

    change(read_ledger(context.files(name)).plan)
    with _changing(context, name) as (fleet, ledger):
        found, _ = shaping.read(fleet[ledger.plan.switch.server], ledger.plan)
        # The kernel has no limits of a node that is off.
        limited = {one.node for one in found} | {link.node for link in ledger.plan.links}
        plan = change(ledger.plan)
        shaping.end_traces(fleet[plan.switch.server], plan, _names(plan, nodes))
        _change(context, fleet, ledger, plan)
        guest_delays.make(context, fleet, ledger.plan, plan, _names(plan, nodes))
    return tuple(node for node in _names(ledger.plan, nodes) if node in limited)


def show(context: Context, name: str, nodes: Sequence[str]) -> list[LinkReading]:
    """The limits of the links of these nodes, or of all nodes, as the kernel of the switch's server has them.

    The kernels of nodes have the delays that nodes make themselves.
    """
    plan = read_ledger(context.files(name)).plan
    traffic_plan.require_own_switch(plan)
    return _read(context, plan, _names(plan, nodes))


def _read(context: Context, plan: Plan, names: Sequence[str]) -> list[LinkReading]:
    with switch_server(context, plan) as server:
        found = [one for one in shaping.read(server, plan)[0] if one.node in names]
    return [*found, *guest_delays.show(context, plan, names)]


def show_measured(context: Context, name: str, nodes: Sequence[str]) -> list[LinkReading]:
    """The same, with what the links do. Short traffic in the nodes measures it."""
    plan = read_ledger(context.files(name)).plan
    traffic_plan.require_own_switch(plan)
    chosen = _names(plan, nodes)
    return link_probe.measured(context, plan, _read(context, plan, _names(plan, ())), chosen)


def _names(plan: Plan, nodes: Sequence[str]) -> tuple[str, ...]:
    return tuple(node.name for node in choose_listed(plan, nodes))


@contextmanager
def _changing(context: Context, name: str) -> Iterator[tuple[Fleet, Ledger]]:
    """The servers and the ledger of a cluster that no other command changes meanwhile."""
    files = context.files(name)
    with context.fleet_of(read_ledger(files).plan) as fleet, files.locked():
        servers.require_rights(fleet)
        yield fleet, read_ledger(files)


def _change(context: Context, fleet: Fleet, ledger: Ledger, plan: Plan) -> None:
    """Carry out the limits of a plan and write the ledger.

    The ledger has limits as long as a kernel has some, and offloads are off as long as the ledger has limits. So
    `repair` and `reset` end the work of a command that was killed.
    """
    server, files = fleet[plan.switch.server], context.files(plan.name)
    guest_delays.end(context, fleet, ledger.plan, plan)
    if plan.links:
        _set_offloads(context, fleet, plan, with_nodes=not ledger.plan.links)
    else:
        shaping.apply(server, plan)
    files.write_ledger(replace(ledger, plan=plan))
    shaping.apply(server, plan)  # after the ledger, because `power on` reads the ledger and takes no lock
    if not plan.links:
        _set_offloads(context, fleet, plan, with_nodes=True)  # also after a command that was killed before this


def _set_offloads(context: Context, fleet: Fleet, plan: Plan, *, with_nodes: bool) -> None:
    """Turn segmentation offloads off if the plan has limits, otherwise on as they were; and report what changed.

    A node that does not answer is reported: its frames may be larger than the MTU.
    """

    def on_node(node: Node) -> bool:
        deadline = Deadline(NODE_TIMEOUT_S)
        with sessions(context, plan, [node], user="root", deadline=deadline, fleet=fleet) as opened:
            return node_links.apply_offloads(opened[node.name], plan)

    powers = powers_of(fleet, plan.nodes) if with_nodes else {}
    running = [node for node in plan.nodes if node.name in powers and powers[node.name].state == RUNNING]
    changes = fleet.each(lambda server: segmentation.create(server, plan))
    places = [f"{', '.join(names)} on {server}" for server, names in changes.items() if names]
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
