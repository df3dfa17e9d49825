"""vcluster power."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from vcluster.cli import common
from vcluster.cli.access import cluster, nodes_option
from vcluster.errors import VclusterError

if TYPE_CHECKING:
    from vcluster.commands.power import Outcomes
    from vcluster.fleet.context import Context
    from vcluster.model.plan import Node, Plan
    from vcluster.util.deadline import Deadline

F = TypeVar("F", bound=Callable[..., object])

wait_option: Callable[[F], F] = click.option("--wait", is_flag=True, help="Until they say that they are ready.")


@click.group()
def power() -> None:
    """Switch the power of nodes, by libvirt alone: whatever runs on them, and whether or not their networks work."""


@power.command()
@common.name_option
@nodes_option
@wait_option
@common.timeout_option(600)
def on(name: str | None, nodeset: str | None, wait: bool, timeout_s: float) -> None:
    """Power nodes on."""
    from vcluster.commands import power

    _switch(name, nodeset, lambda *where: power.turn_on(*where, ready_by=_ready_by(wait, timeout_s)))


@power.command()
@common.name_option
@nodes_option
def off(name: str | None, nodeset: str | None) -> None:
    """Cut the power of nodes; what they have not written is lost."""
    from vcluster.commands import power

    _switch(name, nodeset, power.turn_off)


@power.command()
@common.name_option
@nodes_option
@wait_option
@common.timeout_option(600)
def cycle(name: str | None, nodeset: str | None, wait: bool, timeout_s: float) -> None:
    """Cut the power of nodes and give it back."""
    from vcluster.commands import power

    _switch(name, nodeset, lambda *where: power.cycle(*where, ready_by=_ready_by(wait, timeout_s)))


def _ready_by(wait: bool, timeout_s: float) -> Deadline | None:
    from vcluster.util.deadline import Deadline

    return Deadline(timeout_s) if wait else None


def _switch(name: str | None, nodeset: str | None, work: Callable[[Context, Plan, tuple[Node, ...]], Outcomes]) -> None:
    """Do it, and say what became of every node."""
    from vcluster.cli.output import text_output
    from vcluster.commands import access
    from vcluster.util import parallel

    _, plan = cluster(name)
    nodes = access.choose_nodes(plan, nodeset)
    with common.progress() as (context, _):
        done = work(context, plan, nodes)
    words = {node: one for node, one in done.items() if isinstance(one, str)}
    if words:
        click.echo(text_output.outcomes(words))
    parallel.raise_all([one for one in done.values() if isinstance(one, VclusterError)])


@power.command()
@common.name_option
@nodes_option
@common.output_option
def status(name: str | None, nodeset: str | None, output: str) -> None:
    """Say of every node whether it is on, off, gone, or unknown because its server does not answer."""
    from vcluster.cli.output import text_output
    from vcluster.commands import access
    from vcluster.commands import power as work
    from vcluster.util import parallel

    context, plan = cluster(name)
    found, errors = work.status(context, plan, access.choose_nodes(plan, nodeset))
    rows = [{"node": node, "power": word} for node, word in found.items()]
    common.emit(output, rows, lambda: text_output.outcomes(found))
    parallel.raise_all(errors)


COMMANDS = (power,)
