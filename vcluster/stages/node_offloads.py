"""Segmentation offloads of a node's lab0: off while links have limits, then as they were before."""

from __future__ import annotations

from vcluster.adapters.node_connection import NodeConnection
from vcluster.guest import program
from vcluster.model.plan import Plan
from vcluster.render.actions import Action
from vcluster.render.node_actions import offload_actions
from vcluster.stages.guest_answer import ask, field, require_success


def actions(plan: Plan) -> list[Action]:
    """The actions that the limits of the plan need."""
    return offload_actions(plan, program=program("node_offloads").decode())


def apply(session: NodeConnection, plan: Plan) -> bool:
    """Carry them out on a node that is up. Returns whether anything changed."""
    awaited = "the offloads of lab0"
    answer = ask(session, "apply", {"actions": actions(plan)}, awaited=awaited)
    where = f"{session.name}: {awaited}"
    require_success(answer, where)
    return bool(field(answer, "changed", list, where))
