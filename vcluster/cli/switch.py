"""vcluster switch up, show, down."""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address
from typing import Any

import click

from vcluster.cli import common
from vcluster.cli.create import TUNNEL_OPTIONS, with_options


class Address(click.ParamType):  # type: ignore[type-arg]
    """An IPv4 address."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> IPv4Address:
        """From text such as 192.0.2.7."""
        try:
            return IPv4Address(value)
        except AddressValueError:
            self.fail(f"{value!r} is not an IPv4 address, such as 192.0.2.7", param, ctx)


@click.group()
def switch() -> None:
    """The switch's half of a cluster by hand, on the switch's own machine."""


@switch.command()
@click.option(
    "-n", "--nodes", "count", type=int, required=True, envvar="VCLUSTER_NODES", help="How many nodes: a tunnel each."
)
@click.option("--peer", type=Address(), required=True, envvar="VCLUSTER_PEER", help="Address of the nodes' server.")
@click.option("--name", default="lab", show_default=True, envvar="VCLUSTER_NAME", help="Name of the cluster.")
@with_options(TUNNEL_OPTIONS)
@click.option(
    "--mtu", type=int, default=1450, show_default=True, envvar="VCLUSTER_MTU", help="MTU of the cluster network."
)
@common.output_option
def up(
    name: str, count: int, peer: IPv4Address, vni_base: int, vxlan_port: int, mtu: int, interface: str, output: str
) -> None:
    """Make a switch with a tunnel to each node: then `vcluster remote create --no-switch-setup` on the other server."""
    from vcluster import addressing, naming
    from vcluster import switch as switches
    from vcluster.cli import show as text

    addressing.check_mtu(mtu)
    order = switches.Order(naming.check_cluster_name(name), count, peer, vni_base, vxlan_port, mtu, interface)
    half = switches.up(common.site(), order)
    common.emit(output, half, lambda: text.switches([half]))


@switch.command()
@common.output_option
def show(output: str) -> None:
    """Show the switches on this machine, their ports and what these have counted."""
    from vcluster import switch as switches
    from vcluster.cli import show as text

    halves = switches.show(common.site())
    common.emit(output, halves, lambda: text.switches(halves))


@switch.command()
@click.argument("name", default="lab", envvar="VCLUSTER_NAME")
def down(name: str) -> None:
    """Remove a switch that was made here by hand. A second time says there is nothing and is fine."""
    from vcluster import naming
    from vcluster import switch as switches

    done = switches.down(common.site(), naming.check_cluster_name(name))
    click.echo(f"{name}: cleared" if done else f"{name}: nothing to clear")


COMMANDS = (switch,)
