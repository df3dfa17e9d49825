"""vcluster capture."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Command, examples
from vcluster.cli.nodes.execute import remote_argv
from vcluster.cli.output import terminal
from vcluster.errors import RequestError, VclusterError

if TYPE_CHECKING:
    from vcluster.commands.servers.capture import Captured
    from vcluster.fleet.context import Context
    from vcluster.model.plan import Plan

SNAP_MIN = 14  # the Ethernet header
SNAP_MAX = 0xFFFF


@click.command(
    cls=Command,
    context_settings=arguments.REST,
    epilog=examples(
        "sudo vcluster capture -o run.pcapng -- mpiexec -n 4 ./cloud/program",
        "sudo vcluster capture -o run.pcapng --for 60 --snap 128 -w 'node[1-2]'",
        "sudo vcluster capture -o - | wireshark -k -i -",
    ),
)
@arguments.name_option
@click.option(
    "-o", "--file", "path", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), required=True,
    metavar="FILE", help="Write this pcapng file; - is standard output.",
)  # fmt: skip
@click.option(
    "-w", "--ports", "nodeset", metavar="NODES", shell_complete=arguments.complete_nodes,
    help="Capture only at the ports of these nodes, for example 'node[2-3]'.",
)  # fmt: skip
@click.option(
    "--snap", "snap_bytes", type=arguments.Number(int, SNAP_MIN, SNAP_MAX), default=None, metavar="BYTES",
    help="Keep this part of each frame; 128 has all headers.  [default: whole frames]",
)  # fmt: skip
@click.option("--filter", "expression", metavar="EXPRESSION", help="Capture frames that fit, as in pcap-filter(7).")
@click.option("--only", type=click.Choice(["mpi"]), help="Capture only TCP between programs of users, without NFS.")
@click.option(
    "--for", "for_s", type=arguments.Number(float, 0, 10**7), metavar="SECONDS",
    help="End after this time.  [default: when COMMAND ends, or at Ctrl-C]",
)  # fmt: skip
@click.option(
    "--ranks/--no-ranks", default=None,
    help="Watch which rank of MPI has which connection.  [default: with COMMAND]",
)  # fmt: skip
@click.option("--allow-drops", is_flag=True, help="Exit 0 although frames were dropped.")
@click.option("-l", "--user", metavar="USER", help="Run COMMAND as this user.  [default: the cluster's user]")
@arguments.timeout_option(3600)
@click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", envvar="VCLUSTER_OUTPUT",
    help="Format of the result.",
)  # fmt: skip
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def capture(
    name: str | None,
    path: Path,
    nodeset: str | None,
    snap_bytes: int | None,
    expression: str | None,
    only: str | None,
    for_s: float | None,
    ranks: bool | None,
    allow_drops: bool,
    user: str | None,
    timeout_s: float,
    output: str,
    command: tuple[str, ...],
) -> int:
    """Capture the frames at all ports of the switch in one pcapng file.

    Each port is an interface of the file, with the name of its node. The file shows the direction of each frame: in, if
    the switch got it from the node. COMMAND runs on the head node, as with `vcluster exec`; the capture begins before
    it and ends after it. Exits 1 if frames were dropped, or else with the exit code of COMMAND.
    """
    from vcluster.adapters.capture.capture_file import STANDARD_OUTPUT, CaptureFile, ClosedOutputError
    from vcluster.commands.nodes import access
    from vcluster.commands.servers import capture as work

    if expression is not None and only:
        raise RequestError("--filter and --only cannot be used together")
    if for_s is not None and command:
        raise RequestError("--for and a command cannot be used together: the capture ends with the command")
    choice = work.Choice(snap_bytes or 0, only == "mpi", expression or "")
    context, plan = common.open_cluster(name)
    nodes = access.choose_nodes(plan, nodeset)
    if is_stream := path == STANDARD_OUTPUT:
        _refuse_terminal()
    lines_to_errors = is_stream or output == "json"
    exit_codes = []

    def until(capture: work.RunningCapture) -> None:
        terminal.print_text(f"capturing at {len(nodes)} ports" + ("" if command else "; Ctrl-C ends it"), err=True)
        if command:
            exit_codes.append(_run(context, plan, command, user or plan.user, timeout_s, to_errors=lines_to_errors))
        else:
            capture.ended.wait(for_s)

    def open_file(begin: bytes) -> CaptureFile:
        return CaptureFile(path, begin, common.user_of_sudo())

    try:
        captured = work.capture(
            context, plan, nodes, choice, open_file, until, with_ranks=bool(command) if ranks is None else ranks
        )
    except ClosedOutputError as error:
        return error.exit_code
    _print(captured, output, exit_codes, to_errors=is_stream or (bool(command) and output == "text"))
    if command and captured.is_interrupted:
        raise KeyboardInterrupt
    if captured.dropped and not allow_drops:
        raise VclusterError(
            f"the capture dropped {captured.dropped} frames", hint="--snap 128 keeps headers only, which is faster"
        )
    return max(exit_codes, default=0)


def _refuse_terminal() -> None:
    if terminal.is_terminal(sys.stdout):
        raise RequestError("frames cannot be printed on a terminal", hint="vcluster capture -o - | wireshark -k -i -")


def _run(context: Context, plan: Plan, command: Sequence[str], user: str, timeout_s: float, *, to_errors: bool) -> int:
    """Run the command on the head node and print its output. Returns its exit code."""
    from vcluster.commands.nodes import access

    head = plan.head
    done = access.run_everywhere(
        context, plan, [head], remote_argv(command), user=user, timeout_s=timeout_s,
        on_line=lambda _, stream, line: terminal.print_text(line, err=to_errors or stream == "stderr"),
    )[head.name]  # fmt: skip
    if isinstance(done, VclusterError):
        raise done
    return done.exit_code


def _print(captured: Captured, output: str, exit_codes: Sequence[int], *, to_errors: bool) -> None:
    from vcluster.cli.output import network_report

    document = network_report.captured_document(captured, exit_codes[0] if exit_codes else None)
    if to_errors:
        terminal.print_text(network_report.captured_text(document), err=True)
    else:
        common.emit(output, document, network_report.captured_text)


COMMANDS = (capture,)
