"""vcluster list, status, timing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Command
from vcluster.errors import VclusterError

if TYPE_CHECKING:
    from vcluster.fleet.context import Context


@click.command("list", cls=Command)
@arguments.output_option
def list_clusters(output: str) -> None:
    """List the clusters of this machine."""
    from vcluster.cli.output import status_report
    from vcluster.util import parallel

    context = common.context()
    names = _names(context)
    found = parallel.outcomes(names, lambda name: _row(context, name))
    rows = [row for row in found if not isinstance(row, VclusterError)] + _lost(context)
    # Another command may clear a cluster after its name was read.
    present = [row for name, row in zip(names, found, strict=True) if context.files(name).folder.exists()]
    parallel.raise_all([row for row in present if isinstance(row, VclusterError)])
    common.emit(output, rows, status_report.clusters_text)


def _names(context: Context) -> tuple[str, ...]:
    """The clusters of this machine. Without libvirt here, a user can only have clusters on other servers."""
    from vcluster.commands.steps import inventory
    from vcluster.fleet import ledger

    own = ledger.cluster_names(context.state_root)
    if own and not common.may_use_libvirt(context):
        return own
    common.require_root(context)
    return inventory.cluster_names(context)


def _lost(context: Context) -> list[dict[str, object]]:
    """Clusters on this machine that this user made with another state folder."""
    from vcluster.commands.steps import lost_clusters

    if not common.may_use_libvirt(context):
        return []
    return [_labelled(name, is_lost=True) for name in lost_clusters.on_this_machine(context)]


def _labelled(name: str, *, is_lost: bool) -> dict[str, object]:
    return {"name": name, "mode": None, "state": "partial", "subnet": None, "nodes": None, "is_lost": is_lost}


def _row(context: Context, name: str) -> dict[str, object]:
    from vcluster.commands.steps import inventory

    if context.files(name).read_ledger() is None:
        return _labelled(name, is_lost=False)
    status = inventory.status(context, name)
    return {
        "name": name,
        "mode": status.mode,
        "state": status.state,
        "subnet": status.subnet,
        "nodes": len(status.nodes),
        "is_lost": False,
    }


@click.command(cls=Command)
@arguments.cluster_argument
@arguments.output_option
def status(name: str | None, output: str) -> None:
    """Show the nodes, addresses and ports of a cluster.

    A cluster is ready, stopped or creating. Or it is partial: some of its nodes are off or paused, or a part of it is
    missing.
    """
    from vcluster.cli.output import status_report
    from vcluster.commands.steps import inventory

    context = common.context()
    found = inventory.status(context, common.choose_cluster(context, name))
    reader = common.reader(found.name)
    common.emit(
        output, status_report.document(found), lambda document: status_report.text(document, reader, with_times=True)
    )


@click.command(cls=Command)
@arguments.cluster_argument
@arguments.output_option
def timing(name: str | None, output: str) -> None:
    """Show the duration of each stage of create, by node."""
    from vcluster.cli.output import timing_report

    context = common.context()
    chosen = common.choose_cluster(context, name)
    times = context.files(chosen).read_timing()
    if not times:
        raise VclusterError(f"the times of cluster {chosen} were not recorded")
    common.emit(output, timing_report.document(times), timing_report.text)


COMMANDS = (list_clusters, status, timing)
