"""The graph of a cluster in the language of Graphviz (graphviz.org). Pure."""

from __future__ import annotations

from collections.abc import Iterator

from vcluster.cli.graphs import graph_labels
from vcluster.cli.graphs.graph_labels import INK, NODE, PLAIN, SWITCH, Document
from vcluster.model.quoting import printable


def text(graph: Document) -> str:
    """The graph for `dot`. The grey of texts has enough contrast on a white and on a black page."""
    return "\n".join(_lines(graph)) + "\n"


def _lines(graph: Document) -> Iterator[str]:
    yield f"graph {_quoted(graph['name'])} {{"
    yield f'  graph [rankdir=LR bgcolor=transparent fontname=sans fontcolor="{PLAIN}" color="{PLAIN}"'
    yield f"    label={_quoted(graph_labels.title(graph))}]"
    yield f'  node [shape=box style="rounded,filled" fontname=sans fontcolor="{INK}" color="{INK}"]'
    yield f'  edge [fontname=sans fontcolor="{PLAIN}"]'
    for number, server in enumerate(graph["servers"]):
        yield f"  subgraph cluster_{number} {{"
        yield f"    label={_quoted(server['name'])}"
        if server["has_switch"]:
            label = _quoted(f"switch {graph['switch']['bridge']}")
            yield f'    switch [label={label} fillcolor="{SWITCH}" style=filled]'
        for at, node in enumerate(graph["nodes"]):
            if node["server"] == server["name"]:
                label = _quoted(node["name"], graph_labels.node_facts(graph, node))
                yield f'    node{at} [label={label} fillcolor="{NODE}"]'
        yield "  }"
    tunnels = graph_labels.tunnels(graph)
    for at, (node, link) in enumerate(zip(graph["nodes"], graph["links"], strict=True)):
        label = _quoted(graph_labels.path(graph, node), *graph_labels.facts(link))
        style = "dashed" if node["name"] in tunnels else "solid"
        color, width = graph_labels.color(link), graph_labels.width(link)
        yield f'  switch -- node{at} [label={label} style={style} color="{color}" penwidth={width:g}]'
    yield "}"


def _quoted(*lines: str) -> str:
    """Lines of a label. A backslash begins an escape in Graphviz, so it is doubled."""
    return '"' + "\\n".join(printable(line).replace("\\", "\\\\").replace('"', '\\"') for line in lines) + '"'
