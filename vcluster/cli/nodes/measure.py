"""vcluster measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Command, Group, examples
from vcluster.cli.output import terminal

if TYPE_CHECKING:
    from vcluster.planning.measure_plan import MeasuredRow
    from vcluster.planning.traffic.tcp_figures import FlowChoice, TcpRow, TcpSample

F = TypeVar("F", bound=Callable[..., Any])


@click.group(
    cls=Group,
    sections={"Commands": ("latency", "bandwidth", "pingpong", "collectives", "tcp")},
    epilog=examples(
        "sudo vcluster measure latency",
        "sudo vcluster measure bandwidth --ring",
        "sudo vcluster measure pingpong -w 'node[1-2]' --sizes 1:4MiB --ci 2% -o csv",
        "sudo vcluster measure tcp -w 'node[1-2]' --congestion reno --series tcp.ndjson",
    ),
)
def measure() -> None:
    """Measure MPI between nodes: times, rates and collective operations. Measure TCP too.

    For MPI, one rank runs on each node. A result is the median of repeated operations, with its 95 % confidence
    interval; they are repeated until the interval is narrow enough. Each command then compares the bytes that it caused
    with the counters of the switch's ports.
    """


_cluster_options: tuple[Callable[[F], F], ...] = (
    arguments.name_option,
    click.option(
        "-w", "--nodes", "nodeset", metavar="NODES", shell_complete=arguments.complete_nodes,
        help="Only these nodes, for example 'node[2-3]'.",
    ),
)  # fmt: skip
_pair_options: tuple[Callable[[F], F], ...] = (
    click.option(
        "--ring/--pairs", "is_ring", default=False,
        help="From each node to the next one only, or between all pairs.  [default: pairs]",
    ),
)  # fmt: skip
_output_options: tuple[Callable[[F], F], ...] = (
    arguments.timeout_option(3600),
    click.option(
        "-o", "--output", type=click.Choice(["text", "json", "csv"]), default="text", envvar="VCLUSTER_OUTPUT",
        help="Format of the result.",
    ),
)  # fmt: skip


def _options(default_sizes: str, *, has_pairs: bool) -> Callable[[F], F]:
    """The options that all measurements share; those for pairs only if there are pairs."""
    return _all(
        *_cluster_options,
        *(_pair_options if has_pairs else ()),
        click.option(
            "--sizes", default=default_sizes, show_default=True, metavar="SIZES",
            help="Sizes of messages: a list, or a range and all doubles in it.",
        ),
        click.option(
            "--ci", "width", type=arguments.Percent(), default="5%", show_default=True, metavar="PERCENT",
            help="Repeat until the confidence interval is this near to the median.",
        ),
        click.option(
            "--row-time", "row_time_s", type=arguments.Duration(1, 3600), default="10", show_default=True,
            metavar="SECONDS", help="Go on to the next row after this time.",
        ),
        *_output_options,
    )  # fmt: skip


def _all(*options: Callable[[F], F]) -> Callable[[F], F]:
    """All these options, in this order."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@measure.command(cls=Command)
@_options("8", has_pairs=True)
def latency(**options: Any) -> None:
    """Measure half of the round trip of a small message, between nodes."""
    _run("latency", **options)


@measure.command(cls=Command)
@_options("1MiB", has_pairs=True)
def bandwidth(**options: Any) -> None:
    """Measure the rate of data in messages, in each direction between nodes.

    Messages below 1 MiB are sent in groups of up to 64 before the receiver answers.
    """
    _run("bandwidth", **options)


@measure.command(cls=Command)
@_options("1:4MiB", has_pairs=True)
def pingpong(**options: Any) -> None:
    """Measure half of the round trip of messages of many sizes, between nodes."""
    _run("pingpong", **options)


@measure.command(cls=Command)
@_options("8,1KiB,64KiB", has_pairs=False)
def collectives(**options: Any) -> None:
    """Measure barrier, bcast, reduce, allreduce, gather, scatter, allgather and alltoall.

    The size is the part of each rank. A time is that of the slowest rank, after a barrier.
    """
    _run("collectives", is_ring=False, **options)


