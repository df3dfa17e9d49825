"""The limits of links at the switch. The queues of a port go with the port; shapers and tables have the owner label.

So `interfaces` and `rules` remove all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from vcluster.fleet.servers import Server
from vcluster.model import naming
from vcluster.model.plan import Node, Plan
from vcluster.planning import traffic_plan
from vcluster.planning.hops import switch_port
from vcluster.planning.traffic.rate_trace import Steps
from vcluster.planning.traffic_plan import LinkReading

Place = tuple[str, str]  # a node and a direction


def placed(server: Server, plan: Plan) -> Plan:
    """The plan with the place of its delays: the switch, or the nodes if the kernel of its server cannot delay frames.

    Raises MissingError, before any change, if that kernel cannot give the other limits.
    """
    plan = replace(plan, delays_in_guest=False)
    if traffic_plan.has_delays(plan) and not server.call("can_delay_frames"):
        plan = traffic_plan.with_delays_in_guest(plan)
    server.call("require_link_support", directions=traffic_plan.shaped_directions(plan))
    return plan


def create(server: Server, plan: Plan) -> None:
    """Give the links of the plan their limits, if the switch is on this server. Limits that are right stay."""
    if plan.links and server.name == plan.switch.server:
        apply(server, plan)


def create_port(server: Server, plan: Plan, node: Node) -> None:
    """The same for the link of one node, whose port is new."""
    if plan.links and server.name == plan.switch.server:
        _shape(server, plan, [switch_port(plan, node)])


def apply(server: Server, plan: Plan) -> None:
    """Give the links of the plan their limits, and no limit to the others.

    Links that follow a trace stay as they are.
    """
    traced = {one.node for one in read(server, plan)[0] if one.traced}
    _shape(server, plan, [switch_port(plan, node) for node in plan.nodes if node.name not in traced])


def _shape(server: Server, plan: Plan, ports: Sequence[str]) -> None:
    arguments = {**traffic_plan.label_arguments(plan), "switch_ports": [*ports]}
    server.call("shape_links", **arguments, directions=traffic_plan.shaped_directions(plan))


def reduce(server: Server, before: Plan, after: Plan) -> None:
    """Give the links the limits of the plan `after`, if they are not those of the plan `before`."""
    if before.links != after.links and server.name == after.switch.server:
        end_traces(server, before, {node.name for node in before.nodes} - {node.name for node in after.nodes})
        apply(server, after)


def begin_trace(server: Server, plan: Plan, node: str, steps: Steps, period_s: float | None) -> None:
    """Change the rates of a node's link over time. A process on the server of the switch does it."""
    label = naming.alias(plan.name, plan.owner)
    server.call("begin_trace", label=label, node=node, steps=steps, period_s=period_s)


def end_traces(server: Server, plan: Plan, nodes: Collection[str]) -> None:
    """End the traces of these nodes. Their links keep the limits of this moment."""
    server.call("end_traces", label=naming.alias(plan.name, plan.owner), nodes=[*nodes])


def read(server: Server, plan: Plan) -> tuple[list[LinkReading], set[str]]:
    """The limits that the kernel has, and the nodes whose port of the switch exists."""
    found = server.call("read_link_limits", **traffic_plan.label_arguments(plan))
    ports = {*found["present"]}
    present = {node.name for node in plan.nodes if switch_port(plan, node) in ports}
    return traffic_plan.readings(plan, found), present


def read_at(server: Server, plan: Plan) -> tuple[list[LinkReading], int]:
    """The limits that the kernel has, with counters, and when they were read, in ns of the server's clock."""
    found = server.call("read_link_limits", **traffic_plan.label_arguments(plan))
    return traffic_plan.readings(plan, found), found["t_ns"]


def compare(server: Server, plan: Plan) -> tuple[dict[Place, str], list[Place]]:
    """The limits that the kernel has, by node and direction, and the places of planned ones that it lacks.

    Only the server of the switch is asked, if there are limits, and if this user may read them.
    """
    if not plan.links or server.name != plan.switch.server or not server.call("identity")["has_rights"]:
        return {}, []
    readings, present = read(server, plan)
    found = traffic_plan.texts_of(traffic_plan.found_limits(readings))
    planned = traffic_plan.texts_of(traffic_plan.planned_limits(plan))
    comparable = present - {one.node for one in readings if one.traced}
    return found, [place for place, text in planned.items() if place[0] in comparable and found.get(place) != text]
