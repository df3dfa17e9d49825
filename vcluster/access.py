"""Reaching the nodes of a cluster that is up: checks, and commands on many nodes at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException

from vcluster import cluster, parallel
from vcluster.cluster import Site
from vcluster.errors import RequestError, VclusterError
from vcluster.events import Deadline
from vcluster.hosts.shell import Completed
from vcluster.hosts.ssh import Session
from vcluster.model import Node, Plan
from vcluster.naming import one_line, shown
from vcluster.stages import check


@contextmanager
def sessions(
    site: Site, plan: Plan, nodes: Sequence[Node], *, user: str, deadline: Deadline
) -> Iterator[dict[str, Session]]:
    """Logged-in sessions on nodes, by name, closed at the end."""
    keys = site.files(plan.name).read_keys()
    with ExitStack() as stack:
        made = parallel.each(
            nodes, lambda node: cluster.log_in(keys, node, user=user, deadline=deadline), deadline=deadline
        )
        yield {session.name: stack.enter_context(session) for session in made}


def check_cluster(site: Site, plan: Plan, *, timeout_s: float) -> check.Verdict:
    """Run the whole check on a cluster. Raises VclusterError when a node is not even running."""
    state = cluster.status(site, plan.name)
    down = [node.name for node in state.nodes if node.state != "running"]
    if down:
        raise VclusterError(f"not running: {', '.join(down)}", hint=f"vcluster status {plan.name}")
    deadline = Deadline(timeout_s)
    with sessions(site, plan, plan.nodes, user="root", deadline=deadline) as opened:
        return check.run(plan, opened, deadline=deadline, report=site.report)


def run_everywhere(
    site: Site, plan: Plan, nodes: Sequence[Node], argv: Sequence[str], *, user: str, timeout_s: float
) -> dict[str, Completed]:
    """Run a command on nodes side by side; what each printed and its exit code, by node."""
    deadline = Deadline(timeout_s)
    with sessions(site, plan, nodes, user=user, deadline=deadline) as opened:
        ran = parallel.each(
            nodes, lambda node: opened[node.name].run(argv, awaited=f"{argv[0]} to end"), deadline=deadline
        )
    return {node.name: completed for node, completed in zip(nodes, ran, strict=True)}


def choose_nodes(plan: Plan, nodeset: str | None) -> tuple[Node, ...]:
    """The nodes a nodeset names, in the plan's order; all of them for None."""
    if nodeset is None:
        return plan.nodes
    try:
        wanted = set(NodeSet(nodeset, resolver=RESOLVER_NOGROUP))
    except NodeSetException as error:
        raise RequestError(
            f"-w {shown(nodeset)} is not a nodeset: {one_line(error)}", hint="such as 'node[1-3]'"
        ) from error
    unknown = wanted - {node.name for node in plan.nodes}
    if unknown or not wanted:
        names = NodeSet.fromlist([node.name for node in plan.nodes], resolver=RESOLVER_NOGROUP)
        raise RequestError(
            f"cluster {plan.name} has no node {', '.join(map(shown, sorted(unknown))) or shown(nodeset)}",
            hint=f"it has {names}",
        )
    return tuple(node for node in plan.nodes if node.name in wanted)


def choose_node(plan: Plan, name: str) -> Node:
    """The node of that name."""
    found = next((node for node in plan.nodes if node.name == name), None)
    if found is None:
        raise RequestError(
            f"cluster {plan.name} has no node {shown(name)}",
            hint=f"it has {', '.join(node.name for node in plan.nodes)}",
        )
    return found
