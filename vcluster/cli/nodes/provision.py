"""vcluster provision."""

from __future__ import annotations

from pathlib import Path

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Command, examples


@click.command(
    cls=Command,
    epilog=examples(
        "sudo vcluster provision setup.sh",
        "sudo vcluster provision -w 'node[2-4]' --keep-going setup.py",
        "sudo vcluster provision --payload packages/ install.sh",
    ),
)
@arguments.name_option
@arguments.nodes_option
@click.option(
    "--payload", type=click.Path(path_type=Path), metavar="PATH",
    help="Copy this file or folder to each node first. The script starts there; $VCLUSTER_PAYLOAD is its path.",
)  # fmt: skip
@click.option("--keep-going", is_flag=True, help="Continue with other nodes after a failure.")
@arguments.fanout_option
@arguments.timeout_option(3600)
@arguments.output_option
@click.argument("script", type=click.Path(path_type=Path))
def provision(
    name: str | None,
    nodeset: str | None,
    payload: Path | None,
    keep_going: bool,
    fanout: int,
    timeout_s: float,
    output: str,
    script: Path,
) -> None:
    """Run a setup script as root on all nodes.

    The first line of SCRIPT names its interpreter, for example #!/bin/sh. The variables VCLUSTER_NODE,
    VCLUSTER_CLUSTER, VCLUSTER_HEAD and VCLUSTER_USER are set. The output is stored on the node, in /var/log/vcluster,
    and on this machine. After a failure the script starts on no further node. Equal outputs are printed once.
    """
    from vcluster.cli.output import run_report
    from vcluster.commands.nodes import access
    from vcluster.stages import provision as stage

    job = stage.Job.read(script, payload, keep_going=keep_going, fanout=fanout)
    _, plan = common.open_cluster(name)
    nodes = access.choose_nodes(plan, nodeset)
    with common.progress([node.name for node in nodes]) as (context, _):
        logs = context.files(plan.name).make_logs(job.log_name)
        results = access.provision(context, plan, nodes, job, timeout_s=timeout_s, logs=logs)
    common.emit(output, results, run_report.text)
    stage.require_passed(results, job, hint=f"the logs are in {logs}", with_output=False)


COMMANDS = (provision,)
