"""The answers of guest programs: one JSON object in a line. Nodes are not trusted, so each answer is checked here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from vcluster import guest
from vcluster.adapters.node_connection import NodeConnection
from vcluster.adapters.pipe import Pipe, one_line
from vcluster.errors import VclusterError
from vcluster.model import json_text
from vcluster.model.quoting import quoted
from vcluster.util.deadline import Deadline

T = TypeVar("T")


def ask(session: NodeConnection, program: str, request: dict[str, object], *, awaited: str) -> dict[str, Any]:
    """Run a guest program on a node with a JSON request to its end, and return its answer."""
    source = guest.program(program)
    completed = session.run_program(source, json.dumps(request).encode(), awaited=awaited)
    return parsed(completed.stdout, f"{session.name}: {awaited}", completed.stderr)


def receive(pipe: Pipe, deadline: Deadline, awaited: str) -> dict[str, Any]:
    """The next answer of a guest program that runs. Raises VclusterError for a line that is not an answer."""
    line = pipe.read_line(deadline, awaited).decode(errors="replace")
    return parsed(line, f"{pipe.name}: {awaited}")


def require_success(answer: Mapping[str, Any], where: str) -> None:
    """Raise VclusterError with the error in an answer, if there is one."""
    if "error" in answer:
        raise VclusterError(f"{where}: {quoted(answer['error'])}")


def find(text: str) -> dict[str, Any] | None:
    """The answer in a line, or None if the line is not an answer."""
    try:
        answer = json_text.parse(text)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def field(answer: Mapping[str, Any], name: str, kind: type[T], where: str) -> T:
    """A field of an answer. Raises VclusterError if it is missing, or of another type."""
    value = answer.get(name)
    if not isinstance(value, kind):
        raise unknown_result(where)
    return value


def count(value: object, where: str, maximum: int) -> int:
    """A number in an answer, from 0 to `maximum`. Raises VclusterError for other values."""
    if type(value) is not int or not 0 <= value <= maximum:
        raise unknown_result(where)
    return value


def unknown_result(where: str) -> VclusterError:
    """The error for an answer that cannot be used. `where` names the node and the program."""
    return VclusterError(f"{where} printed a result that vcluster does not know")


def parsed(text: str, where: str, error_output: str = "") -> dict[str, Any]:
    """The answer in a text. Raises VclusterError if it is not an answer; `where` names the node and the program."""
    answer = find(text)
    if answer is not None:
        return answer
    output = one_line(error_output) or one_line(text) or "nothing at all"
    raise VclusterError(f"{where} printed no result: {quoted(output)}")
