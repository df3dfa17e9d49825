"""Segmentation offloads of taps and tunnels, turned off while links have limits: then each frame is a frame.

With them, nodes send TCP data in frames of up to 64 KiB, and a limit counts or drops such a frame as a whole. A record
on the server has what was on before. It has the owner label of the cluster.
"""

from __future__ import annotations

from collections.abc import Sequence

from vcluster.fleet.servers import Server
from vcluster.model import naming
from vcluster.model.plan import Node, Plan
from vcluster.resources.owned import OwnedItem


def create(server: Server, plan: Plan) -> tuple[str, ...]:
    """Turn the offloads of a server's taps and tunnels off if links have limits, otherwise on as they were.

    Returns the changed interfaces.
    """
    if not plan.links:
        return restore(server, plan.name)
    taps = [node.port for node in plan.nodes_on(server.name)]
    tunnels = [tunnel.name for tunnel in plan.server(server.name).tunnels]
    return _turn_off(server, plan, [*taps, *tunnels])


def create_tap(server: Server, plan: Plan, node: Node) -> None:
    """Turn the offloads of a node's tap off, if links have limits."""
    if plan.links:
        _turn_off(server, plan, [node.port])


def _turn_off(server: Server, plan: Plan, interfaces: Sequence[str]) -> tuple[str, ...]:
    alias = naming.alias(plan.name, server.owner)
    return tuple(server.call("turn_off_offloads", alias=alias, interfaces=[*interfaces]))


def reduce(server: Server, before: Plan, after: Plan) -> None:
    """Turn on what was on before, if the plan `before` has limits and the plan `after` has none."""
    if before.links and not after.links:
        restore(server, after.name)


def destroy(server: Server, cluster: str) -> None:
    """Turn on what was on before."""
    restore(server, cluster)


def restore(server: Server, cluster: str) -> tuple[str, ...]:
    """Turn on what was on before. Returns the changed interfaces."""
    return tuple(server.call("restore_offloads", alias=naming.alias(cluster, server.owner)))


def observe(server: Server) -> tuple[OwnedItem, ...]:
    """The clusters of this owner whose offloads are turned off."""
    labels = map(naming.parse_alias, server.call("offload_labels"))
    return tuple(OwnedItem("offloads of", label[0], label[0]) for label in labels if label and label[1] == server.owner)
