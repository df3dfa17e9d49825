"""vcluster capture."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Group, examples
from vcluster.cli.nodes.execute import remote_argv
from vcluster.cli.output import terminal
from vcluster.errors import RequestError, VclusterError

if TYPE_CHECKING:
    from vcluster.commands.servers.capture import Captured
    from vcluster.fleet.context import Context
    from vcluster.model.plan import Plan

F = TypeVar("F", bound=Callable[..., Any])

SNAP_MIN = 14  # the Ethernet header
SNAP_MAX = 0xFFFF
LIMIT_MIB = 10240  # in the background: a capture that is forgotten must not fill the disk


class CaptureGroup(Group):
    """The commands of capture. Options without a command are those of `run`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the name of `run` before its options."""
        if args and args[0] not in {*self.commands, "-h", "--help"}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=CaptureGroup,
    sections={"Commands": ("run", "start", "stop", "status", "report")},
    epilog=examples(
        "sudo vcluster capture -o run.pcapng -- mpiexec -n 4 ./cloud/program",
        "sudo vcluster capture -o run.pcapng --for 60 --snap 128 -w 'node[1-2]'",
        "sudo vcluster capture -o - | wireshark -k -i -",
        "vcluster capture report run.pcapng",
    ),
)
def capture() -> None:
    """Capture the frames at all ports of the switch in one pcapng file.

    `run` is the default: its name can be left out before its options.
    """


def capture_options(function: F) -> F:
    """The options that `run` and `start` share."""
    options = (
        arguments.name_option,
        click.option(
            "-w", "--ports", "nodeset", metavar="NODES", shell_complete=arguments.complete_nodes,
            help="Capture only at the ports of these nodes, for example 'node[2-3]'.",
        ),
        click.option(
            "--snap", "snap_bytes", type=arguments.Number(int, SNAP_MIN, SNAP_MAX), default=None, metavar="BYTES",
            help="Keep this part of each frame; 128 has all headers.  [default: whole frames]",
        ),
        click.option("--filter", "expression", metavar="EXPRESSION", help="Keep frames that fit; see pcap-filter(7)."),
        click.option(
            "--frames", type=click.Choice(["wire", "raw"]), default="wire", show_default=True,
            help="Cut super-frames as a wire needs it, or keep what the switch sees.",
        ),
        click.option("--only", type=click.Choice(["mpi"]), help="Keep TCP between programs of users, without NFS."),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


file_format_option: Callable[[F], F] = click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", envvar="VCLUSTER_OUTPUT",
    help="Format of the result.",
)  # fmt: skip
drops_option: Callable[[F], F] = click.option(
    "--allow-drops", is_flag=True, help="Exit 0 although frames were dropped."
)


@capture.command(context_settings=arguments.REST)
@click.option(
    "-o", "--file", "path", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), required=True,
    metavar="FILE", help="Write this pcapng file; - is standard output.",
)  # fmt: skip
@capture_options
@click.option(
    "--for", "for_s", type=arguments.Duration(0, 10**7), metavar="SECONDS",
    help="End after this time, for example 90, 90s or 2m.  [default: when COMMAND ends, or at Ctrl-C]",
)  # fmt: skip
@click.option(
    "--limit", "limit_mib", type=arguments.Number(float, 1, 10**9), metavar="MIB",
    help="End when the file has this length.  [default: no limit]",
)  # fmt: skip
@click.option(
    "--ranks/--no-ranks", default=None,
    help="Watch which rank of MPI has which connection.  [default: with COMMAND]",
)  # fmt: skip
@drops_option
@click.option("-l", "--user", metavar="USER", help="Run COMMAND as this user.  [default: the cluster's user]")
@arguments.timeout_option(3600)
@click.option("--background", is_flag=True, hidden=True)  # `start` has started this process
@file_format_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def run(
    name: str | None,
    path: Path,
    nodeset: str | None,
    snap_bytes: int | None,
    expression: str | None,
    frames: str,
    only: str | None,
    for_s: float | None,
    limit_mib: float | None,
    ranks: bool | None,
    allow_drops: bool,
    user: str | None,
    timeout_s: float,
    background: bool,
    output: str,
    command: tuple[str, ...],
) -> int:
    """Capture until Ctrl-C, for a time, or while a command runs.

    Each port is an interface of the file, with the name of its node. The file shows the direction of each frame: in, if
    the switch got it from the node. COMMAND runs on the head node, as with `vcluster exec`; the capture begins before
    it and ends after it. Exits 1 if frames were dropped, or else with the exit code of COMMAND.
    """
    from vcluster.adapters.capture.capture_file import STANDARD_OUTPUT, CaptureFile, ClosedOutputError
    from vcluster.commands.nodes import access
    from vcluster.commands.servers import capture as work
    from vcluster.commands.steps import capture_process

    is_stream = path == STANDARD_OUTPUT
    _refuse_contradictions(expression, only, for_s, limit_mib, command, is_stream=is_stream)
    choice = work.Choice(snap_bytes or 0, only == "mpi", expression or "", frames == "wire")
    context, plan = common.open_cluster(name)
    folder = capture_process.folder_of(context.files(plan.name))
    progress = capture_process.write_record(folder, path) if background else None
    nodes, exit_codes = access.choose_nodes(plan, nodeset), []
    lines_to_errors = is_stream or output == "json"

    def until(capture: work.RunningCapture) -> None:
        terminal.print_text(f"capturing at {len(nodes)} ports" + ("" if command else "; Ctrl-C ends it"), err=True)
        if command:
            exit_codes.append(_run(context, plan, command, user or plan.user, timeout_s, to_errors=lines_to_errors))
        else:
            work.wait(capture, for_s=for_s, limit_mib=limit_mib, progress=progress)

    open_file = partial(CaptureFile, path, owner=common.user_of_sudo())
    with_ranks = bool(command) if ranks is None else ranks
    try:
        captured = work.capture(context, plan, nodes, choice, open_file, until, with_ranks=with_ranks)
    except ClosedOutputError as error:
        return error.exit_code
    _print(captured, output, exit_codes, to_errors=is_stream or (bool(command) and output == "text"))
    if command and captured.is_interrupted:
        raise KeyboardInterrupt
    _refuse_drops(captured.dropped, is_allowed=allow_drops)
    return max(exit_codes, default=0)


@capture.command()
@click.option(
    "-o", "--file", "path", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="FILE",
    help="Write this pcapng file.",
)  # fmt: skip
@capture_options
@click.option(
    "--limit", "limit_mib", type=arguments.Number(int, 1, 10**9), metavar="MIB", default=LIMIT_MIB, show_default=True,
    help="End when the file has this length.",
)  # fmt: skip
@click.option("--ranks", is_flag=True, help="Watch which rank of MPI has which connection.")
def start(
    name: str | None,
    path: Path,
    nodeset: str | None,
    snap_bytes: int | None,
    expression: str | None,
    frames: str,
    only: str | None,
    limit_mib: int,
    ranks: bool,
) -> None:
    """Capture in the background until `stop`.

    It returns when the capture has begun. A cluster has at most one such capture; `vcluster clear` also ends it.
    """
    from vcluster.commands.steps import capture_process

    context, plan = common.open_cluster(name)
    folder, whole = capture_process.folder_of(context.files(plan.name)), path.absolute()
    options: dict[str, object] = {
        "--name": plan.name, "--file": whole, "--ports": nodeset, "--snap": snap_bytes, "--filter": expression,
        "--frames": frames, "--only": only, "--limit": limit_mib, "--output": "json",
    }  # fmt: skip
    given = [text for option, value in options.items() if value is not None for text in (option, str(value))]
    arguments = ["capture", "run", "--background", *given, "--allow-drops", "--ranks" if ranks else "--no-ranks"]
    capture_process.start(folder, arguments)
    terminal.print_text(
        f"capturing into {whole}; end it by: {common.reader().command('capture stop', cluster=plan.name)}"
    )


@capture.command()
@arguments.name_option
@drops_option
@arguments.output_option
def stop(name: str | None, allow_drops: bool, output: str) -> None:
    """End the capture that runs in the background. Exits 1 if frames were dropped."""
    from vcluster.cli.output import network_report
    from vcluster.commands.steps import capture_process

    context, plan = common.open_cluster(name)
    result = capture_process.stop(capture_process.folder_of(context.files(plan.name)))
    common.emit(output, result, network_report.captured_text)
    _refuse_drops(result["dropped"], is_allowed=allow_drops)


@capture.command()
@arguments.name_option
@arguments.output_option
def status(name: str | None, output: str) -> None:
    """Show the capture that runs in the background, with its counts."""
    from vcluster.cli.output import network_report
    from vcluster.commands.steps import capture_process

    context, plan = common.open_cluster(name)
    found = capture_process.observe(capture_process.folder_of(context.files(plan.name)))
    common.emit(output, network_report.background_document(found), network_report.background_text)


@capture.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option(
    "-o", "--output", type=click.Choice(["text", "json", "csv"]), default="text", envvar="VCLUSTER_OUTPUT",
    help="Format of the result; csv has a row for each pair.",
)  # fmt: skip
def report(path: Path, output: str) -> None:
    """Show what a captured file contains: traffic of each pair, and times in the switch.

    It reads the file alone, so it needs neither root nor a cluster. A frame is followed from its entry at the port of
    its sender to its exit at the port of its receiver. Pairs are nodes, and with a map of ranks also ranks.
    """
    from vcluster.cli.output.traffic import traffic_report
    from vcluster.commands.servers import capture_report

    document = traffic_report.document(path, capture_report.analyse(path))
    if output == "csv":
        terminal.print_text(traffic_report.csv_text(document), nl=False)
    else:
        common.emit(output, document, traffic_report.text)


def _refuse_contradictions(
    expression: str | None, only: str | None, for_s: float | None, limit_mib: float | None, command: Sequence[str],
    *, is_stream: bool,
) -> None:  # fmt: skip
    if expression is not None and only:
        raise RequestError("--filter and --only cannot be used together")
    if for_s is not None and command:
        raise RequestError("--for and a command cannot be used together: the capture ends with the command")
    if limit_mib is not None and command:
        raise RequestError("--limit and a command cannot be used together: the capture ends with the command")
    if is_stream and terminal.is_terminal(sys.stdout):
        raise RequestError(
            "frames cannot be printed on a terminal", hint="vcluster capture run -o - | wireshark -k -i -"
        )


def _refuse_drops(dropped: int, *, is_allowed: bool) -> None:
    if dropped and not is_allowed:
        raise VclusterError(
            f"the capture dropped {dropped} frames", hint="--snap 128 keeps headers only, which is faster"
        )


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
    common.emit(output, document, network_report.captured_text, to_errors=to_errors)


COMMANDS = (capture,)
