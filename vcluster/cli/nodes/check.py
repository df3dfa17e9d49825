"""vcluster check, path."""

from __future__ import annotations

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Command
from vcluster.errors import VclusterError


@click.command(cls=Command)
@arguments.cluster_argument
@click.option("--pairs", is_flag=True, help="Make every login from node to node; N nodes have N² of them.")
@arguments.timeout_option(600)
@arguments.output_option
def check(name: str | None, pairs: bool, timeout_s: float, output: str) -> None:
    """Test ping, SSH, NFS and MPI on all nodes.

    Pings have the full packet size and must not be fragmented. The check makes a few logins. It derives the others if
    the nodes have equal settings; --pairs makes every login. Exits 1 when a check fails.
    """
    from vcluster.cli.output import check_report
    from vcluster.commands.nodes import access
    from vcluster.commands.steps import inventory

    with common.progress() as (context, _):
        plan = inventory.read_ledger(context.files(common.choose_cluster(context, name))).plan
        verdict = access.check_cluster(context, plan, timeout_s=timeout_s, pairs=pairs)
    common.emit(output, check_report.document(plan, verdict), check_report.text)
    if not verdict.passed:
        hint = f"vcluster fault heal --name {plan.name}" if verdict.faults else None
        raise VclusterError(f"{len(verdict.failed)} of {len(verdict.checks)} checks failed", hint=hint)


@click.command(cls=Command)
@arguments.name_option
@click.option(
    "--packets", type=arguments.Number(int, 1, 100000), metavar="N", default=200, show_default=True,
    help="Send N packets.",
)  # fmt: skip
@arguments.timeout_option(60)
@arguments.output_option
@click.argument("start", metavar="FROM", shell_complete=arguments.complete_nodes)
@click.argument("end", metavar="TO", shell_complete=arguments.complete_nodes)
def path(name: str | None, packets: int, timeout_s: float, output: str, start: str, end: str) -> None:
    """Prove which ports the packets between two nodes cross.

    Sends packets from the node FROM to the node TO and back, and reads the counters of each port. Exits 1 unless every
    packet crossed the switch.
    """
    from vcluster.cli.output import path_report
    from vcluster.commands.nodes import access

    context, plan = common.open_cluster(name)
    ends = access.choose_node(plan, start), access.choose_node(plan, end)
    found = access.trace(context, plan, *ends, packets=packets, timeout_s=timeout_s)
    common.emit(output, path_report.document(found), path_report.text)
    if not found.crossed:
        raise VclusterError(
            f"the frames from {start} to {end} did not cross the switch: {found.detail}",
            hint=f"to see what is missing: vcluster status {plan.name}",
        )


COMMANDS = (check, path)
