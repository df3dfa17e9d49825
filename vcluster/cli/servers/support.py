"""vcluster support."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Command, examples
from vcluster.cli.output import terminal
from vcluster.errors import VclusterError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vcluster.commands.servers.support import PartResult


@click.command(
    cls=Command,
    epilog=examples(
        "sudo vcluster support                      every cluster, and this machine",
        "sudo vcluster support lab --file lab.tar.gz"
    ),
)  # fmt: skip
@arguments.cluster_argument
@click.option(
    "--file", "path", type=click.Path(path_type=Path), metavar="FILE",
    help="Write this file, which must not exist.  [default: vcluster-support-NAME-DATE.tar.gz in this folder]",
)  # fmt: skip
@arguments.output_option
def support(name: str | None, path: Path | None, output: str) -> None:
    """Write one file for a bug report.

    It contains versions, results of doctor, plans, events, and the last lines of consoles and logs.
    It leaves out passwords, keys and tokens that it recognises; read the file before you send it.
    Without NAME it covers every cluster.
    Exits 1 when a part is missing; the file then has the other parts.
    """
    from vcluster.commands.servers import support as work
    from vcluster.commands.steps import support_archive
    from vcluster.fleet import ledger
    from vcluster.model import naming

    if name:
        naming.check_cluster_name(name)
        common.invocation().cluster = name
    now_s = time.time()
    date = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now_s))
    folder = "-".join(filter(None, ("vcluster-support", name, date)))
    path = (path or Path(f"{folder}.tar.gz")).absolute()
    support_archive.refuse_existing(path)
    with common.progress() as (context, _):
        common.refuse_cluster_of_root(context, name or "")
        names = (name,) if name else ledger.cluster_names(context.state_root)
        report, results = work.collect(context, names)
    common.invocation().has_late_threads = any(result.is_late for result in results)
    support_archive.write_new(path, report.packed(folder, now_s), common.user_of_sudo())
    common.emit(output, _document(path, results), _text)
    _require_whole(results)


def _document(path: Path, results: Sequence[PartResult]) -> dict[str, Any]:
    parts = [{"part": each.part, "files": list(each.files), "error": each.error or None} for each in results]
    return {"path": str(path), "parts": parts}


def _text(document: dict[str, Any]) -> str:
    count = sum(len(part["files"]) for part in document["parts"])
    return f"{document['path']}: {count} files; read them before you send the file to others"


def _require_whole(results: Sequence[PartResult]) -> None:
    """Print a line for each part that failed. Raises VclusterError if there are any."""
    failed = [result for result in results if result.error]
    for result in failed:
        terminal.print_text(f"left out: {result.part}: {result.error}", err=True)
    if failed:
        raise VclusterError(
            f"{len(failed)} of {len(results)} parts are missing or not complete", hint="the other parts are in the file"
        )


COMMANDS = (support,)
