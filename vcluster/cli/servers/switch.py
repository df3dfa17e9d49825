"""vcluster switch up, show, down."""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address
from typing import Any

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Group, examples
from vcluster.cli.key_options import KeysCommand, texts
from vcluster.cli.server_arguments import interface_option


class Address(click.ParamType):  # type: ignore[type-arg]
    """An IPv4 address."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> IPv4Address:
        """Read a text, for example 192.0.2.7."""
        try:
            return IPv4Address(value)
        except AddressValueError:
            self.fail(f"{value!r} is not an IPv4 address, for example 192.0.2.7", param, ctx)


@click.group(cls=Group, sections={"Commands": ("up", "show", "down")})
def switch() -> None:
    """Set up a switch manually, without SSH access.

    Run these commands on the switch's server, if the nodes' server cannot log in to it.
    """


@switch.command(
    cls=KeysCommand,
    only={"nodes", "name", "mtu", "vni_base", "vxlan_port"},
    required={"nodes"},
    helps={"vni_base": "First VXLAN network identifier (VNI). It must be the same on both servers."},
    epilog=examples("sudo vcluster switch up -n 4 --peer 192.0.2.1"),
)
@click.option(
    "--peer", type=Address(), required=True, envvar="VCLUSTER_PEER", metavar="ADDRESS",
    help="Address of the nodes' server.",
)  # fmt: skip
@interface_option
@arguments.output_option
def up(peer: IPv4Address, output: str, **given: Any) -> None:
    """Create a switch with a tunnel to each node.

    Then run `vcluster remote create --no-switch-setup` on the nodes' server.
    """
    from vcluster.cli.output import network_report
    from vcluster.commands.servers import switch as work
    from vcluster.config import readers, request

    asked = request.read_options(texts(given), {"interface": readers.interface})
    asked.errors.raise_any()
    order = work.SwitchRequest(
        name=asked.get("name"),
        count=asked.get("nodes"),
        peer=peer,
        vni_base=asked.get("vni_base"),
        port=asked.get("vxlan_port"),
        mtu=asked.get("mtu"),
        interface=asked.get("interface", ""),
    )
    with common.progress() as (context, _):
        side = work.up(context, order)
    common.emit(output, side, network_report.switch_text)


@switch.command()
@arguments.output_option
def show(output: str) -> None:
    """Show the switches on this machine, their ports and counters."""
    from vcluster.cli.output import network_report
    from vcluster.commands.servers import switch as work

    common.emit(output, work.show(common.context()), network_report.switches_text)


@switch.command()
@arguments.cluster_argument
@arguments.output_option
def down(name: str | None, output: str) -> None:
    """Remove a switch that `switch up` created.

    The default name is lab. When there is nothing to remove, it prints `nothing to clear` and exits 0.
    """
    from vcluster.commands.servers import switch as work
    from vcluster.model import naming

    chosen = naming.check_cluster_name(name or "lab")
    with common.progress() as (context, _):
        document = {"name": chosen, "cleared": work.down(context, chosen)}
    common.emit(
        output, document, lambda found: f"{found['name']}: {'cleared' if found['cleared'] else 'nothing to clear'}"
    )


COMMANDS = (switch,)
