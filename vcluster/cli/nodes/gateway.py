"""vcluster gateway, discover: the cluster network, by the head node."""

from __future__ import annotations

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Command


@click.command(cls=Command)
@click.argument("action", type=click.Choice(["on", "off", "status"]))
@arguments.name_option
@arguments.timeout_option(60)
@arguments.output_option
def gateway(action: str, name: str | None, timeout_s: float, output: str) -> None:
    """Allow or block internet access in the private layout.

    The head node is the gateway of the other nodes. `off` also ends their open connections.
    """
    from vcluster.commands.nodes import gateway as work

    context = common.context()
    chosen = common.choose_cluster(context, name)
    if action == "status":
        is_open = work.is_open(context, chosen, timeout_s=timeout_s)
    else:
        is_open = action == "on"
        work.set_open(context, chosen, is_open=is_open, timeout_s=timeout_s)
    document = {"name": chosen, "gateway": "on" if is_open else "off"}
    common.emit(output, document, lambda found: str(found["gateway"]))


@click.command(cls=Command)
@arguments.cluster_argument
@arguments.timeout_option(120)
@arguments.output_option
def discover(name: str | None, timeout_s: float, output: str) -> None:
    """List all hosts on the cluster network.

    The head node finds them by DHCP leases, by ARP and by a ping to every address. Hosts that are not nodes are marked
    as unknown hosts.
    """
    from vcluster.cli.output import network_report
    from vcluster.commands.nodes import gateway as work

    with common.progress() as (context, _):
        found = work.discover(context, common.choose_cluster(context, name), timeout_s=timeout_s)
    common.emit(output, network_report.neighbours_document(found), network_report.neighbours_text)


COMMANDS = (gateway, discover)
