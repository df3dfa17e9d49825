"""vcluster clear, list, status, check, stop, start, repair, timing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vcluster.cli import common
from vcluster.cli.create import servers_of
from vcluster.errors import ConflictError, RequestError, VclusterError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vcluster.fleet.context import Context
    from vcluster.model.spec import ServerSpec


@click.command()
@click.argument("name", required=False, envvar="VCLUSTER_NAME")
@click.option("--name", "name_option", metavar="NAME", help="The same as the argument.")
@click.option("--all", "everything", is_flag=True, help="Every cluster of this machine.")
@click.option("--verify", is_flag=True, help="Then look for anything left with a mark of ours.")
@click.option(
    "--on", "hosts", multiple=True, metavar="HOST|CONFIG.ini",
    help="Look there too, where the ledger that would tell is lost; may be given again.",
)  # fmt: skip
@common.yes_option
def clear(
    name: str | None, name_option: str | None, everything: bool, verify: bool, hosts: tuple[str, ...], yes: bool
) -> None:
    """Remove a cluster without a trace, on every server it is on. A second time says there is nothing and is fine."""
    besides = [server for host in hosts for server in servers_of(host)]
    with common.progress() as (context, _):
        names = _names_to_clear(context, name or name_option, everything)
        if names and not yes:
            _confirm(names, _data(context, names))
        _clear_all(context, names, besides)
        if not names:
            click.echo("nothing to clear")
        if verify:
            _verify(context, None if everything or not names else names[0])


def _names_to_clear(context: Context, name: str | None, everything: bool) -> tuple[str, ...]:
    from vcluster.commands import inventory
    from vcluster.model import naming

    if name and everything:
        raise RequestError("a name and --all exclude each other")
    if name:
        return (naming.check_cluster_name(name),)
    names = inventory.cluster_names(context)
    if len(names) > 1 and not everything:
        raise RequestError(f"there are {len(names)} clusters: {', '.join(names)}", hint="say which, or --all")
    return names


def _data(context: Context, names: tuple[str, ...]) -> tuple[str, ...]:
    """The disks with people's data that go with these clusters."""
    from vcluster.commands import inventory

    return tuple(f"{name}: {disk}" for name in names for disk in inventory.data_disks(context, name))


def _confirm(names: tuple[str, ...], data: tuple[str, ...]) -> None:
    """Ask on a terminal. A script that says clear means it, but data is deleted for nobody who was not told."""
    import sys

    for words in data:
        click.echo(f"{words}: what is on it will be deleted", err=True)
    if sys.stdin.isatty() and sys.stderr.isatty():
        click.confirm(f"Remove {', '.join(names)} with all nodes and their disks?", abort=True, err=True)
    elif data:
        raise ConflictError("there is data to be deleted and no terminal to ask", hint="-y deletes it")


def _clear_all(context: Context, names: tuple[str, ...], besides: Sequence[ServerSpec]) -> None:
    """Every one of them is tried; what fails is told together."""
    from vcluster.commands import teardown
    from vcluster.util import parallel

    failures = []
    for name in names:
        try:
            click.echo(f"{name}: cleared" if teardown.clear(context, name, besides) else f"{name}: nothing to clear")
        except VclusterError as error:
            failures.append(error)
    parallel.raise_all(failures)


def _verify(context: Context, name: str | None) -> None:
    from vcluster.commands import inventory

    left = inventory.leftovers(context, name)
    for thing in left:
        click.echo(f"left: {thing} of cluster {thing.cluster}")
    if left:
        raise VclusterError(f"{len(left)} things are left", hint="vcluster clear --all")
    click.echo("nothing left")


@click.command("list")
@common.output_option
def list_clusters(output: str) -> None:
    """List the clusters of this machine."""
    from vcluster.cli.output import text_output
    from vcluster.commands import inventory
    from vcluster.util import parallel

    context = common.context()
    found = parallel.outcomes(inventory.cluster_names(context), lambda name: _row(context, name))
    rows = [row for row in found if not isinstance(row, VclusterError)]
    parallel.raise_all([row for row in found if isinstance(row, VclusterError)])
    common.emit(output, rows, lambda: text_output.clusters(rows))


