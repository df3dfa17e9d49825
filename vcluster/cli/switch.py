"""vcluster switch up, show, down."""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address
from typing import Any

import click

from vcluster.cli import common
from vcluster.cli.create import KeysCommand, interface_option, texts


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


@switch.command(cls=KeysCommand, only={"nodes", "name", "mtu", "vni_base", "vxlan_port"}, required={"nodes"})
@click.option("--peer", type=Address(), required=True, envvar="VCLUSTER_PEER", help="Address of the nodes' server.")
@interface_option
@common.output_option
def up(peer: IPv4Address, output: str, **given: Any) -> None:
    """Make a switch with a tunnel to each node: then `vcluster remote create --no-switch-setup` on the other server."""
    from vcluster.cli.output import text_output as text
    from vcluster.commands import switch as switches
    from vcluster.config import readers, request

    asked = request.read_options(texts(given), {"interface": readers.interface})
    asked.errors.raise_any()
    order = switches.SwitchRequest(
        name=asked.get("name"),
        count=asked.get("nodes"),
        peer=peer,
        vni_base=asked.get("vni_base"),
        port=asked.get("vxlan_port"),
        mtu=asked.get("mtu"),
        interface=asked.get("interface", ""),
    )
    half = switches.up(common.context(), order)
    common.emit(output, half, lambda: text.switches([half]))


@switch.command()
@common.output_option
def show(output: str) -> None:
    """Show the switches on this machine, their ports and what these have counted."""
    from vcluster.cli.output import text_output as text
    from vcluster.commands import switch as switches

    sides = switches.show(common.context())
    common.emit(output, sides, lambda: text.switches(sides))


@switch.command()
@click.argument("name", default="lab", envvar="VCLUSTER_NAME")
def down(name: str) -> None:
    """Remove a switch that was made here by hand. A second time says there is nothing and is fine."""
    from vcluster.commands import switch as switches
    from vcluster.model import naming

    done = switches.down(common.context(), naming.check_cluster_name(name))
    click.echo(f"{name}: cleared" if done else f"{name}: nothing to clear")


COMMANDS = (switch,)
