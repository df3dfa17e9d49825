"""The last lines of a node's console, for messages. Nodes are not trusted: the lines are limited and made printable."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vcluster.errors import DeadlineError, VclusterError
from vcluster.fleet.servers import Server
from vcluster.model.plan import Node, Plan
from vcluster.render.domain_xml import console_path

CONSOLE_BYTES = 16384
LINES_MAX, COLUMNS_MAX = 8, 160
_CONTROL_SEQUENCE = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|[()][0-9A-B]|.)")  # ECMA-48: colours, the cursor


def console_log(server: Server, plan: Plan, node: Node, size: int = CONSOLE_BYTES) -> str:
    """The last `size` bytes of a node's console since power-on."""
    return str(server.call("tail", path=str(console_path(plan, node)), size=size))


def last_lines(server: Server, plan: Plan, node: Node) -> str:
    """The last lines of a node's console, to be appended to a message; empty if its server does not answer."""
    with suppress(VclusterError):
        return described(node.name, console_log(server, plan, node))
    return ""


def described(name: str, console: str) -> str:
    """The last lines of a console as text to be appended to a message."""
    lines = [line for line in map(_printable, re.split(r"[\r\n]+", console)) if line.strip()][-LINES_MAX:]
    if not lines:
        return f"\n  {name} printed nothing on its console"
    return f"\n  the last lines of {name}'s console:" + "".join(f"\n  | {line}" for line in lines)


def _printable(line: str) -> str:
    shown = "".join(each if each.isprintable() else "?" for each in _CONTROL_SEQUENCE.sub("", line))
    return shown if len(shown) <= COLUMNS_MAX else f"{shown[: COLUMNS_MAX - 1]}…"


@contextmanager
def console_on_timeout(server: Server, plan: Plan, node: Node) -> Iterator[None]:
    """Add the last lines of a node's console to a DeadlineError."""
    try:
        yield
    except DeadlineError as error:
        raise DeadlineError(error.message + last_lines(server, plan, node), hint=error.hint) from error
