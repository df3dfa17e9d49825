"""vcluster fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Command, Group, examples
from vcluster.model.spec import FROM, TO

if TYPE_CHECKING:
    from vcluster.fleet.context import Context
    from vcluster.model.status import Fault

F = TypeVar("F", bound=Callable[..., Any])

TIME = arguments.Duration(0.01, 10**7)
for_option: Callable[[F], F] = click.option(
    "--for", "for_s", type=TIME, metavar="SECONDS",
    help="End the fault after this time, for example 0.5, 90s or 2m.  [default: when it is healed]",
)  # fmt: skip


@click.group(cls=Group, sections={"Commands": ("cut", "partition", "flap", "unplug", "pause", "show", "heal")})
def fault() -> None:
    """Make faults of nodes and their links on purpose.

    Faults of links are on the cluster network only, so SSH to the nodes still works. A fault ends after its time, or by
    `heal` or `clear`.
    """


@fault.command(
    cls=Command,
    epilog=examples(
        "sudo vcluster fault cut node3 --for 10",
        "sudo vcluster fault cut 'node[2-3]' --from      only frames that they send",
    ),
)
@arguments.nodes_argument(required=True)
@arguments.name_option
@click.option("--from", "is_from", is_flag=True, help="Drop only frames that the nodes send.")
@click.option("--to", "is_to", is_flag=True, help="Drop only frames that the nodes receive.")
@for_option
@arguments.output_option
def cut(nodes: tuple[str, ...], name: str | None, is_from: bool, is_to: bool, for_s: float | None, output: str) -> None:
    """Drop all frames from and to NODES at the switch.

    The kernel of the switch's server ends the fault after its time. The nodes do not see it: their links stay up.
    """
    from vcluster.commands.nodes import fault as work

    directions = [direction for direction, is_given in ((FROM, is_from), (TO, is_to)) if is_given] or [FROM, TO]
    _make(name, output, lambda context, cluster: work.cut(context, cluster, nodes, directions, for_s))


@fault.command(
    cls=Command,
    epilog=examples("sudo vcluster fault partition 'node[1-2]|node[3-4]' --for 30", "sudo vcluster fault heal"),
)
@click.argument("groups")
@arguments.name_option
@for_option
@arguments.output_option
def partition(groups: str, name: str | None, for_s: float | None, output: str) -> None:
    """Drop all frames between nodes of different GROUPS.

    The groups are separated by |. A node that is in no group reaches all nodes. The kernel of the switch's server ends
    the fault after its time.
    """
    from vcluster.commands.nodes import fault as work

    _make(name, output, lambda context, cluster: work.partition(context, cluster, groups, for_s))


@fault.command(
    cls=Command,
    epilog=examples(
        "sudo vcluster fault flap node3 --down 0.5 --up 2 --times 20",
        "sudo vcluster fault flap node3 --seed 7      random times, the same ones for each run",
    ),
)
@arguments.nodes_argument(required=True)
@arguments.name_option
@click.option(
    "--down", "down_s", type=TIME, metavar="SECONDS", default=1.0, show_default=True, help="Drop frames for this time."
)
@click.option(
    "--up",
    "up_s",
    type=TIME,
    metavar="SECONDS",
    default=4.0,
    show_default=True,
    help="Then let them pass for this time.",
)
@click.option(
    "--times", type=arguments.Number(int, 1, 10000), metavar="N", default=5, show_default=True, help="Do it N times."
)
@click.option(
    "--seed", type=arguments.Number(int, 0, 2**31), metavar="N",
    help="Spread each time at random, by up to half of it.  [default: equal times]",
)  # fmt: skip
@arguments.output_option
def flap(
    nodes: tuple[str, ...], name: str | None, down_s: float, up_s: float, times: int, seed: int | None, output: str
) -> None:
    """Cut the links of NODES again and again.

    A process on the switch's server does it, also without vcluster. The kernel ends each cut, also without the process.
    """
    from vcluster.commands.nodes import fault as work
    from vcluster.planning import fault_plan

    steps = fault_plan.flap_steps(times, down_s, up_s, seed)
    _make(name, output, lambda context, cluster: work.flap(context, cluster, nodes, steps))


@fault.command(cls=Command, epilog=examples("sudo vcluster fault unplug node3 --for 10"))
@arguments.nodes_argument(required=True)
@arguments.name_option
@for_option
@arguments.output_option
def unplug(nodes: tuple[str, ...], name: str | None, for_s: float | None, output: str) -> None:
    """Unplug lab0 of NODES: they see that their link is down.

    A process on the node's server ends the fault after its time. A node that is powered off and on is plugged in.
    """
    from vcluster.commands.nodes import fault as work

    _make(name, output, lambda context, cluster: work.unplug(context, cluster, nodes, for_s))


@fault.command(cls=Command, epilog=examples("sudo vcluster fault pause node3 --for 10"))
@arguments.nodes_argument(required=True)
@arguments.name_option
@for_option
@arguments.output_option
def pause(nodes: tuple[str, ...], name: str | None, for_s: float | None, output: str) -> None:
    """Pause NODES: they do nothing, and their clocks stop.

    A process on the node's server ends the fault after its time.
    """
    from vcluster.commands.nodes import fault as work

    _make(name, output, lambda context, cluster: work.pause(context, cluster, nodes, for_s))


@fault.command(cls=Command)
@arguments.nodes_argument(required=False)
@arguments.name_option
@arguments.output_option
def show(nodes: tuple[str, ...], name: str | None, output: str) -> None:
    """Show the active faults of NODES, or of all nodes, with the time that is left.

    They are read from the servers. Those of a server that does not answer are left out, and the command fails.
    """
    from vcluster.commands.nodes import fault as work
    from vcluster.util import parallel

    context = common.context()
    found, errors = work.show(context, common.choose_cluster(context, name), nodes)
    _emit(output, found)
    parallel.raise_all(errors)


@fault.command(cls=Command)
@arguments.nodes_argument(required=False)
@arguments.name_option
@arguments.output_option
def heal(nodes: tuple[str, ...], name: str | None, output: str) -> None:
    """End all faults of NODES, or of all nodes.

    A node that is healed reaches all nodes across a partition. The partition of the others stays. The command also
    heals when a server does not answer, and then fails.
    """
    from vcluster.cli.output import network_report
    from vcluster.commands.nodes import fault as work
    from vcluster.util import parallel

    with common.progress() as (context, _):
        chosen = common.choose_cluster(context, name)
        healed, errors = work.heal(context, chosen, nodes)
    common.emit(output, {"name": chosen, "healed": healed}, network_report.healed_text)
    parallel.raise_all(errors)


def _make(name: str | None, output: str, make: Callable[[Context, str], list[Fault]]) -> None:
    """Make faults of the chosen cluster, and print those that are active."""
    with common.progress() as (context, _):
        found = make(context, common.choose_cluster(context, name))
    _emit(output, found)


def _emit(output: str, found: Any) -> None:
    from vcluster.cli.output import network_report

    common.emit(output, found, network_report.faults_text)


COMMANDS = (fault,)
