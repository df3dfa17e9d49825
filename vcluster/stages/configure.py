"""Configure nodes: send a list of actions to the guest program, which reports what it changed."""

from __future__ import annotations

from collections.abc import Sequence

from vcluster.adapters.node_connection import NodeConnection
from vcluster.render.actions import Action
from vcluster.stages.guest_answer import ask, field, require_success
from vcluster.util.events import Reporter


def apply(session: NodeConnection, stage: str, actions: Sequence[Action], *, report: Reporter) -> tuple[str, ...]:
    """Apply the actions on a node and return what was changed. A second call returns nothing."""
    with report.step(stage, session.name):
        answer = ask(session, "apply", {"actions": actions}, awaited=f"the {stage} stage")
    where = f"{session.name}: {stage}"
    require_success(answer, where)
    return tuple(map(str, field(answer, "changed", list, where)))
