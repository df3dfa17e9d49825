"""The graph of a cluster as text: the switch, and from it a line to each node. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from vcluster.cli.graphs import graph_labels
from vcluster.cli.graphs.graph_labels import Document


def text(graph: Document) -> str:
    """The graph, for people."""
    return "\n".join((graph_labels.title(graph), *_servers(graph), *_switch(graph)))


def _servers(graph: Document) -> Iterator[str]:
    for server in graph["servers"]:
        count = sum(node["server"] == server["name"] for node in graph["nodes"])
        nodes = "1 node" if count == 1 else f"{count} nodes"
        parts = ["switch" if server["has_switch"] else "", nodes if count else ""]
        yield f"server {server['name']}: {', '.join(filter(None, parts))}"


def _switch(graph: Document) -> Iterator[str]:
    yield f"switch {graph['switch']['bridge']} on {graph['switch']['server']}"
    links = {link["node"]: link for link in graph["links"]}
    last = graph["nodes"][-1]["name"]
    for node in graph["nodes"]:
        yield f"+-- {_route(graph, node)} -- {node['name']} ({graph_labels.node_facts(graph, node)})"
        side = " " if node["name"] == last else "|"
        yield from (f"{side}     {fact}" for fact in graph_labels.facts(links[node["name"]]))


def _route(graph: Document, node: Document) -> str:
    """The ports from the switch to a node; = marks a tunnel."""
    tunnel = graph_labels.tunnels(graph).get(node["name"])
    if tunnel is None:
        return str(node["switch_port"])
    ports = {port["kind"]: port for port in graph["ports"] if port["node"] == node["name"]}
    near = ports["tap"]
    return (
        f"{node['switch_port']} == VNI {tunnel['vni']} == {node['switch_port']} on {tunnel['server']}"
        f" -- {near['bridge']} -- {near['name']}"
    )
