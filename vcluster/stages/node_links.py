"""What a node does for the limits of links: offloads of lab0 are off, and it delays frames if the switch cannot."""

from __future__ import annotations

from collections.abc import Mapping

from vcluster.adapters.node_connection import NodeConnection
from vcluster.guest import program
from vcluster.model.plan import Node, Plan
from vcluster.planning.traffic_plan import DIRECTIONS, GUEST_FIELDS, guest_delays
from vcluster.render.actions import Action
from vcluster.render.node_actions import delay_actions, offload_actions
from vcluster.stages.guest_answer import ask, field, require_success, unknown_result

COUNTER_MAX = 2**63


def actions(plan: Plan, node: Node) -> list[Action]:
    """The actions that the limits of the plan need on a node."""
    return [*_offload_actions(plan), *_delay_actions(plan, node)]


def _offload_actions(plan: Plan) -> list[Action]:
    return offload_actions(plan, program=program("node_offloads").decode())


def _delay_actions(plan: Plan, node: Node) -> list[Action]:
    return delay_actions(guest_delays(plan, node.name), program=program("node_delays").decode())


def apply_offloads(session: NodeConnection, plan: Plan) -> bool:
    """Turn segmentation offloads off or on, on a node that is up. Returns whether anything changed."""
    return _apply(session, _offload_actions(plan), "the offloads of lab0")


def apply_delays(session: NodeConnection, plan: Plan, node: Node) -> None:
    """Make the delays of a node that is up, or end them."""
    _apply(session, _delay_actions(plan, node), "the delays of lab0")


def _apply(session: NodeConnection, actions: list[Action], awaited: str) -> bool:
    answer = ask(session, "apply", {"actions": actions}, awaited=awaited)
    where = f"{session.name}: {awaited}"
    require_success(answer, where)
    return bool(field(answer, "changed", list, where))


def read_delays(session: NodeConnection) -> dict[str, dict[str, int]]:
    """The delays that the node's kernel has, with its counters, by direction."""
    awaited = "the delays that lab0 has"
    answer = ask(session, "node_delays", {"interface": "lab0"}, awaited=awaited)
    where = f"{session.name}: {awaited}"
    require_success(answer, where)
    return {direction: _checked(answer[direction], where) for direction in DIRECTIONS if answer.get(direction)}


def _checked(found: object, where: str) -> dict[str, int]:
    if not isinstance(found, Mapping):
        raise unknown_result(where)
    values = {name: found[name] for name in GUEST_FIELDS if type(found.get(name)) is int}
    if len(values) < len(GUEST_FIELDS) or not all(0 <= value < COUNTER_MAX for value in values.values()):
        raise unknown_result(where)
    return values
