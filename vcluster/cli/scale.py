"""vcluster add, remove."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from vcluster.cli import common
from vcluster.errors import ConflictError, RequestError

if TYPE_CHECKING:
    from vcluster.model.status import Status


@click.command()
@click.argument("number", metavar="[N]", type=click.IntRange(min=1), required=False)
@common.name_option
@click.option("--names", "nodeset", metavar="NODESET", help="Their names.  [default: the next of the cluster's own]")
@common.timeout_option(900)
@common.output_option
def add(number: int | None, name: str | None, nodeset: str | None, timeout_s: float, output: str) -> None:
    """Add N nodes, one if nothing is said, to a cluster that is up, and prove it ready with them.

    The others go on with what they do. If it fails, the new ones are taken away again.
    """
    from vcluster.commands import inventory, scale
    from vcluster.model import naming

    asked = () if nodeset is None else naming.expand(nodeset)
    if asked and number not in (None, len(asked)):
        raise RequestError(f"--names gives {len(asked)} names, N is {number}")
    with common.progress() as (context, _):
        chosen = inventory.only_cluster(context, name)
        before = {node.name for node in inventory.read_ledger(context.files(chosen)).plan.nodes}
        found = scale.add(context, chosen, number=number or 1, asked=asked, timeout_s=timeout_s)
    _tell(output, found, "added", [node.name for node in found.nodes if node.name not in before])


@click.command()
@click.argument("nodes", metavar="NODE…", nargs=-1, required=True)
@common.name_option
@common.yes_option
@common.timeout_option(600)
@common.output_option
def remove(nodes: tuple[str, ...], name: str | None, yes: bool, timeout_s: float, output: str) -> None:
    """Remove nodes with their disks, such as 'node[3-4]', and check the others.

    Their power is cut; the others go on with what they do. The head and nodes with a shared disk stay.
    """
    from vcluster.commands import inventory, scale
    from vcluster.model import naming
    from vcluster.planning import resize

    names = naming.expand(",".join(nodes))
    with common.progress() as (context, _):
        chosen = inventory.only_cluster(context, name)
        resize.shrink(inventory.read_ledger(context.files(chosen)).plan, names)
        if not yes:
            _confirm(chosen, names)
        found = scale.remove(context, chosen, names, timeout_s=timeout_s)
    _tell(output, found, "removed", names)


def _confirm(cluster: str, names: Sequence[str]) -> None:
    from vcluster.model import naming

    what = naming.folded(names)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConflictError(
            f"the disk of {what} would be deleted and there is no terminal to ask", hint="-y deletes it"
        )
    click.confirm(f"Remove {what} of {cluster} with all that is on its disk?", abort=True, err=True)


def _tell(output: str, found: Status, done: str, names: Sequence[str]) -> None:
    from vcluster.cli.output import text_output
    from vcluster.model import naming

    common.emit(output, found, lambda: f"{found.name}: {done} {naming.folded(names)}\n{text_output.status(found)}")


COMMANDS = (add, remove)
