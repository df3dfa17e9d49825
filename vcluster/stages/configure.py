"""Putting things on nodes: a list of actions goes to the guest program, which says what it had to change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from vcluster import guest
from vcluster.adapters.pipe import NodeConnection
from vcluster.errors import VclusterError
from vcluster.render.actions import Action
from vcluster.util.events import Reporter


def apply(session: NodeConnection, stage: str, actions: Sequence[Action], *, report: Reporter) -> tuple[str, ...]:
    """Make the actions true on a node and return what was changed: nothing, the second time."""
    with report.step(stage, session.name):
        answer = ask(session, "apply", {"actions": actions}, awaited=stage)
    if "error" in answer:
        raise VclusterError(f"{session.name}: {stage}: {answer['error']}")
    return tuple(answer["changed"])


def ask(session: NodeConnection, program: str, request: dict[str, object], *, awaited: str) -> dict[str, Any]:
    """Run a guest program on a node: JSON in, JSON out."""
    source = guest.program(program)
    completed = session.run_program(source, json.dumps(request).encode(), awaited=awaited)
    try:
        answer: dict[str, Any] = json.loads(completed.stdout)
    except ValueError as error:
        words = (completed.stderr or completed.stdout).strip().splitlines()[-1:] or ["it said nothing"]
        raise VclusterError(f"{session.name}: {awaited}: {words[0]}") from error
    return answer
