"""vcluster add, remove."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Command
from vcluster.errors import ConflictError, RequestError

if TYPE_CHECKING:
    from vcluster.model.status import Status


NAMES_SHOWN_MAX = 200  # characters of names that a hint repeats


class NodeCount(arguments.Number):
    """A number of nodes. The name of a node is answered with the option for names."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float:
        """Read a text."""
        from vcluster.model.quoting import shown

        if isinstance(value, str) and value[:1].isalpha():
            hint = f"vcluster add --names {shlex.quote(value)}" if len(value) <= NAMES_SHOWN_MAX else None
            raise RequestError(f"{shown(value)} is not a number of nodes", hint=hint)
        return super().convert(value, param, ctx)


@click.command(cls=Command)
@click.argument("number", metavar="[N]", type=NodeCount(int, 1), required=False)
@arguments.name_option
@click.option("--names", "nodeset", metavar="NODESET", help="Names of the new nodes.  [default: the next free ones]")
@click.option("--no-provision", is_flag=True, help="Do not run the setup script of create on the new nodes.")
@arguments.timeout_option(900)
@arguments.output_option
def add(
    number: int | None, name: str | None, nodeset: str | None, no_provision: bool, timeout_s: float, output: str
) -> None:
    """Add N nodes to a running cluster; without N, add one node.

    The other nodes keep running. Ends with the same check as create, and then with its setup script (--provision), on
    the new nodes. When add fails, it removes the new nodes again.
    """
    from vcluster.commands.clusters import scale
    from vcluster.commands.steps import inventory
    from vcluster.model import naming

    names = () if nodeset is None else naming.expand(nodeset)
    if names and number not in (None, len(names)):
        raise RequestError(f"--names has {len(names)} names, but N is {number}")
    with common.progress() as (context, _):
        chosen = common.choose_cluster(context, name)
        before = {node.name for node in inventory.read_ledger(context.files(chosen)).plan.nodes}
        found = scale.add(
            context, chosen, number=number or 1, asked=names, runs_setup=not no_provision, timeout_s=timeout_s
        )
    _emit(output, found, "added", [node.name for node in found.nodes if node.name not in before])


@click.command(cls=Command)
@click.argument("nodes", metavar="NODE…", nargs=-1, required=True, shell_complete=arguments.complete_nodes)
@arguments.name_option
@arguments.yes_option
@arguments.timeout_option(600)
@arguments.output_option
def remove(nodes: tuple[str, ...], name: str | None, yes: bool, timeout_s: float, output: str) -> None:
    """Remove nodes and their disks, for example 'node[3-4]'.

    Their power is cut; the other nodes keep running and are checked. The head node and storage nodes cannot be removed.
    On a terminal it asks first; -y answers yes. Without a terminal it needs -y.
    """
    from vcluster.commands.clusters import scale
    from vcluster.commands.steps import inventory
    from vcluster.model import naming
    from vcluster.planning import resize

    names = naming.expand(",".join(nodes))
    with common.progress() as (context, _):
        chosen = common.choose_cluster(context, name)
        resize.shrink(inventory.read_ledger(context.files(chosen)).plan, names)
        if not yes:
            _confirm(chosen, names)
        found = scale.remove(context, chosen, names, timeout_s=timeout_s)
    _emit(output, found, "removed", names)


def _confirm(cluster: str, names: Sequence[str]) -> None:
    from vcluster.model import naming

    nodes = naming.folded(names)
    if not common.can_ask():
        raise ConflictError(
            f"cannot ask whether to delete the disks of {nodes}: no terminal",
            hint="-y deletes them without a question",
        )
    common.require_consent(f"Remove {nodes} of {cluster} and delete the disks?", declined="nothing was removed")


def _emit(output: str, found: Status, change: str, names: Sequence[str]) -> None:
    from vcluster.cli.output import status_report

    reader = common.reader(found.name)
    document = status_report.resized_document(found, change=change, names=names)
    common.emit(output, document, lambda written: status_report.resized_text(written, reader))


COMMANDS = (add, remove)
