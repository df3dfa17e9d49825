"""The answers of guest programs: one JSON object in a line. Nodes are not trusted, so each answer is checked here."""

from __future__ import annotations

import json
from typing import Any

from vcluster import guest
from vcluster.adapters.node_connection import NodeConnection
from vcluster.adapters.pipe import Pipe, one_line
from vcluster.errors import VclusterError
from vcluster.util.deadline import Deadline

REASON_MAX = 500  # characters of a node's output in a message


def ask(session: NodeConnection, program: str, request: dict[str, object], *, awaited: str) -> dict[str, Any]:
    """Run a guest program on a node with a JSON request to its end, and return its answer."""
    source = guest.program(program)
    completed = session.run_program(source, json.dumps(request).encode(), awaited=awaited)
    return _parsed(completed.stdout, f"{session.name}: {awaited}", completed.stderr)


def receive(pipe: Pipe, deadline: Deadline, awaited: str) -> dict[str, Any]:
    """The next answer of a guest program that runs. Raises VclusterError for a line that is not an answer."""
    line = pipe.read_line(deadline, awaited).decode(errors="replace")
    return _parsed(line, f"{pipe.name}: {awaited}")


def _parsed(text: str, where: str, error_output: str = "") -> dict[str, Any]:
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict):
        return answer
    reason = one_line(error_output) or one_line(text) or "nothing at all"
    shown = "".join(one if one.isprintable() else "?" for one in reason[:REASON_MAX])
    raise VclusterError(f"{where} printed no result: {shown}")
