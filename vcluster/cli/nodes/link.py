"""vcluster link."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Command, Group, examples
from vcluster.errors import RequestError
from vcluster.model.quoting import path_shown

TRACE_BYTES_MAX = 2**21

F = TypeVar("F", bound=Callable[..., object])


@click.group(cls=Group, sections={"Commands": ("set", "show", "calibrate", "trace", "reset")})
def link() -> None:
    """Limit rate and queue of a node's link, delay frames, and drop or damage some of them.

    The switch does it, at the port of the node. So it works for every guest system, and in every mode.
    """


@link.command(
    "set",
    cls=Command,
    epilog=examples(
        "sudo vcluster link set node3 --from rate=100mbit,queue=64KiB",
        "sudo vcluster link set 'node[2-4]' --both rate=1gbit --to loss=0.1%",
        "sudo vcluster link set node3 --both delay=5ms,jitter=1ms",
        "sudo vcluster link set node3 --from loss=1% --peer node1     only frames from node3 to node1",
        "sudo vcluster link set node3 --from rate=none                without this limit",
    ),
)
@arguments.nodes_argument(required=True)
@arguments.name_option
@click.option("--from", "from_limits", metavar="LIMITS", help="Limits of frames that the nodes send.")
@click.option("--to", "to_limits", metavar="LIMITS", help="Limits of frames that the nodes receive.")
@click.option("--both", "both_limits", metavar="LIMITS", help="Limits in each direction.")
@click.option(
    "--peer", metavar="NODE", shell_complete=arguments.complete_nodes, help="Only frames between the nodes and NODE."
)
@arguments.output_option
def set_limits(
    nodes: tuple[str, ...],
    name: str | None,
    from_limits: str | None,
    to_limits: str | None,
    both_limits: str | None,
    peer: str | None,
    output: str,
) -> None:
    """Change limits of the links of NODES; other limits stay.

    LIMITS are separated by commas. The limit rate=100mbit is the rate of whole Ethernet frames. The limit queue=64KiB
    is the room for frames that wait for their rate; vcluster computes the room if it is not given. The limit ecn=20KiB
    marks frames that find so many waiting bytes. The limit loss=0.1% drops frames at random, and burst-loss=1%x4 drops
    them in bursts of 4 in the mean. The limits delay=5ms,jitter=1ms delay frames by 4 to 6 ms. Then reorder=1% lets
    frames pass the delayed ones. The limit duplicate=1% sends frames twice, and corrupt=1% changes a bit of frames. The
    value none removes a limit.

    With --peer, a rate or a delay is one more queue for these frames, next to that of all others.
    """
    from vcluster.cli.output import network_report
    from vcluster.commands.nodes import link as work

    changes = _changes({"--from": from_limits, "--to": to_limits, "--both": both_limits})
    with common.progress() as (context, _):
        chosen = common.choose_cluster(context, name)
        found = work.set_limits(context, chosen, nodes, changes, peer=peer or "")
    common.emit(output, found, network_report.links_text)


def _changes(given: Mapping[str, str | None]) -> dict[str, Mapping[str, int]]:
    """The changes of each direction. Raises RequestError if there are none."""
    from vcluster.planning import link_spec

    changes = link_spec.parse_directions({option: text for option, text in given.items() if text is not None})
    if not changes:
        raise RequestError("no limits are given", hint="use --from, --to or --both with limits, or link reset")
    return changes


@link.command(
    cls=Command,
    epilog=examples("sudo vcluster link show", "sudo vcluster link show --measured node3"),
)
@arguments.nodes_argument(required=False)
@arguments.name_option
@click.option("--measured", "is_measured", is_flag=True, help="Measure what the links do: short traffic in the nodes.")
@arguments.output_option
def show(nodes: tuple[str, ...], name: str | None, is_measured: bool, output: str) -> None:
    """Show the limits of links, and their counters.

    They are read from the kernel of the switch's server. With --measured, nodes send frames for some seconds. The
    command then prints the rate, the delay and the loss of each limited link, or why one was not measured.
    """
    from vcluster.cli.output import network_report
    from vcluster.cli.output.traffic import link_report
    from vcluster.commands.nodes import link as work

    context = common.context()
    chosen = common.choose_cluster(context, name)
    if is_measured:
        common.emit(output, work.show_measured(context, chosen, nodes), link_report.measured_text)
    else:
        common.emit(output, work.show(context, chosen, nodes), network_report.links_text)


@link.command(
    cls=Command,
    epilog=examples(
        "sudo vcluster link trace node3 wifi.csv --repeat",
        "sudo vcluster link reset node3                        end it, and remove the limits",
    ),
)
@click.argument("node", shell_complete=arguments.complete_nodes)
@click.argument("file", type=click.Path(path_type=Path))
@arguments.name_option
@click.option("--repeat", "repeats", is_flag=True, help="Begin again at the end of the file.")
@arguments.output_option
def trace(node: str, file: Path, name: str | None, repeats: bool, output: str) -> None:
    """Change the rates of the link of NODE over time, as FILE specifies.

    The first line of FILE is t_s,from,to. Each other line has a time in seconds from the begin, and the rates of both
    directions, for example 0.5,10mbit,20mbit. An empty rate stays as it was. A rate with a queue has quotes:
    "rate=10mbit,queue=64KiB".

    A process on the switch's server changes the rates, also without vcluster. At the end, the rates of the last line
    stay. The trace ends early by link set or link reset of the node, and by clear.
    """
    from vcluster.cli.output import network_report
    from vcluster.commands.nodes import link as work
    from vcluster.config import bounded_file
    from vcluster.planning.traffic import rate_trace

    hint = "name a file that you can read"
    content, _ = bounded_file.read(file, TRACE_BYTES_MAX, purpose="a list of rates", hint=hint)
    lines = rate_trace.parse(content.decode(errors="replace"), path_shown(file))
    if repeats:
        rate_trace.require_period(lines, path_shown(file))
    with common.progress() as (context, _):
        chosen = common.choose_cluster(context, name)
        work.trace(context, chosen, node, lines, repeats=repeats)
    seconds = rate_trace.period_s(lines) if repeats else lines[-1].t_s
    document = {
        "name": chosen, "node": node, "file": str(file), "lines": len(lines), "seconds": seconds, "repeat": repeats,
    }  # fmt: skip
    common.emit(output, document, network_report.link_trace_text)


@link.command(cls=Command, epilog=examples("sudo vcluster link calibrate", "sudo vcluster link show --measured"))
@arguments.name_option
@arguments.output_option
def calibrate(name: str | None, output: str) -> None:
    """Measure what links without limits give on this cluster's servers.

    For each pair of servers, two nodes without limits measure their round trip and their highest rate. The result stays
    with the cluster. link show --measured uses the round trips if all nodes have delays.
    """
    from vcluster.cli.output.traffic import link_report
    from vcluster.commands.nodes import link_calibration as work

    with common.progress() as (context, _):
        chosen = common.choose_cluster(context, name)
        found = work.calibrate(context, chosen)
    common.emit(output, link_report.calibration_document(chosen, found), link_report.calibration_text)


@link.command(cls=Command)
@arguments.nodes_argument(required=False)
@arguments.name_option
@arguments.output_option
def reset(nodes: tuple[str, ...], name: str | None, output: str) -> None:
    """Remove all limits of the links of NODES, or of all nodes."""
    from vcluster.cli.output import network_report
    from vcluster.commands.nodes import link as work

    with common.progress() as (context, _):
        chosen = common.choose_cluster(context, name)
        document = {"name": chosen, "reset": work.reset(context, chosen, nodes)}
    common.emit(output, document, network_report.links_reset_text)


COMMANDS = (link,)