def _run(
    kind: str,
    *,
    name: str | None,
    nodeset: str | None,
    is_ring: bool,
    sizes: str,
    width: float,
    row_time_s: float,
    timeout_s: float,
    output: str,
) -> None:
    from vcluster.cli.output.traffic import measure_report
    from vcluster.commands.nodes import access
    from vcluster.commands.nodes import measure as work
    from vcluster.planning import measure_plan
    from vcluster.stages.measuring.measure import SKIPPED

    wanted_sizes = measure_plan.parse_sizes(sizes)
    context, plan = common.open_cluster(name)
    nodes = access.choose_nodes(plan, nodeset)
    names = [node.name for node in nodes]
    works = measure_plan.works(kind, names, wanted_sizes, is_ring=is_ring)
    measure_plan.require_memory(works, len(nodes), plan.memory_mib)
    rows: list[MeasuredRow] = []

    def show(row: MeasuredRow) -> None:
        rows.append(row)
        terminal.print_text(measure_report.row_text(measure_report.row_document(row)), err=True)

    def emit(measured: work.Measured) -> None:
        document = measure_report.document(kind, names, measured, width=width, skipped=SKIPPED)
        render = measure_report.csv_text if output == "csv" else measure_report.text
        common.emit(output, document, render, paint=measure_report.paint)

    precision = work.Precision(width, row_time_s)
    try:
        measured = work.measure(context, plan, nodes, works, precision, show, timeout_s=timeout_s)
    except BaseException:
        if rows:  # they took minutes
            emit(work.Measured(None, tuple(rows), None))
        raise
    emit(measured)
    work.require_explained(measured.traffic)


@measure.command(cls=Command)
@_all(
    *_cluster_options,
    *_pair_options,
    click.option(
        "--for", "for_s", type=arguments.Duration(2, 600), default="10", show_default=True, metavar="SECONDS",
        help="Send so long in each direction, after a warm-up of 1 s.",
    ),
    click.option(
        "--streams", type=arguments.Number(int, 1, 16), default=1, show_default=True, metavar="N",
        help="Send over N connections at a time.",
    ),
    click.option(
        "--congestion", metavar="NAME", help="Congestion control of both ends.  [default: that of their kernels]"
    ),
    click.option(
        "--every", "every_s", type=arguments.Duration(0.01, 60), default="0.1", show_default=True, metavar="SECONDS",
        help="Sample the connections after each such interval.",
    ),
    click.option(
        "--series", "path", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
        help="Write each sample into this file, a line of JSON each.",
    ),
    *_output_options,
)  # fmt: skip
def tcp(for_s: float, streams: int, every_s: float, congestion: str | None, **options: Any) -> None:
    """Measure TCP in each direction between nodes: goodput, retransmits and round trips.

    iperf3 sends the data. Meanwhile, vcluster asks the kernel of the sender for the state of the connections.
    """
    from vcluster.planning.traffic import tcp_figures

    choice = tcp_figures.FlowChoice(for_s, streams, every_s, congestion)
    tcp_figures.check(choice)
    _run_tcp(choice, **options)


def _run_tcp(
    choice: FlowChoice,
    *,
    name: str | None,
    nodeset: str | None,
    is_ring: bool,
    path: Path | None,
    timeout_s: float,
    output: str,
) -> None:
    from vcluster.cli.output.traffic import tcp_report
    from vcluster.commands.nodes import access
    from vcluster.commands.nodes import measure as traffic
    from vcluster.commands.nodes import tcp_flow as work
    from vcluster.planning import measure_plan
    from vcluster.planning.traffic import tcp_figures

    context, plan = common.open_cluster(name)
    nodes = {node.name: node for node in access.choose_nodes(plan, nodeset)}
    measure_plan.require_two([*nodes])
    names = [*measure_plan.pairs([*nodes], is_ring=is_ring, is_directed=True)]
    tcp_figures.require_time(choice, len(names), timeout_s)
    pairs = [(nodes[start], nodes[end]) for start, end in names]
    rows: list[TcpRow] = []

    def emit(measured: work.MeasuredTcp) -> None:
        render = tcp_report.csv_text if output == "csv" else tcp_report.text
        common.emit(output, tcp_report.document([*nodes], choice, measured), render)

    with _series(path) as record:

        def show(row: TcpRow, samples: Sequence[TcpSample]) -> None:
            rows.append(row)
            record(row, samples)
            terminal.print_text(tcp_report.row_text(tcp_report.row_document(row)), err=True)

        try:
            measured = work.measure(context, plan, pairs, choice, show, timeout_s=timeout_s)
        except BaseException:
            if rows:  # they took their time
                emit(work.MeasuredTcp(tuple(rows), None))
            raise
    emit(measured)
    traffic.require_explained(measured.traffic)


@contextmanager
def _series(path: Path | None) -> Iterator[Callable[[TcpRow, Sequence[TcpSample]], None]]:
    """A function that writes samples into a file, if there is one. The file is emptied with the first ones.

    Raises MissingError at once if the file cannot be written.
    """
    from vcluster.cli.output.traffic import tcp_report
    from vcluster.cli.output.traffic.record_file import RecordFile, require_writable

    if path:
        require_writable(path)
    file = None
    with ExitStack() as stack:

        def record(row: TcpRow, samples: Sequence[TcpSample]) -> None:
            nonlocal file
            if path:
                file = file or stack.enter_context(RecordFile(path, owner=common.user_of_sudo()))
                for sample in samples:
                    file.write_line(tcp_report.sample_line(row, sample))

        yield record


COMMANDS = (measure,)
