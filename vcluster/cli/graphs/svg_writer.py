"""The graph of a cluster as a picture in SVG, for light and for dark pages. Pure.

The switch is on the left. Each node has a row, with its link and the texts about it; nodes of a server have a frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from vcluster.cli.graphs import graph_labels
from vcluster.cli.graphs.graph_labels import FAULTY, INK, NODE, SWITCH, Document
from vcluster.model.quoting import printable

EDGE, LINE, ROW_MIN, GAP = 20, 15, 56, 44  # a gap is between the frames of two servers, and has the name of the lower
SWITCH_X, SWITCH_WIDTH, NODE_X, NODE_WIDTH = 40, 170, 650, 230
WIDTH = NODE_X + NODE_WIDTH + 2 * EDGE
TOP = 88  # of the first row: above it are the title and the name of a server
STYLE = f"""
text {{ font: 12px system-ui, sans-serif; fill: #57606a; }}
.title {{ font-size: 15px; font-weight: 600; fill: #1f2328; }}
.paper {{ fill: #ffffff; }}
.frame {{ fill: none; stroke: #8c959f; stroke-dasharray: 2 3; }}
.node {{ fill: {NODE}; stroke: {INK}; }}
.switch {{ fill: {SWITCH}; stroke: {INK}; }}
.in {{ fill: {INK}; }}
.name {{ fill: {INK}; font-size: 14px; font-weight: 600; }}
.fault {{ fill: {FAULTY}; font-size: 20px; font-weight: 700; text-anchor: middle; }}
@media (prefers-color-scheme: dark) {{
text {{ fill: #9198a1; }}
.title {{ fill: #f0f6fc; }}
.paper {{ fill: #0d1117; }}
.in, .name {{ fill: {INK}; }}
.fault {{ fill: {FAULTY}; }}
}}
"""


@dataclass(frozen=True, slots=True)
class _Row:
    """The place of a node: the top and the height of its row."""

    node: Document
    link: Document
    top: int
    height: int

    @property
    def middle(self) -> int:
        """Where its link is."""
        return self.top + ROW_MIN // 2


def text(graph: Document) -> str:
    """The picture."""
    rows = list(_rows(graph))
    bottom = max(row.top + row.height for row in rows)
    height = bottom + 2 * EDGE
    root = Element(
        "svg", xmlns="http://www.w3.org/2000/svg", width=str(WIDTH), height=str(height),
        viewBox=f"0 0 {WIDTH} {height}", role="img",
    )  # fmt: skip
    SubElement(root, "title").text = printable(graph_labels.title(graph))
    SubElement(root, "style").text = STYLE
    _box(root, "paper", 0, 0, WIDTH, height)
    _text(root, "title", EDGE, 30, graph_labels.title(graph))
    _frames(root, graph, rows, bottom)
    tunnels = graph_labels.tunnels(graph)
    for row in rows:
        _link(root, graph, row, is_tunnel=row.node["name"] in tunnels)
        _node(root, graph, row)
    _box(root, "switch", SWITCH_X, TOP, SWITCH_WIDTH, bottom - TOP)
    _text(root, "name", SWITCH_X + 12, TOP + 24, "switch")
    _text(root, "in", SWITCH_X + 12, TOP + 42, graph["switch"]["bridge"])
    indent(root)
    return tostring(root, encoding="unicode") + "\n"


def _rows(graph: Document) -> Iterator[_Row]:
    """The rows of all nodes, server by server."""
    links, top, is_first = {link["node"]: link for link in graph["links"]}, TOP, True
    for server in graph["servers"]:
        nodes = [node for node in graph["nodes"] if node["server"] == server["name"]]
        top += GAP if nodes and not is_first else 0
        for node in nodes:
            link = links[node["name"]]
            height = max(ROW_MIN, ROW_MIN // 2 + LINE * (1 + len(list(graph_labels.facts(link)))))
            yield _Row(node, link, top, height)
            top, is_first = top + height, False


def _frames(root: Element, graph: Document, rows: Sequence[_Row], bottom: int) -> None:
    """The frame of each server with its name. If one server has everything, it has one frame."""
    carriers = {row.node["server"] for row in rows}
    switch = graph["switch"]["server"]
    if carriers == {switch}:
        _frame(root, switch, EDGE, WIDTH - 2 * EDGE, TOP, bottom)
        return
    _frame(root, switch, EDGE, SWITCH_WIDTH + 2 * EDGE, TOP, bottom)
    for server in graph["servers"]:
        own = [row for row in rows if row.node["server"] == server["name"]]
        if own:
            end = own[-1].top + own[-1].height
            _frame(root, server["name"], NODE_X - EDGE, NODE_WIDTH + 2 * EDGE, own[0].top, end)


def _frame(root: Element, name: str, left: int, width: int, top: int, bottom: int) -> None:
    _text(root, "", left + 8, top - 18, f"server {name}")
    _box(root, "frame", left, top - 12, width, bottom - top + 24)


def _link(root: Element, graph: Document, row: _Row, *, is_tunnel: bool) -> None:
    start, y = SWITCH_X + SWITCH_WIDTH, str(row.middle)
    line = SubElement(root, "line", x1=str(start), y1=y, x2=str(NODE_X), y2=y)
    line.set("stroke", graph_labels.color(row.link))
    line.set("stroke-width", f"{graph_labels.width(row.link):g}")
    if is_tunnel:
        line.set("stroke-dasharray", "8 4")
    label = graph_labels.path(graph, row.node) + (", tunnel" if is_tunnel else "")
    _text(root, "", start + EDGE + 10, row.middle - 7, label)
    for number, fact in enumerate(graph_labels.facts(row.link), start=1):
        _text(root, "", start + EDGE + 10, row.middle + 2 + LINE * number, fact)
    if row.link["faults"]:
        _text(root, "fault", NODE_X - 40, row.middle + 7, "\N{MULTIPLICATION SIGN}")


def _node(root: Element, graph: Document, row: _Row) -> None:
    _box(root, "node", NODE_X, row.middle - 21, NODE_WIDTH, 42)
    _text(root, "name", NODE_X + 12, row.middle - 3, row.node["name"])
    _text(root, "in", NODE_X + 12, row.middle + 13, graph_labels.node_facts(graph, row.node))


def _box(root: Element, kind: str, left: int, top: int, width: int, height: int) -> None:
    box = SubElement(root, "rect", x=str(left), y=str(top), width=str(width), height=str(height), rx="6")
    box.set("class", kind)


def _text(root: Element, kind: str, left: int, base: int, content: str) -> None:
    element = SubElement(root, "text", x=str(left), y=str(base))
    element.text = printable(content)
    if kind:
        element.set("class", kind)
