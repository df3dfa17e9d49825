"""vcluster measure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Command, Group, examples
from vcluster.cli.output import terminal

if TYPE_CHECKING:
    from vcluster.planning.measure_plan import MeasuredRow

F = TypeVar("F", bound=Callable[..., Any])


@click.group(
    cls=Group,
    sections={"Commands": ("latency", "bandwidth", "pingpong", "collectives")},
    epilog=examples(
        "sudo vcluster measure latency",
        "sudo vcluster measure bandwidth --ring",
        "sudo vcluster measure pingpong -w 'node[1-2]' --sizes 1:4MiB --ci 2% -o csv",
    ),
)
def measure() -> None:
    """Measure MPI between nodes: times, rates and collective operations.

    One rank runs on each node. A result is the median of repeated operations, with its 95 % confidence interval; they
    are repeated until the interval is narrow enough. The command then compares the bytes that it caused with the
    counters of the switch's ports.
    """


def _options(default_sizes: str, *, has_pairs: bool) -> Callable[[F], F]:
    """The options that all measurements share; those for pairs only if there are pairs."""
    pairs: tuple[Callable[[F], F], ...] = (
        click.option(
            "--ring/--pairs", "is_ring", default=False,
            help="From each node to the next one only, or between all pairs.  [default: pairs]",
        ),
    )  # fmt: skip
    options: tuple[Callable[[F], F], ...] = (
        arguments.name_option,
        click.option(
            "-w", "--nodes", "nodeset", metavar="NODES", shell_complete=arguments.complete_nodes,
            help="Only these nodes, for example 'node[2-3]'.",
        ),
        *(pairs if has_pairs else ()),
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
        arguments.timeout_option(3600),
        click.option(
            "-o", "--output", type=click.Choice(["text", "json", "csv"]), default="text", envvar="VCLUSTER_OUTPUT",
            help="Format of the result.",
        ),
    )  # fmt: skip

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
    work.require_explained(measured)


COMMANDS = (measure,)
