"""vcluster exec."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Command, examples
from vcluster.cli.output import terminal
from vcluster.cli.output.streams import OutputError
from vcluster.errors import RequestError, SeveralErrors, VclusterError
from vcluster.util.deadline import Cancelled

if TYPE_CHECKING:
    from vcluster.adapters.process import Completed

# sshd sets SHELL to the user's login shell: a line runs as it does with `ssh NODE LINE`.
LOGIN_SHELL = ("sh", "-c", 'exec "${SHELL:-/bin/sh}" -c "$1"', "sh")


@click.command(
    "exec",
    cls=Command,
    context_settings=arguments.REST,
    epilog=examples(
        "sudo vcluster exec -- uname -r",
        "sudo vcluster exec -w 'node[2-3]' -- ls '/my folder'     arguments, passed on as they are",
        "sudo vcluster exec -- 'free -m | grep Mem'               one argument: a shell line",
    ),
)
@arguments.name_option
@arguments.nodes_option
@arguments.user_option
@arguments.fanout_option
@click.option("--lines", is_flag=True, help="Print each line as soon as it arrives, after the name of its node.")
@arguments.timeout_option(3600)
@arguments.output_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(
    name: str | None,
    nodeset: str | None,
    user: str | None,
    fanout: int,
    lines: bool,
    timeout_s: float,
    output: str,
    command: tuple[str, ...],
) -> int:
    """Run a command on many nodes in parallel.

    If COMMAND is one argument, the user's shell on each node runs it as a shell line. If there are several arguments,
    the nodes get each one unchanged: no shell there splits or expands it. Equal outputs are printed once. Exits with
    the highest exit code of all nodes.
    """
    from vcluster.cli.output import run_report
    from vcluster.commands.nodes import access

    if lines and output == "json":
        raise RequestError("--lines and -o json cannot be used together")
    context, plan = common.open_cluster(name)
    nodes = access.choose_nodes(plan, nodeset)
    printer = _LinePrinter([node.name for node in nodes])
    results = access.run_everywhere(
        context, plan, nodes, remote_argv(command), user=user or plan.user, timeout_s=timeout_s, fanout=fanout,
        on_line=printer if lines else None,
    )  # fmt: skip
    printer.check()
    completed = {node: result for node, result in results.items() if not isinstance(result, VclusterError)}
    if lines:
        _print_exit_codes(completed)
    elif completed or output == "json":
        common.emit(output, run_report.document(results), run_report.text)
    return _exit_code(completed, [result for result in results.values() if isinstance(result, VclusterError)])


def remote_argv(command: Sequence[str]) -> tuple[str, ...]:
    """The argument list to run on a node: one argument is a line for the shell, as with ssh, pdsh and clush."""
    return (*LOGIN_SHELL, *command) if len(command) == 1 else tuple(command)


def _exit_code(completed: Mapping[str, Completed], errors: Sequence[VclusterError]) -> int:
    """The highest exit code of all nodes. Raises the errors, if there are any, with this exit code."""
    highest = max((result.exit_code for result in completed.values()), default=0)
    if errors:
        together = SeveralErrors(list(dict.fromkeys(errors)))
        together.exit_code = max(highest, *(error.exit_code for error in errors))
        raise together
    return highest


def _print_exit_codes(completed: Mapping[str, Completed]) -> None:
    from vcluster.cli.output import tables

    codes = {name: f"exit code {result.exit_code}" for name, result in completed.items() if result.exit_code}
    if codes:
        terminal.print_text(tables.outcomes(codes), err=True)


class _LinePrinter:
    """Prints lines of several nodes as they come, each whole."""

    def __init__(self, names: Sequence[str]) -> None:
        from vcluster.cli.output import tables

        self._prefixes = tables.prefixes(names)
        self._lock = threading.Lock()
        self._failure: OutputError | None = None

    def __call__(self, node: str, stream: str, line: str) -> None:
        with self._lock:
            try:
                terminal.print_text(self._prefixes[node] + line, err=stream == "stderr")
            except OutputError as error:  # the reader of our output has ended; the node's connection is not at fault
                self._failure = error
                raise Cancelled("the reader of the output has ended") from error

    def check(self) -> None:
        """Raise the error that stopped the printing."""
        if self._failure:
            raise self._failure


COMMANDS = (execute,)
