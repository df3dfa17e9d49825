"""vcluster provision."""

from __future__ import annotations

from pathlib import Path

import click

from vcluster.cli import common
from vcluster.cli.access import cluster, fanout_option, nodes_option


@click.command()
@common.name_option
@nodes_option
@click.option(
    "--payload",
    type=click.Path(path_type=Path),
    metavar="FILE|FOLDER",
    help="Put this where all nodes see it, once; the script finds it in its working folder, $VCLUSTER_PAYLOAD.",
)
@click.option("--keep-going", is_flag=True, help="Go on to further nodes after a failure.")
@fanout_option
@common.timeout_option(3600)
@common.output_option
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
    """Run a script on all nodes at once, as root, by its own #! line; equal outputs are shown once.

    It is told $VCLUSTER_NODE, $VCLUSTER_CLUSTER, $VCLUSTER_HEAD and $VCLUSTER_USER. What it prints is kept on its
    node in /var/log/vcluster, and on this machine beside the cluster's other files. After a failure no further node
    begins.
    """
    from vcluster.cli.output import text_output
    from vcluster.commands import access
    from vcluster.stages import provision as stage

    job = stage.Job.read(script, payload, keep_going=keep_going, fanout=fanout)
    _, plan = cluster(name)
    nodes = access.choose_nodes(plan, nodeset)
    with common.progress([node.name for node in nodes]) as (context, _):
        logs = context.files(plan.name).make_logs(job.log_name)
        results = access.provision(context, plan, nodes, job, timeout_s=timeout_s, logs=logs)
    ran = {node: one for node, one in results.items() if one}
    common.emit(output, results, lambda: text_output.folded(ran))
    stage.require_passed(results, job, hint=f"the logs are in {logs}", with_output=False)


COMMANDS = (provision,)
