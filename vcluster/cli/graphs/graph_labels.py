"""What all forms of a graph write next to a link, and the colours of all pictures. Pure.

The colours are those of Okabe and Ito, which people with each kind of colour blindness tell apart. No form relies on
them: the text next to a link has the same facts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Document = Mapping[str, Any]

NODE, SWITCH, LIMITED, FAULTY, PLAIN = "#56B4E9", "#F0E442", "#E69F00", "#D55E00", "#767676"
INK = "#1f2328"  # on the colours of nodes and of the switch, also in the dark
UNITS = ((10**9, "Gbit/s"), (10**6, "Mbit/s"), (10**3, "kbit/s"))


def facts(link: Document) -> Iterator[str]:
    """The limits, the faults and the load of a link, a short text for each."""
    for one in link["shaping"] or ():
        peer = f" peer {one['peer']}" if one["peer"] else ""
        yield f"{one['direction']}{peer} {one['limits']}"
    yield from (f"fault: {text}" for text in link["faults"])
    if link["load"]:
        yield f"sends {rate(link['load']['from_rate_bits'])}, receives {rate(link['load']['to_rate_bits'])}"


def rate(bits_s: int | None) -> str:
    """A rate with three digits and its unit; ? if it is not known."""
    if bits_s is None:
        return "?"
    for factor, unit in UNITS:
        if bits_s >= factor:
            return f"{bits_s / factor:.3g} {unit}"
    return f"{bits_s} bit/s"


def color(link: Document) -> str:
    """The colour of a link: that of faults comes first, then that of limits."""
    if link["faults"]:
        return FAULTY
    return LIMITED if link["shaping"] else PLAIN


def width(link: Document) -> float:
    """The width of a line: one step for each power of ten above 1 kbit/s of load."""
    load = link["load"] or {}
    most = max(load.get("from_rate_bits") or 0, load.get("to_rate_bits") or 0)
    return 1.5 + max(0, len(str(most)) - 3)


def tunnels(graph: Document) -> dict[str, Document]:
    """The tunnel of each node that has one."""
    return {one["node"]: one for one in graph["tunnels"]}


def path(graph: Document, node: Document) -> str:
    """The ports between the switch and a node, as a text."""
    tunnel = tunnels(graph).get(node["name"])
    if tunnel is None:
        return str(node["switch_port"])
    return f"{node['switch_port']}, VNI {tunnel['vni']}"


def is_absent(graph: Document, node: Document) -> bool:
    """Whether the port of a node does not exist at the switch."""
    return any(port["node"] == node["name"] and port["present"] is False for port in graph["ports"])


def title(graph: Document) -> str:
    """The cluster in one line."""
    measured = "" if graph["load_s"] is None else f", load of {graph['load_s']:g} s"
    return f"{graph['name']}: {graph['mode']}, {graph['subnet']}, MTU {graph['mtu']}{measured}"


def node_facts(graph: Document, node: Document) -> str:
    """The role and the address of a node, and whether its port is missing."""
    return f"{node['role']}, {node['address']}" + (", no port" if is_absent(graph, node) else "")
