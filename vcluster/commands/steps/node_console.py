"""The last lines of a node's console, for messages. Nodes are not trusted: the lines are limited and made printable."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vcluster.errors import DeadlineError, VclusterError
from vcluster.fleet.servers import Server
from vcluster.model.plan import Node, Plan
from vcluster.model.quoting import displayable, printable
from vcluster.render.domain_xml import console_path

CONSOLE_BYTES = 16384
LINES_MAX, COLUMNS_MAX = 8, 160
READY = "vcluster: ready"  # ends each boot (images/guest/vcluster-ready.service)
PANIC = "Kernel panic - not syncing"  # Linux prints it, and a trace after it (kernel/panic.c)


def console_log(server: Server, plan: Plan, node: Node, size: int = CONSOLE_BYTES) -> str:
    """The last `size` bytes of a node's console since power-on."""
    return str(server.call("tail", path=str(console_path(plan, node)), size=size))


def has_panicked(console: str) -> bool:
    """Whether the last boot ended with a panic of the kernel."""
    return PANIC in console.rpartition(READY)[2]


def described(name: str, console: str) -> str:
    """The last lines of a console as text to be appended to a message; after a panic, those from its reason on."""
    lines = [line for line in map(_printable, re.split(r"[\r\n]+", console)) if line.strip()]
    first = -LINES_MAX
    if has_panicked(console):
        first = max((number for number, line in enumerate(lines) if PANIC in line), default=first)
    lines = lines[first:][:LINES_MAX]
    if not lines:
        return f"\n  {name} printed nothing on its console"
    return f"\n  the last lines of {name}'s console:" + "".join(f"\n  | {line}" for line in lines)


def _printable(line: str) -> str:
    shown = printable(displayable(line))
    return shown if len(shown) <= COLUMNS_MAX else f"{shown[: COLUMNS_MAX - 1]}…"


@contextmanager
def console_on_timeout(server: Server, plan: Plan, node: Node) -> Iterator[None]:
    """Add the last lines of a node's console to a DeadlineError."""
    try:
        yield
    except DeadlineError as error:
        lines = ""
        with suppress(VclusterError):
            lines = described(node.name, console_log(server, plan, node))
        raise DeadlineError(error.message + lines, hint=error.hint) from error
