"""vcluster verify."""

from __future__ import annotations

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Command
from vcluster.errors import VclusterError


@click.command(cls=Command)
@arguments.cluster_argument
@arguments.output_option
def verify(name: str | None, output: str) -> None:
    """Inspect every promise about a cluster whose nodes run, and change nothing.

    It compares the servers and the state folder with the plan: labels, rules, ports, addresses, files and keys. Each
    promise has an id. Exits 1 when a promise is broken, and prints the command that fixes it.
    """
    from vcluster.cli.output import promise_report
    from vcluster.commands.clusters import verify as work

    with common.progress() as (context, _):
        chosen = common.choose_cluster(context, name)
        report = work.verify(context, chosen)
    complete = common.reader(chosen).complete_hint
    common.emit(output, promise_report.document(report), lambda found: promise_report.text(found, complete))
    if report.broken:
        broken = {fact.promise for _, fact in report.broken}
        raise VclusterError(f"{len(broken)} {'promise is' if len(broken) == 1 else 'promises are'} broken")


COMMANDS = (verify,)
