"""From power-on to a node that says it is ready."""

from __future__ import annotations

from pathlib import Path

from vcluster.errors import DeadlineError, VclusterError
from vcluster.events import Deadline, Reporter
from vcluster.ledger import last_lines
from vcluster.model import Node
from vcluster.render.domain import READY_CHANNEL
from vcluster.servers import Server

CONSOLE_LINES = 5


def wait_ready(server: Server, node: Node, console_log: Path, *, deadline: Deadline, report: Reporter) -> None:
    """Wait until the node says `ready` on its channel; what it says before is passed on as progress.

    Raises DeadlineError with the last lines of the node's console.
    """
    words = server.hypervisor.words(node.domain, READY_CHANNEL)
    try:
        with report.step("boot", node.name, awaiting="the node's word that it is up"):
            while (said := words.next(deadline, f"{node.name}: boot: ready").split(" ")[0]) != "ready":
                report.tell("progress", "boot", node.name, said)
    except DeadlineError as error:
        raise DeadlineError(error.message + _console(node, console_log), hint=error.hint) from error
    except VclusterError as error:
        error.message += _console(node, console_log) if error.exit_code == 1 else ""
        raise
    finally:
        words.close()


def _console(node: Node, console_log: Path) -> str:
    lines = last_lines(console_log, CONSOLE_LINES)
    if not lines:
        return f"\n  {node.name} has printed nothing on its console"
    return f"\n  the last lines of {node.name}'s console:" + "".join(f"\n  | {line}" for line in lines)
