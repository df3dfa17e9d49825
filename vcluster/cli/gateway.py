"""vcluster gateway, discover: the cluster network from the head's point of view."""

from __future__ import annotations

import click

from vcluster.cli import common


@click.command()
@click.argument("wish", type=click.Choice(["on", "off", "status"]))
@common.name_option
@common.timeout_option(60)
@common.output_option
def gateway(wish: str, name: str | None, timeout_s: float, output: str) -> None:
    """Open or close the nodes' way out, which in the private layout is the head. Closed is closed at once."""
    from vcluster.commands import gateway as way_out
    from vcluster.commands import inventory

    context = common.context()
    chosen = inventory.only_cluster(context, name)
    if wish != "status":
        way_out.set_open(context, chosen, is_open=wish == "on", timeout_s=timeout_s)
        is_open = wish == "on"
    else:
        is_open = way_out.is_open(context, chosen, timeout_s=timeout_s)
    word = "on" if is_open else "off"
    common.emit(output, {"name": chosen, "gateway": word}, lambda: word)


@click.command()
@common.name_option
@common.timeout_option(120)
@common.output_option
def discover(name: str | None, timeout_s: float, output: str) -> None:
    """List who is on the cluster network, by leases, the neighbour table and a ping to all; strangers are marked."""
    from vcluster.cli.output import text_output
    from vcluster.commands import gateway as way_out
    from vcluster.commands import inventory

    with common.progress() as (context, _):
        found = way_out.discover(context, inventory.only_cluster(context, name), timeout_s=timeout_s)
    common.emit(output, text_output.neighbours_document(found), lambda: text_output.neighbours(found))


COMMANDS = (gateway, discover)
