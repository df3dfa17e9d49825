"""vcluster watch."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Command, examples
from vcluster.cli.output import terminal
from vcluster.errors import RequestError

if TYPE_CHECKING:
    from vcluster.planning.traffic.watch_record import WatchRecord

TEXT = "text"
EVERY_MIN_S, EVERY_MAX_S = 0.1, 60
REDRAW_S = 0.25  # a shorter interval is not readable

Show = Callable[["WatchRecord"], None]


@click.command(
    cls=Command,
    epilog=examples(
        "sudo vcluster watch",
        "sudo vcluster watch lab --every 0.25 --record run.ndjson",
        "sudo vcluster watch -o ndjson --for 10 --no-matrix",
    ),
)
@arguments.cluster_argument
@click.option(
    "--every", "every_s", type=arguments.Duration(EVERY_MIN_S, EVERY_MAX_S), default=1.0, show_default="1",
    metavar="SECONDS", help="Count after each such interval, from 0.1 to 60.",
)  # fmt: skip
@click.option(
    "--for", "for_s", type=arguments.Duration(0, 10**7), metavar="SECONDS",
    help="End after this time, for example 90, 90s or 2m.  [default: at Ctrl-C]",
)  # fmt: skip
@click.option(
    "--record", "path", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Write each interval into this file too, a line of JSON each.",
)  # fmt: skip
@click.option("--matrix/--no-matrix", default=True, show_default=True, help="Count the frames from port to port.")
@click.option(
    "-o", "--output", type=click.Choice([TEXT, "ndjson", "json"]), default=TEXT, envvar="VCLUSTER_OUTPUT",
    help="A table on a terminal, or a line of JSON for each interval.",
)  # fmt: skip
def watch(name: str | None, every_s: float, for_s: float | None, path: Path | None, matrix: bool, output: str) -> None:
    """Show the traffic at the ports of the switch and from node to node, and what the nodes do.

    The table is redrawn in its place, at most four times a second. Rates and drops are those of whole frames.
    """
    from vcluster.cli.output.traffic.record_file import RecordFile
    from vcluster.commands.servers import watch as work

    if for_s is not None and for_s < every_s:
        raise RequestError(f"--for {for_s:g} is shorter than --every {every_s:g}", hint="a shorter --every")
    show = _choose_display(output, is_recorded=path is not None)
    with common.progress() as (context, _):
        chosen = common.choose_cluster(context, name)
        found = work.records(context, chosen, every_s=every_s, with_matrix=matrix, for_s=for_s)
        with ExitStack() as stack:
            stack.enter_context(closing(found))
            file = None
            try:
                for one in found:
                    if path:
                        # Not before the first record: a command that fails leaves a file that exists as it is.
                        file = file or stack.enter_context(RecordFile(path, owner=common.user_of_sudo()))
                        file.write_line(_line(one))
                    show(one)
            except KeyboardInterrupt:  # it is the end that the user wants
                return


def _choose_display(output: str, *, is_recorded: bool) -> Show:
    """What is done with a record. Raises RequestError if there is no terminal for the table."""
    if output != TEXT:
        return _print_line
    if terminal.is_terminal(sys.stdout) and os.environ.get("TERM", "dumb") != "dumb":
        return _table()
    if is_recorded:
        return lambda _: None
    raise RequestError("the table needs a terminal", hint="vcluster watch -o ndjson")


def _print_line(record: WatchRecord) -> None:
    terminal.print_text(_line(record))


def _line(record: WatchRecord) -> str:
    from vcluster.model import codec

    return json.dumps(codec.to_plain(record))


def _table() -> Show:
    """Redraw the table. A terminal of another size gets a new one below."""
    from vcluster.cli.output.screens.cell_screen import CellScreen
    from vcluster.cli.output.screens.watch_table import WatchTable
    from vcluster.model import codec

    lines, screen = WatchTable(), CellScreen(*shutil.get_terminal_size())
    drawn_ns = 0

    def show(record: WatchRecord) -> None:
        nonlocal screen, drawn_ns
        size = shutil.get_terminal_size()
        found = lines.lines(codec.to_plain(record), size.columns)
        if record.t_ns - drawn_ns < REDRAW_S * 0.9e9:
            return
        drawn_ns = record.t_ns
        if screen.size != tuple(size):
            screen = CellScreen(*size)
        terminal.draw(screen.update(found))

    return show


COMMANDS = (watch,)
