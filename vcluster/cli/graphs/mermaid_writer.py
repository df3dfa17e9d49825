"""The graph of a cluster in the language of Mermaid (mermaid.js.org). Pure."""

from __future__ import annotations

from collections.abc import Iterator

from vcluster.cli.graphs import graph_labels
from vcluster.cli.graphs.graph_labels import INK, NODE, SWITCH, Document
from vcluster.model.quoting import printable


def text(graph: Document) -> str:
    """The graph as a flowchart."""
    return "\n".join(_lines(graph)) + "\n"


def _lines(graph: Document) -> Iterator[str]:
    yield f"%% {graph_labels.title(graph)}"
    yield "flowchart LR"
    for number, server in enumerate(graph["servers"]):
        yield f"  subgraph server{number}[{_quoted(server['name'])}]"
        if server["has_switch"]:
            yield f"    switch[{_quoted('switch ' + graph['switch']['bridge'])}]:::switch"
        for at, node in enumerate(graph["nodes"]):
            if node["server"] == server["name"]:
                yield f"    node{at}({_quoted(node['name'], graph_labels.node_facts(graph, node))}):::node"
        yield "  end"
    tunnels = graph_labels.tunnels(graph)
    for at, (node, link) in enumerate(zip(graph["nodes"], graph["links"], strict=True)):
        label = _quoted(graph_labels.path(graph, node), *graph_labels.facts(link))
        arrow = "-.-" if node["name"] in tunnels else "---"
        yield f"  switch {arrow}|{label}| node{at}"
    for at, link in enumerate(graph["links"]):
        yield f"  linkStyle {at} stroke:{graph_labels.color(link)},stroke-width:{graph_labels.width(link):g}px"
    yield f"  classDef node fill:{NODE},stroke:{INK},color:{INK}"
    yield f"  classDef switch fill:{SWITCH},stroke:{INK},color:{INK}"


def _quoted(*lines: str) -> str:
    """Lines of a label. What has a meaning there is written as its number."""
    return '"' + "<br/>".join("".join(map(_character, printable(line))) for line in lines) + '"'


def _character(letter: str) -> str:
    is_plain = letter.isalnum() or letter in " .,:-_/=%()?@"
    return letter if is_plain else f"#{ord(letter)};"