def _row(context: Context, name: str) -> dict[str, object]:
    from vcluster.commands import inventory

    if context.files(name).read_ledger() is None:
        return {"name": name, "mode": None, "state": "partial", "subnet": None, "nodes": None}
    status = inventory.status(context, name)
    return {
        "name": name,
        "mode": status.mode,
        "state": status.state,
        "subnet": status.subnet,
        "nodes": len(status.nodes),
    }


@click.command()
@common.cluster_argument
@common.output_option
def status(name: str | None, name_option: str | None, output: str) -> None:
    """Show what is there of a cluster."""
    from vcluster.cli.output import text_output
    from vcluster.commands import inventory

    context = common.context()
    found = inventory.status(context, common.chosen(context, name, name_option))
    common.emit(output, found, lambda: text_output.status(found))


@click.command()
@common.name_option
@click.option("--pairs", is_flag=True, help="Make every login between two nodes, one by one: with N nodes, N² of them.")
@common.timeout_option(600)
@common.output_option
def check(name: str | None, pairs: bool, timeout_s: float, output: str) -> None:
    """Prove that every node reaches every other: full-size packets, SSH, NFS, MPI."""
    from vcluster.cli.output import text_output
    from vcluster.commands import access, inventory

    with common.progress() as (context, _):
        plan = inventory.read_ledger(context.files(inventory.only_cluster(context, name))).plan
        verdict = access.check_cluster(context, plan, timeout_s=timeout_s, pairs=pairs)
    common.emit(output, text_output.check_document(verdict), lambda: text_output.check(plan, verdict))
    if not verdict.passed:
        raise VclusterError(f"{len(verdict.failed)} of {len(verdict.checks)} checks failed")


@click.command()
@common.cluster_argument
@common.timeout_option(900)
def repair(name: str | None, name_option: str | None, timeout_s: float) -> None:
    """Put right what is missing, after a reboot of a server for one, and prove the cluster ready again."""
    from vcluster.commands import lifecycle

    with common.progress() as (context, _):
        chosen = common.chosen(context, name, name_option)
        mended = lifecycle.repair(context, chosen, timeout_s=timeout_s)
    for words in mended:
        click.echo(f"mended: {words}")
    click.echo(f"{chosen}: ready" if mended else f"{chosen}: nothing was missing")


@click.command()
@common.cluster_argument
@common.timeout_option(300)
def stop(name: str | None, name_option: str | None, timeout_s: float) -> None:
    """Shut all nodes down, those last that serve the others; everything on their disks stays."""
    from vcluster.commands import lifecycle

    with common.progress() as (context, _):
        chosen = common.chosen(context, name, name_option)
        stopped = lifecycle.stop(context, chosen, timeout_s=timeout_s)
    click.echo(f"{chosen}: stopped" if stopped else f"{chosen}: nothing was running")


@click.command()
@common.cluster_argument
@common.timeout_option(900)
def start(name: str | None, name_option: str | None, timeout_s: float) -> None:
    """Bring a stopped cluster up again, also after its server was rebooted, and prove it ready."""
    from vcluster.commands import lifecycle

    with common.progress() as (context, _):
        chosen = common.chosen(context, name, name_option)
        was_down = lifecycle.start(context, chosen, timeout_s=timeout_s)
    click.echo(f"{chosen}: ready" if was_down else f"{chosen}: was up already")


@click.command()
@common.name_option
@common.output_option
def timing(name: str | None, output: str) -> None:
    """Show where the seconds of the create went, by node and stage."""
    from vcluster.cli.output import text_output
    from vcluster.commands import inventory

    context = common.context()
    times = context.files(inventory.only_cluster(context, name)).read_timing()
    if not times:
        raise VclusterError("no times are known of this cluster")
    common.emit(output, {"stages": times}, lambda: text_output.timing(times))


destroy = click.Command("destroy", callback=clear.callback, params=clear.params, help=clear.help, hidden=True)

COMMANDS = (clear, destroy, list_clusters, status, check, stop, start, repair, timing)
