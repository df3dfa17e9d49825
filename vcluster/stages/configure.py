"""Configure nodes: send a list of actions to the guest program, which reports what it changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from vcluster import guest
from vcluster.adapters.node_connection import NodeConnection
from vcluster.errors import VclusterError
from vcluster.render.actions import Action
from vcluster.util.events import Reporter


def apply(session: NodeConnection, stage: str, actions: Sequence[Action], *, report: Reporter) -> tuple[str, ...]:
    """Apply the actions on a node and return what was changed. A second call returns nothing."""
    with report.step(stage, session.name):
        answer = ask(session, "apply", {"actions": actions}, awaited=f"the {stage} stage")
    if "error" in answer:
        raise VclusterError(f"{session.name}: {stage}: {answer['error']}")
    return tuple(answer["changed"])


def ask(session: NodeConnection, program: str, request: dict[str, object], *, awaited: str) -> dict[str, Any]:
    """Run a guest program on a node with a JSON request and return its JSON answer."""
    source = guest.program(program)
    completed = session.run_program(source, json.dumps(request).encode(), awaited=awaited)
    try:
        answer: dict[str, Any] = json.loads(completed.stdout)
    except ValueError as error:
        lines = (completed.stderr or completed.stdout).strip().splitlines()[-1:] or ["the program printed nothing"]
        raise VclusterError(f"{session.name}: {awaited}: {lines[0]}") from error
    return answer
