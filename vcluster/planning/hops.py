"""Which links a frame crosses on its way from one node to another, by the plan. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from vcluster.model import naming
from vcluster.model.plan import Node, Plan


@dataclass(frozen=True, slots=True)
class Hop:
    """A port that a frame passes. `comes_in` tells whether, on the way there, the port receives it or sends it."""

    what: str
    server: str
    link: str
    bridge: str
    comes_in: bool


def hops(plan: Plan, start: Node, end: Node) -> tuple[Hop, ...]:
    """The ports from `start` to `end`, in order; the way back passes them the other way round."""
    out, back = _side(plan, start, comes_in=True), _side(plan, end, comes_in=False)
    return (*out, *reversed(back))


def _side(plan: Plan, node: Node, *, comes_in: bool) -> tuple[Hop, ...]:
    """From a node to the switch; the same ports, seen the other way, lead from the switch to it."""
    tap = Hop(f"tap of {node.name}", node.server, node.port, node.bridge, comes_in)
    if node.vni is None:  # its tap is the switch's own port
        return (tap,)
    name = naming.tunnel_name(plan.name, node.index)
    tunnel = Hop(f"tunnel of {node.name}", node.server, name, node.bridge, not comes_in)
    port = Hop(f"switch port of {node.name}", plan.switch.server, name, plan.switch.bridge, comes_in)
    return (tap, tunnel, port)
