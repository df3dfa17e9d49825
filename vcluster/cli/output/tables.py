"""Tables, and lines for several nodes. Pure: values in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ClusterShell.RangeSet import RangeSet

from vcluster.model import naming


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as their widest cell."""
    lines = [tuple(header), *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def folded_numbers(numbers: Sequence[int]) -> str:
    """40,41,42 as 40-42."""
    return str(RangeSet.fromlist([str(number) for number in numbers])) if numbers else "-"


def outcomes(by_node: Mapping[str, str]) -> str:
    """Nodes with the same outcome in one line: node[1-3]: on."""
    nodes: dict[str, list[str]] = {outcome: [] for outcome in by_node.values()}
    for name, outcome in by_node.items():
        nodes[outcome].append(name)
    return "\n".join(f"{naming.folded(names)}: {outcome}" for outcome, names in nodes.items())


def shown_role(node: Mapping[str, Any]) -> str:
    """The role of a node in a table. In a plan's document a storage node is a worker with `data_gib`."""
    return "storage" if node["data_gib"] and node["role"] != "head" else str(node["role"])


def processor_lines(nodes: Sequence[Mapping[str, Any]], limit_percent: int) -> list[str]:
    """Lines about the limit of the CPUs of nodes, and about the processors that these nodes are pinned to."""
    pinned = [(node, node["processors"]) for node in nodes if node["processors"]]
    return [
        *([f"each CPU of a node may use {limit_percent} % of a processor"] if limit_percent else []),
        *(f"{node['name']} is pinned to {_shown(processors)} of {node['server']}" for node, processors in pinned),
    ]


def _shown(processors: Sequence[int]) -> str:
    return f"processor{'s' if len(processors) > 1 else ''} {', '.join(map(str, processors))}"


def prefixes(names: Sequence[str]) -> dict[str, str]:
    """The prefix of each output line of a node: its name, padded to the width of the longest."""
    width = max(map(len, names), default=0) + 1
    return {name: f"{name}:".ljust(width) + " " for name in names}
