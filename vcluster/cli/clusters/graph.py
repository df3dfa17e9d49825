"""vcluster graph."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Command, examples
from vcluster.cli.output import terminal
from vcluster.errors import MissingError
from vcluster.model.quoting import path_shown, shown

if TYPE_CHECKING:
    from vcluster.planning.traffic.cluster_graph import ClusterGraph

ENDINGS = (".svg", ".mmd", ".dot", ".json")
LOAD_MAX_S = 3600


class GraphOutput(click.ParamType):  # type: ignore[type-arg]
    """Where the graph goes: text or json for standard output, or a file whose ending is its format."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The value, if it is one of these."""
        text = str(value)
        if text not in ("text", "json") and (Path(text).suffix not in ENDINGS or "\0" in text):
            endings = f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"
            self.fail(f"{shown(text)} is neither text, json nor a file that ends in {endings}", param, ctx)
        return text


@click.command(
    cls=Command,
    epilog=examples(
        "sudo vcluster graph",
        "sudo vcluster graph lab -o lab.svg --load 5s",
        "sudo vcluster graph -o json",
    ),
)
@arguments.cluster_argument
@click.option(
    "-o", "--output", type=GraphOutput(), default="text", envvar="VCLUSTER_OUTPUT", metavar="text|json|FILE",
    help="Print text or JSON, or write FILE; its ending gives the format: .svg, .mmd, .dot or .json.",
)  # fmt: skip
@click.option(
    "--load", "load_s", type=arguments.Duration(1, LOAD_MAX_S), metavar="SECONDS",
    help="Count the frames of this time, for example 5s, and show the rates of links.",
)  # fmt: skip
def graph(name: str | None, output: str, load_s: float | None) -> None:
    """Draw servers, nodes, ports, tunnels and links of a cluster.

    Limits of links are those that the kernel of the switch's server has. The endings are those of SVG, Mermaid,
    Graphviz and JSON.
    """
    from vcluster.cli.graphs import graph_text
    from vcluster.commands.clusters import graph as work

    with common.progress() as (context, _):
        found = work.read(context, common.choose_cluster(context, name), load_s=load_s)
    if output in ("text", "json"):
        common.emit(output, found, graph_text.text)
        return
    _write(Path(output), _drawn(Path(output).suffix, found), common.user_of_sudo())
    terminal.print_text(f"{output}: {len(found.nodes)} nodes, {len(found.tunnels)} tunnels")


def _drawn(ending: str, found: ClusterGraph) -> str:
    """The graph in the format of an ending."""
    from vcluster.cli.graphs import dot_writer, mermaid_writer, svg_writer
    from vcluster.model import codec

    if ending == ".json":
        return codec.to_json(found)
    writers = {".svg": svg_writer.text, ".mmd": mermaid_writer.text, ".dot": dot_writer.text}
    return writers[ending](codec.to_plain(found))


def _write(path: Path, content: str, owner: tuple[int, int] | None) -> None:
    """Write a file, or replace it as a whole. It is of the user and the group `owner`.

    Raises MissingError if that is not possible.
    """
    draft = path.with_name(f".{secrets.token_hex(8)}.new")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
                if owner:
                    os.fchown(file.fileno(), *owner)
                file.write(content)
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise MissingError(f"cannot write {path_shown(path)}: {error.strerror}", hint="choose another file") from error


COMMANDS = (graph,)
