"""vcluster stop, start, repair."""

from __future__ import annotations

from typing import Any

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Command


@click.command(cls=Command)
@arguments.cluster_argument
@arguments.timeout_option(900)
@arguments.output_option
def repair(name: str | None, timeout_s: float, output: str) -> None:
    """Recreate what is missing, for example after a reboot.

    Makes missing bridges, tunnels and networks, and switches on nodes that are off. Configures all nodes again, also
    those of a ready cluster. Does not recreate a node that was deleted outside vcluster. Ends with the same check as
    create.
    """
    from vcluster.commands.clusters import lifecycle

    with common.progress() as (context, _):
        chosen = common.choose_cluster(context, name)
        repaired = lifecycle.repair(context, chosen, timeout_s=timeout_s)
    common.emit(output, {"name": chosen, "state": "ready", "repaired": list(repaired)}, _repaired_text)


def _repaired_text(found: dict[str, Any]) -> str:
    end = "ready" if found["repaired"] else "nothing was missing"
    return "\n".join([*(f"repaired: {item}" for item in found["repaired"]), f"{found['name']}: {end}"])


@click.command(cls=Command)
@arguments.cluster_argument
@arguments.timeout_option(300)
@arguments.output_option
def stop(name: str | None, timeout_s: float, output: str) -> None:
    """Shut down all nodes; their disks stay.

    Nodes that serve files to the others are shut down last.
    """
    from vcluster.commands.clusters import lifecycle

    with common.progress() as (context, _):
        chosen = common.choose_cluster(context, name)
        stopped = lifecycle.stop(context, chosen, timeout_s=timeout_s)
    common.emit(
        output,
        {"name": chosen, "state": "stopped", "stopped": list(stopped)},
        lambda found: f"{found['name']}: {'stopped' if found['stopped'] else 'nothing was running'}",
    )


@click.command(cls=Command)
@arguments.cluster_argument
@arguments.timeout_option(900)
@arguments.output_option
def start(name: str | None, timeout_s: float, output: str) -> None:
    """Start a stopped cluster.

    If the cluster is ready, start does nothing and runs no check. Otherwise it does the same as repair, for example
    after a reboot of a server, and ends with the same check as create.
    """
    from vcluster.commands.clusters import lifecycle

    with common.progress() as (context, _):
        hint = f"to create it: vcluster local create --name {name}"
        chosen = common.choose_cluster(context, name, absent_hint=hint)
        started = lifecycle.start(context, chosen, timeout_s=timeout_s)
    common.emit(
        output,
        {"name": chosen, "state": "ready", "started": bool(started)},
        lambda found: f"{found['name']}: {'ready' if found['started'] else 'was running already'}",
    )


COMMANDS = (stop, start, repair)
