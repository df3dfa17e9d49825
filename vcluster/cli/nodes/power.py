"""vcluster power."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Group
from vcluster.errors import VclusterError

if TYPE_CHECKING:
    from vcluster.commands.nodes.power import Outcomes
    from vcluster.fleet.context import Context
    from vcluster.model.plan import Node, Plan
    from vcluster.util.deadline import Deadline

F = TypeVar("F", bound=Callable[..., object])

wait_option: Callable[[F], F] = click.option("--wait", is_flag=True, help="Wait until the nodes are ready.")


@click.group(cls=Group, sections={"Commands": ("on", "off", "cycle", "status")})
def power() -> None:
    """Switch nodes on or off.

    Uses libvirt alone: it works with any guest system, and without the nodes' networks.
    """


@power.command()
@arguments.cluster_argument
@arguments.nodes_option
@wait_option
@arguments.timeout_option(600)
@arguments.output_option
def on(name: str | None, nodeset: str | None, wait: bool, timeout_s: float, output: str) -> None:
    """Switch nodes on. A paused node is resumed."""
    from vcluster.commands.nodes import power

    _switch(name, nodeset, output, functools.partial(power.turn_on, ready_by=_ready_by(wait, timeout_s)))


@power.command()
@arguments.cluster_argument
@arguments.nodes_option
@arguments.yes_option
@arguments.output_option
def off(name: str | None, nodeset: str | None, yes: bool, output: str) -> None:
    """Cut the power of nodes; unwritten data is lost.

    Without -w it cuts the power of all nodes, and asks first on a terminal; -y answers yes.
    """
    from vcluster.commands.nodes import power

    _switch(name, nodeset, output, power.turn_off, asks=not yes)


@power.command()
@arguments.cluster_argument
@arguments.nodes_option
@wait_option
@arguments.yes_option
@arguments.timeout_option(600)
@arguments.output_option
def cycle(name: str | None, nodeset: str | None, wait: bool, yes: bool, timeout_s: float, output: str) -> None:
    """Cut the power of nodes, and switch them on again.

    Without -w it cuts the power of all nodes, and asks first on a terminal; -y answers yes.
    """
    from vcluster.commands.nodes import power

    _switch(
        name, nodeset, output, lambda *nodes: power.cycle(*nodes, ready_by=_ready_by(wait, timeout_s)), asks=not yes
    )


def _ready_by(wait: bool, timeout_s: float) -> Deadline | None:
    from vcluster.util.deadline import Deadline

    return Deadline(timeout_s) if wait else None


def _switch(
    name: str | None,
    nodeset: str | None,
    output: str,
    work: Callable[[Context, Plan, tuple[Node, ...]], Outcomes],
    *,
    asks: bool = False,
) -> None:
    """Do the work, and print the outcome of each node; errors come at the end. `asks` is about work on all nodes."""
    from vcluster.commands.nodes import access
    from vcluster.util import parallel

    _, plan = common.open_cluster(name)
    nodes = access.choose_nodes(plan, nodeset)
    if asks and nodeset is None:
        question = f"Cut the power of all nodes of {plan.name}? Unwritten data is lost."
        common.require_consent(question, declined="nothing was switched off")
    with common.progress() as (context, _):
        outcomes = work(context, plan, nodes)
    errors = [outcome for outcome in outcomes.values() if isinstance(outcome, VclusterError)]
    if output == "json" or len(errors) < len(outcomes):
        common.emit(output, [_document(node, outcome) for node, outcome in outcomes.items()], _outcomes_text)
    parallel.raise_all(errors)


def _document(node: str, outcome: str | VclusterError) -> dict[str, str | None]:
    if isinstance(outcome, VclusterError):
        return {"node": node, "power": None, "error": outcome.message}
    return {"node": node, "power": outcome, "error": None}


def _outcomes_text(rows: list[dict[str, Any]]) -> str:
    from vcluster.cli.output import tables

    return tables.outcomes({row["node"]: row["power"] for row in rows if row["power"]})


@power.command()
@arguments.cluster_argument
@arguments.nodes_option
@arguments.output_option
def status(name: str | None, nodeset: str | None, output: str) -> None:
    """Show which nodes are on.

    Each node is on, off, paused, gone or unknown. For example, QEMU pauses a node when its disk cannot grow. A node is
    gone when its virtual machine does not exist. A node is unknown when its server does not answer.
    """
    from vcluster.commands.nodes import access
    from vcluster.commands.nodes import power as work
    from vcluster.util import parallel

    context, plan = common.open_cluster(name)
    found, errors = work.status(context, plan, access.choose_nodes(plan, nodeset))
    rows = [{"node": node, "power": power.state, "reason": power.reason} for node, power in found.items()]
    common.emit(output, rows, _status_text)
    parallel.raise_all(errors)


def _status_text(rows: list[dict[str, str]]) -> str:
    from vcluster.cli.output import tables

    reasons = {row["node"]: f" ({row['reason']})" if row["reason"] else "" for row in rows}
    return tables.outcomes({row["node"]: row["power"] + reasons[row["node"]] for row in rows})


COMMANDS = (power,)
