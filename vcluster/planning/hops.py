"""The ports that a frame passes from one node to another, by the plan. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from vcluster.model import naming
from vcluster.model.plan import Node, Plan


@dataclass(frozen=True, slots=True)
class Hop:
    """A port that a frame passes. `comes_in` is True if the port receives the frame, False if it sends it."""

    what: str
    server: str
    link: str
    bridge: str
    comes_in: bool


def switch_port(plan: Plan, node: Node) -> str:
    """The port of a node on the switch: its tap, or the end of its tunnel."""
    return node.port if node.vni is None else naming.tunnel_name(plan.name, node.index)


def hops(plan: Plan, start: Node, end: Node) -> tuple[Hop, ...]:
    """The ports from `start` to `end`, in order. An answer passes them in reverse order."""
    before, after = _to_switch(plan, start, comes_in=True), _to_switch(plan, end, comes_in=False)
    return (*before, *reversed(after))


def _to_switch(plan: Plan, node: Node, *, comes_in: bool) -> tuple[Hop, ...]:
    """The ports from a node to the switch; with `comes_in` False they are for frames from the switch to the node."""
    tap = Hop(f"tap of {node.name}", node.server, node.port, node.bridge, comes_in)
    if node.vni is None:  # its tap is a port of the switch
        return (tap,)
    name = switch_port(plan, node)
    tunnel = Hop(f"tunnel of {node.name}", node.server, name, node.bridge, not comes_in)
    port = Hop(f"switch port of {node.name}", plan.switch.server, name, plan.switch.bridge, comes_in)
    return (tap, tunnel, port)
